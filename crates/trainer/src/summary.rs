//! What a run was and did: `summary.json`, and the block at the end of the output.
//!
//! No score is in it: the artifact is scored by the evaluator.

use std::fmt::Write;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;

/// Figures of one run.
#[derive(Debug, Clone, Serialize)]
pub struct Summary {
    /// `completed`; `terminated` when a signal ended it early; `returned` when the recipe did.
    pub status: &'static str,
    /// Seconds that counted against the budget.
    pub training_seconds: f64,
    /// Seconds of the processor, all threads together, in the steps that counted.
    pub processor_seconds: f64,
    /// Seconds of the processor that a probe of the machine's speed took on average, where the campaign's clock needs it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub probe_seconds: Option<f64>,
    /// Seconds since the start of the process.
    pub total_seconds: f64,
    /// Optimizer steps.
    pub num_steps: u64,
    /// Training tokens.
    pub tokens: u64,
    /// Training tokens over all training time, the uncounted first steps included.
    pub tokens_per_s: f64,
    /// Passes over the train part that were begun.
    pub epochs: u64,
    /// Loss of the last step, nats a token.
    pub train_loss: Option<f64>,
    /// Largest resident memory in MB as the system counted it (0 where it does not); for information.
    pub peak_memory_mb: f64,
    /// Weights of the model.
    pub num_params: u64,
    /// Blocks of the model.
    pub depth: usize,
    /// Everything stored for the projections over their number.
    pub bits_per_weight: f64,
    /// Shares of -1, 0 and +1 in the artifact.
    pub q_neg1: f64,
    /// See `q_neg1`.
    pub q_zero: f64,
    /// See `q_neg1`.
    pub q_pos1: f64,
    /// Seed of the run.
    pub seed: u64,
    /// Where it ran.
    pub device: String,
    /// CPU threads.
    pub threads: usize,
    /// Version of the trainer.
    pub version: &'static str,
    /// sha256 of the text's manifest, which holds the hashes of the text.
    pub data_sha256: String,
    /// sha256 of the base model.
    pub base_sha256: Option<String>,
}

impl Summary {
    /// Writes `summary.json`.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self).context("cannot format the summary")?;
        std::fs::write(path, text + "\n").with_context(|| format!("cannot write {}", path.display()))
    }

    /// The block for people and scripts: a line `---`, then keys with values from column 19.
    pub fn block(&self) -> String {
        let mut text = String::from("---\n");
        let mut line = |key: &str, value: String| {
            let _ = writeln!(text, "{:<18}{value}", format!("{key}:"));
        };
        line("status", self.status.to_owned());
        line("training_seconds", format!("{:.1}", self.training_seconds));
        line("total_seconds", format!("{:.1}", self.total_seconds));
        line("peak_memory_mb", format!("{:.1}", self.peak_memory_mb));
        line("total_tokens_M", format!("{:.3}", self.tokens as f64 / 1e6));
        line("tokens_per_s", format!("{:.1}", self.tokens_per_s));
        line("num_steps", self.num_steps.to_string());
        line("num_params_M", format!("{:.3}", self.num_params as f64 / 1e6));
        line("depth", self.depth.to_string());
        line("bits_per_weight", format!("{:.4}", self.bits_per_weight));
        line("q_neg1", format!("{:.4}", self.q_neg1));
        line("q_zero", format!("{:.4}", self.q_zero));
        line("q_pos1", format!("{:.4}", self.q_pos1));
        line("seed", self.seed.to_string());
        line("device", self.device.clone());
        text
    }
}

/// Largest resident memory of this process so far, in MB (10⁶ bytes); 0 where /proc does not say.
pub fn peak_memory_mb() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kibibytes = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .and_then(|rest| rest.split_whitespace().next()?.parse::<f64>().ok());
    kibibytes.unwrap_or(0.0) * 1024.0 / 1e6
}
