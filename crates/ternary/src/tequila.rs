//! Tequila's reactivation of the deadzone (arXiv 2509.23809): beside the ternary product, a bias made of the weights
//! that became 0. No artifact holds the bias: let its strength fall to 0 before the end of a run.

use tch::{Kind, Tensor};

use crate::quantize::{NotTernary, Quantized};
use crate::weight::{Gradients, TernaryWeight};

/// The bias of a projection, with D the weights whose code is 0 and strength λ:
///
/// * y = x·Q(w)ᵀ + C, C_j = λ·Σ w_ji over i in D, `[out]`
/// * dw_ji = what the weight's [`crate::weight::Estimator`] says, and on D also λ·dC_j
/// * dλ = Σ_j dC_j·Σ w_ji over D, when it is trained
///
/// The paper has Q with [`crate::quantize::Scale::AbsMean`] in groups of 128, straight-through gradients, and a fixed
/// λ = 1e-3. A weight at the threshold is in D here and outside of it there.
#[derive(Debug)]
pub struct Reactivation {
    strength: Tensor,
    trained: bool,
    share: f64,
    /// 1 where a code is 0, f32 `[out, in]`.
    dead: Tensor,
    /// Σ w over D, f32 `[out]`.
    sums: Tensor,
    compute: Kind,
    bias: Tensor,
}

impl Reactivation {
    /// For `weight`, from λ = `strength`; `trained` makes λ a parameter.
    pub fn new(weight: &TernaryWeight, strength: f64, trained: bool) -> Self {
        let master = weight.master();
        let strength = Tensor::full([1], strength, (Kind::Float, master.device()));
        let (dead, compute) = (master.shallow_clone(), weight.leaf().kind());
        let (sums, bias) = (strength.shallow_clone(), strength.shallow_clone());
        let mut reactivation = Self { strength, trained, share: 1.0, dead, sums, compute, bias };
        reactivation.refresh(weight, 1.0);
        reactivation
    }

    /// λ, f32 `[1]`, when the optimizer moves it.
    pub fn strength(&self) -> Option<&Tensor> {
        self.trained.then_some(&self.strength)
    }

    /// C, which the model adds to the product with the weight's leaf: `[out]` in its kind; requires a gradient.
    pub fn bias(&self) -> &Tensor {
        &self.bias
    }

    /// Writes C, with `share`·λ for λ, into a fresh leaf without a gradient. Call it before each step; a schedule takes
    /// `share` to 0.
    pub fn refresh(&mut self, weight: &TernaryWeight, share: f64) {
        self.share = share;
        let bias = tch::no_grad(|| {
            self.dead = weight.export().codes.eq(0).to_kind(Kind::Float);
            self.sums = (weight.master() * &self.dead).sum_dim_intlist(1, false, Kind::Float);
            (&self.sums * &self.strength * share).to_kind(self.compute)
        });
        self.bias = bias.set_requires_grad(true);
    }

    /// The weight's gradients with the bias's added, and dλ (f32 `[1]`) when λ is trained. Call it before the optimizer
    /// moves the master.
    pub fn gradients(&self, weight: &TernaryWeight) -> (Gradients, Option<Tensor>) {
        let mut gradients = weight.gradients();
        let gradient = self.bias.grad();
        if !gradient.defined() {
            return (gradients, None);
        }
        tch::no_grad(|| {
            let gradient = gradient.to_kind(Kind::Float) * self.share;
            let reactivated = (&gradient * &self.strength).unsqueeze(1) * &self.dead;
            gradients.master = Some(match gradients.master.take() {
                Some(master) => master + reactivated,
                None => reactivated,
            });
            let strength = self.trained.then(|| (gradient * &self.sums).sum(Kind::Float).reshape([1]));
            (gradients, strength)
        })
    }

    /// Codes and scales of `weight`, which is all there is once the bias is 0.
    ///
    /// # Errors
    /// While it is not.
    pub fn export(&self, weight: &TernaryWeight) -> Result<Quantized, NotTernary> {
        if self.share * self.strength.double_value(&[0]) == 0.0 {
            return Ok(weight.export());
        }
        Err(NotTernary { what: "Tequila's bias".into(), hint: "let its share fall to 0 before the end of the run" })
    }
}
