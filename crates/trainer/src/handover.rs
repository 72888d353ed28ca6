//! From trained tensors to the artifact file, checked by reading the file back.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use formats::artifact::{Artifact, DenseData, DenseTensor, ModelConfig};
use tch::{Device, Kind, Tensor};

use crate::trained::Trained;

/// What an artifact says about itself beside the trained tensors.
pub struct Origin<'a> {
    /// Shape of the model.
    pub config: &'a ModelConfig,
    /// Hash of the base model, when there is one; tensors that were not trained are then taken from it.
    pub base_sha256: Option<&'a str>,
    /// Facts for people; nothing that differs between two equal runs.
    pub provenance: BTreeMap<String, String>,
}

/// Writes the artifact and reads it back: every stored weight must be, bit for bit, the one that training used.
///
/// # Errors
/// When the trained tensors make no valid artifact, the file cannot be written, or it does not hold them.
pub fn write(path: &Path, origin: Origin, trained: &Trained) -> Result<Artifact> {
    let _no_grad = tch::no_grad_guard();
    let artifact = assemble(origin, trained)?;
    artifact.validate().context("what the recipe handed over is no valid artifact")?;
    artifact.write(path).context("cannot hand over the artifact")?;
    let stored = Artifact::read(path).context("the artifact that was just written cannot be read back")?;
    check(&stored, trained)?;
    Ok(stored)
}

fn assemble(origin: Origin, trained: &Trained) -> Result<Artifact> {
    let mut ternary = Vec::with_capacity(trained.ternary.len());
    for matrix in &trained.ternary {
        ensure!(matrix.quantized.codes.dim() == 2, "{}: the codes must be a matrix (out, in)", matrix.name);
        ternary.push(matrix.quantized.to_artifact(matrix.name.clone(), matrix.grouping));
    }
    let mut dense = Vec::with_capacity(trained.dense.len());
    for (name, tensor) in &trained.dense {
        let shape = tensor.size().iter().map(|&n| n as usize).collect();
        dense.push(DenseTensor { name: name.clone(), shape, data: DenseData::F32(to_host(tensor)?) });
    }
    let stored: Vec<&String> = trained.ternary.iter().map(|t| &t.name).chain(dense.iter().map(|d| &d.name)).collect();
    let mut from_base: Vec<String> = origin.config.tensors().into_iter().map(|(name, _)| name).collect();
    from_base.retain(|name| !stored.contains(&name));
    ensure!(
        from_base.is_empty() || origin.base_sha256.is_some(),
        "the recipe did not hand over {}, and there is no base model to take it from",
        from_base[0]
    );
    Ok(Artifact {
        config: origin.config.clone(),
        activation_bits: trained.activation_bits,
        ternary,
        dense,
        from_base,
        base_sha256: origin.base_sha256.map(str::to_owned),
        provenance: origin.provenance,
    })
}

/// Compares the stored weights with those that training multiplied with.
fn check(stored: &Artifact, trained: &Trained) -> Result<()> {
    for matrix in &trained.ternary {
        let name = &matrix.name;
        let tensor = stored.ternary(name).with_context(|| format!("the artifact lacks {name}"))?;
        // In the type of the products: a bf16 product saw the rounded weight.
        let weights = Tensor::from_slice(&tensor.dequantize()).to_kind(matrix.weight.kind());
        ensure!(
            same(&to_host(&weights)?, &to_host(&matrix.weight)?),
            "{name}: the artifact's codes and scales are not the weights that training used at lambda = 1; \
             hand over the codes and scales of the last forward pass"
        );
    }
    for (name, tensor) in &trained.dense {
        let dense = stored.dense(name).with_context(|| format!("the artifact lacks {name}"))?;
        ensure!(same(&dense.data.to_f32(), &to_host(tensor)?), "{name}: the artifact holds other values than training");
    }
    Ok(())
}

/// Equal bit for bit.
fn same(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits())
}

/// The tensor's values as f32, row-major.
fn to_host(tensor: &Tensor) -> Result<Vec<f32>> {
    let flat = tensor.detach().to_device(Device::Cpu).to_kind(Kind::Float).contiguous().view([-1]);
    Vec::try_from(&flat).context("cannot copy a tensor to the host")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comparison_is_exact() {
        assert!(same(&[1.0, 0.0], &[1.0, 0.0]));
        assert!(!same(&[0.0], &[-0.0]));
        assert!(!same(&[1.0], &[1.0 + f32::EPSILON]));
        assert!(!same(&[1.0], &[1.0, 2.0]));
    }
}
