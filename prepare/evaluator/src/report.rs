//! What the evaluator says: a JSON file and a summary block.

use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};
use formats::contract::Evaluation;
use serde::Serialize;

/// The block that ends the output: a line `---`, then keys with their values from column 19.
pub fn block(evaluation: &Evaluation) -> String {
    let mut block = String::from("---\n");
    let rate = evaluation.tokens as f64 / evaluation.seconds.max(1e-9);
    for (key, value) in [
        ("eval_ppl", format!("{:.6}", evaluation.eval_ppl)),
        ("eval_bpb", format!("{:.6}", evaluation.eval_bpb)),
        ("eval_loss", format!("{:.6}", evaluation.eval_loss)),
        ("bits_per_weight", format!("{:.6}", evaluation.bits_per_weight)),
        ("q_neg1", format!("{:.6}", evaluation.q_neg1)),
        ("q_zero", format!("{:.6}", evaluation.q_zero)),
        ("q_pos1", format!("{:.6}", evaluation.q_pos1)),
        ("part", evaluation.part.name().to_owned()),
        ("window", evaluation.window.to_string()),
        ("tokens", evaluation.tokens.to_string()),
        ("bytes", evaluation.bytes.to_string()),
        ("eval_seconds", format!("{:.1}", evaluation.seconds)),
        ("tokens_per_s", format!("{rate:.1}")),
    ] {
        block.push_str(&format!("{:<18}{value}\n", format!("{key}:")));
    }
    block
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
