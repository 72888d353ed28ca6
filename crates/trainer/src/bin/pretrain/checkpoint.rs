//! Tensors as safetensors files, written whole or not at all; with what a checkpoint is of.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use anyhow::{Context, Result};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use tch::{Device, Kind, Tensor};

/// What a checkpoint is of.
pub struct Header {
    /// Campaign and text; another one's checkpoint is not gone on with.
    pub origin: String,
    /// Steps that are done.
    pub steps: u64,
}

/// Writes f32 tensors; the old file stays until the new one is on disk.
///
/// # Errors
/// When the disk refuses.
pub fn write(path: &Path, tensors: Vec<(String, Tensor)>, header: Option<Header>) -> Result<()> {
    let mut bytes = Vec::with_capacity(tensors.len());
    for (name, tensor) in tensors {
        let shape: Vec<usize> = tensor.size().iter().map(|&n| n as usize).collect();
        let flat = tensor.to_device(Device::Cpu).to_kind(Kind::Float).contiguous().view([-1]);
        let values = Vec::<f32>::try_from(&flat).context("cannot copy a tensor to the host")?;
        bytes.push((name, shape, values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>()));
    }
    let views =
        bytes.iter().map(|(name, shape, values)| Ok((name, TensorView::new(Dtype::F32, shape.clone(), values)?)));
    let views = views.collect::<Result<Vec<_>>>()?;
    let about = header.map(|header| {
        HashMap::from([("origin".to_owned(), header.origin), ("steps".to_owned(), header.steps.to_string())])
    });
    let failed = || format!("cannot write {}; is the disk full?", path.display());
    let unfinished = path.with_extension("unfinished");
    safetensors::serialize_to_file(views, about, &unfinished).with_context(failed)?;
    std::fs::File::open(&unfinished).and_then(|file| file.sync_all()).with_context(failed)?;
    std::fs::rename(&unfinished, path).with_context(failed)
}

/// Steps and tensors of a checkpoint; `None` where there is none of this origin.
///
/// # Errors
/// When it cannot be read.
pub fn read(path: &Path, origin: &str, device: Device) -> Result<Option<(u64, BTreeMap<String, Tensor>)>> {
    let bytes = match std::fs::read(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        read => read.with_context(|| format!("cannot read {}", path.display()))?,
    };
    let damaged = || format!("{} is damaged; delete it and run again", path.display());
    let (_, about) = SafeTensors::read_metadata(&bytes).with_context(damaged)?;
    let about = about.metadata().as_ref();
    if about.and_then(|about| about.get("origin")).is_none_or(|of| of != origin) {
        return Ok(None);
    }
    let steps =
        about.and_then(|about| about.get("steps")).and_then(|steps| steps.parse().ok()).with_context(damaged)?;
    let mut tensors = BTreeMap::new();
    for (name, view) in SafeTensors::deserialize(&bytes).with_context(damaged)?.tensors() {
        let shape: Vec<i64> = view.shape().iter().map(|&n| n as i64).collect();
        let tensor = Tensor::f_from_data_size(view.data(), &shape, Kind::Float)?.f_to_device(device)?;
        tensors.insert(name, tensor);
    }
    Ok(Some((steps, tensors)))
}
