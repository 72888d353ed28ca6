//! Activation quantization: symmetric, per token (the last dimension), by the largest magnitude.

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

/// Q(x), or λ·(Q(x) − x) with `lambda`.
fn run(x: &Tensor, bits: u32, lambda: Option<f64>) -> Tensor {
    let most = ((1u32 << (bits - 1)) - 1) as f32;
    let lambda_narrow = lambda.map(|lambda| lambda as f32);
    let columns = x.size().last().copied().unwrap_or(1).max(1) as usize;
    match (x.device(), x.kind()) {
        (Device::Cpu, Kind::Float) => on_rows::<f32>(x, columns, most, lambda_narrow),
        (Device::Cpu, Kind::BFloat16) => on_rows::<bf16>(x, columns, most, lambda_narrow),
        _ => on_device(x, f64::from(most), lambda),
    }
}

/// In tensor operations, for accelerators. Also the plain reference of the CPU's.
fn on_device(x: &Tensor, most: f64, lambda: Option<f64>) -> Tensor {
    let wide = x.to_kind(Kind::Float);
    let rate = wide.abs().amax(-1, true).clamp_min(1e-5).reciprocal() * most;
    let quantized = (&wide * &rate).round_().clamp_(-most - 1.0, most) / rate;
    match lambda {
        Some(lambda) => ((quantized - wide) * lambda).to_kind(x.kind()),
        None => quantized.to_kind(x.kind()),
    }
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
            let quantize = |value: f32| {
                // Adding 1.5·2^23 rounds to an integer, ties to even, as long as there are fewer than 22 bits.
                let level = (value * rate + 12_582_912.0) - 12_582_912.0;
                level.clamp(-most - 1.0, most) / rate
            };
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_tensor_operations() {
        draws::seed(1);
        let x = draws::normal([7, 5, 131]) * 3.0;
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
    fn what_is_not_a_number_stays_so() {
        let x = Tensor::from_slice(&[1.0, f32::NAN, -2.0]);
        assert!(quantize(&x, 8).sum(Kind::Float).double_value(&[]).is_nan());
        assert!(fake_quantize(&x, 8, 0.5).sum(Kind::Float).double_value(&[]).is_nan());
    }
}
