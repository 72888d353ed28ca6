//! What the evaluator says: a JSON file and a summary block.

use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;

/// The figures of one evaluation, as written to the JSON file.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// The part that was measured.
    pub part: String,
    /// Mean cross entropy, nats a token.
    pub eval_loss: f64,
    /// Perplexity a token.
    pub eval_ppl: f64,
    /// Bits a byte of the scored text.
    pub eval_bpb: f64,
    /// Positions scored.
    pub tokens: u64,
    /// UTF-8 bytes of their text.
    pub bytes: u64,
    /// Window length, tokens.
    pub window: usize,
    /// Bits stored for the projections, per weight; of the base's own type when it was measured.
    pub bits_per_weight: f64,
    /// Share of −1 among the codes.
    pub q_neg1: f64,
    /// Share of 0.
    pub q_zero: f64,
    /// Share of +1.
    pub q_pos1: f64,
    /// sha256 of the artifact (of the base model's weights with `--base`).
    pub artifact_sha256: String,
    /// Mean loss of every window, nats a token.
    pub window_losses: Vec<f64>,
    /// Seconds the decoder took.
    pub seconds: f64,
}

impl Report {
    /// The block that ends the output: a line `---`, then keys with their values from column 19.
    pub fn summary(&self) -> String {
        let mut block = String::from("---\n");
        let rate = self.tokens as f64 / self.seconds.max(1e-9);
        for (key, value) in [
            ("eval_ppl", format!("{:.6}", self.eval_ppl)),
            ("eval_bpb", format!("{:.6}", self.eval_bpb)),
            ("eval_loss", format!("{:.6}", self.eval_loss)),
            ("bits_per_weight", format!("{:.6}", self.bits_per_weight)),
            ("q_neg1", format!("{:.6}", self.q_neg1)),
            ("q_zero", format!("{:.6}", self.q_zero)),
            ("q_pos1", format!("{:.6}", self.q_pos1)),
            ("part", self.part.clone()),
            ("window", self.window.to_string()),
            ("tokens", self.tokens.to_string()),
            ("bytes", self.bytes.to_string()),
            ("eval_seconds", format!("{:.1}", self.seconds)),
            ("tokens_per_s", format!("{rate:.1}")),
        ] {
            block.push_str(&format!("{:<18}{value}\n", format!("{key}:")));
        }
        block
    }
}

/// Writes JSON beside its place and renames it, so that a reader never sees half a file.
///
/// # Errors
/// When the folder is not writable.
pub fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let cannot = || format!("cannot write {}", path.display());
    let temporary = path.with_extension("json.tmp");
    let mut file = std::fs::File::create(&temporary).with_context(cannot)?;
    serde_json::to_writer_pretty(&mut file, value).with_context(cannot)?;
    file.write_all(b"\n").and_then(|()| file.sync_all()).with_context(cannot)?;
    std::fs::rename(&temporary, path).with_context(cannot)
}
