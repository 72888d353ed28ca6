//! The append-only file that a search's state is rebuilt from: JSON lines, one record a line, each synced to disk
//! before anything is done about it.
//!
//! The first line is the header with the format's version. A crash can leave a last line cut short; it was never
//! acted on, so it is cut off when the journal is opened for writing and passed over when it is only read. Damage
//! anywhere else is an error: no part of the ledger is ever dropped silently. What records mean is `ledger`'s.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::{Deserialize, Serialize};

use crate::clock;
use crate::error::Failure;
use crate::failpoints;
use crate::files;
use crate::ledger::{Event, Record};

const FORMAT: &str = "ternary-autoresearch";
/// Raised with every change of meaning of a record.
const VERSION: u32 = 1;

#[derive(Debug, Serialize, Deserialize)]
struct Header {
    journal: String,
    version: u32,
}

/// An open journal. Whoever has it holds the search's lock.
#[derive(Debug)]
pub struct Journal {
    file: File,
    path: PathBuf,
}

impl Journal {
    /// Opens or creates a journal for appending and returns the records in it. A torn last line is cut off.
    ///
    /// # Errors
    /// [`Failure::Journal`] for damage that is not a torn tail or for another version.
    pub fn open(path: &Path) -> Result<(Self, Vec<Record>), Failure> {
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .with_context(|| format!("cannot open the journal {}", path.display()))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).with_context(|| format!("cannot read {}", path.display()))?;
        let (records, whole) = parse(path, &bytes)?;
        if whole < bytes.len() {
            let torn = String::from_utf8_lossy(&bytes[whole..]);
            tracing::warn!(%torn, "the journal's last line was cut short by a crash; it is removed");
            file.set_len(whole as u64)
                .and_then(|()| file.sync_all())
                .with_context(|| format!("cannot cut the torn end off {}", path.display()))?;
        }
        file.seek(SeekFrom::End(0)).with_context(|| format!("cannot seek in {}", path.display()))?;
        let mut journal = Self { file, path: path.to_owned() };
        if whole == 0 {
            journal.write(&Header { journal: FORMAT.into(), version: VERSION })?;
            files::sync_folder(path).with_context(|| format!("cannot sync the folder of {}", path.display()))?;
        }
        Ok((journal, records))
    }

    /// Appends one record; when this returns it is on disk.
    ///
    /// # Errors
    /// When it could not be written or synced. The search must not go on then.
    pub fn append(&mut self, event: Event) -> anyhow::Result<Record> {
        let record = Record { time: clock::now(), event };
        self.write(&record)?;
        Ok(record)
    }

    fn write<T: Serialize>(&mut self, line: &T) -> anyhow::Result<()> {
        let mut bytes = serde_json::to_vec(line).context("a record could not be encoded")?;
        bytes.push(b'\n');
        let written = self.file.write_all(&bytes);
        failpoints::at("record-unsynced");
        written.and_then(|()| self.file.sync_data()).with_context(|| {
            format!("cannot write {}: nothing was done about the record; free space and run again", self.path.display())
        })
    }
}

/// The records of a journal that somebody else may be writing to. Changes nothing.
///
/// # Errors
/// As [`Journal::open`].
pub fn read(path: &Path) -> Result<Vec<Record>, Failure> {
    let bytes = files::read_regular(path, u64::MAX).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(parse(path, &bytes)?.0)
}

/// Whether a crash cut the last line of a journal short.
///
/// # Errors
/// As [`Journal::open`].
pub fn is_torn(path: &Path) -> Result<bool, Failure> {
    let bytes = files::read_regular(path, u64::MAX).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(parse(path, &bytes)?.1 < bytes.len())
}

/// The records, and how many bytes at the start are whole lines.
fn parse(path: &Path, bytes: &[u8]) -> Result<(Vec<Record>, usize), Failure> {
    let damaged = |message: String| Failure::Journal { path: path.to_owned(), message };
    let mut records = Vec::new();
    let mut whole = 0;
    let mut lines = bytes.split_inclusive(|&b| b == b'\n').enumerate().peekable();
    while let Some((index, line)) = lines.next() {
        let last = lines.peek().is_none();
        let parsed = if !line.ends_with(b"\n") {
            Err("it does not end".to_owned())
        } else if index == 0 {
            match serde_json::from_slice::<Header>(line) {
                Ok(header) if header.journal == FORMAT && header.version == VERSION => Ok(None),
                Ok(header) => {
                    return Err(damaged(format!(
                        "this is a {:?} journal of version {}, and this orchestrator reads {FORMAT:?} version \
                         {VERSION}: continue the search with the orchestrator that began it",
                        header.journal, header.version
                    )));
                }
                Err(e) => Err(e.to_string()),
            }
        } else {
            serde_json::from_slice::<Record>(line).map(Some).map_err(|e| e.to_string())
        };
        match parsed {
            Ok(record) => records.extend(record),
            // A crash tears only what was being appended.
            Err(_) if last => break,
            Err(message) => return Err(damaged(format!("line {} is damaged: {message}", index + 1))),
        }
        whole += line.len();
    }
    Ok((records, whole))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn event(text: &str) -> Event {
        Event::Stopped { reason: text.into() }
    }

    fn written(texts: &[String]) -> (tempfile::TempDir, PathBuf, Vec<u8>) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal.jsonl");
        let (mut journal, records) = Journal::open(&path).unwrap();
        assert!(records.is_empty());
        for text in texts {
            journal.append(event(text)).unwrap();
        }
        let bytes = std::fs::read(&path).unwrap();
        (dir, path, bytes)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Cut anywhere, a journal opens with exactly the records whose line is whole, and takes more.
        #[test]
        fn any_prefix_opens(texts in prop::collection::vec(".{0,40}", 0..6), cut in 0.0..=1.0_f64) {
            let (_dir, path, bytes) = written(&texts);
            let cut = (bytes.len() as f64 * cut) as usize;
            std::fs::write(&path, &bytes[..cut]).unwrap();
            let whole = bytes[..cut].iter().filter(|&&b| b == b'\n').count().saturating_sub(1);
            prop_assert_eq!(read(&path).unwrap().len(), whole);
            let (mut journal, records) = Journal::open(&path).unwrap();
            prop_assert_eq!(records.len(), whole);
            for (record, text) in records.iter().zip(&texts) {
                prop_assert_eq!(&record.event, &event(text));
            }
            journal.append(event("after")).unwrap();
            let reopened = read(&path).unwrap();
            prop_assert_eq!(reopened.len(), whole + 1);
            prop_assert_eq!(&reopened[whole].event, &event("after"));
        }

        /// Bytes that a crash left behind the last whole line are cut off, whatever they are.
        #[test]
        fn a_torn_tail_is_cut_off(tail in prop::collection::vec(any::<u8>().prop_filter("no line end", |b| *b != b'\n'), 1..80)) {
            let (_dir, path, bytes) = written(&["one".into(), "two".into()]);
            let mut torn = bytes.clone();
            torn.extend(&tail);
            std::fs::write(&path, &torn).unwrap();
            prop_assert_eq!(Journal::open(&path).unwrap().1.len(), 2);
            prop_assert_eq!(std::fs::read(&path).unwrap(), bytes);
        }
    }

    #[test]
    fn one_byte_less_loses_one_record() {
        let (_dir, path, bytes) = written(&["one".into(), "two".into()]);
        std::fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
        let (_, records) = Journal::open(&path).unwrap();
        assert_eq!(records.iter().map(|r| r.event.clone()).collect::<Vec<_>>(), [event("one")]);
    }

    #[test]
    fn damage_in_the_middle_is_refused_and_left_alone() {
        let (_dir, path, bytes) = written(&["one".into(), "two".into()]);
        let text = String::from_utf8(bytes).unwrap().replacen("\"stopped\"", "\"stooped\"", 1);
        std::fs::write(&path, &text).unwrap();
        let error = Journal::open(&path).unwrap_err().to_string();
        assert!(error.contains("line 2 is damaged"), "{error}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
    }

    #[test]
    fn another_version_is_refused() {
        let (_dir, path, bytes) = written(&[]);
        let text = String::from_utf8(bytes).unwrap().replace("\"version\":1", "\"version\":2");
        std::fs::write(&path, &text).unwrap();
        let error = Journal::open(&path).unwrap_err().to_string();
        assert!(error.contains("version 2"), "{error}");
    }
}
