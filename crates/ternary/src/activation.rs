//! Activation quantization: symmetric, per token (the last dimension) or per channel, by the largest magnitude.

use half::bf16;
use tch::{Device, Kind, Tensor};

use crate::kernel::{GRAIN, LANES, Real};
use crate::native::{Pieces, parallel_one, vectorized, view, view_mut};

/// Quantizes to `bits` and back: s = q/max(max|x|, 1e-5) with q = 2^(bits−1) − 1, then clamp(round(x·s), −q−1, q)/s,
/// ties to even. Hugging Face's `activation_quant` for 8 bits. Computed in f32, returned in `x`'s kind and without a
/// graph; 16 bits and more change nothing.
pub fn quantize(x: &Tensor, bits: u32) -> Tensor {
    if bits >= 16 {
        return x.shallow_clone();
    }
    tch::no_grad(|| run(x, bits, None))
}

/// x + λ·(Q(x) − x) with the identity as gradient (straight through). At 16 bits or λ = 0 it is `x` itself.
pub fn fake_quantize(x: &Tensor, bits: u32, lambda: f64) -> Tensor {
    if bits >= 16 || lambda == 0.0 {
        return x.shallow_clone();
    }
    x + tch::no_grad(|| run(x, bits, Some(lambda)))
}

/// Which values of `x`, `(…, channels)`, share a scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Per {
    /// Those of a token: what [`fake_quantize`] does and an artifact's `activation_bits` mean.
    Token,
    /// Those of a channel in all tokens of a batch: a token's values depend on the others', also on later ones. No
    /// artifact holds that: a run that trains with it must end per token, or without rounding.
    Channel,
}

/// [`fake_quantize`] with the scales that `per` says.
pub fn fake_quantize_per(x: &Tensor, bits: u32, lambda: f64, per: Per) -> Tensor {
    if bits >= 16 || lambda == 0.0 || per == Per::Token {
        return fake_quantize(x, bits, lambda);
    }
    x + tch::no_grad(|| run_channels(x, bits, lambda))
}

/// Q(x), or λ·(Q(x) − x) with `lambda`.
fn run(x: &Tensor, bits: u32, lambda: Option<f64>) -> Tensor {
    let most = most(bits);
    let lambda_narrow = lambda.map(|lambda| lambda as f32);
    let columns = x.size().last().copied().unwrap_or(1).max(1) as usize;
    match (x.device(), x.kind()) {
        (Device::Cpu, Kind::Float) => on_rows::<f32>(x, columns, most, lambda_narrow),
        (Device::Cpu, Kind::BFloat16) => on_rows::<bf16>(x, columns, most, lambda_narrow),
        _ => on_device(x, f64::from(most), lambda),
    }
}

/// q, the largest level.
fn most(bits: u32) -> f32 {
    ((1u32 << (bits - 1)) - 1) as f32
}

/// In tensor operations, for accelerators. Also the plain reference of the CPU's.
fn on_device(x: &Tensor, most: f64, lambda: Option<f64>) -> Tensor {
    let rate = x.to_kind(Kind::Float).abs().amax(-1, true).clamp_min(1e-5).reciprocal() * most;
    at_rate(x, &rate, most, lambda)
}

/// Q(x), or λ·(Q(x) − x) with `lambda`, for `rate` = q/max|x|.
fn at_rate(x: &Tensor, rate: &Tensor, most: f64, lambda: Option<f64>) -> Tensor {
    let wide = x.to_kind(Kind::Float);
    let quantized = (&wide * rate).round_().clamp_(-most - 1.0, most) / rate;
    match lambda {
        Some(lambda) => ((quantized - wide) * lambda).to_kind(x.kind()),
        None => quantized.to_kind(x.kind()),
    }
}

/// λ·(Q(x) − x) with a scale a channel.
fn run_channels(x: &Tensor, bits: u32, lambda: f64) -> Tensor {
    let most = most(bits);
    let x = x.detach().contiguous();
    let tokens = x.reshape([-1, x.size().last().copied().unwrap_or(1)]);
    // Both ends, for which no magnitudes have to be written.
    let largest = tokens.amax(0, false).maximum(&tokens.amin(0, false).neg()).to_kind(Kind::Float);
    let rates = largest.clamp_min(1e-5).reciprocal() * f64::from(most);
    match (x.device(), x.kind()) {
        (Device::Cpu, Kind::Float) => on_channels::<f32>(&x, &rates, most, lambda as f32),
        (Device::Cpu, Kind::BFloat16) => on_channels::<bf16>(&x, &rates, most, lambda as f32),
        _ => at_rate(&x, &rates, f64::from(most), Some(lambda)),
    }
}

fn on_channels<T: Real>(x: &Tensor, rates: &Tensor, most: f32, lambda: f32) -> Tensor {
    let mut out = x.empty_like();
    let (values, rates) = (view::<T>(x), view::<f32>(rates));
    let columns = rates.len();
    let to = Pieces { slice: view_mut::<T>(&mut out), width: columns };
    parallel_one(to, GRAIN.div_ceil(columns), |first, out| {
        channels(&values[first * columns..][..out.len()], rates, most, lambda, out);
    });
    out
}

fn on_rows<T: Real>(x: &Tensor, columns: usize, most: f32, lambda: Option<f32>) -> Tensor {
    let x = x.detach().contiguous();
    let mut out = x.empty_like();
    let values = view::<T>(&x);
    let to = Pieces { slice: view_mut::<T>(&mut out), width: columns };
    parallel_one(to, GRAIN.div_ceil(columns), |first, out| {
        rows(&values[first * columns..][..out.len()], columns, most, lambda, out);
    });
    out
}

/// Q(value).
#[inline(always)]
fn nearest(value: f32, rate: f32, most: f32) -> f32 {
    // Adding 1.5·2^23 rounds to an integer, ties to even, as long as there are fewer than 22 bits.
    let level = (value * rate + 12_582_912.0) - 12_582_912.0;
    level.clamp(-most - 1.0, most) / rate
}

vectorized! {
    fn rows<T: Real>(x: &[T], columns: usize, most: f32, lambda: Option<f32>, out: &mut [T]) -> () {
        for (row, out) in x.chunks_exact(columns).zip(out.chunks_exact_mut(columns)) {
            let mut lanes = [0f32; LANES];
            for block in row.chunks(LANES) {
                for (lane, value) in lanes.iter_mut().zip(block) {
                    let magnitude = value.widen().abs();
                    // Not `max`: it would drop a NaN.
                    *lane = if magnitude <= *lane { *lane } else { magnitude };
                }
            }
            let largest = lanes.into_iter().fold(1e-5, |a: f32, b| if b <= a { a } else { b });
            let rate = most / largest;
            let quantize = |value: f32| nearest(value, rate, most);
            let pairs = out.iter_mut().zip(row);
            match lambda {
                None => pairs.for_each(|(out, x)| *out = T::narrow(quantize(x.widen()))),
                Some(lambda) => pairs.for_each(|(out, x)| {
                    *out = T::narrow((quantize(x.widen()) - x.widen()) * lambda);
                }),
            }
        }
    }
}

vectorized! {
    fn channels<T: Real>(x: &[T], rates: &[f32], most: f32, lambda: f32, out: &mut [T]) -> () {
        for (row, out) in x.chunks_exact(rates.len()).zip(out.chunks_exact_mut(rates.len())) {
            for ((out, x), &rate) in out.iter_mut().zip(row).zip(rates) {
                *out = T::narrow((nearest(x.widen(), rate, most) - x.widen()) * lambda);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_tensor_operations() {
        crate::draws::seed(1);
        let x = crate::draws::normal([7, 5, 131]) * 3.0;
        for bits in [8, 4] {
            for lambda in [None, Some(1.0), Some(0.3)] {
                let plain = on_device(&x, f64::from((1 << (bits - 1)) - 1), lambda);
                let fast = run(&x, bits, lambda);
                // A value within rounding of a tie may go to the other level.
                let off = (&fast - &plain).abs().gt(1e-5).to_kind(Kind::Float).sum(Kind::Float).double_value(&[]);
                assert!(off <= 2.0, "{bits} bits, {lambda:?}: {off} values differ");
            }
        }
        assert_eq!(quantize(&x.zeros_like(), 8), x.zeros_like());
    }

    #[test]
    fn per_channel_is_the_slow_reference() {
        let [tokens, channels] = [3 * 700, 37];
        let scales = (Tensor::arange(channels, (Kind::Float, Device::Cpu)) * 0.3).cos() * 5.0;
        let x = (Tensor::arange(tokens * channels, (Kind::Double, Device::Cpu)) * 0.7).sin().to_kind(Kind::Float);
        let x = x.reshape([3, -1, channels]) * scales;
        for kind in [Kind::Float, Kind::BFloat16] {
            let input = x.to_kind(kind).set_requires_grad(true);
            let values = Vec::<f32>::try_from(input.detach().to_kind(Kind::Float).reshape([-1])).expect("f32");
            for (bits, lambda) in [(8, 1.0), (8, 0.3), (4, 0.3)] {
                let q = (1 << (bits - 1)) as f32 - 1.0;
                let mut wanted = values.clone();
                for channel in 0..channels as usize {
                    let of = || (channel..values.len()).step_by(channels as usize);
                    let rate = of().map(|i| values[i].abs()).fold(1e-5, f32::max).recip() * q;
                    for i in of() {
                        let level = (values[i] * rate).round_ties_even().clamp(-q - 1.0, q);
                        wanted[i] = values[i] + lambda as f32 * (level / rate - values[i]);
                    }
                }
                let got = fake_quantize_per(&input, bits, lambda, Per::Channel);
                assert_eq!((got.kind(), got.size()), (kind, x.size()));
                let off = (got.to_kind(Kind::Float) - Tensor::from_slice(&wanted).reshape(x.size())).abs().max();
                // bf16 has 8 bits, and 5 is the largest; the difference is rounded too.
                let most = if kind == Kind::Float { 2e-6 } else { 0.02 };
                assert!(off.double_value(&[]) < most, "{bits} bits, {lambda}, {kind:?}: {off}");
                let slope = Tensor::run_backward(&[got.sum(Kind::Float)], &[&input], false, false).remove(0);
                assert_eq!(slope, input.ones_like());
                // What an accelerator computes.
                let rates = x.abs().amax([0, 1], false).reciprocal() * f64::from(q);
                if kind == Kind::Float {
                    let plain = &x + at_rate(&x, &rates, f64::from(q), Some(lambda));
                    assert_eq!(got, plain);
                }
            }
            assert_eq!(fake_quantize_per(&input, 8, 0.5, Per::Token), fake_quantize(&input, 8, 0.5));
            for (bits, lambda) in [(16, 1.0), (8, 0.0)] {
                assert_eq!(fake_quantize_per(&input, bits, lambda, Per::Channel), input);
            }
        }
        assert_eq!(fake_quantize_per(&x.zeros_like(), 8, 1.0, Per::Channel), x.zeros_like());
    }

    #[test]
    fn what_is_not_a_number_stays_so() {
        let x = Tensor::from_slice(&[1.0, f32::NAN, -2.0]);
        assert!(quantize(&x, 8).sum(Kind::Float).double_value(&[]).is_nan());
        assert!(fake_quantize(&x, 8, 0.5).sum(Kind::Float).double_value(&[]).is_nan());
        assert!(fake_quantize_per(&x, 8, 0.5, Per::Channel).double_value(&[1]).is_nan());
    }
}
