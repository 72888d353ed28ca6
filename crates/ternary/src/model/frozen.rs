//! A model that does not change, beside one that does.

use formats::artifact::{ModelConfig, ProjectionKind};
use tch::{Kind, Tensor};

use crate::model::decoder::{Decoder, Tapped, Taps};
use crate::model::linears::Dense;
use crate::model::weights::{ModelError, Weights};

/// The full-precision parent of a distillation. Nothing of it has a graph.
pub struct Frozen {
    decoder: Decoder,
    projections: Dense,
    head: Tensor,
}

impl Frozen {
    /// The model of `weights` as they are now, with products in `compute`. Shares what `student` holds frozen and equal.
    ///
    /// `student` are the tensors that the student has between its projections, by name; it may be empty. Those that
    /// require a gradient or differ from the model's are copied, and so are the projections, matrices in `compute`: a
    /// student may start from the memory of `weights` and train in it.
    ///
    /// Measured (`tests/memory.rs`), SmolLM2-135M against its parent on the CPU, 4 × 256 tokens, AdamW's state included:
    /// at most 2.9 GB of memory for logits, 3.7 GB with the hidden states behind all blocks and the attention relations
    /// of one; with products in f32 4.0 and 4.7 GB.
    ///
    /// # Errors
    /// When a tensor is missing or has another shape, or libtorch cannot convert it.
    pub fn new(config: &ModelConfig, weights: &Weights, student: &Weights, compute: Kind) -> Result<Self, ModelError> {
        let own = beside(config, weights, student, compute)?;
        let decoder = Decoder::new(config, &own, compute)?;
        let head = decoder.head().f_to_kind(compute)?;
        Ok(Self { projections: Dense::new(config, &own, compute)?, decoder, head })
    }

    /// [`Decoder::hidden`] of ids (B, T), without a graph.
    pub fn hidden(&self, ids: &Tensor) -> Tensor {
        self.tapped(ids, Taps::default()).hidden
    }

    /// [`Decoder::tapped`] of ids (B, T), without a graph.
    pub fn tapped(&self, ids: &Tensor, taps: Taps<'_>) -> Tapped {
        tch::no_grad(|| self.decoder.tapped(&self.projections, ids, taps))
    }

    /// The output embedding (V, D) in the type of the products; the student's too, where it trains none.
    pub fn head(&self) -> &Tensor {
        &self.head
    }

    /// What lies between the projections, to run block by block.
    pub fn decoder(&self) -> &Decoder {
        &self.decoder
    }

    /// The projections, likewise.
    pub fn projections(&self) -> &Dense {
        &self.projections
    }
}

/// The tensors of [`Frozen::new`].
fn beside(config: &ModelConfig, weights: &Weights, student: &Weights, compute: Kind) -> Result<Weights, ModelError> {
    weights.check(config)?;
    let copy = |tensor: &Tensor| {
        let kind = if tensor.dim() == 1 { tensor.kind() } else { compute };
        tensor.detach().f_to_dtype(kind, false, true)
    };
    let mut own = Weights::default();
    for layer in 0..config.num_hidden_layers {
        for kind in ProjectionKind::ALL {
            own.insert(kind.tensor(layer), copy(weights.projection(layer, kind)?)?);
        }
    }
    for (name, tensor) in weights.unquantized(config)?.iter() {
        let shared = student.get(name).ok().filter(|held| !held.requires_grad() && same(held, tensor));
        own.insert(name, shared.map_or_else(|| copy(tensor), |held| Ok(held.shallow_clone()))?);
    }
    Ok(own)
}

/// Whether two tensors hold the same values in the same type on the same device.
fn same(a: &Tensor, b: &Tensor) -> bool {
    a.kind() == b.kind() && a.device() == b.device() && a.size() == b.size() && a.equal(b)
}

#[cfg(test)]
mod tests {
    use formats::artifact::Architecture;
    use tch::Device;

    use super::*;

    #[test]
    fn what_the_student_trains_is_copied_and_the_rest_is_shared() {
        let config = ModelConfig {
            architecture: Architecture::Qwen3,
            vocab_size: 20,
            hidden_size: 8,
            intermediate_size: 12,
            num_hidden_layers: 2,
            num_attention_heads: 2,
            num_key_value_heads: 1,
            head_dim: 4,
            rope_theta: 1e4,
            rope_scaling: None,
            rms_norm_eps: 1e-5,
            tie_word_embeddings: false,
            max_position_embeddings: 8,
        };
        for compute in [Kind::Float, Kind::BFloat16] {
            let weights = Weights::init(&config, 0, Device::Cpu).expect("weights");
            let trained = "model.norm.weight";
            let hold =
                |(name, tensor): (&str, &Tensor)| (name.to_owned(), tensor.detach().set_requires_grad(name == trained));
            let mut student: Weights = weights.unquantized(&config).expect("the rest").iter().map(hold).collect();
            let folded = "model.layers.1.input_layernorm.weight";
            student.insert(folded, weights.get(folded).expect("a norm") * 2.0);
            let own = beside(&config, &weights, &student, compute).expect("tensors");
            let (mut shared, mut copied) = (0, 0);
            for (name, tensor) in own.iter() {
                let expected = weights.get(name).expect("a tensor");
                let copy = name.contains("_proj.") || name == trained || name == folded;
                assert_eq!(tensor.data_ptr() != expected.data_ptr(), copy, "{name} in {compute:?}");
                assert!(!tensor.requires_grad(), "{name}");
                assert_eq!(*tensor, expected.to_kind(tensor.kind()), "{name}");
                *(if copy { &mut copied } else { &mut shared }) += 1;
            }
            // Of two blocks: 7 projections each; 4 norms each, embedding, head and last norm, less two.
            assert_eq!((copied, shared), (16, 9));
        }
    }
}
