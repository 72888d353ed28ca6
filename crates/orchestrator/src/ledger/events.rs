//! What the journal's records say. What they amount to is the [`State`](super::State)'s.

use std::collections::BTreeMap;

use formats::corpus::Part;
use sandbox::Enforced;
use serde::{Deserialize, Serialize};

use super::arms::{Arm, ArmRun};
use crate::agent::Cost;
use crate::verdict::Comparison;

/// One line of the journal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// When it was written, UTC.
    pub time: String,
    /// What happened, or is about to.
    pub event: Event,
}

/// Everything that is written down, in the order in which it can happen.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// A new search; what it is pinned to.
    Started(Started),
    /// The search goes on after a stop or a crash.
    Resumed(Resumed),
    /// The full-precision parent was measured: what no artifact is expected to beat.
    #[serde(rename = "floor")]
    FullPrecision(Evaluation),
    /// A candidate is committed; it will be built next.
    Proposed(Proposed),
    /// The trainer of the experiment in flight is built; it will be trained next.
    Built(Built),
    /// Training ended with an artifact; it will be evaluated next.
    Trained(Trained),
    /// The artifact was measured on `select`; the verdict comes next.
    Measured(Evaluation),
    /// The experiment is over; on a keep the branch moves next.
    Ended(Box<Row>),
    /// The experiment in flight was broken off without a result; its number is used again.
    Abandoned(Abandoned),
    /// An artifact was measured for the final figures.
    Reported(Reported),
    /// A commit was trained and measured once more, with another seed.
    Replicated(Replicate),
    /// A kept commit failed with another seed, for which there is no figure.
    ReplicateFailed(ReplicateFailed),
    /// A language model was asked, and no experiment comes of it.
    #[serde(rename = "unused")]
    WastedRequest(WastedRequest),
    /// Of a comparison: the recipe of an arm is committed.
    Arm(Arm),
    /// Of a comparison: the trainer of the arm with this number is built.
    ArmBuilt(Built),
    /// Of a comparison: an arm was run with a seed.
    ArmRun(ArmRun),
    /// A language model said what an experiment teaches.
    Learnt {
        /// The experiment.
        experiment: u64,
        /// At most two sentences.
        lesson: String,
    },
    /// The search ended in good order.
    Stopped {
        /// Why.
        reason: String,
    },
}

/// What a search is pinned to when it starts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Started {
    /// Name of the campaign.
    pub campaign: String,
    /// Tag of the search.
    pub tag: String,
    /// Commit that the search starts from; its recipe is the baseline.
    pub start: String,
    /// Seed of proposals and of every training run: runs share it, so that they differ by the recipe alone.
    pub seed: u64,
    /// sha256 of the campaign file.
    pub campaign_sha256: String,
    /// sha256 of the stamp of the prepared data, which lists the hashes of all of it.
    pub data_sha256: String,
    /// sha256 of the evaluator that measures every artifact.
    pub evaluator_sha256: String,
    /// Version of the orchestrator.
    pub version: String,
    /// Operating system and processor family.
    pub platform: String,
    /// What the machine computes on beside its processor: none, cuda or mps.
    pub accelerator: String,
    /// Compiler that builds the candidates.
    pub compiler: String,
}

/// Going on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resumed {
    /// Version of the orchestrator.
    pub version: String,
}

/// A candidate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Proposed {
    /// Number of the experiment, from 1.
    pub experiment: u64,
    /// The candidate.
    pub commit: String,
    /// The incumbent that it changes; `None` for the baseline.
    pub parent: Option<String>,
    /// Who proposed it.
    pub agent: String,
    /// What it changes, in one line.
    pub description: String,
    /// Values of the annotated knobs.
    pub knobs: BTreeMap<String, String>,
    /// Hash of the recipe's tokens: no recipe is run twice.
    pub recipe: String,
    /// Seed of the training run.
    pub seed: u64,
    /// What the agent expects to see, where it says so.
    #[serde(default)]
    pub expected: Option<String>,
    /// What asking a language model for it took.
    #[serde(default)]
    pub cost: Option<Cost>,
    /// Seconds that nothing trained for want of a proposal. Absent from journals of versions that always waited.
    #[serde(default)]
    pub waited: Option<f64>,
}

/// What was asked in vain.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WastedRequest {
    /// Who was asked.
    pub agent: String,
    /// Why nothing comes of it.
    pub reason: String,
    /// Whether there was a recipe, which is not tried.
    #[serde(default)]
    pub drafted: bool,
    /// What it took.
    pub cost: Cost,
}

/// A built trainer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Built {
    /// Number of the experiment.
    pub experiment: u64,
    /// Seconds that the compiler took.
    pub seconds: f64,
    /// Processor seconds of it; 0 where an earlier version did not count them.
    #[serde(default)]
    pub processor_s: f64,
    /// Peak resident bytes of its largest process.
    #[serde(default)]
    pub memory: u64,
    /// Bytes that it wrote.
    #[serde(default)]
    pub disk: u64,
    /// Whether that was while another run trained.
    #[serde(default)]
    pub ahead: bool,
    /// Seconds that its first steps took, where they were tried first.
    #[serde(default)]
    pub rehearsed: f64,
    /// sha256 of the trainer.
    pub trainer_sha256: String,
    /// What the sandbox enforced; `None` without one.
    #[serde(default)]
    pub sandbox: Option<Enforced>,
}

/// A finished training run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Trained {
    /// Number of the experiment.
    pub experiment: u64,
    /// Seconds of training as the frame counted them.
    pub train_s: f64,
    /// Seconds from start to end of the process, by the orchestrator's clock.
    pub wall_s: f64,
    /// Optimizer steps.
    pub steps: u64,
    /// Training tokens.
    pub tokens: u64,
    /// Peak resident memory in bytes, from the system.
    pub memory: u64,
    /// What the sandbox enforced; `None` without one.
    #[serde(default)]
    pub sandbox: Option<Enforced>,
    /// What it had of the processor. Absent from journals of versions that looked at wall time alone.
    #[serde(default)]
    pub processor: Option<Processor>,
}

/// What a training run had of the processor.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Processor {
    /// Seconds of all its threads and processes, from the system; outside of the kernel for a clock that counts so.
    pub seconds: f64,
    /// Those in steps that counted, as the frame says.
    pub counted: Option<f64>,
    /// Share of the cores' time that others took meanwhile.
    pub others: f64,
    /// How fast the machine was, where the campaign's clock asks for it.
    #[serde(default)]
    pub speed: Option<Speed>,
}

/// How fast the machine was: seconds of the processor, all threads together, for the evaluator's and the trainer's fixed
/// piece of work.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Speed {
    /// Within the run, on average, as the frame says.
    pub probe_s: f64,
    /// Right after it, by the evaluator.
    pub alone_s: f64,
}

/// What the evaluator measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// Part of the text.
    pub part: Part,
    /// Nats per token.
    pub eval_loss: f64,
    /// exp(eval_loss).
    pub eval_ppl: f64,
    /// Bits per byte of text.
    pub eval_bpb: f64,
    /// Scored tokens.
    pub tokens: u64,
    /// Everything stored for the projections over their number of weights.
    pub bits_per_weight: f64,
    /// Shares of −1, 0 and +1.
    pub shares: [f64; 3],
    /// Seconds it took.
    pub seconds: f64,
    /// Nats per token of each window, in the text's order: what makes two models' figures a paired comparison.
    #[serde(default)]
    pub windows: Vec<f32>,
}

/// A final figure.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Reported {
    /// Number of the experiment; `None` for the full-precision parent.
    pub experiment: Option<u64>,
    /// Number of the replicate of it that was measured; `None` for the experiment's own artifact.
    #[serde(default)]
    pub replicate: Option<u64>,
    /// The figures on `report`.
    pub evaluation: Evaluation,
}

/// One more measurement of a commit, with another seed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Replicate {
    /// Its number among the replicates, from 1.
    pub number: u64,
    /// The experiment that it repeats.
    pub experiment: u64,
    /// The commit.
    pub commit: String,
    /// Seed of the training run.
    pub seed: u64,
    /// The training run.
    pub trained: Trained,
    /// The figures on `select`.
    pub evaluation: Evaluation,
}

/// A run with another seed that gave no figure.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicateFailed {
    /// The experiment that it repeated.
    pub experiment: u64,
    /// The commit.
    pub commit: String,
    /// Seed of the training run; it is not tried again.
    pub seed: u64,
    /// Why.
    pub reason: String,
}

/// A broken-off experiment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Abandoned {
    /// Its number.
    pub experiment: u64,
    /// Why.
    pub reason: String,
    /// Whether the same candidate is tried again; otherwise a new one is proposed.
    pub again: bool,
}

/// How an experiment ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Better than the incumbent: the new incumbent.
    Keep,
    /// Measured, and not better.
    Discard,
    /// It did not build, diverged, or its process died.
    Crash,
    /// It ran past the hard limit.
    Timeout,
    /// Its artifact breaks the campaign's constraints.
    Invalid,
}

impl Status {
    /// As it is written in results.tsv.
    pub fn name(self) -> &'static str {
        match self {
            Self::Keep => "keep",
            Self::Discard => "discard",
            Self::Crash => "crash",
            Self::Timeout => "timeout",
            Self::Invalid => "invalid",
        }
    }
}

/// One experiment's row.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// Number of the experiment.
    pub experiment: u64,
    /// The candidate.
    pub commit: String,
    /// What it changed; `None` for the baseline.
    pub parent: Option<String>,
    /// How it ended.
    pub status: Status,
    /// Why, unless it was measured.
    pub reason: Option<String>,
    /// What it changed, in one line.
    pub description: String,
    /// Who proposed it.
    pub agent: String,
    /// Seed of the training run.
    pub seed: u64,
    /// Nats per token gained over the parent on `select`; `None` when not measured.
    pub gain: Option<f64>,
    /// What the verdict was made from; `None` for the baseline, and where nothing was measured.
    #[serde(default)]
    pub comparison: Option<Comparison>,
    /// The figures on `select`; `None` when not measured.
    pub evaluation: Option<Evaluation>,
    /// The training run; `None` when it gave no artifact.
    pub trained: Option<Trained>,
    /// When it ended, UTC.
    pub finished_at: String,
}

impl Row {
    /// Nats per token on `select`, where it was measured.
    pub fn loss(&self) -> Option<f64> {
        self.evaluation.as_ref().map(|e| e.eval_loss)
    }
}
