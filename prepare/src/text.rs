//! Collected documents to token shards: decontaminated, shuffled, tokenized in parallel, written in bounded memory.

use std::path::Path;

use anyhow::{Context, Result, anyhow};
use campaign::{Data, Part};
use corpus::{Manifest, Writer, WriterOptions};
use rayon::prelude::*;
use tokenizers::Tokenizer;

use crate::collect::{Document, Library};
use crate::decontaminate::Sequences;
use crate::files::{Progress, sha256};
use crate::tokenizer;

/// Text that is tokenized at once, in bytes: enough for all cores, little enough to hold.
const CHUNK_BYTES: usize = 4 << 20;

/// Text that a tokenizer is trained on, in bytes; more changes little and takes long.
const TOKENIZER_BYTES: usize = 64 << 20;

/// Trains the campaign's tokenizer on the training part; `tokenizer.json`.
///
/// # Errors
/// As [`tokenizer::train`].
pub fn train_tokenizer(library: &Library, vocab_size: usize) -> Result<String> {
    let mut room = TOKENIZER_BYTES;
    let documents = library.part(Part::Train);
    let texts: Vec<&str> = documents
        .iter()
        .map(|document| library.text(document))
        .take_while(|text| {
            let fits = room > 0;
            room = room.saturating_sub(text.len());
            fits
        })
        .collect();
    tokenizer::train(vocab_size, texts.into_iter())
}

/// Writes `folder` (made anew) from the collected documents.
///
/// # Errors
/// When the tokenizer does not fit the model, or the disk is full.
pub fn write(
    library: Library,
    data: &Data,
    tokenizer_json: &str,
    vocab_size: usize,
    folder: &Path,
    progress: Progress,
) -> Result<Manifest> {
    let tokenizer = tokenizer::parse(tokenizer_json)?;
    let lengths = tokenizer::token_bytes(&tokenizer, vocab_size)?;
    if folder.exists() {
        std::fs::remove_dir_all(folder).with_context(|| format!("cannot clear {}", folder.display()))?;
    }
    let end = tokenizer::end_token(&tokenizer)?;
    let options = WriterOptions::new(vocab_size, end, data.seed, sha256(tokenizer_json.as_bytes()));
    let mut writer = Writer::create(folder, options)?;

    let mut measured = Sequences::default();
    let mut sources = library.sources.clone();
    for part in [Part::Dev, Part::Select, Part::Report, Part::Train] {
        let documents = library.part(part);
        let limit = if part == Part::Train { data.max_train_tokens } else { None };
        let bar = progress.bar(&format!("tokenizing {part}"), documents.len() as u64, false);
        for chunk in chunks(&documents, &library) {
            if limit.is_some_and(|limit| writer.tokens(part) >= limit) {
                break;
            }
            let encoded: Vec<Option<Vec<u32>>> = chunk
                .par_iter()
                .map(|document| {
                    let text = library.text(document);
                    let shared = part == Part::Train && measured.shares(text);
                    if shared { Ok(None) } else { encode(&tokenizer, text).map(Some) }
                })
                .collect::<Result<_>>()?;
            for (document, ids) in chunk.iter().zip(encoded) {
                let text = library.text(document);
                match ids {
                    None => sources[usize::from(document.source)].contaminated += 1,
                    Some(_) if limit.is_some_and(|limit| writer.tokens(part) >= limit) => break,
                    Some(ids) => writer.document(part, &ids, text.len() as u64)?,
                }
                if part != Part::Train && data.decontaminate {
                    measured.insert(text);
                }
            }
            bar.inc(chunk.len() as u64);
        }
        bar.finish_and_clear();
    }
    Ok(writer.finish(&lengths, sources)?)
}

fn encode(tokenizer: &Tokenizer, text: &str) -> Result<Vec<u32>> {
    let encoding = tokenizer.encode_fast(text, false).map_err(|e| anyhow!("cannot tokenize: {e}"))?;
    Ok(encoding.get_ids().to_vec())
}

/// Consecutive documents of together about [`CHUNK_BYTES`].
fn chunks<'a>(documents: &'a [Document], library: &'a Library) -> impl Iterator<Item = &'a [Document]> {
    let mut rest = documents;
    std::iter::from_fn(move || {
        let mut bytes = 0;
        let fits = |document: &&Document| {
            let fits = bytes < CHUNK_BYTES;
            bytes += library.text(document).len();
            fits
        };
        let count = rest.iter().take_while(fits).count();
        let (chunk, later) = rest.split_at(count);
        rest = later;
        (!chunk.is_empty()).then_some(chunk)
    })
}
