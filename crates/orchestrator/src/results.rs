//! Views of the ledger as tables: `results.tsv` at the root, and what `results` prints.
//!
//! The journal is the truth. The rows of a search are written anew from it every time, as a whole and atomically;
//! rows of other searches stay as they are.

mod kept;
mod table;

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::error::Failure;
use crate::files;
use crate::ledger::{Row, Status};
use crate::workspace::Workspace;

pub use table::{Document, header, line, noise, print, summary};

/// The first five are those of karpathy/autoresearch.
pub const COLUMNS: [&str; 22] = [
    "commit",
    "eval_ppl",
    "memory_gb",
    "status",
    "description",
    "experiment",
    "campaign",
    "parent",
    "agent",
    "gain",
    "eval_bpb",
    "bits_per_weight",
    "train_s",
    "steps",
    "tokens",
    "q_neg1",
    "q_zero",
    "q_pos1",
    "seed",
    "finished_at",
    "gain_se",
    "runs",
];
/// Characters of a description, and of a reason.
const LONGEST_TEXT: usize = 600;
/// Columns of the first version.
const OLDEST_COLUMNS: usize = 20;
const CAMPAIGN: usize = 6;
const FINISHED_AT: usize = 19;

fn path(root: &Path) -> PathBuf {
    root.join("results.tsv")
}

/// Writes the rows of one search into results.tsv.
///
/// # Errors
/// When the file there is something else, or cannot be written.
pub fn publish(workspace: &Workspace, tag: &str, rows: &[Row]) -> Result<(), Failure> {
    let lock = workspace.results_lock();
    // Another search may be writing its rows at this moment.
    let held = File::create(&lock).with_context(|| format!("cannot open {}", lock.display()))?;
    held.lock().with_context(|| format!("cannot lock {}", lock.display()))?;
    Ok(write(&path(workspace.root()), tag, rows)?)
}

/// Whether results.tsv has rows of a search.
///
/// # Errors
/// When the file there is something else.
pub fn has_tag(root: &Path, tag: &str) -> Result<bool> {
    Ok(read(&path(root))?.iter().any(|record| record.get(CAMPAIGN) == Some(tag)))
}

fn write(path: &Path, tag: &str, rows: &[Row]) -> Result<()> {
    let mut records = read(path)?;
    records.retain(|record| record.get(CAMPAIGN) != Some(tag));
    records.extend(rows.iter().map(|row| record(tag, row)));
    // Oldest first; the sort is stable and RFC 3339 in UTC sorts as text.
    records.sort_by(|a, b| a.get(FINISHED_AT).cmp(&b.get(FINISHED_AT)));
    let mut writer = csv::WriterBuilder::new().delimiter(b'\t').from_writer(Vec::new());
    writer.write_record(COLUMNS)?;
    for record in &records {
        writer.write_record(record)?;
    }
    let bytes = writer.into_inner().context("cannot write rows")?;
    if std::fs::read(path).is_ok_and(|now| now == bytes) {
        return Ok(());
    }
    files::replace(path, &bytes).with_context(|| format!("cannot write {}", path.display()))
}

fn read(path: &Path) -> Result<Vec<csv::StringRecord>> {
    if !path.exists() {
        return Ok(Vec::new());
    }
    let mut reader = csv::ReaderBuilder::new()
        .delimiter(b'\t')
        .from_path(path)
        .with_context(|| format!("cannot read {}", path.display()))?;
    // Columns are only ever added, at the end; rows from before lack the last ones.
    let known = reader.headers()?.iter().zip(COLUMNS).all(|(found, expected)| found == expected);
    if !known || !(OLDEST_COLUMNS..=COLUMNS.len()).contains(&reader.headers()?.len()) {
        bail!("{} has other columns than this version writes: move it aside and run again", path.display());
    }
    let complete = |mut record: csv::StringRecord| {
        (record.len()..COLUMNS.len()).for_each(|_| record.push_field(""));
        record
    };
    let records = reader.records().map(|record| record.map(complete));
    records.collect::<Result<_, _>>().with_context(|| format!("{} is damaged", path.display()))
}

/// One row as text. What was not measured is zero in the first columns, as there, and empty in the others.
fn record(tag: &str, row: &Row) -> csv::StringRecord {
    let number = |value: Option<f64>, digits: usize| value.map_or_else(String::new, |v| format!("{v:.digits$}"));
    let evaluation = row.evaluation.as_ref();
    let trained = row.trained.as_ref();
    let share = |i: usize| number(evaluation.map(|e| e.shares[i]), 6);
    let memory = match row.status {
        Status::Crash => 0.0,
        _ => trained.map_or(0.0, |t| t.memory as f64 / f64::from(1 << 30)),
    };
    let fields = [
        short(&row.commit).to_owned(),
        format!("{:.6}", evaluation.map_or(0.0, |e| e.eval_ppl)),
        format!("{memory:.1}"),
        row.status.name().to_owned(),
        description(row),
        row.experiment.to_string(),
        tag.to_owned(),
        row.parent.as_deref().map_or("", short).to_owned(),
        row.agent.clone(),
        number(row.gain, 6),
        number(evaluation.map(|e| e.eval_bpb), 6),
        number(evaluation.map(|e| e.bits_per_weight), 4),
        number(trained.map(|t| t.train_s), 1),
        trained.map_or_else(String::new, |t| t.steps.to_string()),
        trained.map_or_else(String::new, |t| t.tokens.to_string()),
        share(0),
        share(1),
        share(2),
        row.seed.to_string(),
        row.finished_at.clone(),
        number(row.comparison.as_ref().map(|comparison| comparison.error), 6),
        evaluation.map_or_else(String::new, |_| row.comparison.as_ref().map_or(1, |c| c.runs).to_string()),
    ];
    csv::StringRecord::from(fields.to_vec())
}

/// Seven characters of a commit.
pub fn short(commit: &str) -> &str {
    commit.get(..7).unwrap_or(commit)
}

/// What was changed, and why it failed where it did, in one line. Part of it may be what a candidate printed.
pub fn description(row: &Row) -> String {
    match &row.reason {
        None => plain(&row.description),
        Some(reason) => format!("{} ({})", plain(&row.description), plain(reason)),
    }
}

/// Text that may come from anywhere, in one line: nothing that moves a cursor or turns a line around, cut to
/// [`LONGEST_TEXT`].
fn plain(text: &str) -> String {
    let invisible =
        |c: char| matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}');
    let visible: String = text.chars().map(|c| if c.is_control() || invisible(c) { ' ' } else { c }).collect();
    let line = visible.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(LONGEST_TEXT) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}

#[cfg(test)]
mod tests;
