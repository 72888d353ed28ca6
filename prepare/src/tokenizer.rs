//! Tokenizers: from a GGUF file's vocabulary, or trained; and what the corpus needs to know of any tokenizer: its end
//! token and the bytes of each id. Byte-level BPE only.

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_json::json;
use tokenizers::decoders::byte_level::ByteLevel;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::normalizers::NormalizerWrapper;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::processors::PostProcessorWrapper;
use tokenizers::{AddedToken, DecoderWrapper, Model, Tokenizer, TokenizerImpl};

use crate::gguf_model::Vocabulary;

/// The end token of trained tokenizers.
pub const END: &str = "<|endoftext|>";

/// Tokens that end a document, best first: GPT-2's (SmolLM, Qwen), Llama 3's, Llama 2's.
const END_TOKENS: [&str; 3] = [END, "<|end_of_text|>", "</s>"];

/// ggml's token types.
const CONTROL: i128 = 3;
const USER_DEFINED: i128 = 4;

/// How Llama 3 cuts text before BPE.
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// How Qwen 2 and 3 cut text before BPE.
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// `tokenizer.json` of a GGUF file's vocabulary.
///
/// # Errors
/// When the pre-tokenizer is unknown (guessing one gives other ids) or the vocabulary contradicts itself.
pub fn from_gguf(vocabulary: &Vocabulary) -> Result<String> {
    let split = |pattern: &str| {
        json!({"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false},
            byte_level(false),
        ]})
    };
    let (pre_tokenizer, normalizer, ignore_merges) = match vocabulary.pre.as_str() {
        "smollm" => {
            let digits = json!({"type": "Digits", "individual_digits": true});
            let both = json!({"type": "Sequence", "pretokenizers": [digits, byte_level(true)]});
            (both, serde_json::Value::Null, false)
        }
        "llama-bpe" => (split(LLAMA3), serde_json::Value::Null, true),
        "qwen2" => (split(QWEN2), json!({"type": "NFC"}), false),
        other => bail!(
            "the GGUF file's pre-tokenizer `{other}` is unknown here (smollm, llama-bpe and qwen2 are known); use the \
             model's safetensors checkpoint, which has a tokenizer.json"
        ),
    };
    let mut ids = serde_json::Map::new();
    for (id, token) in vocabulary.tokens.iter().enumerate() {
        ensure!(ids.insert(token.clone(), id.into()).is_none(), "token {token:?} is in the vocabulary twice");
    }
    let added: Vec<_> = (vocabulary.tokens.iter().zip(&vocabulary.types).enumerate())
        .filter(|(_, (_, kind))| matches!(**kind, CONTROL | USER_DEFINED))
        .map(|(id, (token, kind))| {
            json!({"id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                   "normalized": false, "special": *kind == CONTROL})
        })
        .collect();
    let json = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": null,
        "decoder": byte_level(true),
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "ignore_merges": ignore_merges, "vocab": ids, "merges": vocabulary.merges,
        },
    });
    let tokenizer = parse(&json.to_string()).context("the GGUF file's vocabulary is no tokenizer")?;
    tokenizer.to_string(false).map_err(|e| anyhow!("cannot write the tokenizer: {e}"))
}

fn byte_level(use_regex: bool) -> serde_json::Value {
    json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex})
}

/// Trains a byte-level BPE of `vocab_size` tokens, [`END`] being id 0; `tokenizer.json`. The same texts give the same
/// file.
///
/// # Errors
/// When `vocab_size` has no room for the 256 bytes and the end token.
pub fn train<'a>(vocab_size: usize, texts: impl Iterator<Item = &'a str> + Send) -> Result<String> {
    ensure!(vocab_size > 257, "train_tokenizer = {vocab_size} leaves no room beside 256 bytes and {END}");
    let mut trainer = BpeTrainer::builder()
        .vocab_size(vocab_size)
        .min_frequency(2)
        .show_progress(false)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .special_tokens(vec![AddedToken::from(END, true)])
        .build();
    let pieces = ByteLevel::new(false, true, true);
    let mut tokenizer: TokenizerImpl<
        BPE,
        NormalizerWrapper,
        PreTokenizerWrapper,
        PostProcessorWrapper,
        DecoderWrapper,
    > = TokenizerImpl::new(BPE::default());
    tokenizer
        .with_pre_tokenizer(Some(PreTokenizerWrapper::Sequence(Sequence::new(vec![
            PreTokenizerWrapper::Digits(Digits::new(true)),
            PreTokenizerWrapper::ByteLevel(pieces),
        ]))))
        .with_decoder(Some(DecoderWrapper::ByteLevel(pieces)));
    tokenizer.train(&mut trainer, texts).map_err(|e| anyhow!("cannot train the tokenizer: {e}"))?;
    tokenizer.to_string(false).map_err(|e| anyhow!("cannot write the tokenizer: {e}"))
}

/// Reads a `tokenizer.json`. Control tokens spelled out in a text are encoded as ordinary text, so that no document can
/// contain an end token.
///
/// # Errors
/// When the library refuses it.
pub fn parse(json: &str) -> Result<Tokenizer> {
    let mut tokenizer = Tokenizer::from_bytes(json).map_err(|e| anyhow!("not a tokenizer.json: {e}"))?;
    tokenizer.set_encode_special_tokens(true);
    tokenizer.with_padding(None);
    tokenizer.with_truncation(None).map_err(|e| anyhow!("cannot turn truncation off: {e}"))?;
    Ok(tokenizer)
}

/// The id that follows each document.
///
/// # Errors
/// When the tokenizer has none of the known end tokens.
pub fn end_token(tokenizer: &Tokenizer) -> Result<u32> {
    let found = END_TOKENS.iter().find_map(|token| tokenizer.token_to_id(token));
    found.with_context(|| format!("the tokenizer has no end token; one of {} is needed", END_TOKENS.join(", ")))
}

/// Refuses a tokenizer with more ids than the model has rows for, so that none can be looked up or scored.
///
/// # Errors
/// With both numbers.
pub fn check_rows(tokenizer: &Tokenizer, vocab_size: usize) -> Result<()> {
    let added = tokenizer.get_added_tokens_decoder();
    let plain = tokenizer.get_model().get_vocab();
    let ids = plain.into_values().chain(added.into_keys()).max().map_or(0, |last| u64::from(last) + 1);
    ensure!(
        ids <= vocab_size as u64,
        "the tokenizer has {ids} ids, and the model's embedding {vocab_size} rows (vocab_size): they do not belong \
         together. Take tokenizer and weights from one checkpoint, or remove the tokens that were added to tokenizer.json"
    );
    Ok(())
}

/// UTF-8 length of each id's own bytes for ids below `vocab_size`; 0 for control tokens and ids without a token.
///
/// # Errors
/// As [`check_rows`], and when it is no byte-level BPE.
pub fn token_bytes(tokenizer: &Tokenizer, vocab_size: usize) -> Result<Vec<u16>> {
    check_rows(tokenizer, vocab_size)?;
    let alphabet = ByteLevel::alphabet();
    let added = tokenizer.get_added_tokens_decoder();
    let mut out = vec![0; vocab_size];
    let plain = tokenizer.get_model().get_vocab();
    let ids = plain.into_iter().chain(added.iter().map(|(&id, t)| (t.content.clone(), id)));
    for (token, id) in ids {
        let length = match added.get(&id) {
            Some(token) if token.special => 0,
            Some(token) => token.content.len(),
            None => {
                ensure!(
                    token.chars().all(|c| alphabet.contains(&c)),
                    "token {token:?} is not byte-level; only byte-level BPE tokenizers are supported"
                );
                // Each character of a byte-level token stands for one byte.
                token.chars().count()
            }
        };
        out[id as usize] = u16::try_from(length).with_context(|| format!("token {id} is too long"))?;
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXTS: [&str; 3] =
        ["the cat sat on the mat, the cat sat", "the dog of 2024 sat on the log", "naïve café 猫猫猫"];

    #[test]
    fn training_is_deterministic_and_lossless() {
        let a = train(300, TEXTS.into_iter()).unwrap();
        assert_eq!(a, train(300, TEXTS.into_iter()).unwrap());
        let tokenizer = parse(&a).unwrap();
        assert_eq!(end_token(&tokenizer).unwrap(), 0);
        let lengths = token_bytes(&tokenizer, 300).unwrap();
        assert_eq!(lengths[0], 0);
        for text in TEXTS.into_iter().chain(["unseen: \u{1f600}\u{0}\t\n", "<|endoftext|> in a text"]) {
            let ids = tokenizer.encode(text, false).unwrap().get_ids().to_vec();
            let bytes: usize = ids.iter().map(|&id| usize::from(lengths[id as usize])).sum();
            assert_eq!(bytes, text.len(), "{text:?}");
            assert!(!ids.contains(&0), "a text cannot contain the end token");
            assert_eq!(tokenizer.decode(&ids, false).unwrap(), text);
        }
    }

    #[test]
    fn digits_are_single() {
        let texts = ["2024 2024 2024 2024"; 20];
        let tokenizer = parse(&train(400, texts.into_iter()).unwrap()).unwrap();
        assert_eq!(tokenizer.encode("2024", false).unwrap().get_ids().len(), 4);
    }

    #[test]
    fn an_unknown_pre_tokenizer_is_refused() {
        let vocabulary = Vocabulary { pre: "gpt-2".into(), tokens: vec!["a".into()], types: vec![1], merges: vec![] };
        assert!(from_gguf(&vocabulary).unwrap_err().to_string().contains("gpt-2"));
    }
}
