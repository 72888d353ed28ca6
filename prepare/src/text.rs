//! Collected documents to token shards: decontaminated, shuffled, tokenized in parallel, written in bounded memory.

use std::path::Path;

use anyhow::{Context, Result, anyhow, ensure};
use formats::campaign::{Campaign, Part};
use formats::corpus::{Manifest, PartInfo, Writer, WriterOptions};
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

/// Version of how text is split and tokenized: raised when the same sources would give other parts or other tokens.
pub const VERSION: u32 = 2;

/// Largest difference between a part's bytes and the bytes that its tokens stand for, relative to the former: bits per
/// byte are wrong by as much.
pub const MOST_BYTE_ERROR: f64 = 0.001;

/// Fewest windows behind a figure: from fewer, the spread over the windows, and with it the error of a gain, is a guess.
pub const FEWEST_WINDOWS: usize = 16;

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

/// Writes `folder` (made anew) from the collected documents. With `data.decontaminate`, a document that shares 13 words
/// in a row with one of another part is left out: of `train` rather than of `dev`, of `dev` rather than of `select`, of
/// `select` rather than of `report`. Where both come from sources with the same `parts`, they are in one part already.
///
/// # Errors
/// When the tokenizer does not fit the model or does not keep the text, a part is too small, or the disk is full.
pub fn write(
    library: &Library,
    campaign: &Campaign,
    tokenizer_json: &str,
    vocab_size: usize,
    folder: &Path,
    progress: Progress,
) -> Result<Manifest> {
    let data = &campaign.data;
    let tokenizer = tokenizer::parse(tokenizer_json)?;
    let lengths = tokenizer::token_bytes(&tokenizer, vocab_size)?;
    if folder.exists() {
        std::fs::remove_dir_all(folder).with_context(|| format!("cannot clear {}", folder.display()))?;
    }
    let end = tokenizer::end_token(&tokenizer)?;
    let options = WriterOptions::new(vocab_size, end, data.seed, sha256(tokenizer_json.as_bytes()));
    let mut writer = Writer::create(folder, options)?;

    let mut taken = Sequences::default();
    let mut sources = library.sources.clone();
    for part in [Part::Report, Part::Select, Part::Dev, Part::Train] {
        let documents = library.part(part);
        let limit = if part == Part::Train { data.max_train_tokens } else { None };
        let bar = progress.bar(&format!("tokenizing {part}"), documents.len() as u64, false);
        let mut kept = Vec::new();
        for chunk in chunks(documents, library) {
            if limit.is_some_and(|limit| writer.tokens(part) >= limit) {
                break;
            }
            let encoded: Vec<Option<Vec<u32>>> = chunk
                .par_iter()
                .map(|document| {
                    let text = library.text(document);
                    if taken.shares(text) { Ok(None) } else { encode(&tokenizer, text).map(Some) }
                })
                .collect::<Result<_>>()?;
            for (document, ids) in chunk.iter().zip(encoded) {
                match ids {
                    None => sources[usize::from(document.source)].contaminated += 1,
                    Some(_) if limit.is_some_and(|limit| writer.tokens(part) >= limit) => break,
                    Some(ids) => {
                        writer.document(part, &ids, library.text(document).len() as u64)?;
                        kept.push(document);
                    }
                }
            }
            bar.inc(chunk.len() as u64);
        }
        bar.finish_and_clear();
        if part != Part::Train && data.decontaminate {
            kept.into_iter().for_each(|document| taken.insert(library.text(document)));
        }
        let (bytes, counted) = writer.bytes(part, &lengths);
        check_bytes(part, bytes, counted)?;
        check_size(campaign, part, writer.tokens(part)).map_err(|error| {
            let notes: String = library.notes.iter().map(|note| format!("\n{note}")).collect();
            anyhow!("{error}{notes}")
        })?;
    }
    Ok(writer.finish(&lengths, sources)?)
}

/// Refuses a tokenizer that does not keep the text: bits per byte are counted by the bytes of the tokens.
///
/// # Errors
/// When the two differ by more than [`MOST_BYTE_ERROR`].
fn check_bytes(part: Part, bytes: u64, counted: u64) -> Result<()> {
    let error = byte_error(bytes, counted);
    ensure!(
        error.abs() <= MOST_BYTE_ERROR,
        "the tokens of {part} stand for {counted} bytes, and its text has {bytes} ({:+.2} %): bits per byte would be wrong \
         by as much, and at most {} % is allowed. The tokenizer changes the text. Take what drops or adds characters out \
         of `normalizer` and `pre_tokenizer` in the tokenizer.json of a local copy of the model (from = \"file:…\"), or \
         choose a model with a byte-level BPE tokenizer that keeps them",
        100.0 * error,
        100.0 * MOST_BYTE_ERROR
    );
    Ok(())
}

/// What is to be said of a part whose tokens do not stand for exactly its bytes.
pub fn byte_note(part: Part, info: &PartInfo) -> Option<String> {
    let counted = info.counted_bytes.filter(|&counted| counted != info.bytes)?;
    Some(format!(
        "the tokens of {part} stand for {counted} bytes, and its text has {} ({:+.4} %): the tokenizer changes the text a \
         little, and bits per byte are wrong by as much",
        info.bytes,
        100.0 * byte_error(info.bytes, counted)
    ))
}

fn byte_error(bytes: u64, counted: u64) -> f64 {
    (counted as f64 - bytes as f64) / bytes.max(1) as f64
}

/// Refuses a part with fewer tokens than what is made of it needs.
///
/// # Errors
/// When it is too small; the message says how much is needed.
pub fn check_size(campaign: &Campaign, part: Part, tokens: u64) -> Result<()> {
    let evaluation = &campaign.evaluation;
    let (window, figure) = (evaluation.window, FEWEST_WINDOWS.saturating_mul(evaluation.window));
    let (needed, what) = match part {
        // The last target is one token behind the window.
        Part::Train => (window + 1, "training"),
        Part::Dev if evaluation.dev_evals == 0 => (window, "the trainer"),
        Part::Dev => (figure.min(evaluation.dev_tokens), "its figure"),
        Part::Select | Part::Report => (figure.min(evaluation.max_tokens.unwrap_or(usize::MAX)), "its figure"),
    };
    let needed = needed as u64;
    if tokens >= needed {
        return Ok(());
    }
    let windows = needed.div_ceil(window.max(1) as u64);
    let shorter = match tokens / windows {
        0 | 1 => String::new(),
        most => format!(", or shorten evaluation.window to at most {most}"),
    };
    anyhow::bail!(
        "{part} has {tokens} tokens, and {what} needs at least {needed} (evaluation.window = {window}, {windows} of them): \
         give {part} a larger share in [[data.text]], add text ({:.1} times as much for {part}){shorter}",
        needed as f64 / tokens.max(1) as f64
    )
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
