//! The orchestrator's own work between two experiments: a search whose cargo, trainer and evaluator are scripts that do
//! next to nothing. What those take is included, so the figures are upper bounds.

#![allow(clippy::unwrap_used, reason = "a benchmark that cannot run has nothing to say")]

#[allow(dead_code, reason = "the tests use more of it")]
#[path = "../tests/stand_ins/mod.rs"]
mod stand_ins;

use std::process::Stdio;
use std::time::Instant;

use stand_ins::Repository;
use wait4::Wait4;

/// Experiments that are timed, after the baseline.
const EXPERIMENTS: u64 = 40;

fn main() {
    let repository = Repository::new();
    let run = |experiments: u64| {
        let arguments = ["run", "nano", "--tag", "t", "--experiments", &experiments.to_string()];
        let mut command = repository.command(&arguments);
        let start = Instant::now();
        let done = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap().wait4().unwrap();
        assert!(done.status.success(), "the search failed");
        (start.elapsed().as_secs_f64(), done.rusage.maxrss)
    };
    let (start, _) = run(1);
    let (all, peak) = run(1 + EXPERIMENTS);
    println!("a new search's start and baseline: {:.0} ms", start * 1e3);
    println!("own work an experiment: {:.0} ms (aim: under 1000)", all * 1e3 / EXPERIMENTS as f64);
    println!("peak resident memory: {:.0} MB (aim: under 60)", peak as f64 / 1e6);
}
