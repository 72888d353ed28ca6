//! Tokenized text on disk: memory-mapped shards of token ids per part, with a manifest of hashes.
//!
//! `prepare` writes it once ([`Writer`]); trainer and evaluator read it ([`Corpus`]). Text itself is never stored here:
//! the manifest and `token_bytes` keep what is needed to count bytes.
//!
//! A folder holds `manifest.json`, `PART-NNNNN.tokens` (ids, little endian, u16 where the vocabulary allows it, else
//! u32; every document is followed by the end token) and `token_bytes.u16`. The manifest is written last: a folder
//! without one is not a corpus.

mod error;
mod read;
mod write;

pub use error::CorpusError;
pub use read::{Corpus, Tokens};
pub use write::{Writer, WriterOptions};

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Tokens in a shard, unless [`WriterOptions::shard_tokens`] says otherwise: 128 MiB of u16.
pub const SHARD_TOKENS: u64 = 64 << 20;
/// Version of the folder's format.
pub const VERSION: u32 = 1;
/// Name of the manifest in the folder.
pub const MANIFEST: &str = "manifest.json";

/// Part of the text. No document is in two of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Part {
    /// Read by the recipe.
    Train,
    /// Measured during training, by the frame, for the log only.
    Dev,
    /// Decides what is kept. Only the evaluator reads it.
    Select,
    /// Final figures only.
    Report,
}

impl Part {
    /// All four.
    pub const ALL: [Self; 4] = [Self::Train, Self::Dev, Self::Select, Self::Report];

    /// Its name in files and on command lines.
    pub fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Dev => "dev",
            Self::Select => "select",
            Self::Report => "report",
        }
    }
}

impl std::fmt::Display for Part {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.pad(self.name())
    }
}

impl std::str::FromStr for Part {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|part| part.name() == name);
        found.ok_or_else(|| format!("no part {name}; there are train, dev, select and report"))
    }
}

/// `manifest.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`VERSION`].
    pub version: u32,
    /// Ids are below this.
    pub vocab_size: usize,
    /// Id that follows each document.
    pub end_token: u32,
    /// Bytes of an id on disk: 2 or 4.
    pub token_width: usize,
    /// Seed of the shuffle and the split.
    pub seed: u64,
    /// sha256 of `tokenizer.json`.
    pub tokenizer_sha256: String,
    /// What each part holds.
    pub parts: BTreeMap<Part, PartInfo>,
    /// Where the text came from.
    pub sources: Vec<SourceInfo>,
    /// The file that [`Corpus::token_bytes`] reads.
    pub token_bytes: FileInfo,
}

/// One part in the manifest.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartInfo {
    /// Documents.
    pub documents: u64,
    /// Tokens, end tokens included.
    pub tokens: u64,
    /// UTF-8 bytes of the documents' text.
    pub bytes: u64,
    /// Bytes that the tokens stand for, each with its length in `token_bytes`: [`PartInfo::bytes`] where the tokenizer
    /// keeps the text as it is. Absent in folders from before it was recorded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub counted_bytes: Option<u64>,
    /// Files, in order.
    pub shards: Vec<ShardInfo>,
}

/// One shard in the manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardInfo {
    /// File name in the folder.
    pub file: String,
    /// Tokens in it.
    pub tokens: u64,
    /// sha256, lower-case hex.
    pub sha256: String,
}

/// A file and its hash.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileInfo {
    /// File name in the folder.
    pub file: String,
    /// sha256, lower-case hex.
    pub sha256: String,
}

/// One source of text, as it was when it was read.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SourceInfo {
    /// As the campaign names it: `pip:NAME==VERSION`, `hf-dataset:OWNER/NAME`, `file:PATH` …
    pub from: String,
    /// File inside of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// sha256 of what was fetched, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// Commit that a Hub revision resolved to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// Documents read.
    pub documents: u64,
    /// Documents left out because they share text with a document of another part.
    #[serde(default)]
    pub contaminated: u64,
}
