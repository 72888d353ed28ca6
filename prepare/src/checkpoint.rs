//! Hugging Face checkpoints: `config.json` ([`config`]), and safetensors files, single or sharded, as views on the
//! mapped files. Element types (f32, f16, bf16) are kept.
//!
//! What a checkpoint says twice (a single file beside an index, a head beside a tied embedding) must be the same.

mod config;
mod keys;
mod rope;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use formats::artifact::ModelConfig;
use half::{bf16, f16};
use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors, View};
use serde_json::Value;

pub use config::parse_config;

/// Name of an unsharded checkpoint.
pub const SINGLE: &str = "model.safetensors";
/// Name of the index of a sharded checkpoint.
pub const INDEX: &str = "model.safetensors.index.json";
/// Present where the weights are differences to another model's.
const ADAPTER: &str = "adapter_config.json";

/// Ends of the names of buffers that older checkpoints carry and no forward pass reads: tables of the rotary embedding
/// and causal masks.
const BUFFERS: [&str; 7] = [
    "rotary_emb.inv_freq",
    "rotary_emb.cos_cached",
    "rotary_emb.sin_cached",
    ".masked_bias",
    ".self_attn.bias",
    ".attn.bias",
    ".attention.bias",
];

fn is_buffer(name: &str) -> bool {
    BUFFERS.iter().any(|end| name.ends_with(end))
}

/// How a checkpoint's weights are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// One `model.safetensors`.
    Single,
    /// `model.safetensors.index.json` names the shard of every tensor.
    Sharded,
    /// Both are there: they must hold the same weights ([`Checkpoint::check_same`]).
    Both,
}

/// The files that hold the weights, given the names of all files of a repository or folder.
///
/// # Errors
/// When there is neither `model.safetensors` nor an index, or the weights are those of an adapter.
pub fn weight_layout(names: &BTreeSet<String>) -> Result<Layout> {
    ensure!(
        !names.contains(ADAPTER),
        "there is {ADAPTER} among the files: merge the adapter into the model (peft's merge_and_unload) and use the result, \
         or remove it"
    );
    match (names.contains(SINGLE), names.contains(INDEX)) {
        (true, true) => Ok(Layout::Both),
        (true, false) => Ok(Layout::Single),
        (false, true) => Ok(Layout::Sharded),
        (false, false) => bail!(
            "there is neither {SINGLE} nor {INDEX} among the files; only safetensors checkpoints and GGUF files are read"
        ),
    }
}

/// The index of a sharded checkpoint.
#[derive(Debug)]
pub struct Index {
    shard_of: BTreeMap<String, String>,
}

impl Index {
    /// Reads an index. Shard names with folders are refused.
    ///
    /// # Errors
    /// When it is no JSON of the expected form.
    pub fn parse(text: &str) -> Result<Self> {
        let root: Value = serde_json::from_str(text).context("the weight index is not JSON")?;
        let map = root.get("weight_map").and_then(Value::as_object);
        let map = map.context("the weight index has no `weight_map`")?;
        let mut shard_of = BTreeMap::new();
        for (tensor, shard) in map {
            let shard = shard.as_str().context("a shard name in the weight index is no string")?;
            ensure!(
                !shard.contains(['/', '\\']) && shard.ends_with(".safetensors"),
                "the weight index names the shard {shard:?}, which is no plain safetensors file name"
            );
            shard_of.insert(tensor.clone(), shard.to_owned());
        }
        ensure!(!shard_of.is_empty(), "the weight index is empty");
        Ok(Self { shard_of })
    }

    /// Names of the shards, given the names of all files.
    ///
    /// # Errors
    /// When one is not among the files.
    pub fn shards(&self, names: &BTreeSet<String>) -> Result<BTreeSet<String>> {
        let shards: BTreeSet<String> = self.shard_of.values().cloned().collect();
        if let Some(missing) = shards.iter().find(|shard| !names.contains(*shard)) {
            bail!("{INDEX} names the shard {missing}, which is not among the files; fetch it, or remove a stale index");
        }
        Ok(shards)
    }

    /// Checks that every tensor is in the shard that the index names, and no other is there.
    ///
    /// # Errors
    /// Names the first tensor that is elsewhere.
    pub fn check(&self, shards: &Checkpoint) -> Result<()> {
        let mut found = BTreeMap::new();
        for (path, map) in &shards.files {
            let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            for name in read(path, map)?.names().into_iter().filter(|name| !is_buffer(name)) {
                let other = found.insert(name.to_owned(), file.clone());
                ensure!(other.is_none(), "tensor `{name}` is there twice: in {} and {file}", other.unwrap_or_default());
            }
        }
        let advice = "index and shards are not of one checkpoint; fetch or save it again";
        for (name, file) in &found {
            match self.shard_of.get(name) {
                Some(named) => {
                    ensure!(named == file, "tensor `{name}` is in {file}, {INDEX} says {named}; {advice}");
                }
                None => bail!("{file} holds tensor `{name}`, which {INDEX} does not name; {advice}"),
            }
        }
        let missing = self.shard_of.iter().find(|(name, _)| !is_buffer(name) && !found.contains_key(*name));
        match missing {
            Some((name, file)) => bail!("{INDEX} says that tensor `{name}` is in {file}, which lacks it; {advice}"),
            None => Ok(()),
        }
    }
}

/// Mapped safetensors files.
#[derive(Debug)]
pub struct Checkpoint {
    files: Vec<(PathBuf, Mmap)>,
}

fn read<'a>(path: &std::path::Path, map: &'a Mmap) -> Result<SafeTensors<'a>> {
    SafeTensors::deserialize(map)
        .with_context(|| format!("{} is no valid safetensors file; delete it and run again", path.display()))
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
    /// When a tensor is missing, twice there, of another shape or type, when a stored head differs from the embedding that
    /// it is tied to, or when there are tensors that the decoder would leave out silently.
    pub fn tensors(&self, config: &ModelConfig) -> Result<Vec<(String, MappedTensor<'_>)>> {
        let mut found: BTreeMap<String, MappedTensor<'_>> = BTreeMap::new();
        for (path, map) in &self.files {
            for (name, view) in read(path, map)?.iter() {
                if is_buffer(name) {
                    continue;
                }
                // Checkpoints of the bare decoder lack the prefix.
                let name =
                    if name.starts_with("model.") || name == HEAD { name.to_owned() } else { format!("model.{name}") };
                let tensor = MappedTensor { dtype: view.dtype(), shape: view.shape().to_vec(), data: view.data() };
                ensure!(found.insert(name.clone(), tensor).is_none(), "tensor `{name}` is there twice");
            }
        }
        let mut take = |name: &str, shape: &[usize]| -> Result<Option<MappedTensor<'_>>> {
            let Some(tensor) = found.remove(name) else { return Ok(None) };
            ensure!(tensor.shape == shape, "tensor `{name}` has shape {:?}, config.json says {shape:?}", tensor.shape);
            ensure!(
                matches!(tensor.dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16),
                "tensor `{name}` is {:?}; only F32, F16 and BF16 weights are read",
                tensor.dtype
            );
            Ok(Some(tensor))
        };
        let mut out = Vec::new();
        for (name, shape) in config.tensors() {
            let tensor = take(&name, &shape)?.with_context(|| match name.as_str() {
                HEAD => format!("tensor `{name}` is missing, and config.json does not set tie_word_embeddings"),
                _ => format!("tensor `{name}` is missing"),
            })?;
            if config.tie_word_embeddings
                && name == EMBEDDING
                && let Some(head) = take(HEAD, &shape)?
            {
                ensure!(
                    tensor.values().eq(head.values()),
                    "config.json sets tie_word_embeddings, and the stored `{HEAD}` differs from `{EMBEDDING}`: set it to \
                     false if the head is right, or remove the head"
                );
            }
            out.push((name, tensor));
        }
        if let Some(name) = found.keys().next() {
            bail!("the checkpoint has {} tensors the decoder does not know, such as `{name}`", found.len());
        }
        Ok(out)
    }

    /// Checks that another checkpoint of the same model holds the same weights.
    ///
    /// # Errors
    /// Names the first tensor that differs.
    pub fn check_same(&self, sharded: &Self, config: &ModelConfig) -> Result<()> {
        let advice = format!("find out which is right and remove {SINGLE}, or {INDEX} and its shards");
        let one = self.tensors(config).with_context(|| format!("{SINGLE} lies beside {INDEX}; {advice}"))?;
        let other = sharded.tensors(config).with_context(|| format!("{INDEX} lies beside {SINGLE}; {advice}"))?;
        for ((name, a), (_, b)) in one.iter().zip(&other) {
            let same = a.dtype == b.dtype && a.data == b.data;
            ensure!(same, "tensor `{name}` of {SINGLE} differs from that of the shards in {INDEX}; {advice}");
        }
        Ok(())
    }
}

const HEAD: &str = "lm_head.weight";
const EMBEDDING: &str = "model.embed_tokens.weight";

/// Refuses values that are no finite numbers (F32, F16, BF16).
///
/// # Errors
/// Names the tensor and the first such value's index.
pub fn check_finite(name: &str, tensor: &impl View) -> Result<()> {
    let data = tensor.data();
    let bad: fn(&[u8]) -> bool = match tensor.dtype() {
        Dtype::F32 => |b| !f32::from_le_bytes([b[0], b[1], b[2], b[3]]).is_finite(),
        Dtype::F16 => |b| !f16::from_le_bytes([b[0], b[1]]).is_finite(),
        Dtype::BF16 => |b| !bf16::from_le_bytes([b[0], b[1]]).is_finite(),
        other => bail!("tensor `{name}` is {other:?}; only F32, F16 and BF16 weights are read"),
    };
    let width = tensor.dtype().bitsize() / 8;
    let mut wrong = data.chunks_exact(width).enumerate().filter(|(_, bytes)| bad(bytes)).map(|(index, _)| index);
    if let Some(first) = wrong.next() {
        bail!(
            "tensor `{name}` holds NaN or infinity ({} values of {}, the first at index {first}): the checkpoint is damaged, \
             or overflowed when it was converted; fetch it again, or use another one",
            1 + wrong.count(),
            data.len() / width
        );
    }
    Ok(())
}

/// A tensor inside a mapped file.
#[derive(Debug, Clone)]
pub struct MappedTensor<'a> {
    dtype: Dtype,
    shape: Vec<usize>,
    data: &'a [u8],
}

impl<'a> MappedTensor<'a> {
    /// Its values, row-major.
    fn values(&self) -> Box<dyn Iterator<Item = f32> + 'a> {
        let pairs = self.data.chunks_exact(2).map(|b| [b[0], b[1]]);
        match self.dtype {
            Dtype::F16 => Box::new(pairs.map(|b| f16::from_le_bytes(b).to_f32())),
            Dtype::BF16 => Box::new(pairs.map(|b| bf16::from_le_bytes(b).to_f32())),
            _ => Box::new(self.data.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))),
        }
    }
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
