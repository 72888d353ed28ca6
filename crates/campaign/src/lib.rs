//! `campaign.toml`: what is searched, on which data, within which budget and limits.
//!
//! Every key is a field below; unknown keys are errors that name the nearest right one. Paths are relative to the
//! repository root. This crate reads and checks the file; it fetches and runs nothing.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use artifact::{Grouping, ModelConfig};
pub use corpus::Part;
use serde::{Deserialize, Serialize};

/// One campaign, as written in `experiments/<name>/campaign.toml`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Campaign {
    /// One line for people: what is being learnt.
    pub description: String,
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
    /// Who proposes: `[agent]`.
    #[serde(default)]
    pub agent: Agent,
}

/// `[model]`: exactly one of `scratch` (random initial weights) and `base` (pretrained weights).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
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
}

/// Something to fetch: `pip:NAME==VERSION`, `npm:NAME@VERSION`, `hf:OWNER/NAME` or `file:PATH`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Source {
    /// `pip:NAME==VERSION`, `hf:OWNER/NAME` (a model), `hf-dataset:OWNER/NAME`, `file:PATH`.
    pub from: String,
    /// Path inside the package or repository; for a Hub model leave it out to take config, tokenizer and weights.
    #[serde(default)]
    pub path: Option<String>,
    /// sha256 of the package (`pip:`) or of the file (`file:`), lower-case hex.
    #[serde(default)]
    pub sha256: Option<String>,
    /// Commit of the Hub repository (`hf:`, `hf-dataset:`).
    #[serde(default)]
    pub revision: Option<String>,
}

/// `[data]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Data {
    /// Seed of the shuffle and of the split by document.
    #[serde(default)]
    pub seed: u64,
    /// Stop reading training text at this many tokens.
    #[serde(default)]
    pub max_train_tokens: Option<u64>,
    /// Drop training documents that share a 13-word sequence with a dev, select or report document.
    #[serde(default = "yes")]
    pub decontaminate: bool,
    /// `[[data.text]]`, at least one.
    pub text: Vec<Text>,
}

/// One `[[data.text]]`: a file of documents and the parts they go to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Text {
    /// Where the file comes from.
    pub source: Source,
    /// How documents are found in it.
    pub format: TextFormat,
    /// Share of the documents per part; the shares sum to 1.
    pub parts: BTreeMap<Part, f64>,
}

/// How a text file is cut into documents.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TextFormat {
    /// `<doc …>` … `</doc>` elements (WikiExtractor's form).
    WikiDocs,
    /// Documents between occurrences of a separator string.
    Separator(String),
    /// One JSON object a line; the value is the string field, dots walk into objects (`doc.query`).
    JsonLines(String),
    /// A Parquet file; the value is the string column.
    Parquet(String),
    /// The whole file is one document (a folder: one document a file).
    Whole,
    /// WikiText's raw files: a line ` = Title = ` starts a document.
    WikiText,
}

/// `[budget]`: exactly one of `seconds` and `tokens`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Budget {
    /// Seconds of training.
    #[serde(default)]
    pub seconds: Option<f64>,
    /// Training tokens, for machines whose speed is not steady, and for runs that must repeat exactly.
    #[serde(default)]
    pub tokens: Option<u64>,
    /// Steps at the start that the clock does not count (allocation, autotuning).
    #[serde(default = "default_warmup_steps")]
    pub warmup_steps: u64,
    /// Wall-clock seconds after which the whole process group gets SIGTERM, start-up and dev evaluation included.
    pub hard_limit_seconds: f64,
    /// Seconds between SIGTERM and SIGKILL.
    #[serde(default = "default_grace")]
    pub grace_seconds: f64,
}

/// `[evaluation]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
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
pub struct Constraints {
    /// Upper limit of the artifact's bits per weight over the block projections, everything stored counted.
    pub max_bits_per_weight: f64,
    /// Scale groupings that are allowed: `"tensor"`, `"row"` or a width that divides the row.
    pub groupings: Vec<Grouping>,
    /// Whether embeddings, head and norms may differ from the base model's. Must be true from scratch.
    pub train_unquantized: bool,
}

/// `[agent]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Agent {
    /// Which agent proposes.
    pub kind: AgentKind,
    /// Seed of the proposals.
    #[serde(default)]
    pub seed: u64,
    /// Random proposals before the optimizer models the results (search only).
    #[serde(default = "default_startup")]
    pub startup: usize,
}

/// The agents that exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AgentKind {
    /// Tree-structured Parzen estimator over the annotated knobs.
    Search,
    /// Uniform samples of the annotated knobs: the control.
    Random,
}

impl Default for Agent {
    fn default() -> Self {
        Self { kind: AgentKind::Search, seed: 0, startup: default_startup() }
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
fn default_dev_tokens() -> usize {
    8192
}
fn default_dev_evals() -> u32 {
    4
}
fn default_startup() -> usize {
    10
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
    /// Not TOML, or a value of the wrong type.
    #[error("{path}: {message}")]
    Parse {
        /// Which file.
        path: PathBuf,
        /// Position and reason.
        message: String,
    },
}

impl Campaign {
    /// Reads and checks a campaign file.
    ///
    /// # Errors
    /// When the file is missing, is not TOML, has an unknown key or contradicts itself.
    pub fn load(path: &Path) -> Result<Self, CampaignError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| CampaignError::Read { path: path.to_owned(), source })?;
        Self::parse(&text).map_err(|message| CampaignError::Parse { path: path.to_owned(), message })
    }

    /// Parses and checks a campaign; the error is a message for people.
    ///
    /// # Errors
    /// As [`Campaign::load`], without the path.
    pub fn parse(text: &str) -> Result<Self, String> {
        toml::from_str(text).map_err(|e| e.to_string())
    }
}
