//! The file a trainer hands over: integer codes, stored scales, and what is needed to run the model. No libtorch.
//!
//! [`Artifact::write`] and [`Artifact::read`] are the only way weights pass from a recipe to the evaluator, so what is
//! measured is what is stored. [`pack`] holds the byte layouts of inference engines. Training, quantizing and running
//! the model are not here.

pub mod config;
mod error;
mod file;
pub mod pack;
mod tensor;
mod trits;

pub use config::{Architecture, Grouping, ModelConfig, ProjectionKind, RopeScaling};
pub use error::ArtifactError;
pub use file::sha256_file;
pub use tensor::{DenseData, DenseTensor, TernaryTensor};

use std::collections::{BTreeMap, BTreeSet};

use error::shown;

/// A quantized model as a recipe produced it.
///
/// Every tensor of [`ModelConfig::tensors`] is in exactly one of `ternary`, `dense` and `from_base`.
#[derive(Debug, Clone, PartialEq)]
pub struct Artifact {
    /// Shape of the model.
    pub config: ModelConfig,
    /// Bits of the projections' inputs: 16 leaves them alone, 8 and 4 round each token symmetrically by its largest
    /// magnitude.
    pub activation_bits: u32,
    /// Quantized tensors: codes and scales.
    pub ternary: Vec<TernaryTensor>,
    /// Tensors stored in floating point.
    pub dense: Vec<DenseTensor>,
    /// Names of tensors taken unchanged from the base model, which are not stored here.
    pub from_base: Vec<String>,
    /// sha256 of the base model's `model.safetensors`, lower-case hex; needed when `from_base` is not empty.
    pub base_sha256: Option<String>,
    /// What made this file (commit, seed, versions, device …), for people.
    pub provenance: BTreeMap<String, String>,
}

impl Artifact {
    /// Checks that the artifact is whole: every tensor of the configuration exactly once and in its shape and no other,
    /// groups that divide their rows, codes in −1..=1, scales above 0, finite values.
    ///
    /// # Errors
    /// The first thing that is wrong, with the tensor's name.
    pub fn validate(&self) -> Result<(), ArtifactError> {
        let ternary: Vec<_> = self.ternary.iter().map(|t| (t.name.as_str(), t.shape, t.grouping)).collect();
        let dense: Vec<_> = self.dense.iter().map(|t| (t.name.as_str(), t.shape.as_slice())).collect();
        check_layout(&Layout {
            config: &self.config,
            activation_bits: self.activation_bits,
            ternary: &ternary,
            dense: &dense,
            from_base: &self.from_base,
            base_sha256: self.base_sha256.as_deref(),
        })?;
        self.ternary.iter().try_for_each(TernaryTensor::check)?;
        self.dense.iter().try_for_each(DenseTensor::check)
    }

    /// Bits stored for the block projections (packed codes with their padding, scales; every value of one that is dense)
    /// divided by the number of projection weights.
    ///
    /// Nothing else in the file can hold a part of a projection: what is neither header nor padding is a tensor of the
    /// model in its shape, and the other tensors (embedding, head, norms), which do not count, have fixed shapes.
    pub fn bits_per_weight(&self) -> f64 {
        let projections = self.config.projection_names();
        let ternary = self.ternary.iter().filter(|t| projections.contains(&t.name));
        let dense = self.dense.iter().filter(|t| projections.contains(&t.name));
        let sizes = ternary
            .map(|t| (t.stored_bytes(), t.shape[0] * t.shape[1]))
            .chain(dense.map(|t| (t.data.stored_bytes(), t.data.len())));
        let (bytes, weights) = sizes.fold((0, 0), |(b, w), (bytes, len)| (b + bytes, w + len));
        if weights == 0 { 0.0 } else { bytes as f64 * 8.0 / weights as f64 }
    }

    /// Shares of −1, 0 and +1 among all ternary codes; they sum to 1 (all 0 when there is no ternary tensor).
    pub fn shares(&self) -> [f64; 3] {
        let mut counts = [0usize; 3];
        for tensor in &self.ternary {
            for (total, count) in counts.iter_mut().zip(tensor.counts()) {
                *total += count;
            }
        }
        let total: usize = counts.iter().sum();
        counts.map(|count| if total == 0 { 0.0 } else { count as f64 / total as f64 })
    }

    /// The ternary tensor of this name.
    pub fn ternary(&self, name: &str) -> Option<&TernaryTensor> {
        self.ternary.iter().find(|t| t.name == name)
    }

    /// The dense tensor of this name.
    pub fn dense(&self, name: &str) -> Option<&DenseTensor> {
        self.dense.iter().find(|t| t.name == name)
    }
}

/// What is known of an artifact before its blobs are read.
struct Layout<'a> {
    config: &'a ModelConfig,
    activation_bits: u32,
    ternary: &'a [(&'a str, [usize; 2], Grouping)],
    dense: &'a [(&'a str, &'a [usize])],
    from_base: &'a [String],
    base_sha256: Option<&'a str>,
}

/// Checks names, shapes and groupings against the configuration. It allocates in proportion to what is given, never to
/// what a number in it claims, so that the reader can use it on a hostile header.
fn check_layout(layout: &Layout) -> Result<(), ArtifactError> {
    let invalid = |reason: String| Err(ArtifactError::Invalid { reason });
    layout.config.check().map_err(|reason| ArtifactError::Invalid { reason })?;
    if !matches!(layout.activation_bits, 4 | 8 | 16) {
        return invalid(format!("activation_bits is {}; use 16, 8 or 4", layout.activation_bits));
    }
    let tensors: BTreeMap<String, Vec<usize>> = layout.config.tensors().into_iter().collect();
    let projections = layout.config.projection_names();
    let mut seen = BTreeSet::new();
    let mut look_up = |name: &str| -> Result<&Vec<usize>, ArtifactError> {
        let Some((name, shape)) = tensors.get_key_value(name) else {
            let reason = format!("tensor {} is not one of the model", shown(name));
            return Err(ArtifactError::Invalid { reason });
        };
        if !seen.insert(name.as_str()) {
            return Err(ArtifactError::Invalid { reason: format!("tensor {name} is there twice") });
        }
        Ok(shape)
    };
    for &(name, shape, grouping) in layout.ternary {
        let wanted = look_up(name)?;
        if wanted.as_slice() != shape {
            return invalid(format!("{name} has shape {shape:?}; the configuration says {wanted:?}"));
        }
        if let Grouping::Group(width) = grouping
            && (width == 0 || !shape[1].is_multiple_of(width))
        {
            return invalid(format!("{name}: groups of {width} do not divide rows of {}", shape[1]));
        }
    }
    for &(name, shape) in layout.dense {
        let wanted = look_up(name)?;
        if wanted.as_slice() != shape {
            return invalid(format!("{name} has shape {shape:?}; the configuration says {wanted:?}"));
        }
    }
    for name in layout.from_base {
        look_up(name)?;
        if projections.contains(name) {
            return invalid(format!("projection {name} is not stored; store every projection"));
        }
    }
    if let Some(missing) = tensors.keys().find(|name| !seen.contains(name.as_str())) {
        let (given, wanted) = (seen.len(), tensors.len());
        return invalid(format!("tensor {missing} is missing: it has {given} tensors; the configuration has {wanted}"));
    }
    match layout.base_sha256 {
        None if !layout.from_base.is_empty() => {
            invalid("tensors are taken from a base model, but base_sha256 is missing".into())
        }
        Some(hash) if hash.len() != 64 || !hash.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) => {
            invalid("base_sha256 is not 64 hex digits in lower case".into())
        }
        _ => Ok(()),
    }
}
