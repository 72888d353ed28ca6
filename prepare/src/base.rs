//! The base model: `base/config.json`, `base/model.safetensors` and `base/base.json`, from a GGUF file or a Hugging Face
//! checkpoint; and where its tokenizer is.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use formats::artifact::ModelConfig;
use formats::campaign::Source;
use safetensors::View;
use serde_json::json;

use crate::checkpoint::{self, Checkpoint, INDEX, Index, Layout, SINGLE};
use crate::files::{sha256_file, write_bytes};
use crate::gguf::Gguf;
use crate::sources::{Fetcher, Opened};
use crate::{gguf_model, tokenizer};

/// The files of a base model in the data folder.
pub const OUTPUTS: [&str; 3] = ["base/config.json", "base/model.safetensors", "base/base.json"];

/// Where a base model was found.
#[derive(Debug)]
pub struct Base {
    source: Source,
    opened: Opened,
    form: Form,
}

#[derive(Debug)]
enum Form {
    /// A GGUF file, by name.
    Gguf(String),
    /// A Hugging Face checkpoint below this folder name (empty, or ending in `/`).
    Checkpoint(String),
}

impl Base {
    /// Finds the model: a single GGUF file, or a folder or repository with `config.json`.
    ///
    /// # Errors
    /// When the source cannot be fetched or holds no such model.
    pub fn find(fetcher: &Fetcher, source: &Source) -> Result<Self> {
        let opened = fetcher.open(source)?;
        let folder = match source.path.as_deref() {
            None | Some("") => String::new(),
            Some(path) => format!("{}/", path.trim_end_matches('/')),
        };
        let form = if opened.names.contains(&format!("{folder}config.json")) {
            Form::Checkpoint(folder)
        } else {
            let names = opened.selected()?;
            match names.as_slice() {
                [name] if name.ends_with(".gguf") => Form::Gguf(name.clone()),
                _ => bail!(
                    "`{}` is no model: there is no config.json; name a .gguf file in `path`, or a folder with \
                     config.json, tokenizer.json and safetensors weights",
                    source.from
                ),
            }
        };
        Ok(Self { source: source.clone(), opened, form })
    }

    /// Writes the model below `data`; paths of the outputs in `data`.
    ///
    /// # Errors
    /// When the weights cannot be fetched or read, do not fit the config, or the disk refuses.
    pub fn write(&self, data: &Path, fetcher: &Fetcher) -> Result<Vec<String>> {
        let bar = fetcher.progress.counter("converting tensors");
        match &self.form {
            Form::Gguf(name) => {
                let path = self.opened.fetch(name)?;
                let gguf = Gguf::open(&path)?;
                let config = gguf_model::config(&gguf)?;
                check(&config)?;
                write(data, &config, gguf_model::tensors(&gguf, &config)?, &self.describe(name))?;
            }
            Form::Checkpoint(folder) => {
                let config = self.checkpoint_config(folder)?;
                let inside = |name: &String| name.strip_prefix(folder.as_str()).map(str::to_owned);
                let names: BTreeSet<String> = self.opened.names.iter().filter_map(inside).collect();
                let fetch = |name: &str| self.opened.fetch(&format!("{folder}{name}"));
                let single = || Checkpoint::open(&[fetch(SINGLE)?]);
                let sharded = || -> Result<Checkpoint> {
                    let index = Index::parse(&read(&fetch(INDEX)?)?)?;
                    let paths: Vec<PathBuf> = index.shards(&names)?.iter().map(|s| fetch(s)).collect::<Result<_>>()?;
                    let shards = Checkpoint::open(&paths)?;
                    index.check(&shards)?;
                    Ok(shards)
                };
                let checkpoint = match checkpoint::weight_layout(&names)? {
                    Layout::Single => single()?,
                    Layout::Sharded => sharded()?,
                    Layout::Both => {
                        let checkpoint = single()?;
                        checkpoint.check_same(&sharded()?, &config)?;
                        checkpoint
                    }
                };
                write(data, &config, checkpoint.tensors(&config)?, &self.describe(folder))?;
            }
        }
        bar.finish_and_clear();
        Ok(OUTPUTS.map(str::to_owned).to_vec())
    }

    /// The model's shape, without fetching weights of a checkpoint.
    ///
    /// # Errors
    /// When it cannot be fetched or read.
    pub fn config(&self) -> Result<ModelConfig> {
        match &self.form {
            Form::Gguf(name) => gguf_model::config(&Gguf::open(&self.opened.fetch(name)?)?),
            Form::Checkpoint(folder) => self.checkpoint_config(folder),
        }
    }

    /// The model's `tokenizer.json`.
    ///
    /// # Errors
    /// When it cannot be fetched or read.
    pub fn tokenizer(&self) -> Result<String> {
        match &self.form {
            Form::Gguf(name) => {
                let gguf = Gguf::open(&self.opened.fetch(name)?)?;
                tokenizer::from_gguf(&gguf_model::vocabulary(&gguf)?)
            }
            Form::Checkpoint(folder) => {
                let name = format!("{folder}tokenizer.json");
                if !self.opened.names.contains(&name) {
                    bail!(
                        "`{}` has no {name}; save the model's fast tokenizer there (transformers' save_pretrained)",
                        self.source.from
                    );
                }
                read(&self.opened.fetch(&name)?)
            }
        }
    }

    fn checkpoint_config(&self, folder: &str) -> Result<ModelConfig> {
        let text = read(&self.opened.fetch(&format!("{folder}config.json"))?)?;
        let config = checkpoint::parse_config(&text)
            .with_context(|| format!("`{}` cannot be used as a base model", self.source.from))?;
        check(&config)?;
        Ok(config)
    }

    fn describe(&self, path: &str) -> serde_json::Value {
        json!({
            "from": self.source.from, "path": path,
            "sha256": self.opened.info().sha256, "revision": self.opened.info().revision,
        })
    }
}

fn check(config: &ModelConfig) -> Result<()> {
    config.check().map_err(|reason| anyhow::anyhow!("the model's shape is not usable: {reason}"))
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

/// Writes the canonical form of a model below `data`; `source` says where it is from.
///
/// # Errors
/// When a weight is no finite number, or the disk refuses.
pub fn write<V: View>(
    data: &Path,
    config: &ModelConfig,
    tensors: Vec<(String, V)>,
    source: &serde_json::Value,
) -> Result<()> {
    for (name, tensor) in &tensors {
        checkpoint::check_finite(name, tensor)?;
    }
    let folder = data.join("base");
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let weights = folder.join("model.safetensors");
    // The library writes to a path, so the temporary file is only named here.
    let temporary = tempfile::NamedTempFile::new_in(&folder)
        .with_context(|| format!("cannot write into {}", folder.display()))?
        .into_temp_path();
    safetensors::serialize_to_file(tensors, None, &temporary)
        .with_context(|| format!("cannot write {}; is the disk full?", weights.display()))?;
    let sha256 = sha256_file(&temporary)?;
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(&temporary, fs::Permissions::from_mode(0o644))?;
    }
    fs::File::open(&temporary)?.sync_all()?;
    temporary.persist(&weights).with_context(|| format!("cannot keep {}", weights.display()))?;
    write_bytes(&folder.join("config.json"), &serde_json::to_vec_pretty(config)?)?;
    let about = json!({"sha256": sha256, "source": source});
    write_bytes(&folder.join("base.json"), &serde_json::to_vec_pretty(&about)?)
}
