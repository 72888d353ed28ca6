//! What must not change while a search goes on, and how that is seen: hashes from the journal, compared before each run.
//!
//! The frame needs no hash of its own: it is what the start commit holds beside the recipe, and git names it.

use std::path::PathBuf;

use anyhow::Context;

use crate::error::Failure;
use crate::files;
use crate::search::Search;

/// A built trainer, and what it must be.
#[derive(Debug)]
pub struct Trainer {
    /// The program.
    pub path: PathBuf,
    /// Its sha256 when it was built.
    pub sha256: String,
}

impl Search<'_> {
    /// Refuses to train or measure with anything but what the search started with.
    ///
    /// # Errors
    /// [`Failure::Checkout`] with the names of all that changed.
    pub fn check_pins(&self) -> Result<(), Failure> {
        self.compare_hashes(&[
            ("the evaluator", self.layout.evaluator(), &self.started.evaluator_sha256),
            ("the campaign file", self.layout.campaign_copy(), &self.started.campaign_sha256),
            ("the list of the prepared data", self.data.join("prepared.json"), &self.started.data_sha256),
        ])
    }

    /// As [`Search::check_pins`], for a trainer and all that it is run with.
    pub(super) fn check_trainer(&self, trainer: &Trainer) -> Result<(), Failure> {
        self.check_pins()?;
        self.compare_hashes(&[("the trainer", trainer.path.clone(), &trainer.sha256)])
    }

    fn compare_hashes(&self, pins: &[(&str, PathBuf, &String)]) -> Result<(), Failure> {
        let mut changed = Vec::new();
        for (what, path, pinned) in pins {
            let now = files::sha256(path).with_context(|| format!("cannot read {what}, {}", path.display()))?;
            if now != **pinned {
                changed.push(format!("{what} {}", path.display()));
            }
        }
        if changed.is_empty() {
            return Ok(());
        }
        Err(Failure::Checkout {
            message: format!("not what this search started with: {}", changed.join(", ")),
            hint:
                "figures would not compare: put it back, or start another search with --tag (data that were prepared \
                   anew cannot be put back; a search that begins now keeps its own)"
                    .into(),
        })
    }
}
