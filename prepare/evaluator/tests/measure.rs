//! The evaluator as a program: what it measures.

mod fixture;

use std::path::Path;

use fixture::{Fixture, config, ids, token_bytes};
use formats::artifact;
use formats::artifact::Artifact;
use tch::{Device, Kind, Tensor};
use ternary::model::{Decoder, Dense, Weights};

/// Score on `select` of these weights, in this process.
fn expected(weights: &Weights) -> ternary::model::Score {
    let decoder = Decoder::new(&config(), weights, Kind::Float).expect("decoder");
    let linears = Dense::new(&config(), weights, Kind::Float).expect("linears");
    let mut text: Vec<i64> = ids(2).iter().map(|&id| i64::from(id)).collect();
    text.push(0);
    ternary::model::score(&decoder, &linears, &text, &token_bytes(), 16, |_| {})
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
fn the_parent_is_measured_and_so_are_tensors_taken_from_it() {
    let fixture = Fixture::new(true, false);
    let output = fixture.run(&["--base", "--part", "select"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let parent = Weights::init(&config(), 5, Device::Cpu).expect("init");
    near(&fixture.json()["eval_loss"], expected(&parent).loss());
    near(&fixture.json()["bits_per_weight"], 32.0);

    assert!(fixture.measure(&fixture.artifact(true)).status.success());
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
