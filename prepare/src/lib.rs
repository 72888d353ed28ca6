//! `prepare`: fetches a campaign's model and text, converts the weights, makes the tokenizer, and writes token shards.
//!
//! Everything lands below one data folder (`base/`, `tokenizer.json`, `text/`, `prepared.json`), stage by stage; what is
//! done and unchanged is skipped. The recipe that is searched never runs any of this.

pub mod base;
pub mod checkpoint;
pub mod collect;
pub mod decontaminate;
pub mod dequant;
pub mod documents;
pub mod files;
pub mod gguf;
pub mod gguf_model;
pub mod hub;
pub mod links;
mod pretrain;
pub mod sources;
pub mod split;
pub mod stamp;
pub mod text;
pub mod tokenizer;

use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use formats::campaign::{Campaign, Model, Source};
use formats::corpus::Manifest;
use serde::Serialize;
use serde_json::json;

use crate::base::Base;
use crate::collect::Library;
use crate::files::{Progress, sha256, write_bytes};
use crate::pretrain::Pretraining;
use crate::sources::Fetcher;
use crate::stamp::Stamp;

/// A part of the work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// The base model's weights.
    Base,
    /// `tokenizer.json`.
    Tokenizer,
    /// Token shards.
    Text,
}

impl Stage {
    fn name(self) -> &'static str {
        match self {
            Self::Base => "base",
            Self::Tokenizer => "tokenizer",
            Self::Text => "text",
        }
    }
}

/// What to prepare.
#[derive(Debug, Clone)]
pub struct Options {
    /// The campaign file.
    pub campaign: PathBuf,
    /// Folder for everything that is made.
    pub data: PathBuf,
    /// Folder of fetched packages; `.cache` in the repository when absent.
    pub cache: Option<PathBuf>,
    /// The program that trains a parent from `[model.pretrain]`; `pretrain` beside this one when absent.
    pub pretrainer: Option<PathBuf>,
    /// Only this stage (and what it needs); all when absent.
    pub only: Option<Stage>,
    /// No bars and notes.
    pub quiet: bool,
}

/// What was done.
#[derive(Debug, Clone, Serialize)]
pub struct Outcome {
    /// The data folder.
    pub data: PathBuf,
    /// Stages that were made now (`true`) or found finished (`false`).
    pub made: BTreeMap<Stage, bool>,
    /// Documents that occurred more than once, when text was made now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub duplicates: Option<u64>,
    /// The text's manifest, when there is text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<Manifest>,
    /// What people should know about the text.
    pub notes: Vec<String>,
}

/// Prepares a campaign's model and data.
///
/// # Errors
/// When a source cannot be fetched or used, or the disk refuses; the message says what to do. Finished stages are kept,
/// so running again goes on from there.
pub fn prepare(options: &Options) -> Result<Outcome> {
    let campaign = Campaign::load(&options.campaign)?;
    let root = repository_root(&options.campaign);
    let progress = Progress { quiet: options.quiet };
    let cache = options.cache.clone().unwrap_or_else(|| root.join(".cache"));
    let fetcher = Fetcher { cache, root, progress };
    let data = &options.data;
    fs::create_dir_all(data).with_context(|| format!("cannot make {}", data.display()))?;
    let _lock = lock(data, progress)?;
    let mut work = Work {
        stamp: Stamp::load(data),
        campaign: &campaign,
        campaign_file: &options.campaign,
        fetcher: &fetcher,
        data,
        base: None,
        library: None,
        outcome: Outcome { data: data.clone(), made: BTreeMap::new(), duplicates: None, text: None, notes: Vec::new() },
    };
    let wanted = |stage| options.only.is_none_or(|only| only == stage);
    if wanted(Stage::Base) && campaign.model.base.is_some() {
        work.base_stage()?;
    }
    // A parent that is trained here needs the text.
    let pretrains = wanted(Stage::Base) && campaign.model.pretrain.is_some();
    if wanted(Stage::Tokenizer) || wanted(Stage::Text) || pretrains {
        work.tokenizer_stage()?;
    }
    if wanted(Stage::Text) || pretrains {
        work.text_stage()?;
    }
    let manifest = data.join("text").join("manifest.json");
    if let Ok(bytes) = fs::read(&manifest) {
        let text: Manifest =
            serde_json::from_slice(&bytes).with_context(|| format!("{} is damaged", manifest.display()))?;
        for (&part, info) in &text.parts {
            work.outcome.notes.extend(text::byte_note(part, info));
            // The window may have changed since the text was made.
            text::check_size(&campaign, part, info.tokens)?;
        }
        work.outcome.text = Some(text);
    }
    if pretrains {
        work.pretrain_stage(options.pretrainer.as_deref())?;
    }
    let needed = [Stage::Tokenizer, Stage::Text].into_iter().chain(campaign.model.has_parent().then_some(Stage::Base));
    if needed.into_iter().all(|stage| work.stamp.stages.contains_key(stage.name())) {
        work.stamp.finish()?;
    }
    Ok(work.outcome)
}

/// The state of one run.
struct Work<'a> {
    stamp: Stamp,
    campaign: &'a Campaign,
    campaign_file: &'a Path,
    fetcher: &'a Fetcher,
    data: &'a Path,
    /// The base model, once it was needed.
    base: Option<Base>,
    /// The documents, once they were needed.
    library: Option<Library>,
    outcome: Outcome,
}

impl Work<'_> {
    /// Whether a stage must be made; it then begins.
    fn begin(&mut self, stage: Stage, inputs: &str) -> Result<bool> {
        let make = !self.stamp.is_current(stage.name(), inputs);
        self.outcome.made.insert(stage, make);
        if make {
            self.stamp.begin(stage.name())?;
        }
        Ok(make)
    }

    fn base(&mut self) -> Result<Base> {
        match self.base.take() {
            Some(base) => Ok(base),
            None => {
                let source = self.campaign.model.base.as_ref();
                let source = source.context("the campaign has neither [model.scratch] nor [model.base]")?;
                Base::find(self.fetcher, source)
            }
        }
    }

    fn library(&mut self) -> Result<Library> {
        match self.library.take() {
            Some(library) => Ok(library),
            None => Library::collect(self.fetcher, &self.campaign.data, self.data),
        }
    }

    fn base_stage(&mut self) -> Result<()> {
        let inputs = self.hash(&json!({"model": self.campaign.model}), false)?;
        if self.begin(Stage::Base, &inputs)? {
            let base = self.base()?;
            let outputs = base.write(self.data, self.fetcher)?;
            self.stamp.done(Stage::Base.name(), inputs, &outputs)?;
            self.base = Some(base);
        }
        Ok(())
    }

    fn tokenizer_stage(&mut self) -> Result<()> {
        let trained = self.campaign.model.train_tokenizer;
        let model = self.untrained_model();
        let inputs = match trained {
            // It is trained on one of the parts.
            Some(_) => {
                self.hash(&json!({"model": model, "data": self.campaign.data, "version": text::VERSION}), true)?
            }
            None => self.hash(&json!({"model": model}), false)?,
        };
        if self.begin(Stage::Tokenizer, &inputs)? {
            let json = if let Some(vocab_size) = trained {
                let library = self.library()?;
                let bar = self.fetcher.progress.counter("training the tokenizer");
                let json = text::train_tokenizer(&library, vocab_size)?;
                bar.finish_and_clear();
                self.library = Some(library);
                json
            } else {
                let base = self.base()?;
                let json = base.tokenizer()?;
                tokenizer::check_rows(&tokenizer::parse(&json)?, base.config()?.vocab_size)?;
                self.base = Some(base);
                json
            };
            write_bytes(&self.data.join(TOKENIZER), json.as_bytes())?;
            self.stamp.done(Stage::Tokenizer.name(), inputs, &[TOKENIZER.into()])?;
        }
        Ok(())
    }

    fn text_stage(&mut self) -> Result<()> {
        let path = self.data.join(TOKENIZER);
        let tokenizer = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let keys = json!({
            "model": self.untrained_model(),
            "data": self.campaign.data,
            "tokenizer": sha256(tokenizer.as_bytes()),
            "version": text::VERSION,
        });
        let inputs = self.hash(&keys, true)?;
        if self.begin(Stage::Text, &inputs)? {
            let vocab_size = match &self.campaign.model.scratch {
                Some(config) => config.vocab_size,
                None => {
                    let base = self.base()?;
                    let config = base.config()?;
                    self.base = Some(base);
                    config.vocab_size
                }
            };
            let library = self.library()?;
            self.outcome.duplicates = Some(library.duplicates);
            let folder = self.data.join("text");
            let progress = self.fetcher.progress;
            let manifest = text::write(&library, self.campaign, &tokenizer, vocab_size, &folder, progress)?;
            self.outcome.notes.extend(library.notes);
            let mut outputs = vec!["text/manifest.json".into(), format!("text/{}", manifest.token_bytes.file)];
            let shards = manifest.parts.values().flat_map(|part| &part.shards);
            outputs.extend(shards.map(|shard| format!("text/{}", shard.file)));
            self.stamp.done(Stage::Text.name(), inputs, &outputs)?;
        }
        Ok(())
    }

    /// Trains the parent of `[model.pretrain]`, or goes on with it where it was broken off.
    fn pretrain_stage(&mut self, program: Option<&Path>) -> Result<()> {
        let manifest = self.data.join("text").join("manifest.json");
        let text = sha256(&fs::read(&manifest).with_context(|| format!("cannot read {}", manifest.display()))?);
        let inputs = self.hash(&json!({"model": self.campaign.model, "text": text}), false)?;
        if self.begin(Stage::Base, &inputs)? {
            let pretrain = Pretraining { program, campaign: self.campaign, file: self.campaign_file, data: self.data };
            let outputs = pretrain.run(&text, self.fetcher.progress)?;
            self.stamp.done(Stage::Base.name(), inputs, &outputs)?;
        }
        Ok(())
    }

    /// What tokenizer and text depend on of the model: not how its parent is trained.
    fn untrained_model(&self) -> Model {
        Model { pretrain: None, ..self.campaign.model.clone() }
    }

    /// Hash of a stage's inputs. Local files are part of it by size and time of change, since nothing else pins them.
    fn hash(&self, keys: &serde_json::Value, texts: bool) -> Result<String> {
        let campaign = self.campaign;
        let texts = campaign.data.text.iter().map(|t| &t.source).filter(|_| texts);
        let mut local = Vec::new();
        for source in campaign.model.base.iter().chain(texts) {
            self.describe_local(source, &mut local)?;
        }
        Ok(sha256(json!({"keys": keys, "local": local}).to_string().as_bytes()))
    }

    fn describe_local(&self, source: &Source, out: &mut Vec<String>) -> Result<()> {
        let Some(path) = source.from.strip_prefix("file:") else { return Ok(()) };
        let mut waiting = vec![self.fetcher.root.join(path)];
        while let Some(path) = waiting.pop() {
            let metadata = fs::metadata(&path)
                .with_context(|| format!("{} is not there; put it there or correct campaign.toml", path.display()))?;
            if metadata.is_dir() {
                let entries = fs::read_dir(&path).with_context(|| format!("cannot list {}", path.display()))?;
                for entry in entries {
                    waiting.push(entry?.path());
                }
                waiting.sort();
            } else {
                let changed = metadata.modified()?.duration_since(std::time::UNIX_EPOCH);
                let changed = changed.map_or(0, |age| age.as_nanos());
                out.push(format!("{} {} {changed}", path.display(), metadata.len()));
            }
        }
        Ok(())
    }
}

const TOKENIZER: &str = "tokenizer.json";

/// The folder that relative paths in a campaign start from: the nearest one above the campaign file that git knows,
/// otherwise the current one.
fn repository_root(campaign: &Path) -> PathBuf {
    let absolute = fs::canonicalize(campaign).unwrap_or_else(|_| campaign.to_owned());
    let found = absolute.ancestors().skip(1).find(|folder| folder.join(".git").exists());
    found.map_or_else(|| PathBuf::from("."), Path::to_owned)
}

/// Only one `prepare` works on a folder; a second one waits.
fn lock(data: &Path, progress: Progress) -> Result<File> {
    let path = data.join(".lock");
    let file = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            progress.note(&format!("waiting for another prepare in {}", data.display()));
            file.lock().with_context(|| format!("cannot lock {}", path.display()))?;
        }
        Err(TryLockError::Error(e)) => {
            return Err(e).with_context(|| format!("cannot lock {}", path.display()));
        }
    }
    ensure!(path.exists(), "{} was removed meanwhile; run again", path.display());
    Ok(file)
}
