//! What can be wrong with a corpus.

use std::path::PathBuf;

/// Why a corpus could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum CorpusError {
    /// There is no manifest.
    #[error("{path} holds no prepared text (no manifest.json); run `prepare` for this campaign")]
    Missing {
        /// Which folder.
        path: PathBuf,
    },
    /// The operating system said no.
    #[error("cannot {doing} {path}: {source}")]
    Io {
        /// What was being done: `read`, `write` …
        doing: &'static str,
        /// To which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The content is not what the manifest says.
    #[error("{path}: {reason}; delete the folder and run `prepare` again")]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The part has no text in this campaign.
    #[error("there is no {part} text in {path}; give it a share in the campaign's [[data.text]] and run `prepare`")]
    NoPart {
        /// Which part.
        part: crate::corpus::Part,
        /// Which folder.
        path: PathBuf,
    },
    /// The caller gave something that cannot be stored.
    #[error("{0}")]
    Input(String),
}
