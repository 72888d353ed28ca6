//! Methods whose weights an artifact cannot hold (2, 3 and 4 bits, a shift beside the scale), for comparisons at the
//! same recipe. They train like a [`crate::weight::TernaryWeight`]; their export refuses.

use formats::artifact::Grouping;
use tch::{Kind, Tensor};

use crate::learned::{EFFICIENT_QAT, LEAST_ALPHA, LearnedRule, sum_groups};
use crate::quantize::{
    NotTernary, Quantized, Scale, check, grouped, quantize, quantize_with, scales_shape, snap, spread,
};

/// A grid of levels with trained scales α and, where it has any, offsets. Below x = w/α, G = dL/dQ(w), N the number of
/// weights of the matrix, round to even, all sums over a group. α is bounded as [`LearnedRule`] says: at least 1e-5, or
/// within EfficientQAT's 1e-4 ‥ 1e4.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grid {
    /// Stretched elastic quantization with two bits (ParetoQ, arXiv 2502.02631): the levels ±¼α, ±¾α.
    ///
    /// Q = α·q, q = (round(2·clamp(x, ±0.99) − ½) + ½)/2; dw = G·1\[|x| ≤ 0.99\];
    /// dα = Σ G·(q − x where |x| ≤ 0.99, else ¾·sign x)/√N. Starts at α = max|w|.
    StretchedTwoBit,
    /// LSQ (arXiv 1902.08153) with three or four bits, as ParetoQ has it.
    ///
    /// Q = α·q, q = clamp(round(x), −P − 1, P), P = 2^(bits−1) − 1; dw = G where −P − 1 ≤ x ≤ P, else 0;
    /// dα = Σ G·(q − x there, else q)/√(N·P). Starts at α = max|w|/P.
    Lsq {
        /// 2 or more.
        bits: u32,
    },
    /// Dual learnable ternarization (TernaryLLM, arXiv 2406.07177): three levels with a trained shift γ, the offset.
    ///
    /// Q = α·code + γ, code = clamp(round(x), −1, 1); dw and dα by [`LearnedRule::Lsq`]; dγ = Σ G, without the factor
    /// 1/√N. Starts at the scale of [`Scale::Twn`] and γ = 0; the paper's start is unknown.
    Dlt,
    /// EfficientQAT (arXiv 2407.11062): integers 0 ‥ M = 2^bits − 1 with a trained scale and zero point z, the offset.
    ///
    /// Q = (clamp(round(x) + z, 0, M) − z)·α with z rounded into 0 ‥ M and α kept in 1e-4 ‥ 1e4, whose gradients pass
    /// through; where round(x) + z lies within 0 ‥ M: dw = G, dα = Σ G·(round(x) − x), dz = 0; elsewhere dw = 0,
    /// dα = Σ G·Q/α, dz = −Σ G·α. Starts at α = (max w − min w)/M within its bounds and z = −round(clamp(min w/α, ±1e4)):
    /// `UniformAffineQuantizer` in the authors' `quantize/quantizer.py`.
    Affine {
        /// 1 or more.
        bits: u32,
    },
}

/// Bound of min w/α in [`Grid::Affine`]'s start.
const FARTHEST_ZERO: f64 = 1e4;

/// Trained beside the weights: a number a group each, in the shape of [`Quantized::scales`], f32.
#[derive(Debug)]
pub struct Levels {
    /// α.
    pub scales: Tensor,
    /// γ of [`Grid::Dlt`], z of [`Grid::Affine`].
    pub offsets: Option<Tensor>,
}

/// Gradients of a [`GridWeight`], f32.
#[derive(Debug)]
pub struct GridGradients {
    /// Of the master, `[out, in]`.
    pub master: Tensor,
    /// Of scales and offsets.
    pub levels: Levels,
}

impl Grid {
    /// The source's initial scales and offsets of `w`, f32 `[out, in]`; not snapped.
    ///
    /// # Panics
    /// When `w` is not a matrix of f32, or the group width does not divide its rows.
    pub fn start(self, w: &Tensor, grouping: Grouping) -> Levels {
        check(w, grouping);
        tch::no_grad(|| {
            let shape = scales_shape(w, grouping);
            let groups = grouped(w, grouping);
            let largest = || groups.abs().amax(-1, false).reshape(&shape);
            match self {
                Self::StretchedTwoBit => Levels { scales: largest(), offsets: None },
                Self::Lsq { .. } => Levels { scales: largest() / self.most(), offsets: None },
                Self::Dlt => {
                    let scales = quantize(w, grouping, Scale::Twn, Scale::Twn.default_deadzone()).scales;
                    let offsets = Some(scales.zeros_like());
                    Levels { scales, offsets }
                }
                Self::Affine { .. } => {
                    let (low, high) = (groups.amin(-1, false), groups.amax(-1, false));
                    let scales = (high - &low) / self.most();
                    let scales = self.bounded(&scales);
                    let zero = (low / &scales).clamp(-FARTHEST_ZERO, FARTHEST_ZERO).round().neg();
                    let offsets = Some(zero.reshape(&shape));
                    Levels { scales: scales.reshape(&shape), offsets }
                }
            }
        })
    }

    /// α as the forward pass takes it.
    fn bounded(self, alpha: &Tensor) -> Tensor {
        match self {
            Self::StretchedTwoBit | Self::Lsq { .. } | Self::Dlt => alpha.clamp_min(LEAST_ALPHA),
            Self::Affine { .. } => alpha.clamp(EFFICIENT_QAT[0], EFFICIENT_QAT[1]),
        }
    }

    /// The largest integer code.
    fn most(self) -> f64 {
        match self {
            Self::StretchedTwoBit | Self::Dlt => 1.0,
            Self::Lsq { bits } => f64::from((1u32 << (bits - 1)) - 1),
            Self::Affine { bits } => f64::from((1u32 << bits) - 1),
        }
    }

    /// Q(w), f32 `[out, in]`.
    pub fn values(self, w: &Tensor, levels: &Levels) -> Tensor {
        tch::no_grad(|| {
            let alpha = spread(&self.bounded(&levels.scales), w);
            let x = w / &alpha;
            let offset = || spread(levels.offsets.as_ref().expect("made in start"), w);
            match self {
                Self::StretchedTwoBit => two_bit(&x) * alpha,
                Self::Lsq { .. } => x.round().clamp(-self.most() - 1.0, self.most()) * alpha,
                Self::Dlt => x.round().clamp(-1.0, 1.0) * alpha + offset(),
                Self::Affine { .. } => {
                    let zero = offset().round().clamp(0.0, self.most());
                    ((x.round() + &zero).clamp(0.0, self.most()) - zero) * alpha
                }
            }
        })
    }

    /// dw, dα and those of the offsets, given `gradient` (G), all f32 `[out, in]`.
    pub fn gradients(self, w: &Tensor, levels: &Levels, gradient: &Tensor) -> GridGradients {
        tch::no_grad(|| {
            let alpha = spread(&self.bounded(&levels.scales), w);
            let x = w / &alpha;
            let sum = |slope: &Tensor| sum_groups(&(slope * gradient), &levels.scales);
            let masked = |inside: &Tensor| gradient * inside.to_kind(Kind::Float);
            let count = w.numel() as f64;
            match self {
                Self::StretchedTwoBit => {
                    let inside = x.abs().le(0.99);
                    let slope = (two_bit(&x) - &x).where_self(&inside, &(x.sign() * 0.75));
                    let scales = sum(&slope) / count.sqrt();
                    GridGradients { master: masked(&inside), levels: Levels { scales, offsets: None } }
                }
                Self::Lsq { .. } => {
                    let (low, high) = (-self.most() - 1.0, self.most());
                    let inside = x.ge(low).logical_and(&x.le(high));
                    let code = x.round().clamp(low, high);
                    let scales = sum(&(&code - &x).where_self(&inside, &code)) / (count * high).sqrt();
                    GridGradients { master: masked(&inside), levels: Levels { scales, offsets: None } }
                }
                Self::Dlt => {
                    let (master, scales) = LearnedRule::Lsq.gradients(w, &levels.scales, gradient);
                    let offsets = Some(sum_groups(gradient, &levels.scales));
                    GridGradients { master, levels: Levels { scales, offsets } }
                }
                Self::Affine { .. } => {
                    let zero = spread(levels.offsets.as_ref().expect("made in start"), w);
                    let zero = zero.round().clamp(0.0, self.most());
                    let code = x.round() + &zero;
                    let inside = code.ge(0.0).logical_and(&code.le(self.most()));
                    let clamped = code.clamp(0.0, self.most()) - zero;
                    let scales = sum(&(&clamped - &x).where_self(&inside, &clamped));
                    let offsets = sum(&(alpha.neg() * inside.logical_not().to_kind(Kind::Float)));
                    GridGradients { master: masked(&inside), levels: Levels { scales, offsets: Some(offsets) } }
                }
            }
        })
    }
}

/// The two-bit level nearest to x, in α.
fn two_bit(x: &Tensor) -> Tensor {
    ((x.clamp(-0.99, 0.99) * 2.0 - 0.5).round() + 0.5) / 2.0
}

/// A projection in training on a [`Grid`]: f32 master, scales in f16 as they would be stored, leaf in the compute kind.
#[derive(Debug)]
pub struct GridWeight {
    master: Tensor,
    levels: Levels,
    grid: Grid,
    grouping: Grouping,
    lambda: f64,
    leaf: Tensor,
    compute: Kind,
}

impl GridWeight {
    /// Takes `master` (f32 `[out, in]`) and computes in `compute`. The leaf starts out quantized.
    ///
    /// # Panics
    /// When `master` is not a matrix of f32, or the group width does not divide its rows.
    pub fn new(master: Tensor, grid: Grid, grouping: Grouping, compute: Kind) -> Self {
        let levels = grid.start(&master, grouping);
        let master = master.detach().contiguous();
        let leaf = master.shallow_clone();
        let mut weight = Self { master, levels, grid, grouping, lambda: 1.0, leaf, compute };
        weight.refresh(1.0);
        weight
    }

    /// The f32 weights that the optimizer moves.
    pub fn master(&self) -> &Tensor {
        &self.master
    }

    /// The scales and offsets that the optimizer moves.
    pub fn levels(&self) -> &Levels {
        &self.levels
    }

    /// What the model multiplies with, `[out, in]` in the compute kind; requires a gradient.
    pub fn leaf(&self) -> &Tensor {
        &self.leaf
    }

    /// The levels as they would be stored.
    fn stored(&self) -> Levels {
        let offsets = self.levels.offsets.as_ref().map(Tensor::shallow_clone);
        Levels { scales: snap(&self.grid.bounded(&self.levels.scales)), offsets }
    }

    /// Writes w + λ·(Q(w) − w) into a fresh leaf without a gradient.
    pub fn refresh(&mut self, lambda: f64) {
        self.lambda = lambda;
        tch::no_grad(|| {
            let quantized = self.grid.values(&self.master, &self.stored());
            let mixed = if lambda == 1.0 { quantized } else { self.master.lerp(&quantized, lambda) };
            self.leaf = mixed.to_kind(self.compute);
        });
        self.leaf = self.leaf.set_requires_grad(true);
    }

    /// The leaf's gradient by the grid's rule, none where the model did not use it. Call it before the optimizer moves
    /// the master.
    pub fn gradients(&self) -> Option<GridGradients> {
        let gradient = Some(self.leaf.grad()).filter(Tensor::defined)?.to_kind(Kind::Float);
        let GridGradients { master, levels } = self.grid.gradients(&self.master, &self.stored(), &gradient);
        let lambda = self.lambda;
        Some(GridGradients {
            master: gradient.lerp(&master, lambda),
            levels: Levels { scales: levels.scales * lambda, offsets: levels.offsets.map(|offsets| offsets * lambda) },
        })
    }

    /// Codes and scales, where they are ternary.
    ///
    /// # Errors
    /// For every grid but [`Grid::Dlt`] with γ = 0 everywhere.
    pub fn export(&self) -> Result<Quantized, NotTernary> {
        match (self.grid, &self.levels.offsets) {
            (Grid::Dlt, Some(shift)) if shift.abs().max().double_value(&[]) == 0.0 => {
                Ok(quantize_with(&self.master, self.grouping, &self.grid.bounded(&self.levels.scales), 0.5))
            }
            (Grid::Dlt, _) => Err(NotTernary {
                what: "DLT's shift γ".into(),
                hint: "leave γ at 0, which makes it Estimator::LearnedScale",
            }),
            (grid, _) => Err(NotTernary {
                what: format!("a weight on the grid {grid:?}"),
                hint: "choose an Estimator of TernaryWeight",
            }),
        }
    }
}
