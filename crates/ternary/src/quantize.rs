//! Ternary quantizers: a weight matrix becomes codes in {−1, 0, 1} and one scale a tensor, row or group along the row.
//!
//! Scales are snapped to f16, as they are stored, before anything uses them: training sees what the artifact holds.

use formats::artifact;
use formats::artifact::Grouping;
use half::f16;
use tch::{Device, Kind, Tensor};

use crate::kernel;
use crate::native::view;

/// Smallest scale, and smallest mean that is divided by (the Hugging Face functions' clamp).
pub const SCALE_FLOOR: f64 = 1e-5;

/// Rule for the threshold Δ and the scale s of a group `w`; Q(w) = s·sign(w) where |w| > Δ, else 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scale {
    /// Δ = d·mean|w|, s = mean|w|. With d = 0.5 this is BitNet b1.58's rounding of w/s.
    AbsMean,
    /// Δ = d·mean|w|, s = the mean |w| of what is kept. d = 0.75 is near optimal for a Gaussian.
    Twn,
    /// Δ = d·max|w|, s = max|w|.
    AbsMax,
    /// Δ = d·s, s = the mean |w| of what is kept, alternated until it stands. d = 0.5 minimizes Σ(w − Q(w))².
    Mse,
    /// No threshold: of every four weights along the row the smallest |w| (the first of equals) becomes 0, and s is the
    /// mean |w| of the rest. Sherry's 3:4 sparsity (arXiv 2601.07892); groups are multiples of four, d is not used.
    ThreeOfFour,
}

impl Scale {
    /// The deadzone that the rule's source uses.
    pub fn default_deadzone(self) -> f64 {
        match self {
            Self::AbsMean | Self::AbsMax | Self::Mse | Self::ThreeOfFour => 0.5,
            Self::Twn => 0.75,
        }
    }
}

/// Why a weight in training has no exact form in an artifact.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} cannot be exported, because an artifact holds codes -1, 0, 1 and one scale a group: {hint}")]
pub struct NotTernary {
    /// What there is too much.
    pub what: String,
    /// What to do instead.
    pub hint: &'static str,
}

/// A ternary matrix.
#[derive(Debug)]
pub struct Quantized {
    /// −1, 0 or 1; int8 `[out, in]`.
    pub codes: Tensor,
    /// f32 holding f16 values: `[out, in / width]`, or `[1]` for [`Grouping::Tensor`].
    pub scales: Tensor,
}

impl Quantized {
    /// code·scale, f32 `[out, in]`; bit-identical to `formats::artifact::TernaryTensor::dequantize`.
    pub fn dequantize(&self) -> Tensor {
        spread(&self.scales, &self.codes) * self.codes.to_kind(Kind::Float)
    }

    /// Shares of −1, 0 and 1.
    pub fn shares(&self) -> [f64; 3] {
        let total = self.codes.numel() as f64;
        [-1i64, 0, 1].map(|code| self.codes.eq(code).sum(Kind::Int64).int64_value(&[]) as f64 / total)
    }

    /// As an artifact stores it, under Hugging Face's tensor `name`; `grouping` is what it was quantized with.
    pub fn to_artifact(&self, name: String, grouping: Grouping) -> artifact::TernaryTensor {
        let codes = self.codes.to_device(Device::Cpu).contiguous();
        let scales = self.scales.to_device(Device::Cpu).contiguous();
        artifact::TernaryTensor {
            name,
            shape: [codes.size()[0] as usize, codes.size()[1] as usize],
            grouping,
            codes: view::<i8>(&codes).to_vec(),
            scales: view::<f32>(&scales).iter().map(|&scale| f16::from_f32(scale)).collect(),
        }
    }
}

/// Quantizes `w` (f32 `[out, in]`) by `rule` with deadzone `d`, see [`Scale`].
///
/// # Panics
/// When `w` is not a matrix of f32, or the group width does not divide its rows, or for [`Scale::ThreeOfFour`] is no
/// multiple of four.
pub fn quantize(w: &Tensor, grouping: Grouping, rule: Scale, deadzone: f64) -> Quantized {
    tch::no_grad(|| {
        check(w, grouping);
        check_fours(w, grouping, rule);
        if w.device() == Device::Cpu {
            kernel::quantize(&w.contiguous(), grouping, kernel::Source::Rule(rule, deadzone as f32))
        } else {
            quantize_on_device(w, grouping, rule, deadzone)
        }
    })
}

/// As [`quantize`], with the scales given (of the shape that [`Quantized::scales`] has): code = sign(w) where
/// |w| > d·s, with s snapped to f16 before.
pub fn quantize_with(w: &Tensor, grouping: Grouping, scales: &Tensor, deadzone: f64) -> Quantized {
    tch::no_grad(|| {
        check(w, grouping);
        assert_eq!(scales.size(), scales_shape(w, grouping), "one scale a group");
        if w.device() == Device::Cpu {
            let scales = scales.contiguous();
            let given = kernel::Source::Given(view(&scales), deadzone as f32);
            return kernel::quantize(&w.contiguous(), grouping, given);
        }
        let scales = snap(scales);
        let codes = (w.abs().gt_tensor(&(spread(&scales, w) * deadzone)) * w.sign()).to_kind(Kind::Int8);
        Quantized { codes, scales }
    })
}

/// The same in tensor operations, for accelerators. Also the plain reference of the CPU kernel.
pub(crate) fn quantize_on_device(w: &Tensor, grouping: Grouping, rule: Scale, deadzone: f64) -> Quantized {
    let groups = grouped(w, grouping);
    let (kept, scale) = match rule {
        Scale::ThreeOfFour => {
            let kept = three_of_four(&groups);
            let count = groups.size()[1] as f64 * 0.75;
            let scale = (groups.abs() * &kept).sum_dim_intlist(-1, true, Kind::Float) / count;
            (kept, scale)
        }
        _ => {
            let (threshold, scale) = fit(&groups, rule, deadzone);
            (groups.abs().gt_tensor(&threshold), scale)
        }
    };
    let codes = (kept * groups.sign()).to_kind(Kind::Int8).reshape(w.size());
    Quantized { codes, scales: snap(&scale).reshape(scales_shape(w, grouping)) }
}

/// False at the smallest magnitude of each four along the rows of `groups`, true elsewhere.
fn three_of_four(groups: &Tensor) -> Tensor {
    let fours = groups.abs().reshape([-1, 4]);
    let smallest = fours.argmin(-1, true);
    fours.ones_like().to_kind(Kind::Bool).scatter_value(-1, &smallest, 0).reshape(groups.size())
}

/// Threshold and scale (not snapped), `[groups, 1]` each, of `groups`, `[groups, width]`. Differentiable, with what is
/// kept held fixed.
fn fit(groups: &Tensor, rule: Scale, deadzone: f64) -> (Tensor, Tensor) {
    let magnitude = groups.abs();
    let mean_above = |threshold: &Tensor| {
        let kept = magnitude.gt_tensor(threshold).to_kind(Kind::Float);
        (&magnitude * &kept).sum_dim_intlist(-1, true, None) / kept.sum_dim_intlist(-1, true, None).clamp_min(1.0)
    };
    let mean = || magnitude.mean_dim(-1, true, None);
    match rule {
        Scale::AbsMean => {
            let mean = mean();
            (&mean * deadzone, mean)
        }
        Scale::Twn => {
            let threshold = mean() * deadzone;
            let scale = mean_above(&threshold);
            (threshold, scale)
        }
        Scale::AbsMax => {
            let largest = magnitude.amax(-1, true);
            (&largest * deadzone, largest)
        }
        Scale::Mse => {
            let mut scale = mean_above(&(mean() * MSE_START));
            for _ in 0..MSE_ROUNDS {
                scale = mean_above(&(&scale * deadzone));
            }
            (&scale * deadzone, scale)
        }
        Scale::ThreeOfFour => panic!("three of four weights are kept by their order: there is no threshold"),
    }
}

/// Threshold, in means, from which [`Scale::Mse`] starts.
pub(crate) const MSE_START: f64 = 0.75;
/// Rounds after which [`Scale::Mse`] stands on weights of any usual distribution.
pub(crate) const MSE_ROUNDS: usize = 10;

/// Hugging Face's `weight_quant` to the letter, a group at a time: r = 1/max(mean|w|, 1e-5), then
/// clamp(round(w·r), −1, 1)/r with ties to even. The scale is not snapped. f32 `[out, in]`.
pub fn weight_quant(w: &Tensor, grouping: Grouping) -> Tensor {
    tch::no_grad(|| {
        check(w, grouping);
        let groups = grouped(w, grouping);
        let rate = groups.abs().mean_dim(-1, true, None).clamp_min(SCALE_FLOOR).reciprocal();
        ((groups * &rate).round().clamp(-1.0, 1.0) / rate).reshape(w.size())
    })
}

/// Soft ternary weights at temperature `T`, differentiable in `w`, also through the scale: with Δ and s of the rule and
/// x = w/s, q = s·(p₊ − p₋), where p is the softmax over the levels −1, 0, 1 of (−2x − 2Δ/s, 0, 2x − 2Δ/s)/(T + 1e-6).
///
/// For [`Scale::AbsMean`] with d = 0.5 that is softmax_c(−(x − c)²/(T + 1e-6)), Hestia's assignment; for every rule the
/// limit T → 0 is its hard form. The gradient grows without bound there: keep a floor under T and end with hard steps.
///
/// # Panics
/// For [`Scale::ThreeOfFour`], which has no threshold to soften.
pub fn soft(w: &Tensor, grouping: Grouping, rule: Scale, deadzone: f64, temperature: f64) -> Tensor {
    let groups = grouped(w, grouping);
    let (threshold, scale) = fit(&groups, rule, deadzone);
    let scale = scale.clamp_min(SCALE_FLOOR);
    let (x, edge) = (groups / &scale, threshold / &scale);
    let tau = (temperature + 1e-6) / 2.0;
    let up = (&x - &edge) / tau;
    let down = (-&x - &edge) / tau;
    let level = Tensor::stack(&[&down, &up.zeros_like(), &up], 0).softmax(0, None);
    (scale * (level.get(2) - level.get(0))).reshape(w.size())
}

/// Rounds scales to the f16 values that are stored, within what f16 holds.
pub(crate) fn snap(scales: &Tensor) -> Tensor {
    scales.clamp(SCALE_FLOOR, f64::from(f16::MAX)).to_kind(Kind::Half).to_kind(Kind::Float)
}

/// `w` as `[groups, width]` (`[1, numel]` for the tensor).
pub(crate) fn grouped(w: &Tensor, grouping: Grouping) -> Tensor {
    match grouping {
        Grouping::Tensor => w.reshape([1, -1]),
        Grouping::Row | Grouping::Group(_) => w.reshape([-1, grouping.width(w.size()[1] as usize) as i64]),
    }
}

/// Scales broadcast to the shape of `w`.
pub(crate) fn spread(scales: &Tensor, w: &Tensor) -> Tensor {
    let shape = w.size();
    match scales.size()[..] {
        [_, groups] => scales.unsqueeze(-1).expand([shape[0], groups, shape[1] / groups], false).reshape(&shape),
        _ => scales.expand(&shape, false),
    }
}

/// Shape of the scales of `w`.
pub(crate) fn scales_shape(w: &Tensor, grouping: Grouping) -> Vec<i64> {
    let (rows, columns) = (w.size()[0], w.size()[1]);
    match grouping {
        Grouping::Tensor => vec![1],
        Grouping::Row | Grouping::Group(_) => vec![rows, columns / grouping.width(columns as usize) as i64],
    }
}

pub(crate) fn check(w: &Tensor, grouping: Grouping) {
    let shape = w.size();
    assert!(shape.len() == 2 && w.kind() == Kind::Float, "a weight to quantize is an f32 matrix");
    let width = grouping.width(shape[1] as usize);
    assert!(
        (shape[1] as usize).checked_rem(width) == Some(0),
        "groups of {width} do not divide rows of {}: choose a group size that divides every row",
        shape[1]
    );
}

fn check_fours(w: &Tensor, grouping: Grouping, rule: Scale) {
    let width = grouping.width(w.size()[1] as usize);
    assert!(
        rule != Scale::ThreeOfFour || (width.is_multiple_of(4) && w.size()[1] % 4 == 0),
        "three of four weights are kept: choose groups of a multiple of four, not {width}"
    );
}
