//! What a training run was and did.

use serde::{Deserialize, Serialize};

/// How training ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Ended {
    /// The budget is spent.
    Completed,
    /// A signal ended it early.
    Terminated,
    /// The recipe did.
    Returned,
}

impl Ended {
    /// Its name in the file.
    pub fn name(self) -> &'static str {
        match self {
            Self::Completed => "completed",
            Self::Terminated => "terminated",
            Self::Returned => "returned",
        }
    }
}

/// `summary.json`. No score is in it: the artifact is scored by the evaluator.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// How training ended.
    pub status: Ended,
    /// Seconds that counted against the budget.
    pub training_seconds: f64,
    /// Seconds of the processor, all threads together, in the steps that counted; outside of the kernel for a clock that
    /// counts so.
    #[serde(default)]
    pub processor_seconds: Option<f64>,
    /// Seconds of the processor that a probe of the machine's speed took on average, where the campaign's clock needs it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probe_seconds: Option<f64>,
    /// Seconds since the start of the process.
    #[serde(default)]
    pub total_seconds: f64,
    /// Optimizer steps.
    pub num_steps: u64,
    /// Training tokens.
    pub tokens: u64,
    /// Training tokens over all training time, the uncounted first steps included.
    #[serde(default)]
    pub tokens_per_s: f64,
    /// Passes over the train part that were begun.
    #[serde(default)]
    pub epochs: u64,
    /// Loss of the last step, nats a token.
    #[serde(default)]
    pub train_loss: Option<f64>,
    /// Largest resident memory in MB as the system counted it (0 where it does not); for information.
    #[serde(default)]
    pub peak_memory_mb: f64,
    /// Weights of the model.
    #[serde(default)]
    pub num_params: u64,
    /// Blocks of the model.
    #[serde(default)]
    pub depth: usize,
    /// Everything stored for the projections over their number.
    #[serde(default)]
    pub bits_per_weight: f64,
    /// Shares of -1, 0 and +1 in the artifact.
    #[serde(default)]
    pub q_neg1: f64,
    /// See `q_neg1`.
    #[serde(default)]
    pub q_zero: f64,
    /// See `q_neg1`.
    #[serde(default)]
    pub q_pos1: f64,
    /// Seed of the run.
    #[serde(default)]
    pub seed: u64,
    /// Where it ran.
    #[serde(default)]
    pub device: String,
    /// CPU threads.
    #[serde(default)]
    pub threads: usize,
    /// Version of the trainer.
    #[serde(default)]
    pub version: String,
    /// sha256 of the text's manifest, which holds the hashes of the text.
    #[serde(default)]
    pub data_sha256: String,
    /// sha256 of the base model.
    #[serde(default)]
    pub base_sha256: Option<String>,
}
