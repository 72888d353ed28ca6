//! Views of the ledger as tables: `results.tsv` at the root, and what `results` prints.
//!
//! The journal is the truth. The rows of a search are written anew from it every time, as a whole and atomically;
//! rows of other searches stay as they are.

mod kept;
mod table;

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use language_model::{cell, one_line};

use crate::files;
use crate::ledger::{Row, Status};
use crate::workspace::Workspace;

pub use kept::{Figures, drawn, figures};
pub use table::{Document, header, line, noise, print, summary, unsupported};

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
/// Numbers from this on are written with a power of ten.
const LARGEST_PLAIN: f64 = 1e12;
/// Columns of the first version.
const OLDEST_COLUMNS: usize = 20;
const EXPERIMENT: usize = 5;
const CAMPAIGN: usize = 6;
const FINISHED_AT: usize = 19;

fn path(root: &Path) -> PathBuf {
    root.join("results.tsv")
}

/// How the rows of a search in results.tsv differ from its journal.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Differences {
    /// Experiments without a row.
    pub missing: Vec<u64>,
    /// Rows that say something else: somebody edited them.
    pub edited: Vec<String>,
}

impl Differences {
    /// In one line; `None` where there are none.
    pub fn summary(&self) -> Option<String> {
        let list = |numbers: &[String]| numbers.join(", #");
        let missing: Vec<String> = self.missing.iter().map(u64::to_string).collect();
        let parts = [(missing, "had no row"), (self.edited.clone(), "had a row that somebody edited")];
        let parts: Vec<String> = parts
            .iter()
            .filter(|(numbers, _)| !numbers.is_empty())
            .map(|(numbers, what)| format!("#{} {what}", list(numbers)))
            .collect();
        (!parts.is_empty()).then(|| parts.join("; "))
    }
}

/// Writes the rows of one search into results.tsv. What a person edited in them is kept as a copy in `folder` first.
/// Returns what differed.
///
/// # Errors
/// When the file there is something else or read-only, or cannot be written. It is left as it is.
pub fn publish(workspace: &Workspace, tag: &str, rows: &[Row], folder: &Path) -> Result<Differences> {
    let lock = workspace.results_lock();
    // Another search may be writing its rows at this moment.
    let held = File::create(&lock).with_context(|| format!("cannot open {}", lock.display()))?;
    held.lock().with_context(|| format!("cannot lock {}", lock.display()))?;
    write(&path(workspace.root()), tag, rows, folder)
}

/// Moves a results.tsv that cannot be read out of the way, for `repair`. Returns where it is.
///
/// # Errors
/// When it cannot be moved.
pub fn set_aside(root: &Path) -> Result<Option<PathBuf>> {
    let path = path(root);
    if read(&path).is_ok() {
        return Ok(None);
    }
    let aside = unused(|n| root.join(format!("results.{n}.tsv")));
    std::fs::rename(&path, &aside).with_context(|| format!("cannot move {} aside", path.display()))?;
    Ok(Some(aside))
}

fn unused(name: impl Fn(u32) -> PathBuf) -> PathBuf {
    (1..).map(name).find(|path| !path.exists()).unwrap_or_default()
}

/// Whether results.tsv has rows of a search.
///
/// # Errors
/// When the file there is something else.
pub fn has_tag(root: &Path, tag: &str) -> Result<bool> {
    Ok(read(&path(root))?.iter().any(|record| record.get(CAMPAIGN) == Some(tag)))
}

fn write(path: &Path, tag: &str, rows: &[Row], folder: &Path) -> Result<Differences> {
    let mut records = read(path)?;
    let own: Vec<csv::StringRecord> = rows.iter().map(|row| record(tag, row)).collect();
    let differences = compare(&records, tag, &own);
    if path.exists() && std::fs::metadata(path).is_ok_and(|metadata| metadata.permissions().readonly()) {
        bail!("{} is read-only and is left as it is", path.display());
    }
    if !differences.edited.is_empty() {
        let copy = unused(|n| folder.join(format!("results-edited-{n}.tsv")));
        std::fs::copy(path, &copy).with_context(|| format!("cannot keep what was edited in {}", copy.display()))?;
    }
    records.retain(|record| record.get(CAMPAIGN) != Some(tag));
    records.extend(own);
    sort(&mut records);
    let mut writer = csv::WriterBuilder::new().delimiter(b'\t').from_writer(Vec::new());
    writer.write_record(COLUMNS)?;
    for record in &records {
        writer.write_record(record)?;
    }
    let bytes = writer.into_inner().context("cannot write rows")?;
    if !files::read_regular(path, files::LARGEST_TEXT).is_ok_and(|now| now == bytes) {
        files::replace(path, &bytes).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(differences)
}

/// What the rows of `tag` among `records` lack or say otherwise.
fn compare(records: &[csv::StringRecord], tag: &str, own: &[csv::StringRecord]) -> Differences {
    let there: Vec<_> = records.iter().filter(|record| record.get(CAMPAIGN) == Some(tag)).collect();
    let number = |record: &csv::StringRecord| record[EXPERIMENT].to_owned();
    let missing = own.iter().filter(|row| !there.iter().any(|record| number(record) == number(row)));
    let edited = there.iter().filter(|record| !own.iter().any(|row| same(record, row)));
    Differences {
        missing: missing.filter_map(|row| row[EXPERIMENT].parse().ok()).collect(),
        edited: edited.map(|record| number(record)).collect(),
    }
}

/// Whether a record is this row, or what an older version wrote of it.
fn same(record: &csv::StringRecord, row: &csv::StringRecord) -> bool {
    let cleaned = |a: &str, b: &str| cell(a, 2 * LONGEST_TEXT) == b;
    let mut pairs = record.iter().zip(row).enumerate();
    pairs.all(|(i, (a, b))| a == b || cleaned(a, b) || (i >= OLDEST_COLUMNS && a.is_empty()))
}

/// Oldest first. Of one search the number says what is older, also where the clock jumped back; RFC 3339 in UTC sorts
/// as text.
fn sort(records: &mut [csv::StringRecord]) {
    records.sort_by_key(|record| record[EXPERIMENT].parse::<u64>().unwrap_or(u64::MAX));
    let mut latest: BTreeMap<String, String> = BTreeMap::new();
    let mut keys = BTreeMap::new();
    for record in records.iter() {
        let time = latest.entry(record[CAMPAIGN].to_owned()).or_default();
        if record[FINISHED_AT] > **time {
            record[FINISHED_AT].clone_into(time);
        }
        keys.insert((record[CAMPAIGN].to_owned(), record[EXPERIMENT].to_owned()), time.clone());
    }
    records.sort_by_cached_key(|record| {
        keys.get(&(record[CAMPAIGN].to_owned(), record[EXPERIMENT].to_owned())).cloned().unwrap_or_default()
    });
}

fn read(path: &Path) -> Result<Vec<csv::StringRecord>> {
    if !path.exists() {
        return Ok(Vec::new());
    }
    let bytes =
        files::read_regular(path, files::LARGEST_TEXT).with_context(|| format!("cannot read {}", path.display()))?;
    let mut reader = csv::ReaderBuilder::new().delimiter(b'\t').from_reader(bytes.as_slice());
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
    let number = |value: Option<f64>, digits: usize| value.map_or_else(String::new, |v| figure(v, digits));
    let evaluation = row.evaluation.as_ref();
    let trained = row.trained.as_ref();
    let share = |i: usize| number(evaluation.map(|e| e.shares[i]), 6);
    let memory = match row.status {
        Status::Crash => 0.0,
        _ => trained.map_or(0.0, |t| t.memory as f64 / f64::from(1 << 30)),
    };
    let fields = [
        short(&row.commit).to_owned(),
        figure(evaluation.map_or(0.0, |e| e.eval_ppl), 6),
        format!("{memory:.1}"),
        row.status.name().to_owned(),
        cell(&description(row), 2 * LONGEST_TEXT),
        row.experiment.to_string(),
        tag.to_owned(),
        row.parent.as_deref().map_or("", short).to_owned(),
        cell(&row.agent, LONGEST_TEXT),
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

/// A number with so many decimals; a large one with its power of ten, so that none is wider than its column.
pub fn figure(value: f64, digits: usize) -> String {
    if value.abs() < LARGEST_PLAIN { format!("{value:.digits$}") } else { format!("{value:.3e}") }
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

/// Text that may come from anywhere, in one line of at most [`LONGEST_TEXT`] characters.
pub fn plain(text: &str) -> String {
    one_line(text, LONGEST_TEXT)
}

#[cfg(test)]
mod tests;
