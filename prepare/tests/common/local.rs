//! Campaigns of local files, prepared by the program.
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::fs;
use std::path::Path;
use std::process::Command;

use formats::corpus::{Corpus, Part};
use serde_json::Value;

/// What a run of `prepare` left.
pub struct Run {
    pub ok: bool,
    pub json: Value,
    pub errors: String,
}

pub fn prepare(folder: &Path, data: &str) -> Run {
    prepare_with(folder, data, &[])
}

pub fn prepare_with(folder: &Path, data: &str, more: &[&str]) -> Run {
    let output = Command::new(env!("CARGO_BIN_EXE_prepare"))
        .args(["--json", "--campaign"])
        .arg(folder.join("campaign.toml"))
        .arg("--data")
        .arg(folder.join(data))
        .arg("--cache")
        .arg(folder.join("cache"))
        .args(more)
        .env("HF_HOME", folder.join("hf"))
        .output()
        .unwrap();
    Run {
        ok: output.status.success(),
        json: serde_json::from_slice(&output.stdout).unwrap_or_default(),
        errors: String::from_utf8(output.stderr).unwrap(),
    }
}

/// Documents of distinct words, so that none shares 13 words with another.
pub fn document(i: usize) -> String {
    (0..40).map(|j| format!("w{i}x{j}")).collect::<Vec<_>>().join(" ")
}

pub const SCRATCH: &str = r#"train_tokenizer = 300
[model.scratch]
architecture = "llama"
vocab_size = 300
hidden_size = 64
intermediate_size = 64
num_hidden_layers = 1
num_attention_heads = 2
num_key_value_heads = 2
head_dim = 32
rope_theta = 10000.0
rms_norm_eps = 1e-6
tie_word_embeddings = true
max_position_embeddings = 256
"#;

pub fn campaign(folder: &Path, data: &str, sources: &str) {
    campaign_of(folder, SCRATCH, data, sources, 16);
}

pub fn campaign_of(folder: &Path, model: &str, data: &str, sources: &str, window: usize) {
    let text = format!(
        r#"description = "test"
[model]
{model}
[data]
seed = 5
{data}
{sources}
[budget]
seconds = 1.0
hard_limit_seconds = 60.0
[evaluation]
window = {window}
[constraints]
max_bits_per_weight = 2.0
groupings = [64]
train_unquantized = true
"#
    );
    fs::write(folder.join("campaign.toml"), text).unwrap();
}

pub fn source(path: &Path, format: &str, parts: &str) -> String {
    format!(
        "[[data.text]]\nformat = {format}\nparts = {parts}\n[data.text.source]\nfrom = \"file:{}\"\nsha256 = \"any\"\n",
        path.display()
    )
}

pub fn lines(folder: &Path, name: &str, documents: impl Iterator<Item = String>) -> std::path::PathBuf {
    let path = folder.join(name);
    fs::write(&path, documents.collect::<Vec<_>>().join("\n")).unwrap();
    path
}

/// Decoded documents of a part.
pub fn documents(data: &Path, part: Part) -> Vec<String> {
    let corpus = Corpus::open(&data.join("text")).unwrap();
    let tokens = corpus.part(part).unwrap();
    tokens.verify().unwrap();
    let mut ids = vec![0i64; tokens.len() as usize];
    tokens.copy(0, &mut ids);
    let json = fs::read_to_string(data.join("tokenizer.json")).unwrap();
    let tokenizer = prepare::tokenizer::parse(&json).unwrap();
    let end = i64::from(corpus.manifest().end_token);
    assert_eq!(ids.last(), Some(&end), "each document is followed by the end token");
    ids.split(|&id| id == end)
        .filter(|document| !document.is_empty())
        .map(|document| {
            let ids: Vec<u32> = document.iter().map(|&id| id as u32).collect();
            tokenizer.decode(&ids, false).unwrap()
        })
        .collect()
}
