//! Quantization on the CPU in one pass over memory: each group is read once into the cache, its scale found, and the
//! codes or the blended weights written. Tensor operations would take some ten passes; the results are the same but for
//! the order of sums. Parallel on libtorch's threads.

use formats::artifact::Grouping;
use half::bf16;
use tch::{Kind, Tensor};

use crate::native::{Element, Pieces, parallel, parallel_one, vectorized, view, view_mut};
use crate::quantize::{MSE_ROUNDS, MSE_START, Quantized, SCALE_FLOOR, Scale, scales_shape};

/// Elements that a thread works on at least.
pub(crate) const GRAIN: usize = 1 << 14;

/// What results are written as.
pub(crate) trait Store: Element {
    fn narrow(value: f32) -> Self;
}

impl Store for f32 {
    #[inline(always)]
    fn narrow(value: f32) -> Self {
        value
    }
}

impl Store for bf16 {
    /// Ties to even, without the special case for NaN that keeps `half`'s from vectorizing.
    #[inline(always)]
    fn narrow(value: f32) -> Self {
        let bits = value.to_bits();
        let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
        Self::from_bits(if value.is_nan() { (bits >> 16) as u16 | 0x40 } else { rounded as u16 })
    }
}

impl Store for i8 {
    #[inline(always)]
    fn narrow(value: f32) -> Self {
        value as Self
    }
}

/// What activations and logits are in.
pub(crate) trait Real: Store {
    fn widen(self) -> f32;
}

impl Real for f32 {
    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }
}

impl Real for bf16 {
    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
}

/// Partial sums that a sum is kept in, so that the compiler vectorizes it.
pub(crate) const LANES: usize = 16;

/// Their sum, by halves.
#[inline(always)]
pub(crate) fn total(mut lanes: [f32; LANES]) -> f32 {
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            lanes[i] += lanes[i + half];
        }
        half /= 2;
    }
    lanes[0]
}

/// Sum and count of |w| above `threshold`; f64 between blocks so that a whole tensor sums as well as a group.
#[inline(always)]
pub(crate) fn kept(group: &[f32], threshold: f32) -> (f64, f64) {
    let (mut all, mut number) = (0f64, 0f64);
    for block in group.chunks(1024) {
        let (mut sum, mut count) = ([0f32; LANES], [0f32; LANES]);
        let mut lanes = block.chunks_exact(LANES);
        for lane in &mut lanes {
            for i in 0..LANES {
                let magnitude = lane[i].abs();
                let keep = magnitude > threshold;
                sum[i] += if keep { magnitude } else { 0.0 };
                count[i] += if keep { 1.0 } else { 0.0 };
            }
        }
        for (i, value) in lanes.remainder().iter().enumerate() {
            if value.abs() > threshold {
                sum[i] += value.abs();
                count[i] += 1.0;
            }
        }
        all += f64::from(total(sum));
        number += f64::from(total(count));
    }
    (all, number)
}

#[inline(always)]
fn mean_kept(group: &[f32], threshold: f32) -> f32 {
    let (sum, count) = kept(group, threshold);
    (sum / count.max(1.0)) as f32
}

#[inline(always)]
fn largest(group: &[f32]) -> f32 {
    let mut lanes = [0f32; LANES];
    for block in group.chunks(LANES) {
        for (lane, value) in lanes.iter_mut().zip(block) {
            *lane = lane.max(value.abs());
        }
    }
    lanes.into_iter().fold(0.0, f32::max)
}

/// Which weights of a group do not become 0.
#[derive(Clone, Copy)]
enum Keep {
    /// Those above a magnitude.
    Above(f32),
    /// All but the smallest of each four, the first of equals.
    ThreeOfFour,
}

/// What a group becomes: what is kept, and the scale (snapped to f16).
#[derive(Clone, Copy)]
struct Fit {
    keep: Keep,
    scale: f32,
}

/// Weights that are looked at together when three of four are kept.
const BLOCK: usize = 4 * LANES;

/// Which of up to [`BLOCK`] weights are kept when the smallest of each four, the first of equals, is not: 1, else 0.
#[inline(always)]
fn three_of_four(weights: &[f32]) -> [f32; BLOCK] {
    let mut block = [0f32; BLOCK];
    block[..weights.len()].copy_from_slice(weights);
    let mut magnitudes = [[0f32; LANES]; 4];
    let mut least = [f32::INFINITY; LANES];
    for (i, magnitudes) in magnitudes.iter_mut().enumerate() {
        for lane in 0..LANES {
            magnitudes[lane] = block[4 * lane + i].abs();
            least[lane] = if magnitudes[lane] < least[lane] { magnitudes[lane] } else { least[lane] };
        }
    }
    let (mut kept, mut missing) = ([1f32; BLOCK], [1f32; LANES]);
    for (i, magnitudes) in magnitudes.iter().enumerate() {
        for lane in 0..LANES {
            let dropped = if magnitudes[lane] == least[lane] { missing[lane] } else { 0.0 };
            missing[lane] -= dropped;
            kept[4 * lane + i] = 1.0 - dropped;
        }
    }
    kept
}

/// Mean |w| of the larger three of each four.
#[inline(always)]
fn mean_of_three(group: &[f32]) -> f32 {
    let mut all = 0f64;
    for run in group.chunks(16 * BLOCK) {
        let mut lanes = [0f32; LANES];
        for block in run.chunks(BLOCK) {
            let kept = three_of_four(block);
            for (weights, kept) in block.chunks(LANES).zip(kept.chunks(LANES)) {
                for (lane, (w, kept)) in lanes.iter_mut().zip(weights.iter().zip(kept)) {
                    *lane += w.abs() * kept;
                }
            }
        }
        all += f64::from(total(lanes));
    }
    (all / (group.len() as f64 * 0.75)) as f32
}

/// Rounds a scale to the f16 that is stored, within what f16 holds; inlined, unlike `half`'s.
#[inline(always)]
fn snap(scale: f32) -> f32 {
    let scale = scale.clamp(SCALE_FLOOR as f32, 65504.0);
    if scale < 6.103_515_6e-5 {
        // Subnormal in f16: multiples of 2^-24, which is the spacing of f32 from ½ to 1.
        return (scale + 0.75) - 0.75;
    }
    let bits = scale.to_bits();
    f32::from_bits((bits + 0xfff + ((bits >> 13) & 1)) & !0x1fff)
}

/// How the groups of a matrix get their scale.
#[derive(Clone, Copy)]
pub(crate) enum Source<'a> {
    /// By rule, with its deadzone.
    Rule(Scale, f32),
    /// Given, one a group, snapped before use; the deadzone is in scales.
    Given(&'a [f32], f32),
}

#[inline(always)]
fn fit(group: &[f32], index: usize, source: Source<'_>) -> Fit {
    match source {
        Source::Rule(Scale::ThreeOfFour, _) => Fit { keep: Keep::ThreeOfFour, scale: snap(mean_of_three(group)) },
        Source::Rule(rule, deadzone) => {
            let (threshold, scale) = fit_rule(group, rule, deadzone);
            Fit { keep: Keep::Above(threshold), scale: snap(scale) }
        }
        Source::Given(scales, deadzone) => {
            let scale = snap(scales[index]);
            Fit { keep: Keep::Above(scale * deadzone), scale }
        }
    }
}

/// Threshold and scale of a group by a rule that has a threshold; not snapped.
#[inline(always)]
pub(crate) fn fit_rule(group: &[f32], rule: Scale, deadzone: f32) -> (f32, f32) {
    // Below every magnitude, so that exact zeros count in the mean too.
    let mean = || mean_kept(group, -1.0);
    match rule {
        Scale::AbsMean => {
            let mean = mean();
            (mean * deadzone, mean)
        }
        Scale::Twn => {
            let threshold = mean() * deadzone;
            (threshold, mean_kept(group, threshold))
        }
        Scale::AbsMax => {
            let largest = largest(group);
            (largest * deadzone, largest)
        }
        Scale::Mse => {
            let mut scale = mean_kept(group, mean() * MSE_START as f32);
            for _ in 0..MSE_ROUNDS {
                let next = mean_kept(group, scale * deadzone);
                if next == scale {
                    break;
                }
                scale = next;
            }
            (scale * deadzone, scale)
        }
        Scale::ThreeOfFour => unreachable!("three of four weights are kept by their order: there is no threshold"),
    }
}

/// What is written for a weight w.
#[derive(Clone, Copy)]
enum Output {
    /// Its code.
    Code,
    /// w + λ·(Q(w) − w); Q(w) itself at λ = 1.
    Blend(f32),
}

#[inline(always)]
fn write<T: Store>(group: &[f32], fit: Fit, output: Output, out: &mut [T]) {
    let threshold = match fit.keep {
        Keep::Above(threshold) => threshold,
        Keep::ThreeOfFour => return write_three(group, fit.scale, output, out),
    };
    let code = |value: f32| if value.abs() > threshold { 1f32.copysign(value) } else { 0.0 };
    let pairs = out.iter_mut().zip(group);
    match output {
        Output::Code => pairs.for_each(|(out, &w)| *out = T::narrow(code(w))),
        Output::Blend(1.0) => pairs.for_each(|(out, &w)| *out = T::narrow(code(w) * fit.scale)),
        Output::Blend(lambda) => {
            pairs.for_each(|(out, &w)| *out = T::narrow(w + lambda * (code(w) * fit.scale - w)));
        }
    }
}

/// [`write()`] for [`Keep::ThreeOfFour`].
#[inline(always)]
fn write_three<T: Store>(group: &[f32], scale: f32, output: Output, out: &mut [T]) {
    for (block, out) in group.chunks(BLOCK).zip(out.chunks_mut(BLOCK)) {
        for ((&w, kept), out) in block.iter().zip(three_of_four(block)).zip(out) {
            let code = if w == 0.0 || kept == 0.0 { 0.0 } else { 1f32.copysign(w) };
            *out = T::narrow(match output {
                Output::Code => code,
                Output::Blend(1.0) => code * scale,
                Output::Blend(lambda) => w + lambda * (code * scale - w),
            });
        }
    }
}

vectorized! {
    /// Fits and writes consecutive groups of `width`, of which the first is number `first`; returns their scales.
    fn groups<T: Store>(
        weights: &[f32],
        width: usize,
        first: usize,
        source: Source<'_>,
        output: Output,
        out: &mut [T],
        scales: Option<&mut [f32]>,
    ) -> () {
        let mut scales = scales;
        for (i, (group, out)) in weights.chunks_exact(width).zip(out.chunks_exact_mut(width)).enumerate() {
            let fit = fit(group, first + i, source);
            if let Some(scales) = &mut scales {
                scales[i] = fit.scale;
            }
            write(group, fit, output, out);
        }
    }
}

vectorized! {
    /// Fits a whole tensor.
    fn fit_whole<T: Store>(weights: &[f32], source: Source<'_>, _out: &[T]) -> Fit {
        fit(weights, 0, source)
    }
}

vectorized! {
    /// Writes part of a tensor that was fitted as a whole.
    fn write_part<T: Store>(weights: &[f32], fit: Fit, output: Output, out: &mut [T]) -> () {
        write(weights, fit, output, out);
    }
}

/// Quantizes the contiguous f32 matrix `w` into `out`, and the scales into `scales` where they are wanted.
fn run<T: Store>(
    w: &Tensor,
    grouping: Grouping,
    source: Source<'_>,
    output: Output,
    out: &mut [T],
    scales: Option<&mut [f32]>,
) {
    let weights = view::<f32>(w);
    if grouping == Grouping::Tensor {
        let fit = fit_whole(weights, source, out);
        if let Some(scales) = scales {
            scales[0] = fit.scale;
        }
        // No thread may get a part of a four.
        let width = if matches!(fit.keep, Keep::ThreeOfFour) { 4 } else { 1 };
        return parallel_one(Pieces { slice: out, width }, GRAIN / width, |first, out| {
            write_part(&weights[first * width..][..out.len()], fit, output, out);
        });
    }
    let width = grouping.width(w.size()[1] as usize);
    let part = |first: usize, out: &[T]| &weights[first * width..first * width + out.len()];
    let out = Pieces { slice: out, width };
    let grain = GRAIN.div_ceil(width);
    match scales {
        Some(slice) => parallel(out, Pieces { slice, width: 1 }, grain, |first, out, scales| {
            groups(part(first, out), width, first, source, output, out, Some(scales));
        }),
        None => parallel_one(out, grain, |first, out| {
            groups(part(first, out), width, first, source, output, out, None);
        }),
    }
}

/// Codes and scales of a contiguous f32 matrix on the CPU.
pub(crate) fn quantize(w: &Tensor, grouping: Grouping, source: Source<'_>) -> Quantized {
    let mut codes = Tensor::empty(w.size(), (Kind::Int8, w.device()));
    let mut scales = Tensor::empty(scales_shape(w, grouping), (Kind::Float, w.device()));
    run::<i8>(w, grouping, source, Output::Code, view_mut(&mut codes), Some(view_mut(&mut scales)));
    Quantized { codes, scales }
}

/// Writes w + λ·(Q(w) − w) into `out` (f32 or bf16, contiguous, of `w`'s shape). At λ = 1 that is Q(w) itself.
pub(crate) fn blend(w: &Tensor, grouping: Grouping, source: Source<'_>, lambda: f64, out: &mut Tensor) {
    let output = Output::Blend(lambda as f32);
    match out.kind() {
        Kind::BFloat16 => run::<bf16>(w, grouping, source, output, view_mut(out), None),
        _ => run::<f32>(w, grouping, source, output, view_mut(out), None),
    }
}

#[cfg(test)]
mod tests {
    use half::f16;
    use tch::{Kind, Tensor};

    use super::*;
    use crate::quantize::quantize_on_device;

    #[test]
    fn snapping_and_narrowing_round_as_half_does() {
        let mut state = 1u32;
        for _ in 0..200_000 {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let value = f32::from_bits(state);
            if value.is_nan() {
                assert!(<bf16 as Store>::narrow(value).is_nan());
                continue;
            }
            assert_eq!(<bf16 as Store>::narrow(value), bf16::from_f32(value), "{value}");
            let scale = value.abs().clamp(1e-5, 65504.0);
            assert_eq!(snap(scale), f16::from_f32(scale).to_f32(), "{scale}");
        }
        assert_eq!(snap(0.0), f16::from_f32(1e-5).to_f32());
        assert_eq!(snap(1e9), 65504.0);
    }

    /// Weights whose groups differ in size by orders of magnitude, with zeros among them.
    fn weights(rows: i64, columns: i64) -> Tensor {
        crate::draws::seed(7);
        let spread = crate::draws::normal([rows, 1]).exp();
        let w = crate::draws::normal([rows, columns]) * spread * 0.02;
        &w * w.abs().gt(0.001).to_kind(Kind::Float)
    }

    #[test]
    fn agrees_with_tensor_operations() {
        let w = weights(96, 576);
        for grouping in [Grouping::Tensor, Grouping::Row, Grouping::Group(64), Grouping::Group(9)] {
            for rule in [Scale::AbsMean, Scale::Twn, Scale::AbsMax, Scale::Mse, Scale::ThreeOfFour] {
                if rule == Scale::ThreeOfFour && grouping == Grouping::Group(9) {
                    continue;
                }
                let deadzone = rule.default_deadzone();
                let fast = quantize(&w, grouping, Source::Rule(rule, deadzone as f32));
                let plain = quantize_on_device(&w, grouping, rule, deadzone);
                // The order of sums may move a scale by a unit in the last place of f16, and a code at the threshold.
                let drift = ((&fast.scales - &plain.scales).abs() / &plain.scales).max().double_value(&[]);
                assert!(drift < 1e-3, "{grouping:?} {rule:?}: scales differ by {drift}");
                let moved = fast.codes.ne_tensor(&plain.codes).sum(Kind::Int64).int64_value(&[]);
                assert!(moved <= 4, "{grouping:?} {rule:?}: {moved} codes differ");
            }
        }
    }

    #[test]
    fn whatever_the_width_of_vectors() {
        let w = weights(8, 192);
        let wide = quantize(&w, Grouping::Group(64), Source::Rule(Scale::Twn, 0.75));
        let narrow: Vec<f32> =
            view::<f32>(&w).chunks(64).map(|g| fit(g, 0, Source::Rule(Scale::Twn, 0.75)).scale).collect();
        assert_eq!(view::<f32>(&wide.scales), narrow);
    }
}
