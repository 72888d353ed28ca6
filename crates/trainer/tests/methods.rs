//! The recipe of the comparison compiles against the frame, trains, and hands over exactly what it trained.
#![allow(clippy::unwrap_used, reason = "a test that cannot set up fails")]

mod fixture;
#[path = "../../../experiments/methods/recipe.rs"]
mod recipe;

use std::time::Instant;

use artifact::Artifact;
use clap::Parser;
use fixture::{Fixture, rows};
use trainer::args::Args;
use trainer::frame::Run;

fn arguments(fixture: &Fixture) -> Args {
    let path = |name: &str| fixture.path(name).to_str().unwrap().to_owned();
    let fixed = ["trainer", "--threads", "1", "--device", "cpu", "--max-steps", "30"].map(str::to_owned);
    let folders = [("--campaign", "campaign.toml"), ("--data", "data"), ("--out", "out")];
    let folders = folders.iter().flat_map(|(flag, name)| [(*flag).to_owned(), path(name)]);
    Args::parse_from(fixed.into_iter().chain(folders))
}

#[test]
fn the_plain_method_learns_and_its_artifact_is_what_was_trained() {
    let fixture = Fixture::pretrained(|i| ((i * 37 % 101) as f32 - 50.0) / 1000.0);
    let mut run = Run::start(&arguments(&fixture), Instant::now()).unwrap();
    let trained = recipe::train(&mut run).unwrap();
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
    let mut run = Run::start(&arguments(&fixture), Instant::now()).unwrap();
    assert!(recipe::train(&mut run).unwrap_err().to_string().contains("a parent"));
}
