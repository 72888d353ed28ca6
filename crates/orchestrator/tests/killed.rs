//! The loop under kills: the real orchestrator on a real repository, with shell scripts for cargo, trainer, evaluator
//! and prepare, so that hundreds of starts take seconds. What those do in earnest is tested elsewhere.

#![allow(clippy::unwrap_used, reason = "the whole file is tests")]

mod stand_ins;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use stand_ins::{RECIPE, Repository};

/// What only these tests ask.
trait Killed {
    fn start(&self, arguments: &[&str]) -> Child;
    fn log(&self) -> PathBuf;
    fn journal_lines(&self) -> usize;
    fn outcome(&self) -> Vec<(u64, String, String, String)>;
    fn check(&self, experiments: u64);
}

impl Killed for Repository {
    fn start(&self, arguments: &[&str]) -> Child {
        let log = fs::File::create(self.log()).unwrap();
        self.command(arguments).stdout(Stdio::null()).stderr(log).spawn().unwrap()
    }

    /// What the last that was started said on stderr.
    fn log(&self) -> PathBuf {
        self.dir.path().join("stderr")
    }

    fn journal_lines(&self) -> usize {
        let bytes = fs::read(self.run_folder().join("journal.jsonl")).unwrap_or_default();
        bytes.iter().filter(|&&b| b == b'\n').count()
    }

    /// What must not depend on how often the search was killed.
    fn outcome(&self) -> Vec<(u64, String, String, String)> {
        let document = self.json(&["results", "--json"]);
        let rows = document["experiments"].as_array().unwrap();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        rows.iter()
            .map(|row| {
                let loss = row["evaluation"]["eval_loss"].to_string();
                (row["experiment"].as_u64().unwrap(), text(&row["status"]), text(&row["description"]), loss)
            })
            .collect()
    }

    /// What must hold of every search that is over.
    fn check(&self, experiments: u64) {
        let rows = self.outcome();
        assert_eq!(rows.iter().map(|row| row.0).collect::<Vec<_>>(), (1..=experiments).collect::<Vec<_>>());
        let document = self.json(&["results", "--json"]);
        let rows = document["experiments"].as_array().unwrap();
        let kept: Vec<&Value> = rows.iter().filter(|row| row["status"] == "keep").collect();
        let best = kept.last().unwrap();
        assert_eq!(self.git(&["rev-parse", "refs/heads/autoresearch/t"]), best["commit"].as_str().unwrap());
        for row in rows {
            let number = row["experiment"].as_u64().unwrap();
            let recorded = self.git(&["rev-parse", &format!("refs/autoresearch/t/{number}")]);
            assert_eq!(recorded, row["commit"].as_str().unwrap());
            let artifact = self.run_folder().join(format!("experiments/{number:04}/out/artifact.ternary"));
            assert_eq!(artifact.exists(), row["status"] == "keep", "{number}");
        }
        let table = fs::read_to_string(self.root().join("results.tsv")).unwrap();
        assert_eq!(table.lines().count() as u64, experiments + 1);
        assert_eq!(self.git(&["status", "--porcelain"]), "?? results.tsv");
        assert_eq!(self.git(&["symbolic-ref", "HEAD"]), "refs/heads/main");
        self.git(&["fsck", "--strict"]);
    }
}

fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(60);
    while !condition() {
        assert!(Instant::now() < until, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_search_that_is_killed_again_and_again_ends_like_one_that_is_not() {
    let arguments = ["run", "nano", "--tag", "t", "--experiments", "6"];
    let reference = Repository::new();
    let out = reference.output(&arguments);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    reference.check(6);

    let killed = Repository::new();
    let mut kills = 0;
    loop {
        // Killed after one to nine more records, so at every kind of them.
        let goal = killed.journal_lines() + 1 + kills * 7 % 9;
        let mut child = killed.start(&arguments);
        let mut ended = None;
        wait_for("the journal to grow", || {
            ended = child.try_wait().unwrap();
            ended.is_some() || killed.journal_lines() >= goal
        });
        if let Some(status) = ended {
            assert!(status.success(), "{status}: {}", fs::read_to_string(killed.log()).unwrap());
            break;
        }
        child.kill().unwrap();
        child.wait().unwrap();
        kills += 1;
    }
    assert!(kills > 5, "{kills}");
    assert_eq!(killed.outcome(), reference.outcome());
    killed.check(6);
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
    let trainer = fs::read_to_string(&hangs).unwrap();
    assert!(!Path::new("/proc").join(trainer.trim()).exists());
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
