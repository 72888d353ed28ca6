//! What runs between the projections.
//!
//! Each operator exists twice: as a composition of libtorch's operators (`portable`, for every device, and the
//! reference in tests) and as a fused kernel with a hand-written gradient for the CPU (`ops.cpp`).

use tch::{Device, Kind, Tensor};

use crate::model::native;
use crate::model::rope::Rope;

/// Whether the fused kernels take this: on the CPU, products in f32 or bf16.
pub(crate) fn fused(x: &Tensor, compute: Kind) -> bool {
    x.device() == Device::Cpu && matches!(compute, Kind::Float | Kind::BFloat16)
}

/// The type of the matrix products that is fastest on this device: bf16 on CUDA and on CPUs that multiply it in
/// hardware (AVX-512 BF16), else f32.
pub fn preferred_kind(device: Device) -> Kind {
    match device {
        Device::Cuda(_) => Kind::BFloat16,
        Device::Cpu if cpu_has_bf16() => Kind::BFloat16,
        _ => Kind::Float,
    }
}

#[cfg(target_arch = "x86_64")]
fn cpu_has_bf16() -> bool {
    // Processors with AMX have it too.
    std::arch::is_x86_feature_detected!("avx512bf16")
}

#[cfg(not(target_arch = "x86_64"))]
fn cpu_has_bf16() -> bool {
    false
}

/// Qwen3's norm of q or k over the head dimension, before the rotary embedding.
#[derive(Debug, Clone, Copy)]
pub struct HeadNorm<'a> {
    /// Weight, (head_dim).
    pub weight: &'a Tensor,
    /// Epsilon.
    pub eps: f64,
}

/// `x · Wᵀ` for each weight: x (N, in), W (out, in), result (N, out).
pub fn linears(x: &Tensor, weights: &[&Tensor]) -> Vec<Tensor> {
    if fused(x, x.kind()) { native::linears(x, weights) } else { portable::linears(x, weights) }
}

/// Adds `delta` (N, D) to the residual stream (N, D, f32) and normalizes: the new stream, and
/// `weight · x / √(mean(x²) + eps)` (RMSNorm, Zhang and Sennrich 2019) in `compute`.
pub fn add_rms_norm(
    residual: &Tensor,
    delta: Option<&Tensor>,
    weight: &Tensor,
    eps: f64,
    compute: Kind,
) -> (Tensor, Tensor) {
    if fused(residual, compute) {
        native::add_rms_norm(residual, delta, weight, eps, compute == Kind::BFloat16)
    } else {
        portable::add_rms_norm(residual, delta, weight, eps, compute)
    }
}

/// Normalizes each head when asked, then applies the rotary embedding: x (B, T, H, head_dim), same shape out.
pub fn rotate(x: &Tensor, rope: &Rope, norm: Option<HeadNorm>) -> Tensor {
    if fused(x, x.kind()) {
        native::rotate(x, &rope.cos, &rope.sin, norm.map(|norm| (norm.weight, norm.eps)))
    } else {
        portable::rotate(x, rope, norm)
    }
}

/// Causal grouped-query attention: q (B, T, H, head_dim), k and v (B, T, H_kv, head_dim), result (B, T, H, head_dim).
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor) -> Tensor {
    if fused(q, q.kind()) { native::attention(q, k, v) } else { portable::attention(q, k, v) }
}

/// `silu(gate) · up`, elementwise (SwiGLU, Shazeer 2020).
pub fn swiglu(gate: &Tensor, up: &Tensor) -> Tensor {
    if fused(gate, gate.kind()) { native::swiglu(gate, up) } else { portable::swiglu(gate, up) }
}

/// Compositions of libtorch's own operators, differentiated by autograd.
pub mod portable {
    use super::{HeadNorm, Kind, Rope, Tensor};

    /// See [`super::linears`].
    pub fn linears(x: &Tensor, weights: &[&Tensor]) -> Vec<Tensor> {
        weights.iter().map(|weight| x.matmul(&weight.tr())).collect()
    }

    fn normalize(x: &Tensor, weight: &Tensor, eps: f64) -> Tensor {
        let scale = (x.square().mean_dim(-1, true, Kind::Float) + eps).rsqrt();
        x * scale * weight.to_kind(Kind::Float)
    }

    /// See [`super::add_rms_norm`].
    pub fn add_rms_norm(
        residual: &Tensor,
        delta: Option<&Tensor>,
        weight: &Tensor,
        eps: f64,
        compute: Kind,
    ) -> (Tensor, Tensor) {
        let sum = match delta {
            Some(delta) => residual + delta.to_kind(Kind::Float),
            None => residual.shallow_clone(),
        };
        let normal = normalize(&sum, weight, eps).to_kind(compute);
        (sum, normal)
    }

    /// See [`super::rotate`].
    pub fn rotate(x: &Tensor, rope: &Rope, norm: Option<HeadNorm>) -> Tensor {
        let length = x.size()[1];
        let half = x.size()[3] / 2;
        let mut wide = x.to_kind(Kind::Float);
        if let Some(HeadNorm { weight, eps }) = norm {
            wide = normalize(&wide, weight, eps);
        }
        let table = |t: &Tensor| t.narrow(0, 0, length).unsqueeze(1);
        let (cos, sin) = (table(&rope.cos), table(&rope.sin));
        let (a, b) = (wide.narrow(3, 0, half), wide.narrow(3, half, half));
        let turned = Tensor::cat(&[&a * &cos - &b * &sin, &b * &cos + &a * &sin], 3);
        turned.to_kind(x.kind())
    }

    /// See [`super::attention`].
    pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor) -> Tensor {
        let repeat = q.size()[2] / k.size()[2];
        let heads = |t: &Tensor| t.repeat_interleave_self_int(repeat, 2, None).transpose(1, 2);
        let (k, v) = (heads(k), heads(v));
        Tensor::scaled_dot_product_attention(&q.transpose(1, 2), &k, &v, None::<Tensor>, 0.0, true, None, false)
            .transpose(1, 2)
    }

    /// See [`super::swiglu`].
    pub fn swiglu(gate: &Tensor, up: &Tensor) -> Tensor {
        gate.silu() * up
    }
}
