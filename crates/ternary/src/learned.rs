//! Scales that are trained with the weights: where they start, and their gradients. Codes −1, 0 and 1 only; what has
//! more is in [`crate::grid`].

use formats::artifact::Grouping;
use tch::{Device, Kind, Tensor};

use crate::quantize::{Quantized, Scale, grouped, quantize, scales_shape, snap, spread};
use crate::slopes::{self, Slopes};

/// Rule for trained scales α, one a group, with weights w, x = w/α, and Q(w) = s·code, where s is the scale of the
/// level and code = sign(w) where |w| > d·s, else 0. G = dL/dQ(w).
///
/// | | s | d | dw | dα, summed over the group |
/// |---|---|---|---|---|
/// | Lsq | α | ½ | G·1\[\|x\| ≤ 1\] | g·G·(code − x where \|x\| ≤ 1, else sign x) |
/// | Stretched | ⅔α | ½ | G·1\[\|x\| ≤ 0.99\] | g·G·(⅔code − x where \|x\| ≤ 0.99, else sign x) |
/// | EfficientQat | α | ½ | G·1\[\|x\| < 1.5\] | G·(code − x where \|x\| < 1.5, else sign x) |
/// | Binary | α | 0 | G·1\[\|x\| ≤ 1\] | g·G·sign x |
///
/// with g = 1/√(number of weights of the matrix). All are exported exactly: codes, and s in f16.
///
/// α is taken as max(α, 1e-5) by ParetoQ's rules (`models/utils_quant.py` of facebookresearch/ParetoQ: forward of
/// `LsqBinaryTernaryExtension` and `StretchedElasticQuant`), and within 1e-4 ‥ 1e4 by EfficientQAT's (`clamp_ste` in
/// `quantize/quantizer.py` of OpenGVLab/EfficientQAT). Its gradient is that at the bound and reaches α itself, so a scale
/// beyond a bound can return.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LearnedRule {
    /// LSQ (arXiv 1902.08153), as ParetoQ's code has it for three levels.
    Lsq,
    /// Stretched elastic quantization, ParetoQ's for three levels (arXiv 2502.02631). Its slope beyond 0.99 is 1,
    /// though the level there is ⅔: as in the authors' code.
    Stretched,
    /// EfficientQAT's trained steps (arXiv 2407.11062) on the levels −1, 0, 1 without a zero point. Its dα has no
    /// factor g. AdamW makes the same steps of it, but in a global norm that gradients are clipped by it is larger by
    /// 1/g.
    EfficientQat,
    /// ParetoQ's for one bit: no weight becomes 0 but one that is. ParetoQ starts from [`Scale::AbsMean`].
    Binary,
}

/// The least α of ParetoQ's forward passes.
pub(crate) const LEAST_ALPHA: f64 = 1e-5;
/// EfficientQAT's scales stay between these.
pub(crate) const EFFICIENT_QAT: [f64; 2] = [1e-4, 1e4];

impl LearnedRule {
    /// α in units of s.
    fn stretch(self) -> f64 {
        match self {
            Self::Lsq | Self::EfficientQat | Self::Binary => 1.0,
            Self::Stretched => 1.5,
        }
    }

    /// d: the magnitude, in s, up to which a weight becomes 0.
    pub fn deadzone(self) -> f64 {
        match self {
            Self::Lsq | Self::Stretched | Self::EfficientQat => 0.5,
            Self::Binary => 0.0,
        }
    }

    /// Where training starts: α such that s is `scale`'s with its own deadzone, in the shape of
    /// [`crate::quantize::Quantized::scales`]. [`Scale::AbsMax`] stands for the source's own start: ParetoQ's α = max|w|,
    /// and EfficientQAT's (max w − min w)/(2^b − 1), kept in 1e-4 ‥ 1e4, with the 2 steps between three levels in place
    /// of 2^b − 1.
    ///
    /// On pretrained weights max|w| makes most codes zero and takes many tokens to recover from: in short runs start
    /// from [`Scale::Twn`] or [`Scale::Mse`].
    pub fn start(self, w: &Tensor, grouping: Grouping, scale: Scale) -> Tensor {
        if scale == Scale::AbsMax {
            return tch::no_grad(|| {
                let groups = grouped(w, grouping);
                let alpha = match self {
                    Self::EfficientQat => self.bounded(&((groups.amax(-1, false) - groups.amin(-1, false)) / 2.0)),
                    Self::Lsq | Self::Stretched | Self::Binary => groups.abs().amax(-1, false),
                };
                alpha.reshape(scales_shape(w, grouping))
            });
        }
        self.scales_of(&quantize(w, grouping, scale, scale.default_deadzone()).scales)
    }

    /// α of s.
    pub fn scales_of(self, levels: &Tensor) -> Tensor {
        levels * self.stretch()
    }

    /// s of α, whose bounds it is kept in.
    pub fn levels(self, alpha: &Tensor) -> Tensor {
        self.bounded(alpha) / self.stretch()
    }

    /// α as the forward pass takes it.
    fn bounded(self, alpha: &Tensor) -> Tensor {
        match self {
            Self::Lsq | Self::Stretched | Self::Binary => alpha.clamp_min(LEAST_ALPHA),
            Self::EfficientQat => alpha.clamp(EFFICIENT_QAT[0], EFFICIENT_QAT[1]),
        }
    }

    /// α as the stored s has it.
    pub(crate) fn snap(self, alpha: &Tensor) -> Tensor {
        self.scales_of(&snap(&self.levels(alpha)))
    }

    /// |x| up to which a weight gets a gradient.
    fn bound(self) -> f64 {
        match self {
            Self::Lsq | Self::Binary => 1.0,
            Self::Stretched => 0.99,
            // 1.5 itself rounds to even, 2, and is clamped.
            Self::EfficientQat => f64::from(1.5f32.next_down()),
        }
    }

    /// dw and dα of the table above, f32, for `w` (f32 `[out, in]`), `alpha` (f32 `[out, groups]` or `[1]`) and
    /// `gradient` (G, f32 or bf16 `[out, in]`).
    pub fn gradients(self, w: &Tensor, alpha: &Tensor, gradient: &Tensor) -> (Tensor, Tensor) {
        self.blended_gradients(w, alpha, gradient, 1.0, 0.0)
    }

    /// The same when the weights used were λ·Q(w) + beside·w.
    pub(crate) fn blended_gradients(
        self,
        w: &Tensor,
        alpha: &Tensor,
        gradient: &Tensor,
        lambda: f64,
        beside: f64,
    ) -> (Tensor, Tensor) {
        tch::no_grad(|| {
            let alpha = &self.bounded(alpha);
            let slopes = Slopes {
                level: (1.0 / self.stretch()) as f32,
                threshold: (self.deadzone() / self.stretch()) as f32,
                bound: self.bound() as f32,
                sign_only: self == Self::Binary,
                within: (lambda + beside) as f32,
                beyond: beside as f32,
            };
            let (master, sums) = match w.device() {
                Device::Cpu => slopes::gradients(&w.contiguous(), &alpha.contiguous(), gradient, slopes),
                _ => on_device(w, alpha, gradient, slopes),
            };
            let factor = match self {
                Self::Lsq | Self::Stretched | Self::Binary => 1.0 / (w.numel() as f64).sqrt(),
                Self::EfficientQat => 1.0,
            };
            (master, sums * (lambda * factor))
        })
    }
}

/// [`slopes::gradients`] in tensor operations, for accelerators. Also the plain reference of the CPU's.
fn on_device(w: &Tensor, alpha: &Tensor, gradient: &Tensor, slopes: Slopes) -> (Tensor, Tensor) {
    let gradient = gradient.to_kind(Kind::Float);
    let x = w / spread(alpha, w);
    let (magnitude, sign) = (x.abs(), x.sign());
    let inside = magnitude.le(f64::from(slopes.bound));
    let slope = if slopes.sign_only {
        sign
    } else {
        let level = magnitude.gt(f64::from(slopes.threshold)) * &sign * f64::from(slopes.level);
        (level - x).where_self(&inside, &sign)
    };
    let sums = sum_groups(&(slope * &gradient), alpha);
    let share = inside.to_kind(Kind::Float) * f64::from(slopes.within - slopes.beyond) + f64::from(slopes.beyond);
    (gradient * share, sums)
}

/// Sums over the groups of `x`, `[out, in]`, in the shape of their `scales`.
pub(crate) fn sum_groups(x: &Tensor, scales: &Tensor) -> Tensor {
    match scales.size()[..] {
        [rows, groups] => x.reshape([rows, groups, -1]).sum_dim_intlist(-1, false, Kind::Float),
        _ => x.sum(Kind::Float).reshape([1]),
    }
}

/// A projection whose codes stay and whose scales are trained: E2E-QP, the second phase of EfficientQAT (arXiv
/// 2407.11062). Q = s·code, with s in f16 as it is stored; ds = Σ G·code over the group.
#[derive(Debug)]
pub struct FixedCodes {
    codes: Tensor,
    scales: Tensor,
    compute: Kind,
    leaf: Tensor,
}

impl FixedCodes {
    /// Takes what a first phase exported and computes in `compute` (f32 or bf16).
    pub fn new(quantized: Quantized, compute: Kind) -> Self {
        let leaf = quantized.codes.shallow_clone();
        let mut fixed = Self { codes: quantized.codes, scales: quantized.scales.copy(), compute, leaf };
        fixed.refresh();
        fixed
    }

    /// The scales that the optimizer moves, f32 in the shape of [`Quantized::scales`].
    pub fn scales(&self) -> &Tensor {
        &self.scales
    }

    /// What the model multiplies with, `[out, in]` in the compute kind; requires a gradient.
    pub fn leaf(&self) -> &Tensor {
        &self.leaf
    }

    /// Writes the weights into a fresh leaf without a gradient.
    pub fn refresh(&mut self) {
        let values = tch::no_grad(|| self.export().dequantize().to_kind(self.compute));
        self.leaf = values.set_requires_grad(true);
    }

    /// ds, f32 in the shape of the scales; none where the model did not use the leaf.
    pub fn gradient(&self) -> Option<Tensor> {
        let gradient = Some(self.leaf.grad()).filter(Tensor::defined)?;
        Some(tch::no_grad(|| sum_groups(&(gradient.to_kind(Kind::Float) * &self.codes), &self.scales)))
    }

    /// The codes, and the scales as they are stored.
    pub fn export(&self) -> Quantized {
        Quantized { codes: self.codes.shallow_clone(), scales: snap(&self.scales) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpus_gradients_are_those_of_tensor_operations() {
        crate::draws::seed(1);
        let normal = || crate::draws::normal([48, 1200]);
        let (w, gradient) = (normal() * normal().ge(-1.5), normal());
        let slopes = Slopes { level: 0.7, threshold: 0.4, bound: 0.9, sign_only: false, within: 0.8, beyond: 0.3 };
        for shape in [vec![1], vec![48, 1], vec![48, 16], vec![48, 400]] {
            let alpha = crate::draws::uniform(&shape) + 0.5;
            for kind in [Kind::Float, Kind::BFloat16] {
                for sign_only in [false, true] {
                    let slopes = Slopes { sign_only, ..slopes };
                    let gradient = gradient.to_kind(kind);
                    let fast = slopes::gradients(&w, &alpha, &gradient, slopes);
                    let plain = on_device(&w, &alpha, &gradient, slopes);
                    assert!(fast.0.allclose(&plain.0, 1e-6, 1e-7, false), "{shape:?} {kind:?}");
                    assert!(fast.1.allclose(&plain.1, 1e-4, 1e-3, false), "{shape:?} {kind:?}");
                }
            }
        }
    }
}
