//! The artifact's weights as tensors, and its projections.

use std::collections::BTreeSet;

use anyhow::{Context, Result};
use formats::artifact::{Artifact, DenseData, ProjectionKind};
use tch::{Device, Kind, Tensor};
use ternary::model::{Dense, Linears, Weights};

/// Unpacks the artifact: codes times scales, stored tensors, and those it takes from `base`.
///
/// # Errors
/// When a tensor is missing in the base model or libtorch cannot place one on the device.
pub fn weights(artifact: &Artifact, base: Option<&Weights>, device: Device) -> Result<Weights> {
    let mut weights = Weights::default();
    for tensor in &artifact.ternary {
        let shape = tensor.shape.map(|n| n as i64);
        let values = Tensor::f_from_slice(&tensor.dequantize())?.f_view(shape)?;
        weights.insert(&tensor.name, values.f_to_device(device)?);
    }
    for tensor in &artifact.dense {
        let shape: Vec<i64> = tensor.shape.iter().map(|&n| n as i64).collect();
        let values = match &tensor.data {
            DenseData::F32(values) => Tensor::f_from_slice(values)?,
            DenseData::F16(values) => Tensor::f_from_slice(values)?,
            DenseData::Bf16(values) => Tensor::f_from_slice(values)?,
        };
        let values = values.f_view(&shape[..])?.f_to_kind(Kind::Float)?;
        weights.insert(&tensor.name, values.f_to_device(device)?);
    }
    let wanted: BTreeSet<&str> = artifact.from_base.iter().map(String::as_str).collect();
    for name in wanted {
        let base = base.context("the artifact takes tensors from a base model, but there is none")?;
        weights.insert(name, base.get(name)?.f_to_kind(Kind::Float)?.f_to_device(device)?);
    }
    Ok(weights)
}

/// The artifact's projections, with its rounding of their inputs.
pub struct Quantized {
    /// The unpacked weights.
    pub dense: Dense,
    /// 16 leaves the inputs alone; 8 and 4 round them.
    pub activation_bits: u32,
}

impl Linears for Quantized {
    fn project(&self, layer: usize, kinds: &[ProjectionKind], x: &Tensor) -> Vec<Tensor> {
        if self.activation_bits >= 16 {
            return self.dense.project(layer, kinds, x);
        }
        self.dense.project(layer, kinds, &round_per_token(x, self.activation_bits))
    }
}

/// Symmetric rounding of each token (row) by its largest magnitude: `s = (2^(bits-1) - 1) / max(|x|, 1e-5)`,
/// `clamp(round(x·s), -2^(bits-1), 2^(bits-1) - 1) / s` (BitNet b1.58, Ma et al. 2024).
pub fn round_per_token(x: &Tensor, bits: u32) -> Tensor {
    let top = f64::from((1i32 << (bits - 1)) - 1);
    let wide = x.to_kind(Kind::Float);
    let scale = wide.abs().amax([-1i64], true).clamp_min(1e-5).reciprocal() * top;
    ((wide * &scale).round().clamp(-top - 1.0, top) / scale).to_kind(x.kind())
}
