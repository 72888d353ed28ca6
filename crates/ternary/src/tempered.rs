//! Soft ternary weights and their gradient on the CPU, written down instead of recorded by autograd, which takes ten times
//! as long and more.
//!
//! With x = w/s, e = Δ/s, τ = (T + 1e-6)/2 and p the softmax of ((−x − e)/τ, 0, (x − e)/τ), a weight becomes s·f with f
//! = p₊ − p₋. Then ∂f/∂x = (p₊ + p₋ − f²)/τ, ∂f/∂e = −f·p₀/τ, and s and Δ depend on the weights as their rule says,
//! with what is kept held fixed.

use formats::artifact::Grouping;
use half::bf16;
use tch::{Kind, Tensor};

use crate::kernel::{self, GRAIN, LANES, Real, Store, total};
use crate::native::{Pieces, parallel, parallel_one, vectorized, view, view_mut};
use crate::quantize::{SCALE_FLOOR, Scale};
use crate::softmax::exp;

/// The rule of a soft weight.
#[derive(Clone, Copy)]
pub(crate) struct Tempered {
    pub scale: Scale,
    pub deadzone: f64,
    pub temperature: f64,
}

impl Tempered {
    fn tau(self) -> f32 {
        ((self.temperature + 1e-6) / 2.0) as f32
    }
}

/// Threshold and scale of a group, and the weights whose mean is the scale: those of magnitude above `kept`.
#[derive(Clone, Copy, Default)]
struct Fit {
    threshold: f32,
    scale: f32,
    kept: f32,
    /// How many are kept.
    count: f32,
}

/// What a group's gradient has beside ∂f/∂x: of each kept weight, and of each.
#[derive(Clone, Copy, Default)]
struct Shared {
    kept: f32,
    all: f32,
}

#[inline(always)]
fn fit(group: &[f32], rule: Tempered) -> Fit {
    let (threshold, scale) = kernel::fit_rule(group, rule.scale, rule.deadzone as f32);
    let kept = match rule.scale {
        Scale::AbsMean => -1.0,
        Scale::AbsMax => scale.next_down(),
        Scale::Twn | Scale::Mse | Scale::ThreeOfFour => threshold,
    };
    let (_, count) = kernel::kept(group, kept);
    Fit { threshold, scale: scale.max(SCALE_FLOOR as f32), kept, count: count as f32 }
}

/// f, ∂f/∂x and ∂f/∂e of |x|; the first changes its sign with x, the others do not.
#[inline(always)]
fn level(magnitude: f32, edge: f32, tau: f32) -> [f32; 3] {
    let (up, down) = ((magnitude - edge) / tau, (-magnitude - edge) / tau);
    let most = if up > 0.0 { up } else { 0.0 };
    let (plus, zero, minus) = (exp(up - most), exp(-most), exp(down - most));
    let sum = plus + zero + minus;
    let (plus, zero, minus) = (plus / sum, zero / sum, minus / sum);
    let level = plus - minus;
    [level, (plus + minus - level * level) / tau, -level * zero / tau]
}

/// value·sign(w), 0 where w is.
#[inline(always)]
fn with_sign(value: f32, w: f32) -> f32 {
    // Without branches, so that the compiler vectorizes it.
    let signed = f32::from_bits(value.to_bits() ^ (w.to_bits() & (1 << 31)));
    if w == 0.0 { 0.0 } else { signed }
}

vectorized! {
    fn fits<T: Store>(weights: &[f32], width: usize, rule: Tempered, _out: &[T], fits: &mut [Fit]) -> () {
        for (group, to) in weights.chunks_exact(width).zip(fits) {
            *to = fit(group, rule);
        }
    }
}

vectorized! {
    /// Writes w + λ·(s·f − w).
    fn write<T: Store>(weights: &[f32], fit: Fit, tau: f32, lambda: f32, out: &mut [T]) -> () {
        let edge = fit.threshold / fit.scale;
        for (&w, out) in weights.iter().zip(out) {
            let [level, ..] = level((w / fit.scale).abs(), edge, tau);
            let soft = (level * fit.scale).copysign(w);
            *out = T::narrow(w + lambda * (soft - w));
        }
    }
}

vectorized! {
    /// Writes G·(λ·∂f/∂x + beside) and returns Σ G·(f − x·∂f/∂x) and Σ G·∂f/∂e, with the sign of x in f.
    fn slopes<T: Real>(
        weights: &[f32],
        gradient: &[T],
        fit: Fit,
        tau: f32,
        shares: [f32; 2],
        out: &mut [f32],
    ) -> [f64; 2] {
        let [lambda, beside] = shares;
        let edge = fit.threshold / fit.scale;
        let mut sums = [0f64; 2];
        let blocks = weights.chunks(1024).zip(gradient.chunks(1024)).zip(out.chunks_mut(1024));
        for ((weights, gradient), out) in blocks {
            let (mut by_scales, mut by_edges) = ([0f32; LANES], [0f32; LANES]);
            let lines = weights.chunks(LANES).zip(gradient.chunks(LANES)).zip(out.chunks_mut(LANES));
            for ((weights, gradient), out) in lines {
                let lanes = by_scales.iter_mut().zip(&mut by_edges);
                for (((&w, &g), out), (by_scale, by_edge)) in weights.iter().zip(gradient).zip(out).zip(lanes) {
                    let (x, g) = ((w / fit.scale).abs(), g.widen());
                    let [level, slope, edge_slope] = level(x, edge, tau);
                    *out = g * (lambda * slope + beside);
                    let signed = with_sign(g, w);
                    *by_scale += signed * (level - x * slope);
                    *by_edge += signed * edge_slope;
                }
            }
            sums[0] += f64::from(total(by_scales));
            sums[1] += f64::from(total(by_edges));
        }
        sums
    }
}

vectorized! {
    /// Adds the shared gradient with the sign of each weight.
    fn share<T: Real>(weights: &[f32], _gradient: &[T], fit: Fit, shared: Shared, out: &mut [f32]) -> () {
        for (&w, out) in weights.iter().zip(out) {
            let part = shared.all + if w.abs() > fit.kept { shared.kept } else { 0.0 };
            *out += with_sign(part, w);
        }
    }
}

/// Groups of a matrix, and the pieces that threads take: a group each, or a row each of the one group.
struct Layout {
    width: usize,
    group: usize,
}

impl Layout {
    fn new(w: &Tensor, grouping: Grouping) -> Self {
        let columns = w.size()[1] as usize;
        match grouping {
            Grouping::Tensor => Self { width: columns, group: w.numel() },
            Grouping::Row | Grouping::Group(_) => {
                let width = grouping.width(columns);
                Self { width, group: width }
            }
        }
    }

    fn fits(&self, weights: &[f32], rule: Tempered) -> Vec<Fit> {
        let mut all = vec![Fit::default(); weights.len() / self.group];
        let pieces = Pieces { slice: &mut all, width: 1 };
        parallel_one(pieces, GRAIN.div_ceil(self.group), |first, to| {
            fits::<f32>(&weights[first * self.group..][..to.len() * self.group], self.group, rule, &[], to);
        });
        all
    }

    /// The group of a piece.
    fn of(&self, piece: usize) -> usize {
        piece * self.width / self.group
    }
}

/// Writes w + λ·(soft − w) into `out` (f32 or bf16, contiguous, of the shape of the contiguous f32 matrix `w`).
pub(crate) fn blend(w: &Tensor, grouping: Grouping, rule: Tempered, lambda: f64, out: &mut Tensor) {
    fn run<T: Store>(w: &Tensor, grouping: Grouping, rule: Tempered, lambda: f64, out: &mut [T]) {
        let (weights, layout) = (view::<f32>(w), Layout::new(w, grouping));
        let (fits, width) = (layout.fits(weights, rule), layout.width);
        parallel_one(Pieces { slice: out, width }, GRAIN.div_ceil(width), |first, out| {
            for (i, out) in out.chunks_mut(width).enumerate() {
                let piece = first + i;
                write(&weights[piece * width..][..width], fits[layout.of(piece)], rule.tau(), lambda as f32, out);
            }
        });
    }
    match out.kind() {
        Kind::BFloat16 => run::<bf16>(w, grouping, rule, lambda, view_mut(out)),
        _ => run::<f32>(w, grouping, rule, lambda, view_mut(out)),
    }
}

/// Gradient, f32, of the contiguous f32 matrix `w` when λ·soft + beside·w was used, of which `gradient` (f32 or bf16)
/// is the gradient.
pub(crate) fn gradient(
    w: &Tensor,
    grouping: Grouping,
    rule: Tempered,
    gradient: &Tensor,
    lambda: f64,
    beside: f64,
) -> Tensor {
    fn run<T: Real>(w: &Tensor, grouping: Grouping, rule: Tempered, given: &Tensor, shares: [f32; 2]) -> Tensor {
        let (weights, given, layout) = (view::<f32>(w), view::<T>(given), Layout::new(w, grouping));
        let (fits, width) = (layout.fits(weights, rule), layout.width);
        let (mut out, mut sums) = (w.empty_like(), vec![[0f64; 2]; weights.len() / width]);
        let grain = GRAIN.div_ceil(width);
        let pieces = Pieces { slice: view_mut::<f32>(&mut out), width };
        parallel(pieces, Pieces { slice: &mut sums, width: 1 }, grain, |first, out, sums| {
            for (i, (out, sums)) in out.chunks_mut(width).zip(sums).enumerate() {
                let piece = first + i;
                let part = piece * width..(piece + 1) * width;
                let fit = fits[layout.of(piece)];
                *sums = slopes(&weights[part.clone()], &given[part], fit, rule.tau(), shares, out);
            }
        });
        let mut totals = vec![[0f64; 2]; fits.len()];
        for (piece, sums) in sums.iter().enumerate() {
            let total = &mut totals[layout.of(piece)];
            *total = [total[0] + sums[0], total[1] + sums[1]];
        }
        let shared: Vec<Shared> = fits
            .iter()
            .zip(&totals)
            .map(|(fit, &totals)| shared(*fit, rule, totals, layout.group, shares[0]))
            .collect();
        parallel_one(Pieces { slice: view_mut::<f32>(&mut out), width }, grain, |first, out| {
            for (i, out) in out.chunks_mut(width).enumerate() {
                let (piece, group) = (first + i, layout.of(first + i));
                share::<T>(&weights[piece * width..][..width], &[], fits[group], shared[group], out);
            }
        });
        out
    }
    let given = gradient.contiguous();
    let shares = [lambda as f32, beside as f32];
    match given.kind() {
        Kind::BFloat16 => run::<bf16>(w, grouping, rule, &given, shares),
        _ => run::<f32>(w, grouping, rule, &given, shares),
    }
}

/// What s and Δ pass on, from Σ G·(f − x·∂f/∂x) and Σ G·∂f/∂e of a group.
fn shared(fit: Fit, rule: Tempered, [by_scale, by_edge]: [f64; 2], size: usize, lambda: f32) -> Shared {
    if fit.scale <= SCALE_FLOOR as f32 {
        return Shared::default();
    }
    let (scale, all) = match rule.scale {
        // Δ = d·mean|w| whatever s is; for the others Δ/s is d.
        Scale::Twn => {
            (by_scale - by_edge * f64::from(fit.threshold / fit.scale), by_edge * rule.deadzone / size as f64)
        }
        _ => (by_scale, 0.0),
    };
    let kept = scale / f64::from(fit.count.max(1.0));
    Shared { kept: lambda * kept as f32, all: lambda * all as f32 }
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;
    use crate::quantize::soft;

    #[test]
    fn agrees_with_autograd() {
        // With another seed a weight may lie within rounding of a threshold, where the two may differ by a code.
        crate::draws::seed(2);
        let normal = || crate::draws::normal([24, 1152]);
        let w = normal() * 0.02 * normal().narrow(1, 0, 1).exp();
        let w = &w * w.abs().gt(1e-3);
        let given = normal();
        for grouping in [Grouping::Tensor, Grouping::Row, Grouping::Group(64), Grouping::Group(9)] {
            for scale in [Scale::AbsMean, Scale::Twn, Scale::AbsMax, Scale::Mse] {
                for temperature in [1.0, 0.1, 0.02] {
                    let rule = Tempered { scale, deadzone: scale.default_deadzone(), temperature };
                    let leaf = w.copy().set_requires_grad(true);
                    let plain = soft(&leaf, grouping, scale, rule.deadzone, temperature);
                    let mixed = &leaf * 0.5 + &plain * 0.7;
                    (mixed * &given).sum(Kind::Float).backward();
                    let mut out = w.empty_like();
                    blend(&w, grouping, rule, 1.0, &mut out);
                    let off = |a: &Tensor, b: &Tensor| ((a - b).norm() / b.norm()).double_value(&[]);
                    let error = off(&out, &plain.detach());
                    assert!(error < 1e-4, "{grouping:?} {scale:?} T={temperature}: values differ by {error}");
                    let fast = gradient(&w, grouping, rule, &given, 0.7, 0.5);
                    let error = off(&fast, &leaf.grad());
                    assert!(error < 1e-3, "{grouping:?} {scale:?} T={temperature}: gradients differ by {error}");
                }
            }
        }
    }

    #[test]
    fn groups_of_zeros_stay_finite() {
        let w = Tensor::zeros([4, 64], (Kind::Float, Device::Cpu));
        let rule = Tempered { scale: Scale::Twn, deadzone: 0.75, temperature: 0.1 };
        let mut out = w.ones_like();
        blend(&w, Grouping::Row, rule, 1.0, &mut out);
        assert_eq!(out, w);
        let slopes = gradient(&w, Grouping::Row, rule, &w.ones_like(), 1.0, 0.0);
        assert_eq!(slopes.isfinite().all().int64_value(&[]), 1);
    }
}
