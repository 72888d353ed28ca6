//! The trainer as a process: what it writes, when it ends, and how it fails.
#![allow(clippy::unwrap_used, reason = "a test that cannot set up fails")]

mod fixture;

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use fixture::{Fixture, rows, summary};
use formats::artifact;
use formats::artifact::Artifact;
use rustix::process::{Pid, Signal, kill_process};

#[test]
fn writes_log_artifact_and_summary() {
    let fixture = Fixture::scratch();
    let output = fixture.train("out", &["--max-steps", "40", "--seed", "3"]);
    let out = fixture.path("out");

    let rows = rows(&out);
    assert_eq!(rows.len(), 40);
    let (first, last) = (&rows[0], &rows[39]);
    assert_eq!((first["step"].as_str(), last["step"].as_str()), ("1", "40"));
    assert_eq!(first["eval_ppl"], "-");
    assert_eq!(last["lambda"], "1.0000", "a run ends ternary");
    // Dev is measured twice, at hard ternary, and the log knows the best of it.
    let measured: Vec<f64> = rows.iter().filter_map(|row| row["eval_ppl"].parse().ok()).collect();
    assert_eq!(measured.len(), 2);
    let best: f64 = last["best_ppl"].parse().unwrap();
    assert_eq!(best, measured.iter().copied().fold(f64::INFINITY, f64::min));
    let shares: f64 = ["q_neg1", "q_zero", "q_pos1"].iter().map(|q| last[*q].parse::<f64>().unwrap()).sum();
    assert!((shares - 1.0).abs() < 1e-3);
    let norms: Vec<f64> = rows.iter().map(|row| row["grad_norm"].parse().unwrap()).collect();
    assert!(norms.iter().all(|norm| norm.is_finite() && *norm > 0.0), "{norms:?}");
    let loss = |row: &fixture::Row| row["train_loss"].parse::<f64>().unwrap();
    assert!(loss(last) < loss(first), "it learns");
    let (ppl, bpb): (f64, f64) = (last["eval_ppl"].parse().unwrap(), last["eval_bpb"].parse().unwrap());
    assert!(bpb >= ppl.log2(), "a token is at most a byte here, and the end token none");

    let artifact = Artifact::read(&out.join("artifact.ternary")).unwrap();
    artifact.validate().unwrap();
    assert_eq!(artifact.provenance["seed"], "3");
    assert!(artifact.bits_per_weight() < 3.0);

    let summary = summary(&out);
    assert_eq!(summary["status"], "completed");
    assert_eq!(summary["num_steps"], 40);
    let block = String::from_utf8(output.stdout).unwrap();
    let block = &block[block.find("---\n").unwrap()..];
    for line in block.lines().skip(1) {
        assert!(line.find(':').unwrap() < 18 && line.as_bytes()[17] == b' ' && line.as_bytes()[18] != b' ', "{line}");
    }
}

#[test]
fn a_budget_of_processor_time_counts_that() {
    let fixture = Fixture::scratch();
    let file = fixture.path("campaign.toml");
    let campaign = std::fs::read_to_string(&file).unwrap();
    let processor = campaign.replace("seconds = 2.0\n", "seconds = 0.3\nclock = \"processor\"\n");
    assert_ne!(processor, campaign);
    std::fs::write(&file, processor).unwrap();
    fixture.train("out", &[]);
    let summary = summary(&fixture.path("out"));
    let seconds = |key: &str| summary[key].as_f64().unwrap();
    assert_eq!(summary["status"], "completed");
    assert!(seconds("training_seconds") >= 0.3);
    // With one thread they are the same, whatever else the machine does.
    assert!((seconds("processor_seconds") / seconds("training_seconds") - 1.0).abs() < 0.05, "{summary}");
}

#[test]
fn a_budget_of_work_counts_seconds_at_the_speed_of_the_searchs_begin() {
    let fixture = Fixture::scratch();
    let file = fixture.path("campaign.toml");
    let campaign = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, campaign.replace("seconds = 2.0\n", "seconds = 0.6\nclock = \"work\"\n")).unwrap();
    let run = |out: &str, flags: &[&str]| {
        fixture.train(out, flags);
        let summary = summary(&fixture.path(out));
        let value = |key: &str| summary[key].as_f64().unwrap();
        // With one thread, seconds of the processor in a second that counts.
        (value("processor_seconds") / value("training_seconds"), value("probe_seconds"))
    };
    let (plain, probe) = run("first", &[]);
    assert!((plain - 1.0).abs() < 0.05, "the first run is the measure: {plain}");
    // Far faster and far slower than any machine is by itself: the correction is at its limits.
    let (slow, _) = run("slow", &["--probe-seconds", &(probe / 9.0).to_string()]);
    let (fast, _) = run("fast", &["--probe-seconds", &(probe * 9.0).to_string()]);
    assert!((slow / plain / 1.3 - 1.0).abs() < 0.05, "{slow} {plain}");
    assert!((fast / plain * 1.3 - 1.0).abs() < 0.05, "{fast} {plain}");
}

#[test]
fn equal_seeds_make_equal_artifacts() {
    let fixture = Fixture::scratch();
    let bytes = |out: &str, seed: &str| {
        fixture.train(out, &["--max-steps", "12", "--seed", seed]);
        std::fs::read(fixture.path(out).join("artifact.ternary")).unwrap()
    };
    let first = bytes("a", "1");
    assert_eq!(first, bytes("b", "1"));
    assert_ne!(first, bytes("c", "2"));
}

#[test]
fn a_pretrained_model_keeps_what_the_campaign_protects() {
    let fixture = Fixture::pretrained(|i| ((i * 37 % 101) as f32 - 50.0) / 1000.0);
    fixture.train("out", &["--max-steps", "6"]);
    let artifact = Artifact::read(&fixture.path("out/artifact.ternary")).unwrap();
    assert!(artifact.dense.is_empty());
    assert!(artifact.from_base.contains(&"model.embed_tokens.weight".to_owned()));
    let base = artifact::sha256_file(&fixture.data().join("base/model.safetensors")).unwrap();
    assert_eq!(artifact.base_sha256, Some(base));
}

#[test]
fn a_signal_ends_training_with_a_valid_artifact() {
    let fixture = Fixture::scratch();
    let mut command = fixture.command("out", &["--max-steps", "1000000000"]);
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    // The first line comes when everything is ready to train.
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    assert!(child.wait().unwrap().success());
    Artifact::read(&fixture.path("out/artifact.ternary")).unwrap().validate().unwrap();
    assert_eq!(summary(&fixture.path("out"))["status"], "terminated");
}

#[test]
fn divergence_has_an_exit_code_of_its_own() {
    let fixture = Fixture::pretrained(|_| f32::NAN);
    let output = fixture.run("out", &["--max-steps", "6"]);
    assert_eq!(output.status.code(), Some(3));
    let message = String::from_utf8(output.stderr).unwrap();
    assert!(message.contains("diverged at step 1: the loss is NaN"), "{message}");
    assert!(!fixture.path("out/artifact.ternary").exists());
}

#[test]
fn training_ends_with_the_step_that_spends_the_seconds() {
    let fixture = Fixture::scratch();
    fixture.train("out", &["--max-seconds", "0.5"]);
    let times: Vec<f64> = rows(&fixture.path("out")).iter().map(|row| row["time_s"].parse().unwrap()).collect();
    let (last, before) = times.split_last().unwrap();
    // The table has milliseconds: what ended just before the half second reads 0.500.
    assert!(*last >= 0.5 && before.iter().all(|&time| time <= 0.5), "{times:?}");
}

#[test]
fn bad_input_says_what_to_do() {
    let fixture = Fixture::scratch();
    std::fs::remove_dir_all(fixture.data().join("text")).unwrap();
    let output = fixture.run("out", &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8(output.stderr).unwrap().contains("run `prepare`"));
    assert_eq!(fixture.run("out", &["--no-such-flag"]).status.code(), Some(1));
}
