//! Hugging Face checkpoints: `config.json` to [`ModelConfig`], and safetensors files, single or sharded, as views on
//! the mapped files. Element types (f32, f16, bf16) are kept.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use artifact::config::RopeScaling;
use artifact::{Architecture, ModelConfig};
use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors, View};
use serde_json::Value;

/// Reads a Hugging Face `config.json` (transformers 4 and 5 spellings).
///
/// # Errors
/// When the model is of another family than Llama or Qwen3, or uses something that the decoder does not have
/// (biases, sliding windows, other activations or rotary scalings, weights that are quantized already).
pub fn parse_config(text: &str) -> Result<ModelConfig> {
    let root: Value = serde_json::from_str(text).context("config.json is not JSON")?;
    let kind = root.get("model_type").and_then(Value::as_str).unwrap_or("missing");
    let architecture = match kind {
        "llama" => Architecture::Llama,
        "qwen3" => Architecture::Qwen3,
        other => bail!("model_type is {other}; only llama and qwen3 decoders are supported"),
    };
    let size = |key: &str| -> Result<usize> {
        let number = root.get(key).and_then(Value::as_u64);
        let number = number.with_context(|| format!("config.json has no whole number `{key}`"))?;
        usize::try_from(number).with_context(|| format!("`{key}` is too large"))
    };
    let flag = |key: &str| root.get(key).and_then(Value::as_bool).unwrap_or(false);
    for key in ["attention_bias", "mlp_bias", "use_sliding_window"] {
        ensure!(!flag(key), "config.json sets `{key}`, which the decoder does not have");
    }
    if let Some(act) = root.get("hidden_act").and_then(Value::as_str) {
        ensure!(act == "silu", "hidden_act is {act}; only silu is supported");
    }
    if root.get("quantization_config").is_some_and(|q| !q.is_null()) {
        bail!("this checkpoint is quantized already; use the full-precision one");
    }

    let heads = size("num_attention_heads")?;
    let hidden_size = size("hidden_size")?;
    ensure!(heads > 0, "num_attention_heads is 0");
    let head_dim = match (root.get("head_dim").and_then(Value::as_u64), architecture) {
        (Some(n), _) => usize::try_from(n)?,
        // transformers' defaults of the two families.
        (None, Architecture::Llama) => hidden_size / heads,
        (None, Architecture::Qwen3) => 128,
    };
    let kv = match root.get("num_key_value_heads").and_then(Value::as_u64) {
        Some(n) => usize::try_from(n)?,
        None => heads,
    };
    ensure!(kv > 0 && heads.is_multiple_of(kv), "{heads} query heads are no multiple of {kv} key heads");

    // transformers 5 moves theta and scaling into rope_parameters.
    let rope = root.get("rope_parameters").filter(|v| v.is_object());
    let theta = root
        .get("rope_theta")
        .or_else(|| rope.and_then(|r| r.get("rope_theta")))
        .and_then(Value::as_f64)
        .unwrap_or(10_000.0);
    let scaling = rope.or_else(|| root.get("rope_scaling")).filter(|v| v.is_object());

    Ok(ModelConfig {
        architecture,
        vocab_size: size("vocab_size")?,
        hidden_size,
        intermediate_size: size("intermediate_size")?,
        num_hidden_layers: size("num_hidden_layers")?,
        num_attention_heads: heads,
        num_key_value_heads: kv,
        head_dim,
        rope_theta: theta,
        rope_scaling: scaling.map(parse_rope_scaling).transpose()?.flatten(),
        rms_norm_eps: root.get("rms_norm_eps").and_then(Value::as_f64).unwrap_or(1e-6),
        tie_word_embeddings: flag("tie_word_embeddings"),
        max_position_embeddings: size("max_position_embeddings").unwrap_or(2048),
    })
}

fn parse_rope_scaling(value: &Value) -> Result<Option<RopeScaling>> {
    let kind = value.get("rope_type").or_else(|| value.get("type")).and_then(Value::as_str);
    match kind.unwrap_or("default") {
        "default" => Ok(None),
        "llama3" => {
            let number = |key: &str| {
                let number = value.get(key).and_then(Value::as_f64);
                number.with_context(|| format!("rope_scaling has no number `{key}`"))
            };
            Ok(Some(RopeScaling {
                factor: number("factor")?,
                low_freq_factor: number("low_freq_factor")?,
                high_freq_factor: number("high_freq_factor")?,
                original_max_position: number("original_max_position_embeddings")? as usize,
            }))
        }
        other => bail!("rotary scaling `{other}` is not supported; only llama3 and none are"),
    }
}

/// The files that hold the weights, given the names of all files of a repository or folder.
///
/// # Errors
/// When there is neither `model.safetensors` nor an index.
pub fn weight_layout(names: &BTreeSet<String>) -> Result<Layout> {
    // An index wins: some repositories keep a stale or partial single file next to it.
    if names.contains(INDEX) {
        Ok(Layout::Sharded)
    } else if names.contains(SINGLE) {
        Ok(Layout::Single)
    } else {
        bail!(
            "there is neither {SINGLE} nor {INDEX} among the files; only safetensors checkpoints and GGUF files are read"
        )
    }
}

/// How a checkpoint's weights are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// One `model.safetensors`.
    Single,
    /// `model.safetensors.index.json` names the shard of every tensor.
    Sharded,
}

/// Name of an unsharded checkpoint.
pub const SINGLE: &str = "model.safetensors";
/// Name of the index of a sharded checkpoint.
pub const INDEX: &str = "model.safetensors.index.json";

/// Shard file names of an index, sorted. Names with folders are refused.
///
/// # Errors
/// When the index is no JSON of the expected form.
pub fn shards(index: &str) -> Result<BTreeSet<String>> {
    let root: Value = serde_json::from_str(index).context("the weight index is not JSON")?;
    let map = root.get("weight_map").and_then(Value::as_object);
    let map = map.context("the weight index has no `weight_map`")?;
    let names: BTreeSet<String> = map
        .values()
        .map(|v| v.as_str().map(str::to_owned).context("a shard name in the weight index is no string"))
        .collect::<Result<_>>()?;
    for name in &names {
        ensure!(
            !name.contains(['/', '\\']) && name.ends_with(".safetensors"),
            "the weight index names the shard {name:?}, which is no plain safetensors file name"
        );
    }
    ensure!(!names.is_empty(), "the weight index is empty");
    Ok(names)
}

/// Mapped safetensors files.
#[derive(Debug)]
pub struct Checkpoint {
    files: Vec<(PathBuf, Mmap)>,
}

impl Checkpoint {
    /// Maps the files.
    ///
    /// # Errors
    /// When one cannot be read.
    pub fn open(paths: &[PathBuf]) -> Result<Self> {
        let files = paths.iter().map(|path| {
            let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
            // SAFETY: the map is only read, and files in the caches are never changed in place.
            #[allow(unsafe_code)]
            let map = unsafe { Mmap::map(&file) }.with_context(|| format!("cannot map {}", path.display()))?;
            Ok((path.clone(), map))
        });
        Ok(Self { files: files.collect::<Result<_>>()? })
    }

    /// Exactly the tensors of `config`, checked against its shapes, as views on the files.
    ///
    /// # Errors
    /// When a tensor is missing, twice there, of another shape or type, or when there are tensors that the decoder
    /// would leave out silently.
    pub fn tensors(&self, config: &ModelConfig) -> Result<Vec<(String, MappedTensor<'_>)>> {
        let mut found: BTreeMap<String, MappedTensor<'_>> = BTreeMap::new();
        for (path, map) in &self.files {
            let tensors = SafeTensors::deserialize(map)
                .with_context(|| format!("{} is no valid safetensors file; delete it and run again", path.display()))?;
            for (name, view) in tensors.iter() {
                // Checkpoints of the bare decoder lack the prefix.
                let name = if name.starts_with("model.") || name == "lm_head.weight" {
                    name.to_owned()
                } else {
                    format!("model.{name}")
                };
                let tensor = MappedTensor { dtype: view.dtype(), shape: view.shape().to_vec(), data: view.data() };
                ensure!(found.insert(name.clone(), tensor).is_none(), "tensor `{name}` is there twice");
            }
        }
        let mut out = Vec::new();
        for (name, shape) in config.tensors() {
            let tensor = found.remove(&name).with_context(|| format!("tensor `{name}` is missing"))?;
            ensure!(tensor.shape == shape, "tensor `{name}` has shape {:?}, config.json says {shape:?}", tensor.shape);
            ensure!(
                matches!(tensor.dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16),
                "tensor `{name}` is {:?}; only F32, F16 and BF16 weights are read",
                tensor.dtype
            );
            out.push((name, tensor));
        }
        // Derived tables, and the copy of the embedding that some tied checkpoints carry, are not needed.
        found.retain(|name, _| {
            let tied_head = config.tie_word_embeddings && name == "lm_head.weight";
            !tied_head && !name.ends_with("rotary_emb.inv_freq")
        });
        if let Some(name) = found.keys().next() {
            bail!("the checkpoint has {} tensors the decoder does not know, such as `{name}`", found.len());
        }
        Ok(out)
    }
}

/// A tensor inside a mapped file.
#[derive(Debug, Clone)]
pub struct MappedTensor<'a> {
    dtype: Dtype,
    shape: Vec<usize>,
    data: &'a [u8],
}

impl View for MappedTensor<'_> {
    fn dtype(&self) -> Dtype {
        self.dtype
    }
    fn shape(&self) -> &[usize] {
        &self.shape
    }
    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(self.data)
    }
    fn data_len(&self) -> usize {
        self.data.len()
    }
}
