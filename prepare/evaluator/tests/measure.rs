//! The evaluator as a program: what it measures, and what it refuses.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use artifact::{Architecture, Artifact, DenseData, DenseTensor, Grouping, ModelConfig, TernaryTensor};
use corpus::{Part, Writer, WriterOptions};
use half::f16;
use model::{Decoder, Dense, Weights};
use safetensors::tensor::TensorView;
use tch::{Device, Kind, Tensor};

const VOCABULARY: usize = 260;

fn config() -> ModelConfig {
    ModelConfig {
        architecture: Architecture::Qwen3,
        vocab_size: VOCABULARY,
        hidden_size: 32,
        intermediate_size: 64,
        num_hidden_layers: 2,
        num_attention_heads: 4,
        num_key_value_heads: 2,
        head_dim: 8,
        rope_theta: 10_000.0,
        rope_scaling: None,
        rms_norm_eps: 1e-6,
        tie_word_embeddings: true,
        max_position_embeddings: 64,
    }
}

/// A campaign's folder: campaign.toml and data/text, and data/base when it is pretrained.
struct Fixture {
    folder: tempfile::TempDir,
    base_sha256: Option<String>,
}

impl Fixture {
    fn new(base: bool, train_unquantized: bool) -> Self {
        let folder = tempfile::tempdir().expect("folder");
        let model = if base {
            "[model.base]\nfrom = \"file:model\"\nsha256 = \"any\"\n".to_owned()
        } else {
            let shape = toml::to_string(&config()).expect("toml");
            format!("[model]\ntrain_tokenizer = {VOCABULARY}\n[model.scratch]\n{shape}")
        };
        let text = format!(
            "description = \"a test\"\n{model}\n\
             [data]\n[[data.text]]\nformat = \"whole\"\n\
             parts = {{ train = 0.4, dev = 0.2, select = 0.2, report = 0.2 }}\n\
             [data.text.source]\nfrom = \"file:text\"\nsha256 = \"any\"\n\
             [budget]\ntokens = 1000\nhard_limit_seconds = 60.0\n\
             [evaluation]\nwindow = 16\n\
             [constraints]\nmax_bits_per_weight = 3.0\ngroupings = [16]\n\
             train_unquantized = {train_unquantized}\n"
        );
        std::fs::write(folder.path().join("campaign.toml"), text).expect("campaign");
        let options = WriterOptions::new(VOCABULARY, 0, 0, "0".repeat(64));
        let mut writer = Writer::create(&folder.path().join("data/text"), options).expect("writer");
        for (seed, part) in [Part::Train, Part::Dev, Part::Select, Part::Report].into_iter().enumerate() {
            writer.document(part, &ids(seed as u32), 99).expect("document");
        }
        writer.finish(&token_bytes(), vec![]).expect("manifest");
        let mut fixture = Self { folder, base_sha256: None };
        if base {
            fixture.write_base();
        }
        fixture
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write_base(&mut self) {
        let weights = Weights::init(&config(), 5, Device::Cpu).expect("init");
        let bytes: Vec<(String, Vec<usize>, Vec<u8>)> = weights
            .iter()
            .map(|(name, tensor)| {
                let shape = tensor.size().iter().map(|&n| n as usize).collect();
                let values = floats(tensor).iter().flat_map(|x| x.to_le_bytes()).collect();
                (name.to_owned(), shape, values)
            })
            .collect();
        let views = bytes.iter().map(|(name, shape, bytes)| {
            let view = TensorView::new(safetensors::Dtype::F32, shape.clone(), bytes);
            (name.as_str(), view.expect("view"))
        });
        let file = safetensors::serialize(views, None).expect("safetensors");
        let base = self.path("data/base");
        std::fs::create_dir_all(&base).expect("folder");
        std::fs::write(base.join("model.safetensors"), file).expect("weights");
        let shape = serde_json::to_vec(&config()).expect("json");
        std::fs::write(base.join("config.json"), shape).expect("config");
        let sha256 = artifact::sha256_file(&base.join("model.safetensors")).expect("hash");
        let record = serde_json::json!({ "sha256": sha256, "source": {} });
        std::fs::write(base.join("base.json"), record.to_string()).expect("record");
        self.base_sha256 = Some(sha256);
    }

    /// An artifact that the campaign accepts.
    fn artifact(&self, from_base: bool) -> Artifact {
        let config = config();
        let weights = Weights::init(&config, 5, Device::Cpu).expect("init");
        let projections = config.projection_names();
        let (mut ternary, mut dense, mut unchanged) = (vec![], vec![], vec![]);
        for (name, shape) in config.tensors() {
            let values = floats(weights.get(&name).expect("tensor"));
            if projections.contains(&name) {
                let codes: Vec<i8> = values.iter().map(|&x| i8::from(x > 0.01) - i8::from(x < -0.01)).collect();
                let scales = (0..codes.len() / 16).map(|i| f16::from_f32(0.02 + (i % 7) as f32 * 0.01)).collect();
                let (shape, grouping) = ([shape[0], shape[1]], Grouping::Group(16));
                ternary.push(TernaryTensor { name, shape, grouping, codes, scales });
            } else if from_base {
                unchanged.push(name);
            } else {
                dense.push(DenseTensor { name, shape, data: DenseData::F32(values) });
            }
        }
        Artifact {
            config,
            activation_bits: 16,
            ternary,
            dense,
            from_base: unchanged,
            base_sha256: self.base_sha256.clone(),
            provenance: BTreeMap::new(),
        }
    }

    fn run(&self, what: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_evaluator"))
            .arg("--campaign")
            .arg(self.path("campaign.toml"))
            .arg("--data")
            .arg(self.path("data"))
            .arg("--out")
            .arg(self.path("eval.json"))
            .args(["--device", "cpu", "--threads", "1"])
            .args(what)
            .current_dir(self.folder.path())
            .output()
            .expect("the evaluator runs")
    }

    /// Writes and measures on `select`.
    fn measure(&self, artifact: &Artifact) -> Output {
        artifact.write(&self.path("a.ternary")).expect("write");
        self.run(&["--artifact", "a.ternary", "--part", "select"])
    }

    fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&std::fs::read(self.path("eval.json")).expect("json")).expect("json")
    }

    /// Exit code 4, a message, and the reason in the JSON.
    fn refused(&self, output: &Output, reason: &str) {
        let message = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(4), "{message}");
        assert!(message.contains(reason), "{message}");
        assert!(self.json()["invalid"].as_str().expect("a reason").contains(reason));
    }
}

fn ids(seed: u32) -> Vec<u32> {
    (0..70).map(|i| (i * i * 31 + seed * 17 + 1) % VOCABULARY as u32).collect()
}

fn token_bytes() -> Vec<u16> {
    (0..VOCABULARY as u16).map(|id| id % 5).collect()
}

fn floats(tensor: &Tensor) -> Vec<f32> {
    Vec::try_from(tensor.reshape([-1])).expect("floats")
}

/// Score on `select` of these weights, in this process.
fn expected(weights: &Weights) -> model::Score {
    let decoder = Decoder::new(&config(), weights, Kind::Float).expect("decoder");
    let linears = Dense::new(&config(), weights, Kind::Float).expect("linears");
    let mut text: Vec<i64> = ids(2).iter().map(|&id| i64::from(id)).collect();
    text.push(0);
    model::score(&decoder, &linears, &text, &token_bytes(), 16, |_| {})
}

fn near(found: &serde_json::Value, expected: f64) {
    let found = found.as_f64().expect("a number");
    assert!((found - expected).abs() < 1e-5 * expected, "{found} {expected}");
}

#[test]
fn an_artifact_is_measured_by_its_codes_and_scales() {
    let fixture = Fixture::new(false, true);
    let artifact = fixture.artifact(false);
    let output = fixture.measure(&artifact);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut weights = Weights::init(&config(), 5, Device::Cpu).expect("init");
    for tensor in &artifact.ternary {
        let shape = tensor.shape.map(|n| n as i64);
        weights.insert(&tensor.name, Tensor::from_slice(&tensor.dequantize()).view(shape));
    }
    let (score, json) = (expected(&weights), fixture.json());
    near(&json["eval_loss"], score.loss());
    near(&json["eval_ppl"], score.perplexity());
    near(&json["eval_bpb"], score.bits_per_byte());
    near(&json["bits_per_weight"], artifact.bits_per_weight());
    near(&json["q_zero"], artifact.shares()[1]);
    assert_eq!(json["tokens"], score.tokens);
    assert_eq!(json["bytes"], score.bytes);
    assert_eq!(json["part"], "select");
    assert_eq!(json["window_losses"].as_array().expect("windows").len(), score.window_losses.len());
    let file = artifact::sha256_file(&fixture.path("a.ternary")).expect("hash");
    assert_eq!(json["artifact_sha256"], file);
    // The block: a line of dashes, then values from column 19.
    let text = String::from_utf8(output.stdout).expect("text");
    let mut lines = text.lines();
    assert_eq!(lines.next(), Some("---"));
    for line in lines {
        let (key, value) = line.split_at(18);
        assert!(key.trim_end().ends_with(':') && !value.starts_with(' '), "{line}");
    }
}

#[test]
fn rounding_the_activations_is_part_of_what_is_measured() {
    let fixture = Fixture::new(false, true);
    let mut losses = vec![];
    for bits in [16, 8, 4] {
        let artifact = Artifact { activation_bits: bits, ..fixture.artifact(false) };
        assert!(fixture.measure(&artifact).status.success());
        losses.push(fixture.json()["eval_loss"].as_f64().expect("a number"));
    }
    let (eight, four) = ((losses[1] - losses[0]).abs(), (losses[2] - losses[0]).abs());
    assert!(eight > 0.0 && eight < four, "{losses:?}");
}

#[test]
fn what_breaks_a_limit_is_invalid() {
    let fixture = Fixture::new(false, true);
    let good = fixture.artifact(false);
    let mut rows = good.clone();
    for tensor in &mut rows.ternary {
        tensor.grouping = Grouping::Row;
        tensor.scales.truncate(tensor.shape[0]);
    }
    fixture.refused(&fixture.measure(&rows), "this campaign allows");
    let mut dense = good.clone();
    let taken = dense.ternary.remove(3);
    let (shape, data) = (taken.shape.to_vec(), DenseData::F32(taken.dequantize()));
    dense.dense.push(DenseTensor { name: taken.name, shape, data });
    fixture.refused(&fixture.measure(&dense), "is not ternary");
    let mut based = good.clone();
    based.base_sha256 = Some("a".repeat(64));
    fixture.refused(&fixture.measure(&based), "this campaign has none");
    let mut other = good;
    other.config.rope_theta = 20_000.0;
    other.write(&fixture.path("a.ternary")).expect("write");
    let output = fixture.run(&["--artifact", "a.ternary", "--part", "select"]);
    assert_eq!(output.status.code(), Some(4));

    let text = std::fs::read_to_string(fixture.path("campaign.toml")).expect("campaign");
    // 1.6 bits a code (rows of 32 take 7 bytes for 6.4) and 1 a weight for the scales.
    let tight = text.replace("max_bits_per_weight = 3.0", "max_bits_per_weight = 2.65");
    std::fs::write(fixture.path("campaign.toml"), tight).expect("campaign");
    fixture.refused(&fixture.measure(&fixture.artifact(false)), "bits per weight");
}

#[test]
fn a_damaged_file_is_invalid_and_a_missing_one_an_error() {
    let fixture = Fixture::new(false, true);
    fixture.artifact(false).write(&fixture.path("whole.ternary")).expect("write");
    let whole = std::fs::read(fixture.path("whole.ternary")).expect("read");
    let select = ["--artifact", "a.ternary", "--part", "select"];
    for length in [0, 7, 40, whole.len() / 2, whole.len() - 1] {
        std::fs::write(fixture.path("a.ternary"), &whole[..length]).expect("write");
        assert_eq!(fixture.run(&select).status.code(), Some(4), "cut at {length}");
    }
    for place in [3, 20, 200, whole.len() / 2, whole.len() - 10] {
        let mut changed = whole.clone();
        changed[place] ^= 0x55;
        std::fs::write(fixture.path("a.ternary"), changed).expect("write");
        assert_eq!(fixture.run(&select).status.code(), Some(4), "changed at {place}");
    }
    let output = fixture.run(&["--artifact", "missing.ternary", "--part", "select"]);
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn the_parent_is_measured_and_its_tensors_are_taken_by_hash() {
    let fixture = Fixture::new(true, false);
    let output = fixture.run(&["--base", "--part", "select"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let parent = Weights::init(&config(), 5, Device::Cpu).expect("init");
    near(&fixture.json()["eval_loss"], expected(&parent).loss());
    near(&fixture.json()["bits_per_weight"], 32.0);

    assert!(fixture.measure(&fixture.artifact(true)).status.success());
    fixture.refused(&fixture.measure(&fixture.artifact(false)), "must be left as it is");
    let other = Artifact { base_sha256: Some("b".repeat(64)), ..fixture.artifact(true) };
    fixture.refused(&fixture.measure(&other), "it was made from base model");

    // Weights that are not what `prepare` recorded are an error of the machine, not of the artifact.
    let weights = fixture.path("data/base/model.safetensors");
    let mut bytes = std::fs::read(&weights).expect("read");
    *bytes.last_mut().expect("not empty") ^= 1;
    std::fs::write(&weights, bytes).expect("write");
    let output = fixture.measure(&fixture.artifact(true));
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("run `prepare` again"));
}

#[test]
fn the_train_part_cannot_be_measured_and_scratch_has_no_parent() {
    let fixture = Fixture::new(false, true);
    assert!(!fixture.run(&["--base", "--part", "train"]).status.success());
    let output = fixture.run(&["--base", "--part", "dev"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("no parent"));
}

/// The evaluator needs nothing of the train part, which an experiment may have at any state.
#[test]
fn the_train_part_is_not_read() {
    let fixture = Fixture::new(false, true);
    let train = Path::new("data/text/train-00000.tokens");
    std::fs::remove_file(fixture.folder.path().join(train)).expect("remove");
    assert!(fixture.measure(&fixture.artifact(false)).status.success());
}
