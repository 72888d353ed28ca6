//! How near a model stays to its parent, token by token.

use tch::{Kind, Tensor};

use crate::loss::chunk_rows;

/// Of each row, without a gradient.
#[derive(Debug)]
pub struct Nearness {
    /// KL(parent ‖ model) of the next token in nats, f32 `(N)`.
    pub divergence: Tensor,
    /// Whether both find the same token most likely, bool `(N)`.
    pub agreement: Tensor,
}

/// Compares a model's hidden states `(N, D)` and head `(V, D)` with its parent's, whose D may be another. Logits are
/// made a chunk of rows at a time; softmax is in f32.
pub fn nearness(model: [&Tensor; 2], parent: [&Tensor; 2]) -> Nearness {
    let [[hidden, head], [parent_hidden, parent_head]] = [model, parent];
    assert_eq!(hidden.size()[0], parent_hidden.size()[0], "model and parent see the same tokens");
    assert_eq!(head.size()[0], parent_head.size()[0], "model and parent have one vocabulary");
    tch::no_grad(|| {
        let rows = chunk_rows(head.size()[0]);
        let (divergence, agreement): (Vec<Tensor>, Vec<Tensor>) = (hidden.split(rows, 0).iter())
            .zip(parent_hidden.split(rows, 0))
            .map(|(hidden, parent_hidden)| {
                let log_p = hidden.matmul(&head.tr()).log_softmax(-1, Kind::Float);
                let log_q = parent_hidden.matmul(&parent_head.tr()).log_softmax(-1, Kind::Float);
                let agreement = log_p.argmax(-1, false).eq_tensor(&log_q.argmax(-1, false));
                ((log_q.exp() * (log_q - log_p)).sum_dim_intlist(-1, false, Kind::Float), agreement)
            })
            .unzip();
        Nearness { divergence: Tensor::cat(&divergence, 0), agreement: Tensor::cat(&agreement, 0) }
    })
}
