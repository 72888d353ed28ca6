//! Weights as a training step sees them: an f32 master, and a leaf in the compute kind that the model uses and whose
//! gradient is mapped back to the master. A weight is quantized once a step.

use artifact::Grouping;
use tch::{Device, Kind, Tensor};

use crate::kernel::{self, Source};
use crate::native::view;
use crate::quantize::{Quantized, Scale, check, quantize, quantize_with, soft, spread};

/// How the gradient G of the weight that the model used becomes the master's.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Estimator {
    /// Straight through: dw = G.
    Plain,
    /// dw = G·((1 − λ) + λ·1[|w| ≤ bound·s]): nothing pushes a weight further out than `bound` scales.
    Clipped {
        /// In scales; 1 or more.
        bound: f64,
    },
    /// LSQ: the scales are parameters, see [`learned_scale_gradients`]. Set the deadzone to 0.5, LSQ's rounding.
    LearnedScale,
    /// The soft quantizer while [`Blend::temperature`] is given (its true gradient), then plain.
    Soft,
}

/// How a weight is made ternary.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Method {
    /// Which weights share a scale.
    pub grouping: Grouping,
    /// Rule of the scale; with a learned scale, of its start.
    pub scale: Scale,
    /// See [`Scale`]; with a learned scale, in scales.
    pub deadzone: f64,
    /// Gradient rule.
    pub estimator: Estimator,
}

/// How far quantization is blended in, from the schedules.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Blend {
    /// λ of w + λ·(Q(w) − w); 1 is ternary.
    pub lambda: f64,
    /// Temperature of the soft quantizer; none for hard codes.
    pub temperature: Option<f64>,
}

impl Blend {
    /// Ternary, as exported.
    pub const HARD: Self = Self { lambda: 1.0, temperature: None };
}

/// Gradients of a [`TernaryWeight`] after a backward pass.
#[derive(Debug)]
pub struct Gradients {
    /// Of the master, `[out, in]`, f32 or (straight through) of the compute kind; none where the model did not use it.
    pub master: Option<Tensor>,
    /// Of the learned scales, f32.
    pub scales: Option<Tensor>,
}

/// A projection in training.
#[derive(Debug)]
pub struct TernaryWeight {
    master: Tensor,
    scales: Option<Tensor>,
    method: Method,
    blend: Blend,
    values: Tensor,
    leaf: Tensor,
}

impl TernaryWeight {
    /// Takes `master` (f32 `[out, in]`, copied when it is not contiguous) and computes in `compute` (f32 or bf16).
    /// The leaf starts out ternary.
    ///
    /// # Panics
    /// When `master` is not a matrix of f32, or the group width does not divide its rows.
    pub fn new(master: Tensor, method: Method, compute: Kind) -> Self {
        check(&master, method.grouping);
        let master = master.detach().contiguous();
        let scales = (method.estimator == Estimator::LearnedScale)
            .then(|| quantize(&master, method.grouping, method.scale, method.deadzone).scales);
        let values = Tensor::empty(master.size(), (compute, master.device()));
        let leaf = leaf_of(&values);
        let mut weight = Self { master, scales, method, blend: Blend::HARD, values, leaf };
        weight.refresh(Blend::HARD);
        weight
    }

    /// The f32 weights that the optimizer moves.
    pub fn master(&self) -> &Tensor {
        &self.master
    }

    /// The learned scales that the optimizer moves, f32 in the shape of [`Quantized::scales`].
    pub fn scales(&self) -> Option<&Tensor> {
        self.scales.as_ref()
    }

    /// How it is made ternary.
    pub fn method(&self) -> Method {
        self.method
    }

    /// What the model multiplies with, `[out, in]` in the compute kind; requires a gradient.
    pub fn leaf(&self) -> &Tensor {
        &self.leaf
    }

    /// Writes the blended weights into a fresh leaf without a gradient. Call it once before each step, after the
    /// backward passes of the last: their graphs refer to the same memory.
    pub fn refresh(&mut self, blend: Blend) {
        let Method { grouping, scale, deadzone, .. } = self.method;
        self.blend = blend;
        tch::no_grad(|| {
            if let Some(temperature) = self.temperature() {
                let soft = soft(&self.master, grouping, scale, deadzone, temperature);
                self.values.copy_(&self.master.lerp(&soft, blend.lambda));
            } else if self.master.device() == Device::Cpu {
                let source = match &self.scales {
                    Some(scales) => Source::Given(view(scales), deadzone as f32),
                    None => Source::Rule(scale, deadzone as f32),
                };
                kernel::blend(&self.master, grouping, source, blend.lambda, &mut self.values);
            } else {
                let quantized = self.export().dequantize();
                let mixed = if blend.lambda == 1.0 { quantized } else { self.master.lerp(&quantized, blend.lambda) };
                self.values.copy_(&mixed);
            }
        });
        self.leaf = leaf_of(&self.values);
    }

    fn temperature(&self) -> Option<f64> {
        self.blend.temperature.filter(|_| self.method.estimator == Estimator::Soft)
    }

    /// Maps the leaf's gradient by the estimator's rule. Call it before the optimizer moves the master.
    pub fn gradients(&self) -> Gradients {
        let gradient = self.leaf.grad();
        if !gradient.defined() {
            return Gradients { master: None, scales: None };
        }
        let Method { grouping, scale, deadzone, estimator } = self.method;
        let lambda = self.blend.lambda;
        match estimator {
            Estimator::Clipped { bound } => tch::no_grad(|| {
                let inside = self.master.abs().le_tensor(&(spread(&self.export().scales, &self.master) * bound));
                let master = gradient.to_kind(Kind::Float) * (inside.to_kind(Kind::Float) * lambda + (1.0 - lambda));
                Gradients { master: Some(master), scales: None }
            }),
            Estimator::LearnedScale => {
                let scales = crate::quantize::snap(self.scales.as_ref().expect("made in new"));
                let gradient = gradient.to_kind(Kind::Float);
                let (master, scales) = learned_scale_gradients(&self.master, &scales, &gradient, deadzone, lambda);
                Gradients { master: Some(master), scales: Some(scales) }
            }
            Estimator::Soft if self.temperature().is_some() => {
                let temperature = self.temperature().unwrap_or_default();
                let w = leaf_of(&self.master);
                let gradient = gradient.to_kind(Kind::Float);
                let through = (soft(&w, grouping, scale, deadzone, temperature) * &gradient).sum(Kind::Float);
                let through = Tensor::run_backward(&[through], &[&w], false, false).remove(0);
                Gradients { master: Some(gradient.lerp(&through, lambda)), scales: None }
            }
            Estimator::Plain | Estimator::Soft => Gradients { master: Some(gradient), scales: None },
        }
    }

    /// Codes and scales of the hard quantizer, exactly those of a leaf refreshed with [`Blend::HARD`].
    pub fn export(&self) -> Quantized {
        let Method { grouping, scale, deadzone, .. } = self.method;
        match &self.scales {
            Some(scales) => quantize_with(&self.master, grouping, scales, deadzone),
            None => quantize(&self.master, grouping, scale, deadzone),
        }
    }
}

/// Gradients of w_ = w + λ·(Q(w) − w), Q(w) = α·code, given dL/dw_ = G (all f32), by LSQ's rule, with x = w/α:
///
/// * dw = G·((1 − λ) + λ·1[|x| ≤ 1])
/// * dα = λ·g·Σ G·(code − x where |x| ≤ 1, else sign(x)) over α's group, g = 1/√(number of weights of the matrix)
///
/// `alpha` is `[out, groups]` or `[1]`; the second result has its shape.
pub fn learned_scale_gradients(
    w: &Tensor,
    alpha: &Tensor,
    gradient: &Tensor,
    deadzone: f64,
    lambda: f64,
) -> (Tensor, Tensor) {
    tch::no_grad(|| {
        let x = w / spread(alpha, w);
        let magnitude = x.abs();
        let inside = magnitude.le(1.0);
        let code = magnitude.gt(deadzone) * x.sign();
        let slope = (code - &x).where_self(&inside, &x.sign()) * gradient;
        let sums = match alpha.size()[..] {
            [rows, groups] => slope.reshape([rows, groups, -1]).sum_dim_intlist(-1, false, Kind::Float),
            _ => slope.sum(Kind::Float).reshape([1]),
        };
        let master = gradient * (inside.to_kind(Kind::Float) * lambda + (1.0 - lambda));
        (master, sums * (lambda / (w.numel() as f64).sqrt()))
    })
}

/// A weight that stays dense (embedding, head, norm): f32 master, leaf in the compute kind.
#[derive(Debug)]
pub struct CastWeight {
    master: Tensor,
    values: Tensor,
    leaf: Tensor,
}

impl CastWeight {
    /// Takes `master` (f32) and computes in `compute`; with f32 the leaf shares the master's memory.
    pub fn new(master: Tensor, compute: Kind) -> Self {
        let master = master.detach().contiguous();
        let values = master.to_kind(compute);
        let leaf = leaf_of(&values);
        Self { master, values, leaf }
    }

    /// The f32 weights that the optimizer moves.
    pub fn master(&self) -> &Tensor {
        &self.master
    }

    /// What the model uses; requires a gradient.
    pub fn leaf(&self) -> &Tensor {
        &self.leaf
    }

    /// Writes the master into a fresh leaf without a gradient.
    pub fn refresh(&mut self) {
        if self.values.kind() != Kind::Float {
            tch::no_grad(|| self.values.copy_(&self.master));
        }
        self.leaf = leaf_of(&self.values);
    }

    /// The leaf's gradient.
    pub fn gradient(&self) -> Option<Tensor> {
        Some(self.leaf.grad()).filter(Tensor::defined)
    }
}

/// A leaf without a gradient on the memory of `values`.
fn leaf_of(values: &Tensor) -> Tensor {
    values.detach().set_requires_grad(true)
}
