//! `prepared.json`, which names the hash of every file that `prepare` made. A search pins the hash of this one file, so
//! what agrees with it is what the search started with: model, text, and where documents were cut.

use formats::artifact;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

/// The record of a data folder.
#[derive(Debug)]
pub struct Prepared {
    folder: PathBuf,
    /// sha256 by path in the folder.
    hashes: BTreeMap<String, String>,
}

/// The part of the file that is read here.
#[derive(Deserialize)]
struct Stamp {
    stages: BTreeMap<String, Stage>,
}

#[derive(Deserialize)]
struct Stage {
    outputs: BTreeMap<String, String>,
}

impl Prepared {
    /// Reads the record of `data`.
    ///
    /// # Errors
    /// When there is none, or it is damaged.
    pub fn read(data: &Path) -> Result<Self> {
        let path = data.join("prepared.json");
        let again = || format!("cannot read {}; run `prepare` for this campaign", path.display());
        let stamp: Stamp = serde_json::from_slice(&std::fs::read(&path).with_context(again)?).with_context(again)?;
        let hashes = stamp.stages.into_values().flat_map(|stage| stage.outputs).collect();
        Ok(Self { folder: data.to_owned(), hashes })
    }

    /// sha256 of a file, lower-case hex, which is as it was prepared.
    ///
    /// # Errors
    /// When it is another one, or cannot be read.
    pub fn verify(&self, file: &str) -> Result<String> {
        let path = self.folder.join(file);
        let Some(recorded) = self.hashes.get(file) else {
            bail!("prepared.json knows no {}; run `prepare` for this campaign again", path.display());
        };
        let found = artifact::sha256_file(&path)?;
        if found != *recorded {
            bail!("{} has sha256 {found}, `prepare` recorded {recorded}: run `prepare` again", path.display());
        }
        Ok(found)
    }
}
