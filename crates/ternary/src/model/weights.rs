//! Tensors of a model by their Hugging Face names: read from `data/base`, or random from a seed.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use formats::artifact::{ModelConfig, ProjectionKind};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use safetensors::{Dtype, SafeTensors};
use tch::{Device, Kind, Tensor};

/// Why weights could not be had.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// A file could not be read.
    #[error("cannot read {path}: {source}; run `prepare` for this campaign again")]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file is not what it should be.
    #[error("{path}: {message}; run `prepare` for this campaign again")]
    Format {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },
    /// A tensor of the model is not there.
    #[error("tensor `{0}` is missing")]
    Missing(String),
    /// A tensor has another shape than the configuration says.
    #[error("tensor `{name}` has shape {found:?}, the model's configuration says {expected:?}")]
    Shape {
        /// Its name.
        name: String,
        /// Its shape.
        found: Vec<i64>,
        /// The shape it should have.
        expected: Vec<usize>,
    },
    /// The configuration describes no decoder that can run.
    #[error("the model's configuration is unusable: {0}")]
    Config(String),
    /// libtorch failed.
    #[error("libtorch: {0}")]
    Torch(#[from] tch::TchError),
}

/// Tensors by Hugging Face name, all on one device.
#[derive(Debug, Default)]
pub struct Weights {
    tensors: BTreeMap<String, Tensor>,
}

impl Weights {
    /// Reads `config.json` beside the weights of a base folder.
    ///
    /// # Errors
    /// When the file is missing or does not describe a model.
    pub fn config(base: &Path) -> Result<ModelConfig, ModelError> {
        let path = base.join("config.json");
        let text = std::fs::read_to_string(&path).map_err(|source| ModelError::Read { path: path.clone(), source })?;
        serde_json::from_str(&text).map_err(|e| ModelError::Format { path, message: e.to_string() })
    }

    /// Reads `model.safetensors` of a base folder. The file is mapped, not read whole; every tensor becomes `kind`
    /// (the file's own type when `None`).
    ///
    /// # Errors
    /// When the file is missing, damaged or holds a type other than f32, f16 and bf16.
    pub fn load(base: &Path, kind: Option<Kind>, device: Device) -> Result<Self, ModelError> {
        let path = base.join("model.safetensors");
        let read = |source| ModelError::Read { path: path.clone(), source };
        let format = |message: String| ModelError::Format { path: path.clone(), message };
        let file = File::open(&path).map_err(read)?;
        // SAFETY: the file is written once by `prepare` (temporary name, then rename) and not changed afterwards.
        #[allow(unsafe_code)]
        let map = unsafe { memmap2::Mmap::map(&file) }.map_err(read)?;
        let file = SafeTensors::deserialize(&map).map_err(|e| format(e.to_string()))?;
        let mut tensors = BTreeMap::new();
        for (name, view) in file.tensors() {
            let stored = match view.dtype() {
                Dtype::F32 => Kind::Float,
                Dtype::F16 => Kind::Half,
                Dtype::BF16 => Kind::BFloat16,
                other => return Err(format(format!("tensor `{name}` has type {other:?}"))),
            };
            let shape: Vec<i64> = view.shape().iter().map(|&n| n as i64).collect();
            let tensor = Tensor::f_from_data_size(view.data(), &shape, stored)?
                .f_to_device(device)?
                .f_to_kind(kind.unwrap_or(stored))?;
            tensors.insert(name, tensor);
        }
        Ok(Self { tensors })
    }

    /// Random f32 weights of a model trained from scratch: normal with deviation 0.02, the projections that write
    /// to the residual stream (o and down) divided by √(2·layers) as in GPT-2, norms one. The same seed gives the
    /// same weights on every device.
    ///
    /// # Errors
    /// When libtorch cannot place them on the device.
    pub fn init(config: &ModelConfig, seed: u64, device: Device) -> Result<Self, ModelError> {
        let residual = (2.0 * config.num_hidden_layers as f32).sqrt();
        let residual_names = [ProjectionKind::O.module(), ProjectionKind::Down.module()];
        let mut tensors = BTreeMap::new();
        for (index, (name, shape)) in config.tensors().into_iter().enumerate() {
            let count = shape.iter().product();
            let values = if shape.len() == 1 {
                vec![1.0; count]
            } else {
                let scaled = residual_names.iter().any(|module| name.contains(module));
                let deviation = if scaled { 0.02 / residual } else { 0.02 };
                // A generator per tensor: adding one does not change the others.
                let mut rng = StdRng::seed_from_u64(seed.wrapping_mul(1 << 20).wrapping_add(index as u64));
                normal(&mut rng, count, deviation)
            };
            let shape: Vec<i64> = shape.iter().map(|&n| n as i64).collect();
            let tensor = Tensor::f_from_slice(&values)?.f_view(&shape[..])?.f_to_device(device)?;
            tensors.insert(name, tensor);
        }
        Ok(Self { tensors })
    }

    /// The tensor of that name.
    ///
    /// # Errors
    /// When there is none.
    pub fn get(&self, name: &str) -> Result<&Tensor, ModelError> {
        self.tensors.get(name).ok_or_else(|| ModelError::Missing(name.to_owned()))
    }

    /// A projection of a block, `(out, in)`.
    ///
    /// # Errors
    /// When it is missing.
    pub fn projection(&self, layer: usize, kind: ProjectionKind) -> Result<&Tensor, ModelError> {
        self.get(&kind.tensor(layer))
    }

    /// Adds or replaces a tensor.
    pub fn insert(&mut self, name: impl Into<String>, tensor: Tensor) {
        self.tensors.insert(name.into(), tensor);
    }

    /// All tensors, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.tensors.iter().map(|(name, tensor)| (name.as_str(), tensor))
    }

    /// The tensors that are never quantized (embedding, norms, untied head), sharing their storage and gradients
    /// with these.
    ///
    /// # Errors
    /// When one is missing.
    pub fn unquantized(&self, config: &ModelConfig) -> Result<Self, ModelError> {
        let projections = config.num_hidden_layers * ProjectionKind::ALL.len();
        let mut tensors = BTreeMap::new();
        for (name, _) in config.tensors().into_iter().skip(projections) {
            let tensor = self.get(&name)?.shallow_clone();
            tensors.insert(name, tensor);
        }
        Ok(Self { tensors })
    }

    /// Checks that every tensor of the configuration is here with its shape.
    ///
    /// # Errors
    /// Names the first that is missing or differs.
    pub fn check(&self, config: &ModelConfig) -> Result<(), ModelError> {
        for (name, expected) in config.tensors() {
            let found = self.get(&name)?.size();
            if found.iter().map(|&n| n as usize).ne(expected.iter().copied()) {
                return Err(ModelError::Shape { name, found, expected });
            }
        }
        Ok(())
    }
}

impl FromIterator<(String, Tensor)> for Weights {
    fn from_iter<I: IntoIterator<Item = (String, Tensor)>>(tensors: I) -> Self {
        Self { tensors: tensors.into_iter().collect() }
    }
}

/// Normal deviates by Box and Muller's transform.
fn normal(rng: &mut StdRng, count: usize, deviation: f32) -> Vec<f32> {
    let mut values = Vec::with_capacity(count + 1);
    while values.len() < count {
        let radius = (-2.0 * (1.0 - rng.random::<f64>()).ln()).sqrt();
        let angle = std::f64::consts::TAU * rng.random::<f64>();
        values.push((radius * angle.cos()) as f32 * deviation);
        values.push((radius * angle.sin()) as f32 * deviation);
    }
    values.truncate(count);
    values
}
