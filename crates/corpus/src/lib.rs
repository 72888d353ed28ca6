//! Tokenized text on disk: memory-mapped shards of token ids per part, with a manifest of hashes.
//!
//! `prepare` writes it once; trainer and evaluator read it. Text itself is never stored here: the manifest keeps what
//! is needed to count bytes (`token_bytes`).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

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
