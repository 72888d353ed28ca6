//! A repository whose cargo, trainer, evaluator and prepare are shell scripts, for the real orchestrator to work on.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// The recipe that every clone starts with.
pub const RECIPE: &str = "\
const SCRATCH: Knobs = Knobs {
    learning_rate: 4e-3, // search: log 5e-4..2e-2
};
";

/// Builds shell programs: the recipe's learning rate goes into the trainer, as a compiler would put it there.
const CARGO: &str = r#"#!/bin/sh
target=${CARGO_TARGET_DIR:-target}/release
mkdir -p "$target"
if grep -q BROKEN crates/trainer/src/train.rs; then
    echo 'error[E0425]: cannot find value `BROKEN` in this scope'
    exit 101
fi
rate=$(sed -n 's/.*learning_rate: \([^,]*\),.*/\1/p' crates/trainer/src/train.rs)
for program in trainer evaluator prepare; do
    sed "s/RATE/$rate/" "${0%/*}/$program" > "$target/$program.new"
    # Another recipe is another program.
    [ $program = evaluator ] || echo ": $(cksum < crates/trainer/src/train.rs)" >> "$target/$program.new"
    chmod +x "$target/$program.new"
    mv "$target/$program.new" "$target/$program"
done
"#;

const TRAINER: &str = r#"#!/bin/sh
while [ $# -gt 0 ]; do
    case $1 in --out) out=$2 ;; --seed) seed=$2 ;; esac
    shift
done
if [ -n "$TRAINER_HANGS" ]; then
    echo $$ > "$TRAINER_HANGS.new"
    mv "$TRAINER_HANGS.new" "$TRAINER_HANGS"
    while :; do sleep 0.05; done
fi
case RATE in 6.66*)
    echo "thread 'main' panicked at src/train.rs: no such shape"
    exit 101
esac
echo RATE "$seed" > "$out/artifact.ternary"
echo '{"status":"completed","training_seconds":1.5,"processor_seconds":0,"num_steps":10,"tokens":1000}' > "$out/summary.json"
"#;

/// The best learning rate is 0.01; a seed shifts the loss by up to 0.2.
const EVALUATOR: &str = r#"#!/bin/sh
while [ $# -gt 0 ]; do
    case $1 in --out) out=$2 ;; --artifact) artifact=$2 ;; --part) part=$2 ;; esac
    shift
done
awk -v part="$part" '{ d = log($1 / 0.01); l = 3 + d * d + 0.2 * sin(100 * $2 + 1000 * $1)
    printf "{\"part\":\"%s\",\"eval_loss\":%.9f,\"eval_ppl\":%.9f,", part, l, exp(l)
    printf "\"eval_bpb\":1.5,\"tokens\":100,"
    printf "\"window_losses\":[%.6f,%.6f,%.6f],", l - 0.5, l, l + 0.5
    printf "\"bits_per_weight\":1.7,\"q_neg1\":0.3,\"q_zero\":0.4,\"q_pos1\":0.3,\"seconds\":0.1}" }' "$artifact" > "$out"
"#;

/// The scripts are no candidates. And few runs, so that every kind of them comes up in a few experiments.
const SETTINGS: [(&str, &str); 6] = [
    ("sandbox = \"on\"", "sandbox = \"off\""),
    ("replicates = 3", "replicates = 2"),
    ("fresh_runs = 2", "fresh_runs = 1"),
    ("max_runs = 8", "max_runs = 3"),
    ("level = 0.03", "level = 0.4"),
    ("borderline = 0.15", "borderline = 0.49"),
];

const PREPARE: &str = r#"#!/bin/sh
while [ $# -gt 0 ]; do
    case $1 in --data) data=$2 ;; esac
    shift
done
mkdir -p "$data"
echo '{}' > "$data/prepared.json"
"#;

/// The repository in a folder of its own.
pub struct Repository {
    pub dir: tempfile::TempDir,
}

impl Repository {
    /// A fresh one, committed.
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let this = Self { dir };
        let campaign = concat!(env!("CARGO_MANIFEST_DIR"), "/../../experiments/nano/campaign.toml");
        let campaign = fs::read_to_string(campaign).unwrap();
        let campaign = SETTINGS.iter().fold(campaign, |text, (line, instead)| {
            assert!(text.contains(line), "{line}");
            text.replace(line, instead)
        });
        for (file, text) in [
            ("clone/Cargo.toml", "[workspace]\n"),
            ("clone/.gitignore", "/target\n/experiments/*/data\n/experiments/*/runs\n"),
            ("clone/crates/trainer/src/train.rs", RECIPE),
            ("clone/experiments/nano/campaign.toml", &campaign),
            ("stand-ins/bin/cargo", CARGO),
            ("stand-ins/bin/trainer", TRAINER),
            ("stand-ins/bin/evaluator", EVALUATOR),
            ("stand-ins/bin/prepare", PREPARE),
            ("libtorch/lib/none", ""),
        ] {
            let path = this.dir.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        this.git(&["init", "-q", "-b", "main"]);
        this.git(&["add", "."]);
        this.git(&["commit", "-q", "-m", "start"]);
        this
    }

    /// The clone.
    pub fn root(&self) -> PathBuf {
        self.dir.path().join("clone")
    }

    /// The folder of search `t`.
    pub fn run_folder(&self) -> PathBuf {
        self.root().join("experiments/nano/runs/t")
    }

    /// What git prints.
    pub fn git(&self, arguments: &[&str]) -> String {
        let out = Command::new("git")
            .args(["-c", "user.name=t", "-c", "user.email=t@localhost"])
            .args(arguments)
            .current_dir(self.root())
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .output()
            .unwrap();
        assert!(out.status.success(), "git {arguments:?}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap().trim().to_owned()
    }

    /// The orchestrator in the clone.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let stand_ins = self.dir.path().join("stand-ins");
        let mut command = Command::new(env!("CARGO_BIN_EXE_orchestrator"));
        command
            .args(arguments)
            .current_dir(self.root())
            .env("CARGO", stand_ins.join("bin/cargo"))
            // A build in the sandbox may read it.
            .env("CARGO_HOME", stand_ins)
            .env("CARGO_TARGET_DIR", self.root().join("target"))
            .env("LIBTORCH", self.dir.path().join("libtorch"))
            .env_remove("CARGO_BUILD_BUILD_DIR")
            .stdin(Stdio::null());
        command
    }

    /// What it did.
    pub fn output(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// What it printed as JSON.
    pub fn json(&self, arguments: &[&str]) -> Value {
        let out = self.output(arguments);
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        serde_json::from_slice(&out.stdout).unwrap()
    }
}

/// What must not depend on what happened meanwhile: number, status, description, loss, and the figures of the verdict.
pub type Outcome = Vec<(u64, String, String, String, String)>;

impl Repository {
    /// The orchestrator in the background.
    pub fn start(&self, arguments: &[&str], environment: &[(&str, &str)]) -> Child {
        let log = fs::File::create(self.log()).unwrap();
        let mut command = self.command(arguments);
        command.envs(environment.iter().copied()).stdout(Stdio::null()).stderr(log).spawn().unwrap()
    }

    /// Runs it to a good end.
    pub fn run(&self, arguments: &[&str]) {
        let out = self.output(arguments);
        assert!(out.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&out.stderr));
    }

    /// What the last that was started said on stderr.
    pub fn log(&self) -> PathBuf {
        self.dir.path().join("stderr")
    }

    /// Whole lines of the journal.
    pub fn journal_lines(&self) -> usize {
        let bytes = fs::read(self.run_folder().join("journal.jsonl")).unwrap_or_default();
        bytes.iter().filter(|&&b| b == b'\n').count()
    }

    /// What came of the search.
    pub fn outcome(&self) -> Outcome {
        let document = self.json(&["results", "--json"]);
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let rows = document["experiments"].as_array().unwrap().iter();
        rows.map(|row| {
            let loss = row["evaluation"]["eval_loss"].to_string();
            let number = row["experiment"].as_u64().unwrap();
            (number, text(&row["status"]), text(&row["description"]), loss, row["comparison"].to_string())
        })
        .collect()
    }

    /// What must hold of every search that is over.
    pub fn check(&self, experiments: u64) {
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
            let folder = self.run_folder().join(format!("experiments/{number:04}"));
            assert_eq!(folder.join("out/artifact.ternary").exists(), row["status"] == "keep", "{number}");
            assert_eq!(folder.join("trainer").exists(), row == *best, "{number}");
        }
        let table = fs::read_to_string(self.root().join("results.tsv")).unwrap();
        let numbers: Vec<u64> =
            table.lines().skip(1).map(|line| line.split('\t').nth(5).unwrap().parse().unwrap()).collect();
        assert_eq!(numbers, (1..=experiments).collect::<Vec<_>>());
        assert_eq!(self.git(&["status", "--porcelain"]), "?? results.tsv");
        assert_eq!(self.git(&["symbolic-ref", "HEAD"]), "refs/heads/main");
        self.git(&["fsck", "--strict"]);
    }

    /// Waits until no process works in this repository's folder any more.
    pub fn wait_for_silence(&self) {
        let folder = self.dir.path();
        let here = |link: &str, entry: &fs::DirEntry| {
            fs::read_link(entry.path().join(link)).is_ok_and(|path| path.starts_with(folder))
        };
        wait_for("what was left running", || {
            let mut processes = fs::read_dir("/proc").unwrap().flatten();
            !processes.any(|entry| here("cwd", &entry) || here("exe", &entry))
        });
    }
}

/// Waits for what happens soon.
pub fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(120);
    while !condition() {
        assert!(Instant::now() < until, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Whether a process that wrote its number into a file is gone.
pub fn is_gone(file: &Path) -> bool {
    let pid = fs::read_to_string(file).unwrap();
    !Path::new("/proc").join(pid.trim()).exists()
}
