//! `prepare` as a process against a Hub on loopback (HF_ENDPOINT): a sharded f16 and bf16 checkpoint, a tokenizer, and
//! Parquet text, from nothing to shards; refused, interrupted and repeated.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;

use formats::artifact;
use formats::corpus::{Corpus, Part};
use half::{bf16, f16};
use parquet::basic::{Compression, ZstdLevel};
use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors, serialize};

mod common;
use common::{COMMIT, Hub};

const CONFIG: &str = r#"{
  "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "attention_bias": false,
  "vocab_size": 300, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
  "num_key_value_heads": 2, "rms_norm_eps": 1e-05, "rope_theta": 500000.0, "max_position_embeddings": 512,
  "rope_scaling": {"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
                   "original_max_position_embeddings": 256, "rope_type": "llama3"},
  "tie_word_embeddings": true, "torch_dtype": "bfloat16"
}"#;

const PARENTS: [&str; 4] =
    ["the quick brown fox", "a lazy dog sleeps", "rivers run to the sea", "stars shine at night"];

/// Sentences that differ, so that no two share 13 words.
fn story(i: usize) -> String {
    (0..30).map(|j| format!("{} {i} {}", PARENTS[(i + j) % 4], i * 31 + j)).collect::<Vec<_>>().join(". ")
}

/// Two shards: projections in bf16, the rest in f16, and a useless `inv_freq`.
fn checkpoint() -> (BTreeMap<String, Vec<u8>>, BTreeMap<String, Vec<u8>>) {
    let config = prepare::checkpoint::parse_config(CONFIG).unwrap();
    let mut data = BTreeMap::new();
    for (n, (name, shape)) in config.tensors().into_iter().enumerate() {
        let values = (0..shape.iter().product()).map(|i: usize| ((i * 7 + n) % 23) as f32 / 23.0 - 0.5);
        let (dtype, bytes): (_, Vec<u8>) = if name.contains("proj") {
            (Dtype::BF16, values.flat_map(|v| bf16::from_f32(v).to_le_bytes()).collect())
        } else {
            (Dtype::F16, values.flat_map(|v| f16::from_f32(v).to_le_bytes()).collect())
        };
        data.insert(name, (dtype, shape, bytes));
    }
    let expected = data.iter().map(|(name, (_, _, bytes))| (name.clone(), bytes.clone())).collect();
    data.insert("model.layers.0.self_attn.rotary_emb.inv_freq".into(), (Dtype::F32, vec![1], vec![0; 4]));
    let shard = |first: bool| {
        let of_shard = data.iter().filter(|(name, _)| name.contains("layers.0") == first);
        let views = of_shard.map(|(name, (dtype, shape, bytes))| {
            (name.clone(), TensorView::new(*dtype, shape.clone(), bytes).unwrap())
        });
        serialize(views, None).unwrap()
    };
    let names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
    let map: BTreeMap<_, _> = data.keys().map(|name| (name, names[usize::from(!name.contains("layers.0"))])).collect();
    let index = serde_json::json!({"metadata": {}, "weight_map": map}).to_string();
    let texts: Vec<String> = (0..50).map(story).collect();
    let tokenizer = prepare::tokenizer::train(300, texts.iter().map(String::as_str)).unwrap();
    let files = BTreeMap::from([
        ("config.json".to_owned(), CONFIG.as_bytes().to_vec()),
        ("tokenizer.json".to_owned(), tokenizer.into_bytes()),
        ("model.safetensors.index.json".to_owned(), index.into_bytes()),
        (names[0].to_owned(), shard(true)),
        (names[1].to_owned(), shard(false)),
    ]);
    (files, expected)
}

/// A Parquet file of an integer and a string column, in row groups of 20.
fn parquet_file(texts: &[String]) -> Vec<u8> {
    let schema = parse_message_type("message rows { required int64 id; optional binary text (UTF8); }").unwrap();
    let zstd = Compression::ZSTD(ZstdLevel::default());
    let properties = WriterProperties::builder().set_compression(zstd).build();
    let mut writer = SerializedFileWriter::new(Vec::new(), Arc::new(schema), Arc::new(properties)).unwrap();
    for group in texts.chunks(20) {
        let mut rows = writer.next_row_group().unwrap();
        let mut column = rows.next_column().unwrap().unwrap();
        let ids: Vec<i64> = (0..group.len() as i64).collect();
        column.typed::<parquet::data_type::Int64Type>().write_batch(&ids, None, None).unwrap();
        column.close().unwrap();
        let mut column = rows.next_column().unwrap().unwrap();
        let values: Vec<ByteArray> = group.iter().map(|text| ByteArray::from(text.as_str())).collect();
        let levels = vec![1; values.len()];
        column.typed::<ByteArrayType>().write_batch(&values, Some(&levels), None).unwrap();
        column.close().unwrap();
        rows.close().unwrap();
    }
    writer.into_inner().unwrap()
}

fn hub(token: Option<&str>) -> (Hub, BTreeMap<String, Vec<u8>>) {
    let (model, expected) = checkpoint();
    let stories: Vec<String> = (0..100).map(story).collect();
    let web = BTreeMap::from([
        ("README.md".to_owned(), b"# stories".to_vec()),
        ("sample/000.parquet".to_owned(), parquet_file(&stories[..60])),
        ("sample/001.parquet".to_owned(), parquet_file(&stories[60..])),
    ]);
    let articles =
        (200..260).flat_map(|i| [format!(" = Article {i} = \n"), String::new(), format!(" {} \n", story(i))]);
    let wiki = BTreeMap::from([("raw/test.parquet".to_owned(), parquet_file(&articles.collect::<Vec<_>>()))]);
    let repositories = BTreeMap::from([
        ("tests/tiny-llama".to_owned(), model),
        ("datasets/tests/stories".to_owned(), web),
        ("datasets/tests/wiki".to_owned(), wiki),
    ]);
    (Hub::serve(repositories, token), expected)
}

fn write_campaign(folder: &Path, revision: &str) {
    let text = format!(
        r#"description = "test"
[model.base]
from = "hf:tests/tiny-llama"
revision = "{revision}"
[data]
seed = 1
[[data.text]]
format = {{ parquet = "text" }}
parts = {{ train = 1.0 }}
[data.text.source]
from = "hf-dataset:tests/stories"
path = "sample/*.parquet"
revision = "main"
[[data.text]]
format = {{ wiki-text-parquet = "text" }}
parts = {{ dev = 0.3, select = 0.4, report = 0.3 }}
[data.text.source]
from = "hf-dataset:tests/wiki"
path = "raw/test.parquet"
revision = "main"
[budget]
seconds = 1.0
hard_limit_seconds = 60.0
[evaluation]
window = 16
[constraints]
max_bits_per_weight = 2.0
groupings = [64]
train_unquantized = false
"#
    );
    fs::write(folder.join("campaign.toml"), text).unwrap();
}

fn prepare(folder: &Path, hub: &Hub, token: Option<&str>) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_prepare"));
    command.args(["--json", "--campaign"]).arg(folder.join("campaign.toml"));
    command.arg("--data").arg(folder.join("data")).arg("--cache").arg(folder.join("cache"));
    command.env("HF_HOME", folder.join("hf")).env("HF_ENDPOINT", &hub.endpoint).env_remove("HF_TOKEN");
    for proxy in ["http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"] {
        command.env_remove(proxy);
    }
    if let Some(token) = token {
        command.env("HF_TOKEN", token);
    }
    command.output().unwrap()
}

fn errors(output: &Output) -> String {
    assert!(!output.status.success());
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_hub_model_and_data_set_become_base_and_shards() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let (hub, expected) = hub(Some("hf_test"));
    write_campaign(folder, "main");

    let refused = errors(&prepare(folder, &hub, None));
    assert!(refused.contains("HF_TOKEN"), "{refused}");

    let output = prepare(folder, &hub, Some("hf_test"));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["made"], serde_json::json!({"base": true, "text": true, "tokenizer": true}));
    assert_eq!(json["text"]["sources"][0]["revision"], COMMIT);
    assert_eq!(json["text"]["sources"][0]["documents"], 100);
    assert_eq!(json["text"]["sources"][1]["documents"], 60);
    assert!(folder.join("hf/hub").exists(), "HF_HOME is the cache");

    let data = folder.join("data");
    let bytes = fs::read(data.join("base/model.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(tensors.len(), expected.len(), "inv_freq is left out");
    for (name, bytes) in &expected {
        let view = tensors.tensor(name).unwrap();
        let dtype = if name.contains("proj") { Dtype::BF16 } else { Dtype::F16 };
        assert_eq!((view.dtype(), view.data()), (dtype, bytes.as_slice()), "{name}");
    }
    let config: artifact::ModelConfig =
        serde_json::from_slice(&fs::read(data.join("base/config.json")).unwrap()).unwrap();
    assert_eq!(config.head_dim, 16);
    assert_eq!(config.rope_scaling.unwrap().original_max_position, 256);
    let base: serde_json::Value = serde_json::from_slice(&fs::read(data.join("base/base.json")).unwrap()).unwrap();
    assert_eq!(base["sha256"], prepare::files::sha256(&bytes));
    assert_eq!(base["source"]["revision"], COMMIT);

    let corpus = Corpus::open(&data.join("text")).unwrap();
    let parts = &corpus.manifest().parts;
    assert_eq!(parts[&Part::Train].documents, 100);
    let measured = [Part::Dev, Part::Select, Part::Report];
    assert_eq!(measured.map(|part| parts[&part].documents).iter().sum::<u64>(), 60);
    let bytes: u64 = (0..100).map(|i| story(i).len() as u64).sum();
    assert_eq!(parts[&Part::Train].bytes, bytes);
    for part in Part::ALL {
        corpus.part(part).unwrap().verify().unwrap();
    }

    // Done: nothing is asked of the Hub any more. A lost output is made again from the Hub's cache.
    let asked = hub.requests.lock().unwrap().len();
    assert!(prepare(folder, &hub, None).status.success());
    assert_eq!(hub.requests.lock().unwrap().len(), asked);
    fs::remove_file(data.join("base/model.safetensors")).unwrap();
    let output = prepare(folder, &hub, Some("hf_test"));
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["made"], serde_json::json!({"base": true, "text": false, "tokenizer": false}));
    let later = hub.requests.lock().unwrap()[asked..].to_vec();
    assert!(later.iter().all(|r| r.path.contains("/api/")), "files come from the cache: {later:?}");
}

#[test]
fn an_interrupted_download_goes_on_where_it_stopped() {
    let folder = tempfile::tempdir().unwrap();
    let (hub, _) = hub(None);
    write_campaign(folder.path(), "main");
    *hub.cut_once_at.lock().unwrap() = Some(20_000);
    let output = prepare(folder.path(), &hub, None);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(hub.cut_once_at.lock().unwrap().is_none(), "it was cut");
    let requests = hub.requests.lock().unwrap();
    let resumed = |range: &str| {
        let start = range.strip_prefix("bytes=").and_then(|r| r.strip_suffix('-')).unwrap_or("0");
        start.parse::<usize>().unwrap_or(0) > 0
    };
    assert!(requests.iter().any(|r| r.range.as_deref().is_some_and(resumed)), "{requests:?}");
}

#[test]
fn what_is_not_there_is_explained() {
    let folder = tempfile::tempdir().unwrap();
    let (hub, _) = hub(None);
    write_campaign(folder.path(), "main");
    let path = folder.path().join("campaign.toml");
    let good = fs::read_to_string(&path).unwrap();

    fs::write(&path, good.replace("tests/tiny-llama", "tests/none")).unwrap();
    let message = errors(&prepare(folder.path(), &hub, None));
    assert!(message.contains("tests/none") && message.contains("check name, path and revision"), "{message}");

    fs::write(&path, good.replace("sample/*.parquet", "sample/*.jsonl")).unwrap();
    let message = errors(&prepare(folder.path(), &hub, None));
    assert!(message.contains("has no file \"sample/*.jsonl\"") && message.contains("nearest"), "{message}");

    fs::write(&path, good.replace("{ parquet = \"text\" }", "{ parquet = \"content\" }")).unwrap();
    let message = errors(&prepare(folder.path(), &hub, None));
    assert!(message.contains("no column `content`; there are id, text"), "{message}");

    fs::write(&path, good).unwrap();
    let closed = Hub { endpoint: "http://127.0.0.1:9".into(), ..hub };
    let other = tempfile::tempdir().unwrap();
    fs::copy(&path, other.path().join("campaign.toml")).unwrap();
    let message = errors(&prepare(other.path(), &closed, None));
    assert!(message.contains("check the network (and HF_ENDPOINT"), "{message}");
}
