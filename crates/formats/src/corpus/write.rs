//! Writing a corpus, document by document, in bounded memory.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::corpus::{
    CorpusError, FileInfo, MANIFEST, Manifest, Part, PartInfo, SHARD_TOKENS, ShardInfo, SourceInfo, VERSION,
};

const TOKEN_BYTES: &str = "token_bytes.u16";

/// What a [`Writer`] must know before the first document.
#[derive(Debug, Clone)]
pub struct WriterOptions {
    /// Ids are below this.
    pub vocab_size: usize,
    /// Id that follows each document.
    pub end_token: u32,
    /// Seed of the shuffle and the split, for the record.
    pub seed: u64,
    /// sha256 of `tokenizer.json`, for the record.
    pub tokenizer_sha256: String,
    /// Most tokens in a shard; [`SHARD_TOKENS`] except in tests.
    pub shard_tokens: u64,
}

impl WriterOptions {
    /// Options with shards of [`SHARD_TOKENS`].
    pub fn new(vocab_size: usize, end_token: u32, seed: u64, tokenizer_sha256: String) -> Self {
        Self { vocab_size, end_token, seed, tokenizer_sha256, shard_tokens: SHARD_TOKENS }
    }
}

/// Writes a corpus. Without [`Writer::finish`] the folder has no manifest and cannot be opened.
pub struct Writer {
    folder: PathBuf,
    options: WriterOptions,
    width: usize,
    parts: BTreeMap<Part, PartWriter>,
}

#[derive(Default)]
struct PartWriter {
    info: PartInfo,
    open: Option<Shard>,
    /// How often each id occurs, end tokens left out.
    uses: Vec<u64>,
}

struct Shard {
    path: PathBuf,
    file: BufWriter<File>,
    hash: Sha256,
    tokens: u64,
}

impl Writer {
    /// Starts a corpus in `folder`, which is made where it is missing. A manifest that is there is removed.
    ///
    /// # Errors
    /// When the folder cannot be made or the options contradict themselves.
    pub fn create(folder: &Path, options: WriterOptions) -> Result<Self, CorpusError> {
        let input = |reason: String| Err(CorpusError::Input(reason));
        if options.end_token as usize >= options.vocab_size {
            let WriterOptions { end_token, vocab_size, .. } = options;
            return input(format!("end token {end_token} is outside of {vocab_size} ids"));
        }
        if options.shard_tokens == 0 {
            return input("shards need room for a token".into());
        }
        let io = |doing, path: &Path| {
            let path = path.to_owned();
            move |source| CorpusError::Io { doing, path, source }
        };
        fs::create_dir_all(folder).map_err(io("make", folder))?;
        let manifest = folder.join(MANIFEST);
        match fs::remove_file(&manifest) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(io("remove", &manifest)(e));
            }
            _ => {}
        }
        let width = if options.vocab_size <= 1 << 16 { 2 } else { 4 };
        Ok(Self { folder: folder.to_owned(), options, width, parts: BTreeMap::new() })
    }

    /// Appends a document and the end token. `text_bytes` is the UTF-8 length of its text.
    ///
    /// # Errors
    /// When an id is outside the vocabulary or the disk is full.
    pub fn document(&mut self, part: Part, ids: &[u32], text_bytes: u64) -> Result<(), CorpusError> {
        if let Some(id) = ids.iter().find(|&&id| id as usize >= self.options.vocab_size) {
            let vocab_size = self.options.vocab_size;
            return Err(CorpusError::Input(format!("id {id} is outside of {vocab_size} ids")));
        }
        let writer = self.parts.entry(part).or_default();
        writer.info.documents += 1;
        writer.info.bytes += text_bytes;
        writer.uses.resize(self.options.vocab_size, 0);
        ids.iter().for_each(|&id| writer.uses[id as usize] += 1);
        let end = [self.options.end_token];
        for mut ids in [ids, &end] {
            while !ids.is_empty() {
                let mut shard = match writer.open.take() {
                    Some(shard) => shard,
                    None => {
                        let index = writer.info.shards.len();
                        Shard::create(self.folder.join(format!("{part}-{index:05}.tokens")))?
                    }
                };
                let room = self.options.shard_tokens - shard.tokens;
                let (now, later) = ids.split_at(ids.len().min(room.min(usize::MAX as u64) as usize));
                shard.append(now, self.width)?;
                writer.info.tokens += now.len() as u64;
                if shard.tokens == self.options.shard_tokens {
                    writer.info.shards.push(shard.finish()?);
                } else {
                    writer.open = Some(shard);
                }
                ids = later;
            }
        }
        Ok(())
    }

    /// Tokens of a part so far, end tokens included.
    pub fn tokens(&self, part: Part) -> u64 {
        self.parts.get(&part).map_or(0, |writer| writer.info.tokens)
    }

    /// Bytes of a part's text so far, and the bytes that its tokens stand for when ids have the lengths `token_bytes`.
    pub fn bytes(&self, part: Part, token_bytes: &[u16]) -> (u64, u64) {
        self.parts.get(&part).map_or((0, 0), |writer| (writer.info.bytes, counted(&writer.uses, token_bytes)))
    }

    /// Syncs every file and writes the manifest. `token_bytes` has, for each id, the UTF-8 length of its text (0 for
    /// control tokens).
    ///
    /// # Errors
    /// When a file cannot be written, or `token_bytes` has another length than the vocabulary.
    pub fn finish(self, token_bytes: &[u16], sources: Vec<SourceInfo>) -> Result<Manifest, CorpusError> {
        if token_bytes.len() != self.options.vocab_size {
            let (given, wanted) = (token_bytes.len(), self.options.vocab_size);
            return Err(CorpusError::Input(format!("{given} token lengths for {wanted} ids")));
        }
        let mut parts = BTreeMap::new();
        for (part, PartWriter { mut info, open, uses }) in self.parts {
            if let Some(shard) = open {
                info.shards.push(shard.finish()?);
            }
            info.counted_bytes = Some(counted(&uses, token_bytes));
            parts.insert(part, info);
        }
        let bytes: Vec<u8> = token_bytes.iter().flat_map(|n| n.to_le_bytes()).collect();
        write_synced(&self.folder.join(TOKEN_BYTES), &bytes)?;
        let manifest = Manifest {
            version: VERSION,
            vocab_size: self.options.vocab_size,
            end_token: self.options.end_token,
            token_width: self.width,
            seed: self.options.seed,
            tokenizer_sha256: self.options.tokenizer_sha256,
            parts,
            sources,
            token_bytes: FileInfo { file: TOKEN_BYTES.into(), sha256: format!("{:x}", Sha256::digest(&bytes)) },
        };
        let json = serde_json::to_vec_pretty(&manifest)
            .map_err(|e| CorpusError::Input(format!("cannot write the manifest as JSON: {e}")))?;
        let (temporary, path) = (self.folder.join("manifest.json.tmp"), self.folder.join(MANIFEST));
        write_synced(&temporary, &json)?;
        fs::rename(&temporary, &path)
            .and_then(|()| File::open(&self.folder)?.sync_all())
            .map_err(|source| CorpusError::Io { doing: "write", path, source })?;
        Ok(manifest)
    }
}

fn counted(uses: &[u64], token_bytes: &[u16]) -> u64 {
    uses.iter().zip(token_bytes).map(|(uses, &bytes)| uses * u64::from(bytes)).sum()
}

impl Shard {
    fn create(path: PathBuf) -> Result<Self, CorpusError> {
        match File::create(&path) {
            Ok(file) => {
                let file = BufWriter::with_capacity(1 << 18, file);
                Ok(Self { path, file, hash: Sha256::new(), tokens: 0 })
            }
            Err(source) => Err(CorpusError::Io { doing: "create", path, source }),
        }
    }

    fn append(&mut self, ids: &[u32], width: usize) -> Result<(), CorpusError> {
        let bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes().into_iter().take(width)).collect();
        self.hash.update(&bytes);
        self.tokens += ids.len() as u64;
        let path = &self.path;
        self.file.write_all(&bytes).map_err(|source| CorpusError::Io { doing: "write", path: path.clone(), source })
    }

    fn finish(self) -> Result<ShardInfo, CorpusError> {
        let Self { path, file, hash, tokens } = self;
        let file_name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let synced = file.into_inner().map_err(|e| e.into_error()).and_then(|file| file.sync_all());
        match synced {
            Ok(()) => Ok(ShardInfo { file: file_name, tokens, sha256: format!("{:x}", hash.finalize()) }),
            Err(source) => Err(CorpusError::Io { doing: "write", path, source }),
        }
    }
}

fn write_synced(path: &Path, bytes: &[u8]) -> Result<(), CorpusError> {
    File::create(path)
        .and_then(|mut file| {
            file.write_all(bytes)?;
            file.sync_all()
        })
        .map_err(|source| CorpusError::Io { doing: "write", path: path.to_owned(), source })
}
