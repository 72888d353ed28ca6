//! The recipe of the comparison compiles against the frame, trains with every arm's knobs, and hands over exactly what it
//! trained.
#![allow(clippy::unwrap_used, reason = "a test that cannot set up fails")]

mod fixture;
#[path = "../../../experiments/methods/recipe.rs"]
mod recipe;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Parser;
use fixture::{Fixture, rows};
use formats::artifact::Artifact;
use recipe::{Knobs, PRETRAINED, Start};
use ternary::quantize::Scale;
use ternary::weight::Estimator;
use trainer::args::Args;
use trainer::frame::Run;

fn parent() -> Fixture {
    Fixture::pretrained(|i| ((i * 37 % 101) as f32 - 50.0) / 1000.0)
}

fn arguments(fixture: &Fixture, steps: &str) -> Args {
    let path = |name: &str| fixture.path(name).to_str().unwrap().to_owned();
    let fixed = ["trainer", "--threads", "1", "--device", "cpu", "--max-steps", steps].map(str::to_owned);
    let folders = [("--campaign", "campaign.toml"), ("--data", "data"), ("--out", "out")];
    let folders = folders.iter().flat_map(|(flag, name)| [(*flag).to_owned(), path(name)]);
    Args::parse_from(fixed.into_iter().chain(folders))
}

#[test]
fn the_plain_method_learns_and_its_artifact_is_what_was_trained() {
    let fixture = parent();
    let mut run = Run::start(&arguments(&fixture, "30"), Instant::now()).unwrap();
    // The comparison's own rate is for more steps.
    let trained = recipe::train_with(&Knobs { learning_rate: 2e-3, ..PRETRAINED }, &mut run).unwrap();
    // Refuses an artifact that is not, bit for bit, what the last forward pass multiplied with.
    run.finish(&trained).unwrap();
    let artifact = Artifact::read(&fixture.path("out/artifact.ternary")).unwrap();
    assert!(artifact.bits_per_weight() < 3.0 && artifact.base_sha256.is_some());
    let rows = rows(&fixture.path("out"));
    assert!(rows.iter().all(|row| row["lambda"] == "1.0000"), "straight through from the first step");
    let loss = |row: &fixture::Row| row["train_loss"].parse::<f64>().unwrap();
    assert!(loss(&rows[29]) < loss(&rows[0]));
}

#[test]
fn without_a_parent_there_is_nothing_to_recover() {
    let fixture = Fixture::scratch();
    let mut run = Run::start(&arguments(&fixture, "30"), Instant::now()).unwrap();
    assert!(recipe::train(&mut run).unwrap_err().to_string().contains("a parent"));
}

/// Trains with `knobs`; the rows of the log, once the artifact has been found to be what was trained.
fn trained(fixture: &Fixture, knobs: &Knobs, steps: &str) -> Vec<fixture::Row> {
    let mut run = Run::start(&arguments(fixture, steps), Instant::now()).unwrap();
    let trained = recipe::train_with(knobs, &mut run).unwrap();
    run.finish(&trained).unwrap();
    Artifact::read(&fixture.path("out/artifact.ternary")).unwrap();
    rows(&fixture.path("out"))
}

/// A knob as an arm's file has it. All that arms set are here, so that none goes untried.
fn set(knobs: &mut Knobs, name: &str, value: &toml::Value) {
    let number = || value.as_float().unwrap();
    match name {
        "muon" => knobs.muon = value.as_bool().unwrap(),
        "learning_rate" => knobs.learning_rate = number(),
        "deadzone" => knobs.deadzone = number(),
        "warmup_end" => knobs.warmup_end = number(),
        "residual_end" => knobs.residual_end = number(),
        "tequila" => knobs.tequila = number(),
        "block_until" => knobs.block_until = number(),
        "fixed_from" => knobs.fixed_from = number(),
        "distillation" => knobs.distillation = number(),
        "distillation_temperature" => knobs.distillation_temperature = number(),
        "features" => knobs.features = number(),
        "inner_features" => knobs.inner_features = number(),
        "relations" => knobs.relations = number(),
        "batch" => knobs.batch = value.as_integer().unwrap() as usize,
        "group_size" => knobs.group_size = value.as_integer().unwrap() as usize,
        "activation_bits" => knobs.activation_bits = value.as_integer().unwrap() as u32,
        "relations_heads" => knobs.relations_heads = value.as_integer().unwrap(),
        "lora_rank" => knobs.lora_rank = value.as_integer().unwrap(),
        _ => match (name, value.as_str().unwrap()) {
            ("scale", "AbsMean") => knobs.scale = Scale::AbsMean,
            ("scale", "AbsMax") => knobs.scale = Scale::AbsMax,
            ("scale", "Mse") => knobs.scale = Scale::Mse,
            ("scale", "ThreeOfFour") => knobs.scale = Scale::ThreeOfFour,
            ("estimator", "Estimator::Clipped { bound: 1.5 }") => knobs.estimator = Estimator::Clipped { bound: 1.5 },
            ("estimator", "LearnedScale") => knobs.estimator = Estimator::LearnedScale,
            ("estimator", "Stretched") => knobs.estimator = Estimator::Stretched,
            ("estimator", "EfficientQat") => knobs.estimator = Estimator::EfficientQat,
            ("estimator", "Soft") => knobs.estimator = Estimator::Soft,
            ("start", "Feedback") => knobs.start = Start::Feedback,
            ("start", "Outputs") => knobs.start = Start::Outputs,
            (name, value) => panic!("an arm sets {name} to {value}: say here what that is"),
        },
    }
}

#[test]
fn every_arm_trains_and_hands_over_what_it_trained() {
    let fixture = parent();
    let campaign = fs::read_to_string(fixture.path("campaign.toml")).unwrap();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../experiments/methods");
    let paths = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let is_arm = |path: &PathBuf| path.extension() == Some("toml".as_ref()) && !path.ends_with("campaign.toml");
    let arms: Vec<PathBuf> = paths.filter(is_arm).collect();
    assert!(arms.len() > 20, "{arms:?}");
    for path in arms {
        let arm: toml::Table = fs::read_to_string(&path).unwrap().parse().unwrap();
        if arm["recipe"].as_str() != Some("experiments/methods/recipe.rs") {
            continue;
        }
        // Keys of the model are 16 wide.
        let mut knobs = Knobs { batch: 2, window: 32, start_windows: 8, relations_heads: 8, ..PRETRAINED };
        for (name, value) in arm.get("knobs").and_then(toml::Value::as_table).into_iter().flatten() {
            set(&mut knobs, name, value);
        }
        for trains in ["train_unquantized = false", "train_unquantized = true"] {
            fs::write(fixture.path("campaign.toml"), campaign.replace("train_unquantized = false", trains)).unwrap();
            assert_eq!(trained(&fixture, &knobs, "10").len(), 10, "{} with {trains}", path.display());
        }
    }
}

#[test]
fn blocks_come_closer_to_the_parents_one_after_the_other() {
    let fixture = parent();
    let knobs = Knobs { estimator: Estimator::EfficientQat, block_until: 0.75, fixed_from: 0.75, ..PRETRAINED };
    let rows = trained(&fixture, &knobs, "40");
    let losses: Vec<f64> = rows.iter().map(|row| row["train_loss"].parse().unwrap()).collect();
    // Of 30 steps each of the two blocks has 15; the last ten are end to end, a cross entropy.
    assert!(losses[14] < 0.9 * losses[0] && losses[29] < 0.9 * losses[15] && losses[15] < 1.0, "{losses:?}");
    assert!(losses[30..].iter().all(|&loss| loss > 2.0), "{losses:?}");
}
