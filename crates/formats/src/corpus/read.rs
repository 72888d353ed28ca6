//! Reading a corpus: the manifest, and each part as one sequence of ids over memory-mapped shards.

use std::fs::File;
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use sha2::{Digest, Sha256};

use crate::corpus::{CorpusError, MANIFEST, Manifest, Part, ShardInfo, VERSION};

/// A folder of tokenized text.
#[derive(Debug)]
pub struct Corpus {
    folder: PathBuf,
    manifest: Manifest,
}

/// One part: its documents one after the other, each followed by the end token.
#[derive(Debug)]
pub struct Tokens {
    width: usize,
    shards: Vec<Shard>,
    len: u64,
}

#[derive(Debug)]
struct Shard {
    path: PathBuf,
    info: ShardInfo,
    /// Index of its first token in the part.
    start: u64,
    map: Mmap,
}

impl Corpus {
    /// Reads the manifest. No part is opened.
    ///
    /// # Errors
    /// When there is no corpus or its manifest cannot be understood.
    pub fn open(folder: &Path) -> Result<Self, CorpusError> {
        let path = folder.join(MANIFEST);
        let json = match std::fs::read(&path) {
            Ok(json) => json,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                return Err(CorpusError::Missing { path: folder.to_owned() });
            }
            Err(source) => {
                return Err(CorpusError::Io { doing: "read", path, source });
            }
        };
        let manifest: Manifest = match serde_json::from_slice(&json) {
            Ok(manifest) => manifest,
            Err(e) => {
                return Err(CorpusError::Damaged { path, reason: e.to_string() });
            }
        };
        let reason = if manifest.version != VERSION {
            format!("version {}; this program reads {VERSION}", manifest.version)
        } else if !matches!(manifest.token_width, 2 | 4) {
            format!("ids of {} bytes", manifest.token_width)
        } else if manifest.vocab_size > 1 << (8 * manifest.token_width) {
            format!("ids of {} bytes are too short", manifest.token_width)
        } else {
            return Ok(Self { folder: folder.to_owned(), manifest });
        };
        Err(CorpusError::Damaged { path, reason })
    }

    /// The manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Maps one part's files and no other's.
    ///
    /// # Errors
    /// When the campaign has no such part, or a file is missing or has another length than the manifest says.
    pub fn part(&self, part: Part) -> Result<Tokens, CorpusError> {
        let info = self.manifest.parts.get(&part).filter(|info| info.tokens > 0);
        let info = info.ok_or_else(|| CorpusError::NoPart { part, path: self.folder.clone() })?;
        let width = self.manifest.token_width;
        let mut shards = Vec::with_capacity(info.shards.len());
        let mut start = 0;
        for shard in &info.shards {
            let path = self.folder.join(&shard.file);
            let map = map(&path)?;
            if shard.tokens.checked_mul(width as u64) != Some(map.len() as u64) {
                let reason = format!("{} bytes; {} tokens were written", map.len(), shard.tokens);
                return Err(CorpusError::Damaged { path, reason });
            }
            shards.push(Shard { path, info: shard.clone(), start, map });
            start += shard.tokens;
        }
        if start != info.tokens {
            let reason = format!("the shards of {part} hold {start} tokens, not {}", info.tokens);
            return Err(CorpusError::Damaged { path: self.folder.join(MANIFEST), reason });
        }
        Ok(Tokens { width, shards, len: start })
    }

    /// UTF-8 bytes of the text of each id, 0 for control tokens; indexed by id. Its hash is checked.
    ///
    /// # Errors
    /// When the file is missing or was changed.
    pub fn token_bytes(&self) -> Result<Vec<u16>, CorpusError> {
        let info = &self.manifest.token_bytes;
        let path = self.folder.join(&info.file);
        let bytes =
            std::fs::read(&path).map_err(|source| CorpusError::Io { doing: "read", path: path.clone(), source })?;
        if bytes.len() != 2 * self.manifest.vocab_size {
            let reason = "its length is not that of the vocabulary".into();
            return Err(CorpusError::Damaged { path, reason });
        }
        check_hash(&path, &bytes, &info.sha256)?;
        let (ids, _) = bytes.as_chunks::<2>();
        Ok(ids.iter().map(|&id| u16::from_le_bytes(id)).collect())
    }
}

impl Tokens {
    /// Number of tokens.
    #[expect(clippy::len_without_is_empty, reason = "a part without tokens cannot be opened")]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Copies the tokens from `start` on into `out`, across shards.
    ///
    /// # Panics
    /// When `start + out.len()` is beyond the end.
    pub fn copy(&self, start: u64, out: &mut [i64]) {
        let end = start.checked_add(out.len() as u64);
        assert!(
            end.is_some_and(|end| end <= self.len),
            "tokens {start}..{start}+{} of {} are wanted",
            out.len(),
            self.len
        );
        let mut index = self.shards.partition_point(|shard| shard.start <= start).saturating_sub(1);
        let mut position = start;
        let mut out = out;
        while !out.is_empty() {
            let shard = &self.shards[index];
            let skipped = (position - shard.start) as usize;
            let count = out.len().min(shard.info.tokens as usize - skipped);
            let (now, later) = out.split_at_mut(count);
            let bytes = &shard.map[skipped * self.width..(skipped + count) * self.width];
            if self.width == 2 {
                let ids = bytes.as_chunks::<2>().0;
                now.iter_mut().zip(ids).for_each(|(o, &id)| *o = u16::from_le_bytes(id).into());
            } else {
                let ids = bytes.as_chunks::<4>().0;
                now.iter_mut().zip(ids).for_each(|(o, &id)| *o = u32::from_le_bytes(id).into());
            }
            out = later;
            position += count as u64;
            index += 1;
        }
    }

    /// Hashes every shard and compares with the manifest; reads the whole part.
    ///
    /// # Errors
    /// When a file was changed.
    pub fn verify(&self) -> Result<(), CorpusError> {
        let mut shards = self.shards.iter();
        shards.try_for_each(|shard| check_hash(&shard.path, &shard.map, &shard.info.sha256))
    }
}

fn check_hash(path: &Path, bytes: &[u8], wanted: &str) -> Result<(), CorpusError> {
    if format!("{:x}", Sha256::digest(bytes)) == wanted {
        return Ok(());
    }
    let reason = "its sha256 is not the manifest's".into();
    Err(CorpusError::Damaged { path: path.to_owned(), reason })
}

#[allow(unsafe_code)]
fn map(path: &Path) -> Result<Mmap, CorpusError> {
    let io = |source| CorpusError::Io { doing: "read", path: path.to_owned(), source };
    let file = File::open(path).map_err(io)?;
    // SAFETY: the map is only read, as plain integers of any value. `prepare` never changes a finished corpus in place:
    // it writes a new folder and renames it, so the mapped file keeps its length and content.
    unsafe { Mmap::map(&file) }.map_err(io)
}
