//! Weights as a training step sees them: an f32 master, and a leaf in the compute kind that the model uses and whose
//! gradient is mapped back to the master. A weight is quantized once a step.

use formats::artifact::Grouping;
use tch::{Device, Kind, Tensor};

use crate::kernel::{self, Source};
use crate::learned::LearnedRule;
use crate::native::view;
use crate::quantize::{Quantized, Scale, check, quantize, quantize_with, soft, spread};
use crate::tempered::{self, Tempered};

/// How the gradient G of the weight that the model used becomes the master's and, where scales are trained, theirs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Estimator {
    /// Straight through: dw = G.
    Plain,
    /// dw = G·((1 − λ) + λ·1[|w| ≤ bound·s]): nothing pushes a weight further out than `bound` scales.
    Clipped {
        /// In scales; 1 or more.
        bound: f64,
    },
    /// Trained scales by LSQ's rule, [`LearnedRule::Lsq`].
    LearnedScale,
    /// Trained scales by ParetoQ's rule for three levels, [`LearnedRule::Stretched`].
    Stretched,
    /// Trained scales by EfficientQAT's rule, [`LearnedRule::EfficientQat`].
    EfficientQat,
    /// Trained scales by ParetoQ's rule for one bit, [`LearnedRule::Binary`]: codes without zeros.
    Binary,
    /// The soft quantizer while [`Blend::temperature`] is given (its true gradient), then plain.
    Soft,
}

impl Estimator {
    /// The rule of its scales, when they are trained.
    pub fn learned(self) -> Option<LearnedRule> {
        match self {
            Self::LearnedScale => Some(LearnedRule::Lsq),
            Self::Stretched => Some(LearnedRule::Stretched),
            Self::EfficientQat => Some(LearnedRule::EfficientQat),
            Self::Binary => Some(LearnedRule::Binary),
            Self::Plain | Self::Clipped { .. } | Self::Soft => None,
        }
    }
}

/// How a weight is made ternary.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Method {
    /// Which weights share a scale.
    pub grouping: Grouping,
    /// Rule of the scale; with a learned scale, of its start.
    pub scale: Scale,
    /// See [`Scale`]. Learned scales have their own, [`LearnedRule::deadzone`].
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
    residual: f64,
    values: Tensor,
    leaf: Tensor,
}

impl TernaryWeight {
    /// Takes `master` (f32 `[out, in]`, copied when it is not contiguous) and computes in `compute` (f32 or bf16).
    /// The leaf starts out ternary.
    ///
    /// # Panics
    /// When `master` is not a matrix of f32, or the group width does not divide its rows, or the rule of the scale is
    /// [`Scale::ThreeOfFour`] and groups are no multiples of four or the estimator is [`Estimator::Soft`].
    pub fn new(master: Tensor, method: Method, compute: Kind) -> Self {
        check(&master, method.grouping);
        let master = master.detach().contiguous();
        assert!(
            method.scale != Scale::ThreeOfFour || method.estimator != Estimator::Soft,
            "Scale::ThreeOfFour has no threshold to soften: choose another rule or estimator"
        );
        let learned = method.estimator.learned();
        let scales = learned.map(|rule| rule.start(&master, method.grouping, method.scale));
        let values = Tensor::empty(master.size(), (compute, master.device()));
        let leaf = leaf_of(&values);
        let mut weight = Self { master, scales, method, blend: Blend::HARD, residual: 0.0, values, leaf };
        weight.refresh(Blend::HARD);
        weight
    }

    /// The f32 weights that the optimizer moves.
    pub fn master(&self) -> &Tensor {
        &self.master
    }

    /// The learned scales α that the optimizer moves, f32 in the shape of [`Quantized::scales`].
    pub fn scales(&self) -> Option<&Tensor> {
        self.scales.as_ref()
    }

    /// Moves learned scales in place to where those of the levels are `levels`, of the shape of [`Quantized::scales`]:
    /// a start from [`crate::start`]. Refresh after it.
    ///
    /// # Panics
    /// When the estimator learns no scales, or the shape is another.
    pub fn set_levels(&mut self, levels: &Tensor) {
        let (Some(rule), Some(scales)) = (self.method.estimator.learned(), &mut self.scales) else {
            panic!("{:?} learns no scales that could be set", self.method.estimator);
        };
        assert_eq!(scales.size(), levels.size(), "one scale a group");
        tch::no_grad(|| scales.copy_(&rule.scales_of(levels)));
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
        self.refresh_with_residual(blend, 0.0);
    }

    /// [`TernaryWeight::refresh`] with ε·w added to the leaf: x·leafᵀ has ε·x·wᵀ in it, Sherry's Arenas (arXiv
    /// 2601.07892), and the master's gradient ε·G. ε comes from [`crate::schedule::Residual`] and ends at 0: no export
    /// holds it.
    pub fn refresh_with_residual(&mut self, blend: Blend, residual: f64) {
        let Method { grouping, scale, deadzone, .. } = self.method;
        self.blend = blend;
        self.residual = residual;
        tch::no_grad(|| {
            if let Some(temperature) = self.temperature() {
                if self.master.device() == Device::Cpu {
                    let rule = Tempered { scale, deadzone, temperature };
                    tempered::blend(&self.master, grouping, rule, blend.lambda, &mut self.values);
                } else {
                    let soft = soft(&self.master, grouping, scale, deadzone, temperature);
                    self.values.copy_(&self.master.lerp(&soft, blend.lambda));
                }
            } else if self.master.device() == Device::Cpu {
                let levels = self.levels();
                let source = match &levels {
                    Some((levels, deadzone)) => Source::Given(view(levels), *deadzone as f32),
                    None => Source::Rule(scale, deadzone as f32),
                };
                kernel::blend(&self.master, grouping, source, blend.lambda, &mut self.values);
            } else {
                let quantized = self.export().dequantize();
                let mixed = if blend.lambda == 1.0 { quantized } else { self.master.lerp(&quantized, blend.lambda) };
                self.values.copy_(&mixed);
            }
            if residual != 0.0 {
                let _ = self.values.g_add_(&(&self.master * residual));
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
        let (lambda, residual) = (self.blend.lambda, self.residual);
        // The leaf has (1 − λ + ε)·w beside λ·Q(w).
        let beside = 1.0 - lambda + residual;
        let wide = || gradient.to_kind(Kind::Float);
        if let (Some(rule), Some(alpha)) = (estimator.learned(), &self.scales) {
            let alpha = rule.snap(alpha);
            let (master, scales) = rule.blended_gradients(&self.master, &alpha, &gradient, lambda, beside);
            return Gradients { master: Some(master), scales: Some(scales) };
        }
        let master = match (estimator, self.temperature()) {
            (Estimator::Clipped { bound }, _) => tch::no_grad(|| {
                let inside = self.master.abs().le_tensor(&(spread(&self.export().scales, &self.master) * bound));
                wide() * (inside.to_kind(Kind::Float) * lambda + beside)
            }),
            (Estimator::Soft, Some(temperature)) if self.master.device() == Device::Cpu => {
                let rule = Tempered { scale, deadzone, temperature };
                tempered::gradient(&self.master, grouping, rule, &gradient, lambda, beside)
            }
            (Estimator::Soft, Some(temperature)) => {
                let w = leaf_of(&self.master);
                let gradient = wide();
                let through = (soft(&w, grouping, scale, deadzone, temperature) * &gradient).sum(Kind::Float);
                let through = Tensor::run_backward(&[through], &[&w], false, false).remove(0);
                through * lambda + gradient * beside
            }
            _ if residual == 0.0 => gradient,
            _ => wide() * (1.0 + residual),
        };
        Gradients { master: Some(master), scales: None }
    }

    /// Scales of the ternary levels when they are trained, and their deadzone.
    fn levels(&self) -> Option<(Tensor, f64)> {
        let rule = self.method.estimator.learned()?;
        self.scales.as_ref().map(|alpha| (rule.levels(alpha), rule.deadzone()))
    }

    /// Codes and scales of the hard quantizer, exactly those of a leaf refreshed with [`Blend::HARD`].
    pub fn export(&self) -> Quantized {
        let Method { grouping, scale, deadzone, .. } = self.method;
        match self.levels() {
            Some((levels, deadzone)) => quantize_with(&self.master, grouping, &levels, deadzone),
            None => quantize(&self.master, grouping, scale, deadzone),
        }
    }
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
