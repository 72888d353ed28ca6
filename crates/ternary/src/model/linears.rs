//! How a block calls its linear projections.

use formats::artifact::{ModelConfig, ProjectionKind};
use tch::{Kind, Tensor};

use crate::model::ops;
use crate::model::weights::{ModelError, Weights};

/// The linear projections of the blocks. Kinds passed together share the input, so an implementation may quantize it
/// once. The calls of a block are `[Q, K, V]`, `[O]`, `[Gate, Up]` and `[Down]`.
pub trait Linears {
    /// Products of `x` (N, in) with the weights of these kinds in block `layer`: (N, out) each, in `x`'s kind.
    fn project(&self, layer: usize, kinds: &[ProjectionKind], x: &Tensor) -> Vec<Tensor>;
}

/// Plain weights: the parent, the evaluator.
pub struct Dense {
    layers: Vec<[Tensor; 7]>,
}

impl Dense {
    /// Takes the projections out of `weights` in `compute` (the type of the products).
    ///
    /// # Errors
    /// When one is missing or libtorch cannot convert it.
    pub fn new(config: &ModelConfig, weights: &Weights, compute: Kind) -> Result<Self, ModelError> {
        let mut layers = Vec::with_capacity(config.num_hidden_layers);
        for layer in 0..config.num_hidden_layers {
            let mut block = Vec::with_capacity(7);
            for kind in ProjectionKind::ALL {
                block.push(weights.projection(layer, kind)?.f_to_kind(compute)?);
            }
            layers.extend(<[Tensor; 7]>::try_from(block));
        }
        Ok(Self { layers })
    }

    /// A weight, `(out, in)`.
    pub fn weight(&self, layer: usize, kind: ProjectionKind) -> &Tensor {
        &self.layers[layer][kind as usize]
    }
}

impl Linears for Dense {
    fn project(&self, layer: usize, kinds: &[ProjectionKind], x: &Tensor) -> Vec<Tensor> {
        let weights: Vec<&Tensor> = kinds.iter().map(|&kind| self.weight(layer, kind)).collect();
        ops::linears(x, &weights)
    }
}

/// BitDistill's SubLN (arXiv 2510.13998): an RMSNorm of the inputs of o and down, in front of what `linears` does.
///
/// It divides by a length that depends on the text, so no projection can take it over, and no artifact has a place for
/// it: what was trained with it is another model without. For comparisons, not for a recipe that hands over an artifact.
pub struct SubLayerNorm<'a> {
    /// The projections behind the norms.
    pub linears: &'a dyn Linears,
    /// Weights of the two norms of each block: (H·head_dim) for o and (F) for down. Ones where training starts.
    pub weights: &'a [[Tensor; 2]],
    /// Epsilon.
    pub eps: f64,
}

impl Linears for SubLayerNorm<'_> {
    fn project(&self, layer: usize, kinds: &[ProjectionKind], x: &Tensor) -> Vec<Tensor> {
        let [o, down] = &self.weights[layer];
        let weight = match kinds {
            [ProjectionKind::O] => o,
            [ProjectionKind::Down] => down,
            _ => return self.linears.project(layer, kinds, x),
        };
        let (_, x) = ops::add_rms_norm(&x.to_kind(Kind::Float), None, weight, self.eps, x.kind());
        self.linears.project(layer, kinds, &x)
    }
}
