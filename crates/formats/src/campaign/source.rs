//! Where models and text come from, and what pins them.

use std::path::PathBuf;

use crate::campaign::Source;

/// The `sha256` of a local file that may change.
pub const ANY: &str = "any";

/// [`Source::from`], taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SourceKind {
    /// A package from the registry that pip is set up for.
    Pip {
        /// Name of the package.
        name: String,
        /// Exact version.
        version: String,
    },
    /// A model repository of the Hugging Face hub.
    Hf {
        /// `OWNER/NAME`.
        repository: String,
    },
    /// A data set repository of the Hugging Face hub.
    HfDataset {
        /// `OWNER/NAME`.
        repository: String,
    },
    /// A file or folder on this machine.
    File {
        /// Relative to the repository root, or absolute.
        path: PathBuf,
    },
}

impl Source {
    /// Takes `from` apart.
    ///
    /// # Errors
    /// A message for people that says which forms there are.
    pub fn kind(&self) -> Result<SourceKind, String> {
        let forms = "pip:NAME==VERSION, hf:OWNER/NAME, hf-dataset:OWNER/NAME or file:PATH";
        let wrong = || format!("{:?} is no source; write {forms}", self.from);
        let (scheme, rest) = self.from.split_once(':').ok_or_else(wrong)?;
        let repository = || match rest.split('/').collect::<Vec<_>>()[..] {
            [owner, name] if !owner.is_empty() && !name.is_empty() => Ok(rest.to_owned()),
            _ => Err(wrong()),
        };
        match scheme {
            "pip" => match rest.split_once("==") {
                Some((name, version)) if !name.is_empty() && !version.is_empty() => {
                    Ok(SourceKind::Pip { name: name.into(), version: version.into() })
                }
                _ => Err(wrong()),
            },
            "hf" => Ok(SourceKind::Hf { repository: repository()? }),
            "hf-dataset" => Ok(SourceKind::HfDataset { repository: repository()? }),
            "file" if !rest.is_empty() => Ok(SourceKind::File { path: rest.into() }),
            _ => Err(wrong()),
        }
    }

    /// Whether the same bytes come every time: a hash, or a whole commit id.
    pub fn pinned(&self) -> bool {
        let hash = self.sha256.as_deref().is_some_and(|hash| is_hex(hash, 64));
        hash || self.revision.as_deref().is_some_and(|revision| is_hex(revision, 40))
    }

    /// `key` is where the source stands, for messages.
    pub(crate) fn check(&self, key: &str, is_text: bool) -> Result<(), String> {
        let kind = self.kind().map_err(|reason| format!("{key}.from: {reason}"))?;
        let hub = matches!(kind, SourceKind::Hf { .. } | SourceKind::HfDataset { .. });
        match (&kind, is_text) {
            (SourceKind::HfDataset { .. }, false) => {
                return Err(format!("{key}.from: a data set is no model; write hf:OWNER/NAME"));
            }
            (SourceKind::Hf { .. }, true) => {
                return Err(format!("{key}.from: text comes from a data set; write hf-dataset:OWNER/NAME"));
            }
            _ => {}
        }
        let needs_path = matches!(kind, SourceKind::Pip { .. } | SourceKind::HfDataset { .. });
        if needs_path && self.path.as_deref().is_none_or(str::is_empty) {
            return Err(format!("key {key}.path is missing; name the file inside {}", self.from));
        }
        if matches!(kind, SourceKind::File { .. }) && self.path.is_some() {
            return Err(format!("remove {key}.path; a file: source has its path in {key}.from"));
        }
        if hub {
            if self.sha256.is_some() {
                return Err(format!("remove {key}.sha256; the Hub is pinned by {key}.revision"));
            }
            if self.revision.as_deref().is_none_or(str::is_empty) {
                return Err(format!(
                    "key {key}.revision is missing; give the commit (or \"main\", which is not pinned)"
                ));
            }
            return Ok(());
        }
        if self.revision.is_some() {
            return Err(format!("remove {key}.revision; {} is pinned by {key}.sha256", self.from));
        }
        let local = matches!(kind, SourceKind::File { .. });
        let what = if local { "file (or \"any\", which is not pinned)" } else { "package's wheel" };
        match self.sha256.as_deref() {
            None => Err(format!("key {key}.sha256 is missing; give the sha256 of the {what}")),
            Some(ANY) if local => Ok(()),
            Some(hash) if is_hex(hash, 64) => Ok(()),
            Some(hash) => {
                Err(format!("{key}.sha256 is {hash:?}; give the sha256 of the {what}, 64 lower-case hex digits"))
            }
        }
    }
}

fn is_hex(text: &str, length: usize) -> bool {
    text.len() == length && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}
