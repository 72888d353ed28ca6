//! The full-precision parent by the real program: it learns, repeats exactly, goes on where it was broken off, and a
//! recipe starts from it.
#![allow(clippy::unwrap_used, reason = "a test that cannot set up fails")]

mod fixture;

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Command, Stdio};

use fixture::{Fixture, shape};
use formats::artifact;
use formats::artifact::{Artifact, ModelConfig};
use rustix::process::{Pid, Signal, kill_process};
use safetensors::SafeTensors;

/// 300 steps of 4 windows of 32 tokens.
const SETTINGS: &str = "tokens = 38_400\nbatch = 4\nwindow = 32\nseed = 3";

fn pretrain(fixture: &Fixture, out: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pretrain"));
    command.args(["--device", "cpu", "--threads", "1"]);
    command.arg("--campaign").arg(fixture.path("campaign.toml"));
    command.arg("--data").arg(fixture.data()).arg("--out").arg(fixture.path(out));
    command
}

/// What it said on stderr.
fn finish(fixture: &Fixture, out: &str) -> String {
    let output = pretrain(fixture, out).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{said}");
    said
}

/// Perplexities on dev, in order.
fn perplexities(said: &str) -> Vec<f64> {
    said.lines().filter_map(|line| line.split_once("dev perplexity ")?.1.parse().ok()).collect()
}

fn config() -> ModelConfig {
    toml::from_str(&shape()).unwrap()
}

#[test]
fn a_parent_learns_repeats_exactly_and_recipes_start_from_it() {
    let fixture = Fixture::with_pretraining(SETTINGS);
    let measured = perplexities(&finish(&fixture, "a"));
    assert_eq!(measured.len(), 10);
    assert!(measured[9] < measured[0] / 4.0, "{measured:?}");
    let weights = fixture.path("a/model.safetensors");
    let bytes = std::fs::read(&weights).unwrap();
    finish(&fixture, "b");
    assert!(bytes == std::fs::read(fixture.path("b/model.safetensors")).unwrap(), "equal runs give equal weights");

    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let mut expected = config().tensors();
    assert_eq!(tensors.len(), expected.len());
    expected.retain(|(name, shape)| tensors.tensor(name).unwrap().shape() != shape);
    assert_eq!(expected, []);

    let base = fixture.data().join("base");
    std::fs::create_dir_all(&base).unwrap();
    std::fs::copy(&weights, base.join("model.safetensors")).unwrap();
    std::fs::write(base.join("config.json"), serde_json::to_string(&config()).unwrap()).unwrap();
    let sha256 = artifact::sha256_file(&weights).unwrap();
    std::fs::write(base.join("base.json"), serde_json::json!({ "sha256": sha256 }).to_string()).unwrap();
    fixture.train("out", &["--max-steps", "3"]);
    let artifact = Artifact::read(&fixture.path("out/artifact.ternary")).unwrap();
    assert_eq!(artifact.base_sha256, Some(sha256));
    assert!(artifact.dense.is_empty(), "what the campaign protects is the parent's");
}

#[test]
fn a_parent_that_was_broken_off_is_gone_on_with_to_the_same_weights() {
    let fixture = Fixture::with_pretraining(SETTINGS);
    finish(&fixture, "whole");
    let mut child = pretrain(&fixture, "broken").stderr(Stdio::piped()).spawn().unwrap();
    let mut said = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    // The first line comes when everything is ready to train.
    said.read_line(&mut line).unwrap();
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    said.read_to_string(&mut line).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130), "{line}");
    assert!(!fixture.path("broken/model.safetensors").exists());

    let said = finish(&fixture, "broken");
    assert!(said.contains("going on at step "), "{said}");
    let weights = |out: &str| std::fs::read(fixture.path(out).join("model.safetensors")).unwrap();
    assert!(weights("broken") == weights("whole"));
}

#[test]
fn a_checkpoint_of_other_settings_is_left_alone() {
    let fixture = Fixture::with_pretraining(SETTINGS);
    finish(&fixture, "a");
    let file = fixture.path("campaign.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    let child = || pretrain(&fixture, "b").stderr(Stdio::piped()).spawn().unwrap();
    let mut first = child();
    let mut line = String::new();
    let mut said = BufReader::new(first.stderr.take().unwrap());
    said.read_line(&mut line).unwrap();
    kill_process(Pid::from_child(&first), Signal::TERM).unwrap();
    said.read_to_string(&mut line).unwrap();
    first.wait().unwrap();
    assert!(fixture.path("b/checkpoint.safetensors").exists());
    std::fs::write(&file, text.replace("seed = 3", "seed = 4")).unwrap();
    assert!(!finish(&fixture, "b").contains("going on"));
    assert!(differs(&fixture.path("a"), &fixture.path("b")));
}

fn differs(a: &Path, b: &Path) -> bool {
    std::fs::read(a.join("model.safetensors")).unwrap() != std::fs::read(b.join("model.safetensors")).unwrap()
}

#[test]
fn bad_input_says_what_to_do() {
    let fixture = Fixture::scratch();
    let output = pretrain(&fixture, "out").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8(output.stderr).unwrap().contains("no [model.pretrain]"));
}
