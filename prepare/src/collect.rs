//! Documents of all sources, split into parts: each is read once, and its text is kept in one file on disk, so that
//! memory holds some seventy bytes a document, whatever the set's size.
//!
//! A document's place in the shuffle comes from the hash of its text and the seed. Sources with the same `parts` are
//! split together, by size, and documents that are linked stay together ([`crate::links`], [`crate::split`]): the same
//! text is never in two parts, and nothing depends on the order of reading.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use anyhow::{Context, Result, bail};
use formats::campaign::{Data, Part, Text, TextFormat};
use formats::corpus::SourceInfo;
use memmap2::Mmap;
use sha2::{Digest, Sha256};

use crate::documents::{self, Documents};
use crate::links::{self, Linked, Title};
use crate::sources::{Fetcher, Opened};
use crate::split::{Group, split};

/// Bytes of training text read for each token of `max_train_tokens`. English has four to five bytes a token; the rest
/// is for documents that decontamination drops, and makes the shuffle draw from more than is taken.
const BYTES_PER_TOKEN: u64 = 6;

/// A group of linked documents is worth a note when it has more than this much of its sources' text.
const NOTED_GROUP: f64 = 0.02;

/// One document in the [`Library`].
#[derive(Debug, Clone, Copy)]
pub struct Document {
    start: u64,
    bytes: u32,
    /// Index of its source.
    pub source: u16,
    title: Option<Title>,
    order: u64,
}

/// Every document of a campaign, once.
#[derive(Debug)]
pub struct Library {
    text: Spool,
    /// Shuffled documents of each part that has some.
    parts: BTreeMap<Part, Vec<Document>>,
    /// Where they came from, with counts.
    pub sources: Vec<SourceInfo>,
    /// Documents left out because their text was there already.
    pub duplicates: u64,
    /// What people should know about how the documents fell.
    pub notes: Vec<String>,
}

/// The text of all documents, one behind the other.
#[derive(Debug)]
struct Spool(Option<Mmap>);

impl Spool {
    fn text(&self, document: &Document) -> &str {
        let start = usize::try_from(document.start).unwrap_or(usize::MAX);
        let bytes = self.0.as_deref().and_then(|t| t.get(start..start + document.bytes as usize));
        // The file has no name, so nobody else can have changed what was written from valid strings.
        std::str::from_utf8(bytes.unwrap_or_default()).unwrap_or_default()
    }
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
            while let Some(document) = reader.next()? {
                collector.take(&document, source).with_context(spool)?;
                bar.inc(1);
            }
        }
        let enough = data.max_train_tokens.map_or(f64::INFINITY, |n| n.saturating_mul(BYTES_PER_TOKEN) as f64);
        let mut train_bytes = 0.0;
        while train_bytes < enough {
            let open = readers.iter_mut().enumerate().filter(|(_, r)| r.trains() && !r.finished);
            let Some((source, reader)) = open.min_by_key(|(_, r)| r.bytes) else { break };
            if let Some(document) = reader.next()? {
                if collector.take(&document, source).with_context(spool)? {
                    train_bytes += reader.train_share() * document.text.len() as f64;
                }
                bar.inc(1);
            }
        }
        bar.finish_and_clear();

        let file = collector.out.into_inner().map_err(std::io::IntoInnerError::into_error).with_context(spool)?;
        let text = Spool(if collector.written == 0 { None } else { Some(map(&file)?) });
        let mut pools: Vec<Pool> = Vec::new();
        for document in collector.documents {
            let shares = &readers[usize::from(document.source)].shares;
            match pools.iter_mut().find(|pool| pool.shares == *shares) {
                Some(pool) => pool.documents.push(document),
                None => pools.push(Pool { shares, documents: vec![document] }),
            }
        }
        let (mut parts, mut notes) = (BTreeMap::<Part, Vec<Document>>::new(), Vec::new());
        for pool in pools {
            for (document, part) in pool.split(&text, data.decontaminate, &mut notes) {
                parts.entry(part).or_default().push(document);
            }
        }
        for documents in parts.values_mut() {
            documents.sort_unstable_by_key(|document| document.order);
        }
        let sources = readers.into_iter().map(|r| r.info).collect();
        let library = Self { text, parts, sources, duplicates: collector.duplicates, notes };
        for part in Part::ALL {
            let asked = data.text.iter().any(|t| t.parts.get(&part).is_some_and(|&share| share > 0.0));
            if asked && library.part(part).is_empty() {
                let notes = library.notes.iter().map(|note| format!("\n{note}")).collect::<String>();
                bail!("no document fell into {part}; give it a larger share, or a source with more documents{notes}");
            }
        }
        Ok(library)
    }

    /// Documents of a part, shuffled.
    pub fn part(&self, part: Part) -> &[Document] {
        self.parts.get(&part).map_or(&[], Vec::as_slice)
    }

    /// A document's text.
    pub fn text(&self, document: &Document) -> &str {
        self.text.text(document)
    }
}

/// Documents of all sources with the same shares, which are split together.
struct Pool<'a> {
    shares: &'a [(Part, f64)],
    documents: Vec<Document>,
}

impl Pool<'_> {
    /// Each document and its part; with `link`, linked documents stay together.
    fn split(self, text: &Spool, link: bool, notes: &mut Vec<String>) -> Vec<(Document, Part)> {
        let Self { shares, documents } = self;
        if let [(part, _)] = shares {
            return documents.into_iter().map(|document| (document, *part)).collect();
        }
        let linked = |i: usize| Linked { text: text.text(&documents[i]), title: documents[i].title };
        let numbers =
            if link { links::groups(documents.len(), linked) } else { (0..documents.len()).collect::<Vec<_>>() };
        let mut groups = vec![Group { bytes: 0, order: 0 }; numbers.iter().max().map_or(0, |last| last + 1)];
        for (document, &number) in documents.iter().zip(&numbers) {
            groups[number].bytes += u64::from(document.bytes);
            // As random as one document's place; the first of many would be early.
            groups[number].order ^= document.order;
        }
        let parts = split(&groups, shares);
        let mut members = vec![0_usize; groups.len()];
        numbers.iter().for_each(|&number| members[number] += 1);
        let all: u64 = groups.iter().map(|group| group.bytes).sum();
        let largest = (0..groups.len()).filter(|&i| members[i] > 1).max_by_key(|&i| groups[i].bytes);
        if let Some(largest) = largest.filter(|&i| groups[i].bytes as f64 > NOTED_GROUP * all as f64) {
            let reason = links::reason((0..documents.len()).filter(|&i| numbers[i] == largest).map(linked));
            notes.push(format!(
                "{} of {} documents, {:.1} % of their text, stay together in {}, because they are linked by shared text or \
                 titles: {reason}. Where that is too much, take such text out of the source, or allow it in several \
                 parts by data.decontaminate = false",
                members[largest],
                documents.len(),
                100.0 * groups[largest].bytes as f64 / all as f64,
                parts[largest],
            ));
        }
        documents.iter().zip(numbers).map(|(&document, number)| (document, parts[number])).collect()
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
    /// Files a document; false for a text that was there before.
    fn take(&mut self, document: &documents::Document, source: usize) -> Result<bool> {
        let text = &document.text;
        let mut hash = Sha256::new();
        hash.update(self.seed.to_le_bytes());
        hash.update(text);
        let hash = hash.finalize();
        let number = |at: usize| hash[at..at + 8].iter().fold(0u64, |number, &byte| (number << 8) | u64::from(byte));
        if !self.seen.insert((u128::from(number(0)) << 64) | u128::from(number(8))) {
            self.duplicates += 1;
            return Ok(false);
        }
        self.out.write_all(text.as_bytes())?;
        self.documents.push(Document {
            start: self.written,
            bytes: u32::try_from(text.len()).context("a document has more than 4 GiB")?,
            source: u16::try_from(source).context("there are too many [[data.text]]")?,
            title: document.title.as_deref().and_then(Title::new),
            order: number(8),
        });
        self.written += text.len() as u64;
        Ok(true)
    }
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

    fn train_share(&self) -> f64 {
        self.shares.iter().find(|(part, _)| *part == Part::Train).map_or(0.0, |(_, share)| *share)
    }

    fn trains(&self) -> bool {
        self.train_share() > 0.0
    }

    fn next(&mut self) -> Result<Option<documents::Document>> {
        loop {
            if let Some(document) = self.current.as_mut().and_then(Iterator::next) {
                let document = document?;
                self.info.documents += 1;
                self.bytes += document.text.len() as u64;
                return Ok(Some(document));
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
    use proptest::prelude::*;

    use super::*;

    const SHARES: [(Part, f64); 4] = [(Part::Train, 0.6), (Part::Dev, 0.1), (Part::Select, 0.15), (Part::Report, 0.15)];

    /// Words of its own, and text and a title that others may have too.
    fn document(i: usize, words: usize, shared: Option<u8>, title: Option<u8>) -> documents::Document {
        let mut text: String = (0..words).map(|j| format!("w{i}x{j} ")).collect();
        (0..13).for_each(|j| text.extend(shared.map(|shared| format!("shared{shared}x{j} "))));
        let title = title.map(|title| format!("{} Title {}", ["The", "the"][i % 2], ["a", "b"][usize::from(title)]));
        documents::Document { title, text }
    }

    fn split_of(documents: &[documents::Document], seed: u64, link: bool) -> BTreeMap<String, Part> {
        let file = tempfile::tempfile().unwrap();
        let mut collector = Collector {
            seed,
            out: BufWriter::new(file),
            written: 0,
            seen: HashSet::new(),
            documents: Vec::new(),
            duplicates: 0,
        };
        for document in documents {
            assert!(collector.take(document, 0).unwrap());
        }
        let spool = Spool(Some(map(&collector.out.into_inner().unwrap()).unwrap()));
        let pool = Pool { shares: &SHARES, documents: collector.documents };
        let parts = pool.split(&spool, link, &mut Vec::new());
        parts.into_iter().map(|(document, part)| (spool.text(&document).to_owned(), part)).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn linked_documents_are_never_parted_and_none_is_lost(
            drawn in prop::collection::vec((1_usize..60, 0_u8..12, 0_u8..16), 1..80),
            seed in any::<u64>(),
        ) {
            let all: Vec<documents::Document> = drawn
                .iter()
                .enumerate()
                .map(|(i, &(words, shared, title))| {
                    document(i, words, (shared < 6).then_some(shared), (title < 2).then_some(title))
                })
                .collect();
            let parts = split_of(&all, seed, true);
            prop_assert_eq!(parts.len(), all.len());
            let reversed: Vec<documents::Document> = all.iter().rev().cloned().collect();
            prop_assert_eq!(&split_of(&reversed, seed, true), &parts, "the order of reading makes no difference");
            prop_assert_eq!(split_of(&all, seed, false).len(), all.len());
            for (i, a) in all.iter().enumerate() {
                for (j, b) in all.iter().enumerate() {
                    let (x, y) = (drawn[i], drawn[j]);
                    if (x.1 < 6 && x.1 == y.1) || (x.2 < 2 && x.2 == y.2) {
                        prop_assert_eq!(parts[&a.text], parts[&b.text], "{} and {}", i, j);
                    }
                }
            }
        }
    }
}
