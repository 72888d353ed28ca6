//! What can go wrong for a user of the command line, the exit code of each class, and what to do about it.

use std::path::PathBuf;

/// Every way a command ends other than well. Printed once, by `cli`, with its hint.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// Anything without a class of its own: a full disk, a defect.
    #[error("{0:#}")]
    Other(#[from] anyhow::Error),
    /// libtorch, the programs or the data could not be made ready.
    #[error("{0:#}")]
    Setup(anyhow::Error),
    /// No campaign of that name, or its file is refused.
    #[error("{message}")]
    Campaign {
        /// What is wrong with it.
        message: String,
        /// What to do.
        hint: String,
    },
    /// The repository is not in a state from which a search can start or go on.
    #[error("{message}")]
    Checkout {
        /// What is wrong with it.
        message: String,
        /// What to do.
        hint: String,
    },
    /// Another orchestrator works on this tag.
    #[error("campaign {tag} is already being run by another orchestrator (lock: {})", lock.display())]
    Busy {
        /// Its tag.
        tag: String,
        /// The lock that is held.
        lock: PathBuf,
    },
    /// The unmodified recipe failed, so there is nothing to compare with.
    #[error("the baseline failed: {reason}")]
    Baseline {
        /// How it ended.
        reason: String,
        /// Where its output is.
        log: PathBuf,
    },
    /// The journal cannot be trusted.
    #[error("{path}: {message}", path = path.display())]
    Journal {
        /// Which journal.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },
    /// A recipe that was handed in cannot be tried.
    #[error("{message}")]
    Recipe {
        /// What is wrong with it.
        message: String,
        /// What to do.
        hint: String,
    },
    /// Other programs leave too little of the processor for a run to come to its end.
    #[error("{0}")]
    TooBusy(String),
    /// There is nothing to show yet.
    #[error("{0}")]
    NothingYet(String),
    /// Ctrl-C before there was anything to stop gently.
    #[error("interrupted")]
    Interrupted,
}

/// Exit codes, as `--help` prints them.
pub const EXIT_CODES: &str = "\
Exit codes:
    0  done; for `run` also: stopped by Ctrl-C with nothing lost
    1  unexpected error, such as a full disk
    2  wrong usage
    3  libtorch, the programs or the data could not be made ready
    4  the git repository is not in a state to start or go on from
    5  another orchestrator is running this campaign
    6  the unmodified recipe failed
    7  no such campaign, or its file is refused
    8  the journal is damaged
    9  nothing has been run yet
   10  the recipe that was handed in cannot be tried
   11  other programs keep the machine too busy for a run to come to its end
  130  killed by a second Ctrl-C";

impl Failure {
    /// The exit code of this class; see [`EXIT_CODES`].
    pub fn code(&self) -> u8 {
        match self {
            Self::Other(_) => 1,
            Self::Setup(_) => 3,
            Self::Checkout { .. } => 4,
            Self::Busy { .. } => 5,
            Self::Baseline { .. } => 6,
            Self::Campaign { .. } => 7,
            Self::Journal { .. } => 8,
            Self::NothingYet(_) => 9,
            Self::Recipe { .. } => 10,
            Self::TooBusy(_) => 11,
            Self::Interrupted => 130,
        }
    }

    /// What to do next, where the message alone does not say.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Other(_) => None,
            Self::Setup(_) => Some("after that, run the same command again: what is done is skipped".into()),
            Self::Campaign { hint, .. } | Self::Checkout { hint, .. } | Self::Recipe { hint, .. } => Some(hint.clone()),
            Self::Busy { tag, .. } => Some(format!(
                "`orchestrator status --tag {tag}` shows it; `--tag ANOTHER` starts a second search beside it"
            )),
            Self::Baseline { log, .. } => Some(format!(
                "its output is in {}; fix crates/trainer, commit, and start under another --tag",
                log.display()
            )),
            Self::Journal { path, .. } => Some(format!(
                "nothing was changed; start another search with --tag, or move {} aside",
                path.parent().unwrap_or(path).display()
            )),
            Self::TooBusy(_) => Some(
                "no experiment is blamed. Wait until those programs end, or reserve cores with --cores, and run the same \
                 command again: the search resumes where it stopped"
                    .into(),
            ),
            Self::NothingYet(_) => Some("start a search with `cargo run --release -- run`".into()),
            Self::Interrupted => Some("run the same command again to go on".into()),
        }
    }
}
