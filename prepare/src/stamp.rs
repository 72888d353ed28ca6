//! `prepared.json`: what was made from which inputs, so that finished work is not done again.
//!
//! Each stage is recorded as soon as its outputs are on disk, in `prepared.partial.json`; when all are, the file gets
//! its final name. A stage is up to date when its inputs' hash is the recorded one and every output still has its hash.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::files::{sha256_file, write_bytes};

/// Version of the stamp and of all stages: raised when every one of them must be made anew. What text and its tokenizer
/// come from has a version of its own, [`crate::text::VERSION`], so that a parent of hours is not fetched again for it.
const VERSION: u32 = 1;

/// Name of the finished stamp.
pub const FINISHED: &str = "prepared.json";
/// Name of the stamp while stages are missing.
const PARTIAL: &str = "prepared.partial.json";

/// The stamp of a data folder.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Stamp {
    version: u32,
    /// Done stages by name.
    pub stages: BTreeMap<String, Stage>,
    #[serde(skip)]
    folder: PathBuf,
}

/// A finished stage.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stage {
    /// sha256 of everything it was made from.
    pub inputs: String,
    /// sha256 of every file it made, by path in the data folder.
    pub outputs: BTreeMap<String, String>,
}

impl Stamp {
    /// Reads the stamp of a folder; an empty one when there is none, or it is of another version or unreadable.
    pub fn load(folder: &Path) -> Self {
        let read = |name: &str| -> Option<Self> {
            let stamp: Self = serde_json::from_slice(&fs::read(folder.join(name)).ok()?).ok()?;
            (stamp.version == VERSION).then_some(stamp)
        };
        let found = read(PARTIAL).or_else(|| read(FINISHED));
        let mut stamp = found.unwrap_or(Self { version: VERSION, stages: BTreeMap::new(), folder: PathBuf::new() });
        stamp.folder = folder.to_owned();
        stamp
    }

    /// Whether a stage was made from these inputs and its outputs are unchanged.
    pub fn is_current(&self, stage: &str, inputs: &str) -> bool {
        self.stages.get(stage).is_some_and(|done| {
            done.inputs == inputs
                && done
                    .outputs
                    .iter()
                    .all(|(path, hash)| sha256_file(&self.folder.join(path)).is_ok_and(|got| got == *hash))
        })
    }

    /// Takes the finished stamp away before a stage's outputs change: whoever sees `prepared.json` sees finished data.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn begin(&mut self, stage: &str) -> Result<()> {
        self.stages.remove(stage);
        self.save(PARTIAL)?;
        remove(&self.folder.join(FINISHED))
    }

    /// Records a stage's outputs, paths in the data folder.
    ///
    /// # Errors
    /// When an output cannot be read or the stamp not be written.
    pub fn done(&mut self, stage: &str, inputs: String, outputs: &[String]) -> Result<()> {
        let hashed = outputs.iter().map(|path| Ok((path.clone(), sha256_file(&self.folder.join(path))?)));
        let outputs = hashed.collect::<Result<_>>()?;
        self.stages.insert(stage.into(), Stage { inputs, outputs });
        self.save(PARTIAL)
    }

    /// Gives the stamp its final name.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn finish(&self) -> Result<()> {
        if self.folder.join(PARTIAL).exists() {
            self.save(FINISHED)?;
            remove(&self.folder.join(PARTIAL))?;
        }
        Ok(())
    }

    fn save(&self, name: &str) -> Result<()> {
        write_bytes(&self.folder.join(name), &serde_json::to_vec_pretty(self)?)
    }
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(e).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stage_is_current_until_its_inputs_or_outputs_change() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("out"), "1").unwrap();
        let mut stamp = Stamp::load(folder.path());
        stamp.begin("base").unwrap();
        stamp.done("base", "in".into(), &["out".into()]).unwrap();
        assert!(!folder.path().join(FINISHED).exists(), "not finished before finish");
        assert!(Stamp::load(folder.path()).is_current("base", "in"), "an interrupted run goes on from here");
        stamp.finish().unwrap();

        let stamp = Stamp::load(folder.path());
        assert!(stamp.is_current("base", "in"));
        assert!(!stamp.is_current("base", "other"));
        assert!(!stamp.is_current("text", "in"));
        fs::write(folder.path().join("out"), "2").unwrap();
        assert!(!stamp.is_current("base", "in"));
        fs::remove_file(folder.path().join("out")).unwrap();
        assert!(!stamp.is_current("base", "in"));
    }
}
