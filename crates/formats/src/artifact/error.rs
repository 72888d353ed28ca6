//! What can be wrong with an artifact.

use std::path::PathBuf;

/// Why an artifact could not be written, read or accepted.
#[derive(Debug, thiserror::Error)]
pub enum ArtifactError {
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
    /// The file is not an artifact, is cut off or was changed.
    #[error("{path} is not a readable artifact: {reason}")]
    Malformed {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The content contradicts itself or its model configuration.
    #[error("invalid artifact: {reason}")]
    Invalid {
        /// What is wrong.
        reason: String,
    },
}

/// Most characters of a stranger's text in a message.
const MOST_SHOWN: usize = 120;

/// Text of a file that nobody has checked, for a message: no control characters, and cut where it is long.
pub(crate) fn shown(text: &str) -> String {
    let cut = if text.chars().nth(MOST_SHOWN).is_some() { "…" } else { "" };
    text.chars().take(MOST_SHOWN).map(|c| c.escape_debug().to_string()).chain([cut.to_owned()]).collect()
}
