//! The loop under kills: the real orchestrator on a real repository, with shell scripts for cargo, trainer, evaluator
//! and prepare, so that hundreds of starts take seconds. What those do in earnest is tested elsewhere.

#![allow(clippy::unwrap_used, reason = "the whole file is tests")]

#[allow(dead_code, reason = "other tests use the rest")]
mod stand_ins;

use std::fs;
use std::process::Stdio;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use orchestrator::failpoints;
use rustix::process::{Pid, Signal, kill_process};
use stand_ins::{Outcome, RECIPE, Repository, is_gone, wait_for};

/// Rows of a search that is killed.
const EXPERIMENTS: u64 = 7;
const RUN: [&str; 6] = ["run", "nano", "--tag", "t", "--experiments", "7"];

/// The search without a kill. It has a candidate that is kept, and one that is run again.
fn reference() -> Outcome {
    let reference = Repository::new();
    reference.run(&RUN);
    reference.check(EXPERIMENTS);
    let outcome = reference.outcome();
    let document = reference.json(&["results", "--json"]);
    let rows = document["experiments"].as_array().unwrap();
    assert!(rows[1..].iter().any(|row| row["status"] == "keep"), "{outcome:#?}");
    assert!(rows.iter().any(|row| row["comparison"]["runs"].as_u64() > Some(1)), "{outcome:#?}");
    outcome
}

#[test]
fn killed_at_every_named_point_it_ends_like_a_search_that_is_not() {
    let reference = reference();
    let next = AtomicUsize::new(0);
    // Each point at its first passing, and at a later one, when there is a past to lose.
    let cases: Vec<(&str, u64)> = failpoints::POINTS.iter().flat_map(|&point| [(point, 1), (point, 3)]).collect();
    let work = || {
        let mut held = Vec::new();
        while let Some(&(point, nth)) = cases.get(next.fetch_add(1, Ordering::SeqCst)) {
            let repository = Repository::new();
            let file = repository.dir.path().join("held");
            let hold = format!("{point}:{nth}:{}", file.display());
            let mut child = repository.start(&RUN, &[(failpoints::VARIABLE, &hold)]);
            let mut ended = None;
            wait_for(point, || {
                ended = child.try_wait().unwrap();
                ended.is_some() || file.exists()
            });
            if ended.is_none() {
                child.kill().unwrap();
                child.wait().unwrap();
                repository.wait_for_silence();
                held.push((point, nth));
                repository.run(&RUN);
            }
            assert_eq!(repository.outcome(), reference, "{point}, {nth}");
            repository.check(EXPERIMENTS);
        }
        held
    };
    let held: Vec<_> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..2).map(|_| scope.spawn(work)).collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
    });
    for point in failpoints::POINTS {
        assert!(held.contains(&(point, 1)), "{point} is never passed");
    }
    assert!(held.len() >= failpoints::POINTS.len() + 15, "{held:?}");
}

/// `cargo test --release -p orchestrator --test killed -- --ignored --nocapture`
#[test]
#[ignore = "takes minutes: a command of its own"]
fn five_hundred_kills_at_random_times() {
    const KILLS: u64 = 500;
    let mut random = Random(1);
    let (mut kills, mut searches) = (0, 0);
    let reference = reference();
    while kills < KILLS {
        let repository = Repository::new();
        searches += 1;
        loop {
            let mut child = repository.start(&RUN, &[]);
            // From before its first act to several experiments later.
            std::thread::sleep(Duration::from_micros(random.below(400_000)));
            if let Some(status) = child.try_wait().unwrap() {
                assert!(status.success(), "{status}: {}", fs::read_to_string(repository.log()).unwrap());
                break;
            }
            child.kill().unwrap();
            child.wait().unwrap();
            kills += 1;
            repository.wait_for_silence();
        }
        assert_eq!(repository.outcome(), reference, "after {kills} kills");
        repository.check(EXPERIMENTS);
    }
    println!("{kills} kills in {searches} searches of {EXPERIMENTS} experiments: each ended as without them");
}

/// xorshift64*.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) % n
    }
}

#[test]
fn ctrl_c_stops_gently_and_the_experiment_is_done_again_under_its_number() {
    let repository = Repository::new();
    let hangs = repository.dir.path().join("trainer-hangs");
    let arguments = ["run", "nano", "--tag", "t", "--experiments", "2"];
    let mut child = repository.command(&arguments).env("TRAINER_HANGS", &hangs).stdout(Stdio::null()).spawn().unwrap();
    wait_for("the trainer", || hangs.exists());
    let status = repository.json(&["status", "--json"]);
    assert_eq!(status["running"], true);
    assert_eq!((&status["in_flight"]["experiment"], &status["in_flight"]["stage"]), (&1.into(), &"training".into()));
    let second = repository.output(&arguments);
    assert_eq!(second.status.code(), Some(5), "{}", String::from_utf8_lossy(&second.stderr));

    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert!(is_gone(&hangs));
    let status = repository.json(&["status", "--json"]);
    assert_eq!((&status["running"], &status["stopped"]), (&false.into(), &"interrupted".into()));
    assert_eq!(status["experiments"], 0);

    assert!(repository.output(&arguments).status.success());
    repository.check(2);
    let journal = fs::read_to_string(repository.run_folder().join("journal.jsonl")).unwrap();
    assert_eq!(journal.matches("\"proposed\"").count(), 2, "the same candidate was taken up again");
    let reported = repository.json(&["results", "--json"])["report"].as_array().unwrap().len();
    assert!(reported >= 1, "final figures of baseline and best");
}

#[test]
fn what_a_search_is_pinned_to_must_not_change() {
    let repository = Repository::new();
    let recipe = repository.root().join("crates/trainer/src/train.rs");
    fs::write(&recipe, format!("// mine\n{RECIPE}")).unwrap();
    let arguments = |n| ["run", "nano", "--tag", "t", "--experiments", n];
    let refused = repository.output(&arguments("1"));
    assert_eq!(refused.status.code(), Some(4));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("crates/trainer/src/train.rs"));
    fs::write(&recipe, RECIPE).unwrap();
    assert!(repository.output(&arguments("1")).status.success());

    // A search that has begun does not look at the user's checkout any more.
    fs::write(&recipe, format!("// mine\n{RECIPE}")).unwrap();
    assert!(repository.output(&arguments("2")).status.success());

    let evaluator = repository.run_folder().join("bin/evaluator");
    let pinned = fs::read(&evaluator).unwrap();
    fs::write(&evaluator, [&pinned[..], b"# lower\n"].concat()).unwrap();
    let refused = repository.output(&arguments("3"));
    assert_eq!(refused.status.code(), Some(4));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("the evaluator"));
    fs::write(&evaluator, &pinned).unwrap();

    let campaign = repository.root().join("experiments/nano/campaign.toml");
    let text = fs::read_to_string(&campaign).unwrap();
    fs::write(&campaign, format!("{text}\n# longer\n")).unwrap();
    assert_eq!(repository.output(&arguments("3")).status.code(), Some(7));
    fs::write(&campaign, text).unwrap();
    assert!(repository.output(&arguments("3")).status.success());
    assert_eq!(repository.outcome().len(), 3);
}
