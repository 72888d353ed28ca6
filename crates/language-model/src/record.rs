//! Recordings: each exchange is one JSON file in a folder, and a replay answers from them.
//!
//! A recording has all that was asked and answered, so a search can be run again without a model, and what was spent can
//! be added up after a restart. It never has a key: the endpoint takes its own out before anything is written.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{Cancel, Endpoint, EndpointError, Exchange, Identity, Prompt, Usage};

/// Version of the files; another one is refused.
const VERSION: u32 = 1;
/// Most bytes of a recording that is read.
const LARGEST: u64 = 64 << 20;
/// Digits of a file's number, so that names sort as numbers do.
const DIGITS: usize = 6;
/// How a file's name ends.
const EXTENSION: &str = "json";

/// One exchange, as it is written down.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Recording {
    /// Version of the format.
    pub version: u32,
    /// Its place among the recordings of a folder, from 1.
    pub number: u64,
    /// When the question was asked: RFC 3339, UTC.
    pub asked: String,
    /// Which model was asked.
    pub endpoint: Identity,
    /// [`Prompt::sha256`] of what was asked.
    pub prompt_sha256: String,
    /// What was asked.
    pub prompt: Prompt,
    /// What came of it.
    pub exchange: Exchange,
}

/// Why recordings cannot be read or made.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The folder or a file in it cannot be used.
    #[error("cannot use the recordings in {path}: {source}")]
    Io {
        /// Which folder or file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file that is no recording.
    #[error("{path} is no recording of this version: {reason}; move it away, or use the version that wrote it")]
    Malformed {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// Nothing to replay.
    #[error("there is no recording in {0}; a search with a model writes them")]
    None(PathBuf),
}

impl Recording {
    /// Reads one file.
    ///
    /// # Errors
    /// When it cannot be read or is no recording of this version.
    pub fn read(path: &Path) -> Result<Self, RecordError> {
        let malformed = |reason: String| RecordError::Malformed { path: path.to_owned(), reason };
        let unread = |source| RecordError::Io { path: path.to_owned(), source };
        let mut bytes = Vec::new();
        if fs::metadata(path).map_err(unread)?.is_file() {
            File::open(path).and_then(|file| file.take(LARGEST + 1).read_to_end(&mut bytes)).map_err(unread)?;
        }
        if bytes.is_empty() || bytes.len() as u64 > LARGEST {
            return Err(malformed(format!("it is no regular file of 1 to {LARGEST} bytes")));
        }
        let recording: Self = serde_json::from_slice(&bytes).map_err(|error| malformed(error.to_string()))?;
        if recording.version != VERSION {
            return Err(malformed(format!("it has version {}, not {VERSION}", recording.version)));
        }
        Ok(recording)
    }
}

/// The recordings of a folder, in order. A folder that is not there has none.
///
/// # Errors
/// When the folder cannot be read.
pub fn recordings(folder: &Path) -> Result<Vec<PathBuf>, RecordError> {
    let failed = |source| RecordError::Io { path: folder.to_owned(), source };
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut numbered = Vec::new();
    for entry in entries {
        let path = entry.map_err(failed)?.path();
        if let Some(number) = number(&path) {
            numbered.push((number, path));
        }
    }
    numbered.sort();
    Ok(numbered.into_iter().map(|(_, path)| path).collect())
}

fn number(path: &Path) -> Option<u64> {
    let stem = path.file_stem()?.to_str()?;
    (path.extension()? == EXTENSION && stem.len() >= DIGITS).then(|| stem.parse().ok())?
}

/// An endpoint whose exchanges are written down. One at a time may write to a folder.
#[derive(Debug)]
pub struct Recorder<E> {
    endpoint: E,
    folder: PathBuf,
    next: u64,
}

impl<E: Endpoint> Recorder<E> {
    /// Records into `folder`, which is made if it is not there, behind what it holds already.
    ///
    /// # Errors
    /// When the folder cannot be made or read.
    pub fn new(endpoint: E, folder: &Path) -> Result<Self, RecordError> {
        fs::create_dir_all(folder).map_err(|source| RecordError::Io { path: folder.to_owned(), source })?;
        let last = recordings(folder)?.last().and_then(|path| number(path)).unwrap_or_default();
        Ok(Self { endpoint, folder: folder.to_owned(), next: last + 1 })
    }

    fn write(&mut self, recording: &Recording) -> io::Result<()> {
        let json = self.endpoint.redact(serde_json::to_string_pretty(recording)?);
        let path = self.folder.join(format!("{:0DIGITS$}.{EXTENSION}", recording.number));
        let temporary = path.with_extension("new");
        let mut file = File::create(&temporary)?;
        file.write_all(json.as_bytes())?;
        file.sync_all()?;
        fs::rename(&temporary, &path)?;
        // The name is durable only with the folder.
        File::open(&self.folder)?.sync_all()?;
        self.next += 1;
        Ok(())
    }
}

impl<E: Endpoint> Endpoint for Recorder<E> {
    /// Asks, and returns once the exchange is on disk. An answer that could not be recorded is an error.
    fn ask(&mut self, prompt: &Prompt, cancel: &Cancel) -> Exchange {
        let asked = Timestamp::now().to_string();
        let mut exchange = self.endpoint.ask(prompt, cancel);
        let recording = Recording {
            version: VERSION,
            number: self.next,
            asked,
            endpoint: self.endpoint.identity().clone(),
            prompt_sha256: prompt.sha256(),
            prompt: prompt.clone(),
            exchange: exchange.clone(),
        };
        if let Err(error) = self.write(&recording) {
            let folder = self.folder.display().to_string();
            exchange.outcome = Err(EndpointError::NotRecorded { folder, reason: error.to_string() });
        }
        exchange
    }

    fn identity(&self) -> &Identity {
        self.endpoint.identity()
    }

    fn redact(&self, text: String) -> String {
        self.endpoint.redact(text)
    }
}

/// What a replay does when it is asked something else than was recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mismatch {
    /// It refuses.
    Refuse,
    /// It answers all the same, and says so in the log.
    Allow,
}

/// An endpoint that answers from recordings, in order, at once, and for nothing.
#[derive(Debug)]
pub struct Replay {
    left: std::vec::IntoIter<PathBuf>,
    mismatch: Mismatch,
    identity: Identity,
}

impl Replay {
    /// Replays the recordings of `folder`.
    ///
    /// # Errors
    /// When there is none, or the first cannot be read.
    pub fn open(folder: &Path, mismatch: Mismatch) -> Result<Self, RecordError> {
        let files = recordings(folder)?;
        let first = files.first().ok_or_else(|| RecordError::None(folder.to_owned()))?;
        let recorded = Recording::read(first)?.endpoint;
        let identity = Identity { protocol: "replay".to_owned(), address: folder.display().to_string(), ..recorded };
        Ok(Self { left: files.into_iter(), mismatch, identity })
    }

    fn next(&mut self, prompt: &Prompt) -> Result<Exchange, EndpointError> {
        let over = |reason: String| EndpointError::ReplayOver { reason };
        let path = self.left.as_slice().first().ok_or_else(|| over("every recording was used".to_owned()))?;
        let recording = Recording::read(path).map_err(|error| over(error.to_string()))?;
        let found = prompt.sha256();
        if found != recording.prompt_sha256 {
            let (number, recorded) = (recording.number, recording.prompt_sha256);
            if self.mismatch == Mismatch::Refuse {
                // It stays the next one: the right question may follow.
                return Err(EndpointError::ReplayDiffers { number, recorded, found });
            }
            tracing::warn!(number, recorded, found, "another prompt than was recorded");
        }
        self.left.next();
        Ok(recording.exchange)
    }
}

impl Endpoint for Replay {
    fn ask(&mut self, prompt: &Prompt, cancel: &Cancel) -> Exchange {
        let next = if cancel.is_cancelled() { Err(EndpointError::Cancelled) } else { self.next(prompt) };
        next.unwrap_or_else(|error| Exchange {
            outcome: Err(error),
            usage: Usage::default(),
            attempts: 0,
            latency: std::time::Duration::ZERO,
        })
    }

    fn identity(&self) -> &Identity {
        &self.identity
    }
}
