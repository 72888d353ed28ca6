//! The whole system on a model of a few thousand parameters: a checkout is made, `cargo run -- run` is called in it as a
//! user would, and what it leaves behind is looked at. Real git, real builds, real training, the real evaluator.
#![allow(clippy::unwrap_used, reason = "a test that cannot set up fails")]

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

#[cfg(target_os = "linux")]
mod hostile;

const CAMPAIGN: &str = r#"
description = "the loop's own test"

[model]
train_tokenizer = 320

[model.scratch]
architecture = "qwen3"
vocab_size = 320
hidden_size = 32
intermediate_size = 64
num_hidden_layers = 1
num_attention_heads = 2
num_key_value_heads = 1
head_dim = 16
rope_theta = 10000.0
rms_norm_eps = 1e-6
tie_word_embeddings = true
max_position_embeddings = 256

[data]
decontaminate = false

[[data.text]]
format = { separator = "\n" }
parts = { train = 0.7, dev = 0.1, select = 0.1, report = 0.1 }
source = { from = "file:experiments/tiny/text.txt", sha256 = "any" }

[budget]
tokens = 60000
hard_limit_seconds = 45.0
grace_seconds = 2.0
memory_gb = 3.0
disk_gb = 0.5

[evaluation]
window = 64
dev_tokens = 512
dev_evals = 2

[constraints]
max_bits_per_weight = 3.65
groupings = [8, 16, 32]
train_unquantized = true

[noise]
replicates = 2
fresh_runs = 1
max_runs = 2
"#;

/// Sentences that a model can learn something about.
fn text() -> String {
    let (who, does, what) = (
        ["the cat", "a dog", "one bird", "my friend", "the old man", "a child"],
        ["sees", "likes", "finds", "follows", "draws"],
        ["a house", "the river", "some bread", "a red ball", "the moon", "an apple", "the road"],
    );
    let mut text = String::new();
    let mut state = 1u64;
    let mut pick = |n: usize| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) as usize % n
    };
    for document in 0..500 {
        let _ = write!(text, "story {document}:");
        for _ in 0..12 {
            let _ = write!(text, " {} {} {}.", who[pick(6)], does[pick(5)], what[pick(7)]);
        }
        text.push('\n');
    }
    text
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap().to_owned()
}

struct Checkout {
    folder: tempfile::TempDir,
}

impl Checkout {
    /// A new repository with the files of this one, the tiny campaign, and a recipe whose groups fit the tiny model.
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let checkout = Self { folder };
        let from = repository();
        let listed = Command::new("git")
            .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
            .current_dir(&from)
            .output()
            .unwrap();
        assert!(listed.status.success());
        for name in String::from_utf8(listed.stdout).unwrap().split_terminator('\0') {
            if name == "results.tsv" || !from.join(name).is_file() {
                continue;
            }
            let to = checkout.path(name);
            fs::create_dir_all(to.parent().unwrap()).unwrap();
            fs::copy(from.join(name), to).unwrap();
        }
        fs::create_dir_all(checkout.path("experiments/tiny")).unwrap();
        fs::write(checkout.path("experiments/tiny/campaign.toml"), CAMPAIGN).unwrap();
        fs::write(checkout.path("experiments/tiny/text.txt"), text()).unwrap();
        let recipe = checkout.path("crates/trainer/src/train.rs");
        let source = fs::read_to_string(&recipe).unwrap();
        let mut lines = Vec::new();
        for line in source.lines() {
            let knob = line.trim_start().split_once(':').filter(|_| line.contains("// search:"));
            lines.push(match knob {
                Some(("group_size", _)) => "    group_size: 16, // search: 16 | 32",
                Some(("window", _)) => "    window: 64, // search: 32 | 64",
                _ => line,
            });
        }
        fs::write(&recipe, lines.join("\n") + "\n").unwrap();
        // Another version, so that what is compiled here is never taken for this repository's: both build in one folder.
        for file in ["Cargo.toml", "Cargo.lock"] {
            let text = fs::read_to_string(checkout.path(file)).unwrap();
            fs::write(checkout.path(file), text.replace("version = \"0.1.0\"", "version = \"0.1.0-loop\"")).unwrap();
        }
        for args in [
            &["init", "-q", "-b", "main"][..],
            &["add", "-A"],
            &["-c", "user.name=t", "-c", "user.email=t@localhost", "commit", "-q", "-m", "start"],
        ] {
            assert!(checkout.git(args).1, "git {args:?}");
        }
        checkout
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn git(&self, args: &[&str]) -> (String, bool) {
        let output = Command::new("git").args(args).current_dir(self.folder.path()).output().unwrap();
        (String::from_utf8_lossy(&output.stdout).trim().to_owned(), output.status.success())
    }

    /// `cargo run --release -- ARGS`, as in the README; compiled dependencies come from this repository's target.
    fn orchestrator(&self, args: &[&str]) -> String {
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["run", "--release", "--locked", "--quiet", "--"]).args(args);
        self.succeed(&mut cargo, args)
    }

    /// The same without asking cargo whether it is up to date.
    fn built_orchestrator(&self, args: &[&str]) -> String {
        self.succeed(Command::new(self.path("target/release/orchestrator")).args(args), args)
    }

    fn succeed(&self, command: &mut Command, args: &[&str]) -> String {
        let output = command
            .current_dir(self.folder.path())
            .env("CARGO_BUILD_BUILD_DIR", repository().join("target"))
            .env("CARGO_TARGET_DIR", self.path("target"))
            .env("SECRET_TOKEN", "nobody's business")
            .output()
            .unwrap();
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "orchestrator {args:?}\n{out}\n{err}");
        out.into_owned()
    }

    /// results.tsv: the header and the rows.
    fn results(&self) -> (Vec<String>, Vec<Vec<String>>) {
        let text = fs::read_to_string(self.path("results.tsv")).unwrap();
        let mut lines = text.lines().map(|line| line.split('\t').map(str::to_owned).collect::<Vec<_>>());
        (lines.next().unwrap(), lines.collect())
    }
}

#[test]
fn a_search_runs_goes_on_and_survives_hostile_recipes() {
    let checkout = Checkout::new();
    a_search_runs_stops_and_goes_on(&checkout);
    #[cfg(target_os = "linux")]
    {
        hostile::recipes_are_survived(&checkout);
        hostile::no_clock_is_outrun(&checkout, CAMPAIGN);
    }
}

fn a_search_runs_stops_and_goes_on(checkout: &Checkout) {
    let build = repository().join("target").display().to_string();
    let run = ["run", "tiny", "--tag", "t", "--threads", "1", "--build-dir", &build, "--experiments"];
    checkout.orchestrator(&[&run[..], &["3"]].concat());

    let (header, rows) = checkout.results();
    assert_eq!(header[..5], ["commit", "eval_ppl", "memory_gb", "status", "description"]);
    let column = |name: &str| header.iter().position(|h| h == name).unwrap();
    let (status, ppl, experiment) = (column("status"), column("eval_ppl"), column("experiment"));
    assert_eq!(rows.iter().map(|row| row[experiment].as_str()).collect::<Vec<_>>(), ["1", "2", "3"]);
    assert!(rows.iter().all(|row| row.len() == header.len()));
    assert_eq!(rows[0][status], "keep", "the baseline is always kept");
    let perplexity = |row: &Vec<String>| row[ppl].parse::<f64>().unwrap();
    assert!(
        perplexity(&rows[0]) > 1.0 && perplexity(&rows[0]) < 60.0,
        "{} of 320 tokens: it learnt, and was measured on text it did not see",
        rows[0][ppl]
    );

    // The branch is at the last kept commit, and every candidate stays reachable and changes one file.
    let kept: Vec<&Vec<String>> = rows.iter().filter(|row| row[status] == "keep").collect();
    let (tip, found) = checkout.git(&["rev-parse", "refs/heads/autoresearch/t"]);
    assert!(found && tip.starts_with(&kept[kept.len() - 1][0]));
    for number in 2..=3 {
        let name = format!("refs/autoresearch/t/{number}");
        let (changed, found) = checkout.git(&["diff", "--name-only", &format!("{name}~"), &name]);
        assert!(found, "{name}");
        assert_eq!(changed, "crates/trainer/src/train.rs");
    }
    // The user's checkout has one new file.
    assert_eq!(checkout.git(&["status", "--porcelain"]).0, "?? results.tsv");
    assert_eq!(checkout.git(&["symbolic-ref", "HEAD"]).0, "refs/heads/main");

    // Final figures come from the report part.
    let status_json: serde_json::Value =
        serde_json::from_str(&checkout.orchestrator(&["status", "--tag", "t", "--json"])).unwrap();
    assert_eq!(status_json["experiments"], 3);
    assert_eq!(status_json["running"], false);
    assert_eq!(status_json["baseline_report"]["part"], "report");
    assert!(status_json["noise"]["sd"].as_f64().unwrap() > 0.0, "two seeds give two losses: {}", status_json["noise"]);
    assert!(status_json["noise"]["freedom"].as_u64().unwrap() >= 2);

    // Started again it goes on: the rows so far stay as they are. No recipe is tried twice.
    checkout.orchestrator(&[&run[..], &["4"]].concat());
    let (_, more) = checkout.results();
    assert_eq!(more.len(), 4);
    assert_eq!(more[..3], rows[..]);
    let mut recipes: Vec<String> = (1..=4)
        .map(|n| checkout.git(&["rev-parse", &format!("refs/autoresearch/t/{n}:crates/trainer/src/train.rs")]).0)
        .collect();
    recipes.sort();
    recipes.dedup();
    assert_eq!(recipes.len(), 4);
}
