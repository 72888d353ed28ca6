//! A repository whose cargo, trainer, evaluator and prepare are shell scripts, for the real orchestrator to work on.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

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
rate=$(sed -n 's/.*learning_rate: \([^,]*\),.*/\1/p' crates/trainer/src/train.rs)
for program in trainer evaluator prepare; do
    sed "s/RATE/$rate/" "$STAND_INS/$program" > "$target/$program.new"
    chmod +x "$target/$program.new"
    mv "$target/$program.new" "$target/$program"
done
"#;

const TRAINER: &str = r#"#!/bin/sh
while [ $# -gt 0 ]; do
    case $1 in --out) out=$2 ;; esac
    shift
done
if [ -n "$TRAINER_HANGS" ]; then
    echo $$ > "$TRAINER_HANGS.new"
    mv "$TRAINER_HANGS.new" "$TRAINER_HANGS"
    while :; do sleep 0.05; done
fi
echo RATE > "$out/artifact.ternary"
echo '{"status":"completed","training_seconds":1.5,"num_steps":10,"tokens":1000}' > "$out/summary.json"
"#;

/// The best learning rate is 0.01.
const EVALUATOR: &str = r#"#!/bin/sh
while [ $# -gt 0 ]; do
    case $1 in --out) out=$2 ;; --artifact) artifact=$2 ;; esac
    shift
done
awk '{ d = log($1 / 0.01); l = 3 + d * d
    printf "{\"eval_loss\":%.9f,\"eval_ppl\":%.9f,\"eval_bpb\":1.5,\"tokens\":100,", l, exp(l)
    printf "\"bits_per_weight\":1.7,\"q_neg1\":0.3,\"q_zero\":0.4,\"q_pos1\":0.3,\"seconds\":0.1}" }' "$artifact" > "$out"
"#;

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
        // The scripts are no candidates.
        let campaign = fs::read_to_string(campaign).unwrap().replace("sandbox = \"on\"", "sandbox = \"off\"");
        for (file, text) in [
            ("clone/Cargo.toml", "[workspace]\n"),
            ("clone/.gitignore", "/target\n/experiments/*/data\n/experiments/*/runs\n"),
            ("clone/crates/trainer/src/train.rs", RECIPE),
            ("clone/experiments/nano/campaign.toml", &campaign),
            ("stand-ins/cargo", CARGO),
            ("stand-ins/trainer", TRAINER),
            ("stand-ins/evaluator", EVALUATOR),
            ("stand-ins/prepare", PREPARE),
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
            .env("CARGO", stand_ins.join("cargo"))
            .env("STAND_INS", stand_ins)
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
