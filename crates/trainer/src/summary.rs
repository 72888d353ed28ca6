//! The end of a run: `summary.json`, and the block at the end of the output.

use std::fmt::Write;
use std::path::Path;

use anyhow::{Context, Result};
use formats::contract::Summary;

/// Writes `summary.json`.
///
/// # Errors
/// When the file cannot be written.
pub fn write(summary: &Summary, path: &Path) -> Result<()> {
    let text = serde_json::to_string_pretty(summary).context("cannot format the summary")?;
    std::fs::write(path, text + "\n").with_context(|| format!("cannot write {}", path.display()))
}

/// The block for people and scripts: a line `---`, then keys with values from column 19.
pub fn block(summary: &Summary) -> String {
    let mut text = String::from("---\n");
    let mut line = |key: &str, value: String| {
        let _ = writeln!(text, "{:<18}{value}", format!("{key}:"));
    };
    line("status", summary.status.name().to_owned());
    line("training_seconds", format!("{:.1}", summary.training_seconds));
    line("total_seconds", format!("{:.1}", summary.total_seconds));
    line("peak_memory_mb", format!("{:.1}", summary.peak_memory_mb));
    line("total_tokens_M", format!("{:.3}", summary.tokens as f64 / 1e6));
    line("tokens_per_s", format!("{:.1}", summary.tokens_per_s));
    line("num_steps", summary.num_steps.to_string());
    line("num_params_M", format!("{:.3}", summary.num_params as f64 / 1e6));
    line("depth", summary.depth.to_string());
    line("bits_per_weight", format!("{:.4}", summary.bits_per_weight));
    line("q_neg1", format!("{:.4}", summary.q_neg1));
    line("q_zero", format!("{:.4}", summary.q_zero));
    line("q_pos1", format!("{:.4}", summary.q_pos1));
    line("seed", summary.seed.to_string());
    line("device", summary.device.clone());
    text
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
