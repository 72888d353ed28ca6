//! Documents of all sources, split into parts: each is read once, and its text is kept in one file on disk, so that
//! memory holds some forty bytes a document, whatever the set's size.
//!
//! A document's part and its place in the shuffle come from the hash of its text and the seed: the same text is never
//! in two parts, whatever source it comes from, and nothing depends on the order of reading.

use std::collections::{HashSet, VecDeque};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use anyhow::{Context, Result, bail};
use campaign::{Data, Part, Text, TextFormat};
use corpus::SourceInfo;
use memmap2::Mmap;
use sha2::{Digest, Sha256};

use crate::documents::{self, Documents};
use crate::sources::{Fetcher, Opened};

/// Bytes of training text read for each token of `max_train_tokens`. English has four to five bytes a token; the rest
/// is for documents that decontamination drops, and makes the shuffle draw from more than is taken.
const BYTES_PER_TOKEN: u64 = 6;

/// One document in the [`Library`].
#[derive(Debug, Clone, Copy)]
pub struct Document {
    start: u64,
    bytes: u32,
    /// Index of its source.
    pub source: u16,
    part: Part,
    order: u64,
}

/// Every document of a campaign, once.
#[derive(Debug)]
pub struct Library {
    text: Option<Mmap>,
    documents: Vec<Document>,
    /// Where they came from, with counts.
    pub sources: Vec<SourceInfo>,
    /// Documents left out because their text was there already.
    pub duplicates: u64,
}

impl Library {
    /// Reads the sources. Those without training text come first and whole; the others take turns by bytes, until
    /// there is enough for `max_train_tokens`. The text file is made in `folder` and has no name there.
    ///
    /// # Errors
    /// When a source cannot be fetched or read, a part stays empty, or the disk is full.
    pub fn collect(fetcher: &Fetcher, data: &Data, folder: &Path) -> Result<Self> {
        let mut readers = Vec::new();
        for text in &data.text {
            readers.push(Reader::open(fetcher, text)?);
        }
        let spool = || format!("cannot keep text below {}; is the disk full?", folder.display());
        let file = tempfile::tempfile_in(folder).with_context(spool)?;
        let mut collector = Collector {
            seed: data.seed,
            out: BufWriter::with_capacity(1 << 20, file),
            written: 0,
            seen: HashSet::new(),
            documents: Vec::new(),
            duplicates: 0,
        };
        let bar = fetcher.progress.counter("reading documents");
        for (source, reader) in readers.iter_mut().enumerate().filter(|(_, r)| !r.trains()) {
            while let Some(text) = reader.next()? {
                collector.take(&text, source, &reader.shares).with_context(spool)?;
                bar.inc(1);
            }
        }
        let enough = data.max_train_tokens.map_or(u64::MAX, |n| n.saturating_mul(BYTES_PER_TOKEN));
        let mut train_bytes = 0;
        while train_bytes < enough {
            let open = readers.iter_mut().enumerate().filter(|(_, r)| r.trains() && !r.finished);
            let Some((source, reader)) = open.min_by_key(|(_, r)| r.bytes) else { break };
            if let Some(text) = reader.next()? {
                let part = collector.take(&text, source, &reader.shares).with_context(spool)?;
                if part == Some(Part::Train) {
                    train_bytes += text.len() as u64;
                }
                bar.inc(1);
            }
        }
        bar.finish_and_clear();

        let file = collector.out.into_inner().map_err(std::io::IntoInnerError::into_error).with_context(spool)?;
        let library = Self {
            text: if collector.written == 0 { None } else { Some(map(&file)?) },
            documents: collector.documents,
            sources: readers.into_iter().map(|r| r.info).collect(),
            duplicates: collector.duplicates,
        };
        for part in Part::ALL {
            let asked = data.text.iter().any(|t| t.parts.get(&part).is_some_and(|&share| share > 0.0));
            if asked && library.part(part).is_empty() {
                bail!("no document fell into {part}; give it a larger share, or a source with more documents");
            }
        }
        Ok(library)
    }

    /// Documents of a part, shuffled.
    pub fn part(&self, part: Part) -> Vec<Document> {
        let mut found: Vec<Document> = self.documents.iter().filter(|d| d.part == part).copied().collect();
        found.sort_unstable_by_key(|d| d.order);
        found
    }

    /// A document's text.
    pub fn text(&self, document: &Document) -> &str {
        let start = usize::try_from(document.start).unwrap_or(usize::MAX);
        let bytes = self.text.as_deref().and_then(|t| t.get(start..start + document.bytes as usize));
        // The file has no name, so nobody else can have changed what was written from valid strings.
        std::str::from_utf8(bytes.unwrap_or_default()).unwrap_or_default()
    }
}

fn map(file: &File) -> Result<Mmap> {
    // SAFETY: the file has no name and this process does not write to it any more.
    #[allow(unsafe_code)]
    unsafe { Mmap::map(file) }.context("cannot map the collected text")
}

struct Collector {
    seed: u64,
    out: BufWriter<File>,
    written: u64,
    seen: HashSet<u128>,
    documents: Vec<Document>,
    duplicates: u64,
}

impl Collector {
    /// Files a document; its part, or none for a text that was there before.
    fn take(&mut self, text: &str, source: usize, shares: &[(Part, f64)]) -> Result<Option<Part>> {
        let mut hash = Sha256::new();
        hash.update(self.seed.to_le_bytes());
        hash.update(text);
        let hash = hash.finalize();
        let number = |at: usize| hash[at..at + 8].iter().fold(0u64, |number, &byte| (number << 8) | u64::from(byte));
        if !self.seen.insert((u128::from(number(0)) << 64) | u128::from(number(8))) {
            self.duplicates += 1;
            return Ok(None);
        }
        let part = choose(shares, number(0) as f64 / u64::MAX as f64);
        self.out.write_all(text.as_bytes())?;
        self.documents.push(Document {
            start: self.written,
            bytes: u32::try_from(text.len()).context("a document has more than 4 GiB")?,
            source: u16::try_from(source).context("there are too many [[data.text]]")?,
            part,
            order: number(8),
        });
        self.written += text.len() as u64;
        Ok(Some(part))
    }
}

/// The part at `point` of the shares laid end to end.
fn choose(shares: &[(Part, f64)], point: f64) -> Part {
    let total: f64 = shares.iter().map(|(_, share)| share).sum();
    let mut end = 0.0;
    for &(part, share) in shares {
        end += share / total;
        if point < end {
            return part;
        }
    }
    // Rounding can leave a gap before 1.
    shares.last().map_or(Part::Train, |&(part, _)| part)
}

/// Documents of one `[[data.text]]`, file after file.
struct Reader {
    opened: Opened,
    names: VecDeque<String>,
    format: TextFormat,
    /// Parts with a share, in the order of [`Part`].
    shares: Vec<(Part, f64)>,
    current: Option<Documents>,
    info: SourceInfo,
    bytes: u64,
    finished: bool,
}

impl Reader {
    fn open(fetcher: &Fetcher, text: &Text) -> Result<Self> {
        let opened = fetcher.open(&text.source)?;
        let shares: Vec<(Part, f64)> =
            text.parts.iter().map(|(&part, &share)| (part, share)).filter(|(_, s)| *s > 0.0).collect();
        if shares.is_empty() {
            bail!("`{}` goes to no part; give one a share above 0", text.source.from);
        }
        Ok(Self {
            names: opened.selected()?.into(),
            info: opened.info(),
            opened,
            format: text.format.clone(),
            shares,
            current: None,
            bytes: 0,
            finished: false,
        })
    }

    fn trains(&self) -> bool {
        self.shares.iter().any(|(part, _)| *part == Part::Train)
    }

    fn next(&mut self) -> Result<Option<String>> {
        loop {
            if let Some(text) = self.current.as_mut().and_then(Iterator::next) {
                let text = text?;
                self.info.documents += 1;
                self.bytes += text.len() as u64;
                return Ok(Some(text));
            }
            let Some(name) = self.names.pop_front() else {
                self.finished = true;
                self.current = None;
                return Ok(None);
            };
            let path = self.opened.fetch(&name)?;
            let documents = documents::read(&path, &self.format);
            self.current = Some(documents.with_context(|| format!("`{}`, {name}", self.info.from))?);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_laid_end_to_end() {
        let shares = [(Part::Train, 0.9), (Part::Dev, 0.05), (Part::Report, 0.05)];
        assert_eq!(choose(&shares, 0.0), Part::Train);
        assert_eq!(choose(&shares, 0.8999), Part::Train);
        assert_eq!(choose(&shares, 0.91), Part::Dev);
        assert_eq!(choose(&shares, 0.96), Part::Report);
        assert_eq!(choose(&shares, 1.0), Part::Report);
    }
}
