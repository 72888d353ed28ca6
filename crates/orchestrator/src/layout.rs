//! Where a search keeps its files, and which searches there are.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::clock;
use crate::error::Failure;

/// The file that a candidate may change, relative to the repository root.
pub const RECIPE: &str = "crates/trainer/src/train.rs";

/// One run of a trainer in a search.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Run {
    /// Of a candidate.
    Experiment(u64),
    /// Of a commit that was measured before, with another seed.
    Replicate(u64),
    /// Of the candidate that comes next: compiled while another one trains.
    Ahead,
}

impl std::fmt::Display for Run {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Experiment(number) => write!(f, "#{number}"),
            Self::Replicate(number) => write!(f, "replicate {number}"),
            Self::Ahead => f.write_str("the next candidate"),
        }
    }
}

/// What folders belong to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A search, in `runs`.
    Search,
    /// A comparison, in `comparisons`: no view of searches sees it.
    Comparison,
}

/// The folders of one search, `experiments/<name>/runs/<tag>/`, or of one comparison.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// The repository.
    pub root: PathBuf,
    /// What they belong to.
    pub kind: Kind,
    /// The campaign's name: a folder under `experiments/`.
    pub name: String,
    /// The search's tag: branch `autoresearch/<tag>`.
    pub tag: String,
}

impl Layout {
    /// The campaign's own folder.
    pub fn campaign(&self) -> PathBuf {
        self.root.join("experiments").join(&self.name)
    }

    /// Everything of this search.
    pub fn run(&self) -> PathBuf {
        let kind = match self.kind {
            Kind::Search => "runs",
            Kind::Comparison => "comparisons",
        };
        self.campaign().join(kind).join(&self.tag)
    }

    /// The campaign file as it was when the search started.
    pub fn campaign_copy(&self) -> PathBuf {
        self.run().join("campaign.toml")
    }

    /// The prepared data as they were when the search started.
    pub fn data(&self) -> PathBuf {
        self.run().join("data")
    }

    /// The ledger.
    pub fn journal(&self) -> PathBuf {
        self.run().join("journal.jsonl")
    }

    /// A language model's recipe that waits for its turn.
    pub fn draft(&self) -> PathBuf {
        self.run().join("draft.json")
    }

    /// What was asked of language models, and answered.
    pub fn exchanges(&self) -> PathBuf {
        self.run().join("exchanges")
    }

    /// Held by the one orchestrator that works on this search.
    pub fn lock(&self) -> PathBuf {
        self.run().join("lock")
    }

    /// The search's own checkout.
    pub fn worktree(&self) -> PathBuf {
        self.run().join("worktree")
    }

    /// The evaluator as it was when the search started.
    pub fn evaluator(&self) -> PathBuf {
        self.run().join("bin").join("evaluator")
    }

    /// Files of one run of a trainer.
    pub fn folder(&self, run: Run) -> PathBuf {
        let (kind, number) = match run {
            Run::Experiment(number) => ("experiments", number),
            Run::Replicate(number) => ("replicates", number),
            Run::Ahead => return self.run().join("ahead"),
        };
        self.run().join(kind).join(format!("{number:04}"))
    }

    /// What a trainer may write. Nothing in it is trusted, and nothing else is written there.
    pub fn out(&self, run: Run) -> PathBuf {
        self.folder(run).join("out")
    }

    /// What a trainer hands over.
    pub fn artifact(&self, run: Run) -> PathBuf {
        self.out(run).join(formats::contract::ARTIFACT)
    }
}

/// Names under `experiments/` that hold a campaign.toml, sorted.
pub fn campaigns(root: &Path) -> Vec<String> {
    let mut names: Vec<String> = folders(&root.join("experiments"))
        .into_iter()
        .filter(|path| path.join("campaign.toml").is_file())
        .filter_map(|path| Some(path.file_name()?.to_str()?.to_owned()))
        .collect();
    names.sort();
    names
}

/// The searches that have a journal, the one written to last first; of one campaign, or of all.
pub fn searches(root: &Path, name: Option<&str>) -> Vec<Layout> {
    let mut found: Vec<(SystemTime, Layout)> = Vec::new();
    for campaign in folders(&root.join("experiments")) {
        let Some(campaign_name) = campaign.file_name().and_then(|n| n.to_str()) else { continue };
        if name.is_some_and(|wanted| wanted != campaign_name) {
            continue;
        }
        for run in folders(&campaign.join("runs")) {
            let Some(tag) = run.file_name().and_then(|n| n.to_str()) else { continue };
            let Ok(written) = fs::metadata(run.join("journal.jsonl")).and_then(|m| m.modified()) else {
                continue;
            };
            let layout =
                Layout { root: root.to_owned(), kind: Kind::Search, name: campaign_name.into(), tag: tag.into() };
            found.push((written, layout));
        }
    }
    found.sort_by_key(|(written, _)| std::cmp::Reverse(*written));
    found.into_iter().map(|(_, layout)| layout).collect()
}

/// The tag of a search that starts today: `<name>-<day>`, with a number behind it where that is taken.
pub fn new_tag(name: &str, taken: impl Fn(&str) -> bool) -> String {
    let first = format!("{name}-{}", clock::day());
    if !taken(&first) {
        return first;
    }
    let mut number = 2_u64;
    loop {
        let tag = format!("{first}-{number}");
        if !taken(&tag) {
            return tag;
        }
        number += 1;
    }
}

/// Refuses a tag that is no single safe component of a path and of a git ref.
///
/// # Errors
/// With the characters that are allowed.
pub fn check_tag(tag: &str) -> Result<(), Failure> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let fine = !tag.is_empty()
        && tag.len() <= 64
        && tag.chars().all(plain)
        && tag.starts_with(|c: char| c.is_ascii_alphanumeric())
        && !tag.contains("..")
        && !tag.ends_with('.')
        && !tag.ends_with(".lock");
    if fine {
        return Ok(());
    }
    Err(Failure::Campaign {
        message: format!("{tag:?} cannot be a tag"),
        hint: "use up to 64 letters, digits, '-', '_' and single '.', starting with a letter or digit".into(),
    })
}

fn folders(of: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(of) else { return Vec::new() };
    entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_single_safe_components() {
        for tag in ["nano-nov21", "a", "x_1.5"] {
            assert!(check_tag(tag).is_ok(), "{tag}");
        }
        for tag in ["", "a/b", "..", ".hidden", "a..b", "x.lock", "x.", "a b", "-x", "é"] {
            assert!(check_tag(tag).is_err(), "{tag}");
        }
    }

    #[test]
    fn a_taken_day_gets_a_number() {
        let first = new_tag("nano", |_| false);
        let third = new_tag("nano", |tag| tag == first || tag == format!("{first}-2"));
        assert_eq!(third, format!("{first}-3"));
    }
}
