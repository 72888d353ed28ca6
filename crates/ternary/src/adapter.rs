//! Soft to hard with LoRA: the parent's weights stay as they are, a low-rank update is trained that takes their sum to
//! the ternary grid, and the two are merged before the final projection. No artifact holds an adapter.

use tch::{Kind, Tensor};

use crate::quantize::{Quantized, spread};
use crate::weight::{Blend, Method, TernaryWeight};

/// Frozen weights W₀ `[out, in]` with a trained update of rank r:
///
/// * W = W₀ + (α/r)·B·A, B `[out, r]` from zeros and A `[r, in]` from N(0, 1/in) (LoRA, arXiv 2106.09685)
/// * the model uses W + λ·(Q(W) − W); dW is what the [`crate::weight::Estimator`] says
/// * penalty towards the grid, in the loss κ times: P = the mean of min_c (W/s − c)² over c in {−1, 0, 1} and all n
///   weights, s the scale of the group, taken as constant; dP/dW = 2·(W/s − c)/(n·s)
/// * dB = (α/r)·(dW + κ·dP/dW)·Aᵀ, dA = (α/r)·Bᵀ·(dW + κ·dP/dW)
///
/// The penalty has no primary source: this is its definition. κ is to rise, as a factor of
/// [`crate::schedule::Lambda`] does. c changes at s/2, as the codes of [`crate::quantize::Scale::AbsMean`] and
/// [`crate::quantize::Scale::Mse`] do; with other rules or deadzones some weights are drawn to another level than their
/// code's.
#[derive(Debug)]
pub struct LoraWeight {
    parent: Tensor,
    a: Tensor,
    b: Tensor,
    /// α/r.
    scaling: f64,
    /// Its master is W.
    merged: TernaryWeight,
}

/// Gradients of a [`LoraWeight`], f32; none where neither model nor penalty used it.
#[derive(Debug)]
pub struct LoraGradients {
    /// dA, `[r, in]`.
    pub a: Option<Tensor>,
    /// dB, `[out, r]`.
    pub b: Option<Tensor>,
    /// Of the learned scales.
    pub scales: Option<Tensor>,
}

impl LoraWeight {
    /// Adapts `weight`, whose master is W₀ (copied: W is written into its place). A is drawn from libtorch's generator.
    ///
    /// # Panics
    /// When `rank` is not positive.
    pub fn new(weight: TernaryWeight, rank: i64, alpha: f64) -> Self {
        assert!(rank > 0, "an update has a rank of 1 or more, not {rank}");
        let parent = weight.master().copy();
        let (out, columns) = (parent.size()[0], parent.size()[1]);
        let options = (Kind::Float, parent.device());
        let a = Tensor::randn([rank, columns], options) / (columns as f64).sqrt();
        let b = Tensor::zeros([out, rank], options);
        Self { parent, a, b, scaling: alpha / rank as f64, merged: weight }
    }

    /// A, f32 `[r, in]`, which the optimizer moves.
    pub fn a(&self) -> &Tensor {
        &self.a
    }

    /// B, f32 `[out, r]`, which the optimizer moves.
    pub fn b(&self) -> &Tensor {
        &self.b
    }

    /// [`TernaryWeight::scales`].
    pub fn scales(&self) -> Option<&Tensor> {
        self.merged.scales()
    }

    /// How W is made ternary.
    pub fn method(&self) -> Method {
        self.merged.method()
    }

    /// What the model multiplies with, `[out, in]` in the compute kind; requires a gradient.
    pub fn leaf(&self) -> &Tensor {
        self.merged.leaf()
    }

    /// Merges, and writes the blended weights into a fresh leaf: [`TernaryWeight::refresh`].
    pub fn refresh(&mut self, blend: Blend) {
        self.merge();
        self.merged.refresh(blend);
    }

    fn merge(&self) {
        tch::no_grad(|| {
            let _ = self.parent.addmm_out(self.merged.master(), &(&self.b * self.scaling), &self.a);
        });
    }

    /// P of the weights of the last refresh, 0-dim f32 without a graph.
    pub fn penalty(&self) -> Tensor {
        tch::no_grad(|| self.off_grid().0.square().mean(Kind::Float))
    }

    /// W/s − c, and s of each weight.
    fn off_grid(&self) -> (Tensor, Tensor) {
        let w = self.merged.master();
        let scales = spread(&self.merged.export().scales, w);
        let x = w / &scales;
        let nearest = x.round().clamp_(-1.0, 1.0);
        (x - nearest, scales)
    }

    /// Maps the leaf's gradient, with κ = `strength` times the penalty's added. Call it before the optimizer moves A, B
    /// or the scales.
    pub fn gradients(&self, strength: f64) -> LoraGradients {
        let merged = self.merged.gradients();
        tch::no_grad(|| {
            let mut gradient = merged.master.map(|gradient| gradient.to_kind(Kind::Float));
            if strength != 0.0 {
                let (off, scales) = self.off_grid();
                let pull = &off * (2.0 * strength / off.numel() as f64) / scales;
                gradient = Some(match gradient {
                    Some(gradient) => pull + gradient,
                    None => pull,
                });
            }
            LoraGradients {
                a: gradient.as_ref().map(|gradient| (self.b.tr() * self.scaling).matmul(gradient)),
                b: gradient.map(|gradient| gradient.matmul(&(self.a.tr() * self.scaling))),
                scales: merged.scales,
            }
        })
    }

    /// Merges, and gives codes and scales of the hard quantizer, exactly those of a leaf refreshed with
    /// [`Blend::HARD`].
    pub fn export(&self) -> Quantized {
        self.merge();
        self.merged.export()
    }
}
