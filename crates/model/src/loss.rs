//! Cross entropy over the vocabulary, in chunks of positions, so that the logits never exist whole.

use tch::{Kind, Tensor, no_grad};

use crate::{native, ops};

/// Positions whose logits exist at the same time.
pub const CHUNK: i64 = 256;

/// Cross entropy in nats of every position, (N) f32, without gradient: hidden (N, D) and head (V, D) in the type of
/// the products, targets (N) i64.
pub fn token_losses(hidden: &Tensor, head: &Tensor, targets: &Tensor) -> Tensor {
    no_grad(|| {
        let head = head.to_kind(hidden.kind()).tr();
        let fused = ops::fused(hidden, hidden.kind());
        let parts: Vec<Tensor> = hidden
            .split(CHUNK, 0)
            .into_iter()
            .zip(targets.split(CHUNK, 0))
            .map(|(hidden, targets)| {
                let logits = hidden.matmul(&head);
                if fused {
                    return native::token_losses(&logits, &targets);
                }
                let logits = logits.to_kind(Kind::Float);
                let picked = logits.gather(1, &targets.unsqueeze(1), false).squeeze_dim(1);
                logits.logsumexp([1i64], false) - picked
            })
            .collect();
        Tensor::cat(&parts, 0)
    })
}

/// What is added to the cross entropy with the true token: the parent's distribution (Hinton et al. 2015).
#[derive(Debug, Clone, Copy)]
pub struct Teacher<'a> {
    /// The parent's hidden states (N, D_parent), without gradient.
    pub hidden: &'a Tensor,
    /// The parent's output embedding (V, D_parent).
    pub head: &'a Tensor,
    /// Share of the loss: `(1 - weight)·CE + weight·temperature²·KL(parent ‖ student)`.
    pub weight: f64,
    /// Divides both logits in the second term.
    pub temperature: f64,
}

/// A loss that can be differentiated, and its parts for the log.
#[derive(Debug)]
pub struct HeadLoss {
    /// What to call `backward` on: mean nats per position, mixed with the teacher's term if there is one.
    pub total: Tensor,
    /// Mean cross entropy with the true tokens, detached.
    pub cross_entropy: Tensor,
}

/// Mean loss over the positions, differentiable with respect to `hidden` (N, D) and `head` (V, D, any kind): the
/// gradients are computed chunk by chunk in the forward pass and handed over in the backward pass.
pub fn cross_entropy(hidden: &Tensor, head: &Tensor, targets: &Tensor, teacher: Option<Teacher>) -> HeadLoss {
    if ops::fused(hidden, hidden.kind()) {
        let parent = teacher.map(|t| (t.hidden, t.head, t.weight, t.temperature));
        let (total, cross_entropy) = native::head_loss(hidden, head, targets, parent, CHUNK);
        return HeadLoss { total, cross_entropy };
    }
    portable(hidden, head, targets, teacher)
}

/// [`cross_entropy`] as a composition of libtorch's operators: for other devices, and the reference in tests.
pub fn portable(hidden: &Tensor, head: &Tensor, targets: &Tensor, teacher: Option<Teacher>) -> HeadLoss {
    let count = hidden.size()[0];
    let leaf = hidden.detach().set_requires_grad(hidden.requires_grad());
    let head_leaf = head.detach().set_requires_grad(head.requires_grad());
    let product_head = head_leaf.to_kind(hidden.kind());
    let product_leaf = product_head.detach().set_requires_grad(head.requires_grad());
    let mut total = Tensor::zeros([], (Kind::Float, hidden.device()));
    let mut plain = total.shallow_clone();
    let mut start = 0;
    while start < count {
        let length = CHUNK.min(count - start);
        let targets = targets.narrow(0, start, length);
        let logits = leaf.narrow(0, start, length).matmul(&product_leaf.tr()).to_kind(Kind::Float);
        let ce = logits.cross_entropy_loss::<Tensor>(&targets, None, tch::Reduction::Sum, -100, 0.0) / count as f64;
        plain = plain + ce.detach();
        let part = match teacher {
            None => ce,
            Some(Teacher { hidden: parent, head: parent_head, weight, temperature }) => {
                let parent = parent
                    .narrow(0, start, length)
                    .matmul(&parent_head.to_kind(parent.kind()).tr())
                    .to_kind(Kind::Float);
                let log_p = (parent / temperature).log_softmax(1, Kind::Float);
                let log_q = (&logits / temperature).log_softmax(1, Kind::Float);
                let kl = (log_p.exp() * (log_p - log_q)).sum(Kind::Float) * (temperature * temperature / count as f64);
                ce * (1.0 - weight) + kl * weight
            }
        };
        if part.requires_grad() {
            part.backward();
        }
        total = total + part.detach();
        start += length;
    }
    // The detach identity: the value is the loss, the gradient is what the chunks left in the leaves.
    let mut identity = Tensor::zeros([], (Kind::Float, hidden.device()));
    for (tensor, leaf) in [(hidden, &leaf), (head, &product_leaf)] {
        if tensor.requires_grad() {
            let gradient = leaf.grad().to_kind(tensor.kind());
            identity = identity + (tensor * gradient.detach()).sum(Kind::Float);
        }
    }
    let value = &total - identity.detach();
    HeadLoss { total: identity + value, cross_entropy: plain }
}
