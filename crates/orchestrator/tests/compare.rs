//! Comparisons of arms: the real orchestrator with shell scripts for the programs. The figures of the table are computed
//! here once more, from what the scripts are told to measure.

#![allow(clippy::unwrap_used, reason = "the whole file is tests")]

#[allow(dead_code, reason = "other tests use the rest")]
mod stand_ins;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use stand_ins::{Repository, wait_for};

const RECIPE: &str = "\
const PRETRAINED: Knobs = Knobs {
    learning_rate: 4e-3,
    scale: Scale::Twn,
};
";

/// As the stand-ins' own, but it notes its runs.
const TRAINER: &str = r#"#!/bin/sh
while [ $# -gt 0 ]; do
    case $1 in --out) out=$2 ;; --seed) seed=$2 ;; --max-steps) steps=$2 ;; esac
    shift
done
if [ -n "$TRAINER_HANGS" ]; then
    echo $$ > "$TRAINER_HANGS.new"
    mv "$TRAINER_HANGS.new" "$TRAINER_HANGS"
    while :; do sleep 0.05; done
fi
echo "RATE $seed" >> CALLS
case RATE in 6.66*)
    echo "thread 'main' panicked at src/train.rs: no such shape"
    exit 101
esac
echo RATE "$seed" > "$out/artifact.ternary"
echo '{"status":"completed","training_seconds":1.5,"num_steps":'${steps:-10}',"tokens":1000}' > "$out/summary.json"
"#;

/// Of the parent 2.5 nats; the best learning rate is 0.01, and a seed shifts the loss. `report` is harder.
const EVALUATOR: &str = r#"#!/bin/sh
while [ $# -gt 0 ]; do
    case $1 in --out) out=$2 ;; --artifact) artifact=$2 ;; --part) part=$2 ;; esac
    shift
done
if [ -n "$artifact" ]; then read -r rate seed < "$artifact"; else rate=base; seed=0; fi
awk -v rate="$rate" -v seed="$seed" -v part="$part" 'BEGIN {
    d = log(rate / 0.01); l = rate == "base" ? 2.5 : 3 + d * d + 0.2 * sin(100 * seed + 1000 * rate)
    if (part == "report") l += 0.1
    printf "{\"part\":\"%s\",\"eval_loss\":%.9f,\"eval_ppl\":%.9f,\"eval_bpb\":1.5,\"tokens\":100,", part, l, exp(l)
    printf "\"bits_per_weight\":1.7,\"q_neg1\":0.3,\"q_zero\":0.4,\"q_pos1\":0.3,\"seconds\":0.1}" }' > "$out"
"#;

const CAMPAIGN: &str = "experiments/nano/campaign.toml";

/// A repository with these arms: name and knobs.
fn repository(arms: &[(&str, &str)]) -> Repository {
    let repository = Repository::new();
    let root = repository.root();
    let campaign = fs::read_to_string(root.join(CAMPAIGN)).unwrap();
    let with = campaign.replacen("\n[data]\n", "\n[model.pretrain]\ntokens = 1000\n\n[data]\n", 1);
    assert_ne!(campaign, with);
    fs::write(root.join(CAMPAIGN), with).unwrap();
    fs::write(root.join("crates/trainer/src/train.rs"), RECIPE).unwrap();
    let ignored = fs::read_to_string(root.join(".gitignore")).unwrap() + "/experiments/*/comparisons\n";
    fs::write(root.join(".gitignore"), ignored).unwrap();
    fs::create_dir_all(root.join("experiments/methods")).unwrap();
    for (name, knobs) in arms {
        write_arm(&repository, name, knobs);
    }
    repository.git(&["add", "."]);
    repository.git(&["commit", "-q", "-m", "arms"]);
    let stand_ins = repository.dir.path().join("stand-ins/bin");
    let calls = repository.dir.path().join("calls");
    for (program, text) in [("trainer", TRAINER), ("evaluator", EVALUATOR)] {
        let text = text.replace("CALLS", &calls.display().to_string());
        fs::write(stand_ins.join(program), text).unwrap();
        fs::set_permissions(stand_ins.join(program), fs::Permissions::from_mode(0o755)).unwrap();
    }
    repository
}

fn write_arm(repository: &Repository, name: &str, knobs: &str) {
    let file = repository.root().join(format!("experiments/methods/{name}.toml"));
    let (head, knobs) = match knobs.strip_prefix("max_steps = 0\n") {
        Some(knobs) => ("max_steps = 0\n", knobs),
        None => ("", knobs),
    };
    fs::write(file, format!("description = \"what {name} does\"\ncampaign = \"nano\"\n{head}[knobs]\n{knobs}\n"))
        .unwrap();
}

/// Learning rates and seeds of the trainings so far, in order.
fn calls(repository: &Repository) -> Vec<String> {
    let text = fs::read_to_string(repository.dir.path().join("calls")).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

const ARMS: [(&str, &str); 3] =
    [("first", ""), ("second", "learning_rate = 0.02"), ("round-to-nearest", "max_steps = 0\nlearning_rate = 0.1")];

fn loss(rate: f64, seed: f64) -> f64 {
    3.1 + (rate / 0.01).ln().powi(2) + 0.2 * (100.0 * seed + 1000.0 * rate).sin()
}

/// Mean and half of Student's 95 % interval of three values; 4.302653 is the 97.5 % point with 2 degrees of freedom.
fn interval(values: [f64; 3]) -> (f64, f64) {
    let mean = values.iter().sum::<f64>() / 3.0;
    let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / 2.0;
    (mean, 4.302_653 * (variance / 3.0).sqrt())
}

#[track_caller]
fn close(value: &Value, expected: f64) {
    let value = value.as_f64().unwrap();
    assert!((value - expected).abs() < 1e-6 * expected.abs().max(1.0), "{value}, not {expected}");
}

#[test]
fn without_a_parent_there_are_no_ends() {
    let repository = repository(&ARMS);
    let root = repository.root();
    let campaign = fs::read_to_string(root.join(CAMPAIGN)).unwrap();
    fs::write(root.join(CAMPAIGN), campaign.replace("\n[model.pretrain]\ntokens = 1000\n", "")).unwrap();
    let recipe = root.join("crates/trainer/src/train.rs");
    fs::write(&recipe, RECIPE.replace("PRETRAINED", "SCRATCH")).unwrap();
    repository.git(&["commit", "-q", "-a", "-m", "from scratch"]);
    let table = repository.json(&["compare", "first", "second", "--seeds", "1", "--json"]);
    let arms = table["arms"].as_array().unwrap();
    let names: Vec<_> = arms.iter().map(|row| row["arm"].as_str().unwrap()).collect();
    assert_eq!(names, ["first", "second"]);
    close(&arms[1]["loss"]["nats"], loss(0.02, 0.0));
    assert!(table["full_precision"].is_null() && arms[1]["recovery"].is_null(), "{table}");
}

#[test]
fn the_table_is_what_was_measured() {
    let repository = repository(&ARMS);
    let table = repository.json(&["compare", "first", "second", "--seeds", "3", "--json"]);
    // Seeds first, and without training one seed is enough.
    let rates = ["4e-3 0", "0.02 0", "0.1 0", "4e-3 1", "0.02 1", "4e-3 2", "0.02 2"];
    assert_eq!(calls(&repository), rates);

    close(&table["full_precision"], 2.6);
    let arms = table["arms"].as_array().unwrap();
    let names: Vec<_> = arms.iter().map(|row| row["arm"].as_str().unwrap()).collect();
    assert_eq!(names, ["first", "second", "round-to-nearest"]);
    let losses = [0.004, 0.02].map(|rate| [0.0, 1.0, 2.0].map(|seed| loss(rate, seed)));
    let rounded = loss(0.1, 0.0);
    for (row, losses) in arms.iter().zip(losses) {
        let (mean, half) = interval(losses);
        close(&row["loss"]["nats"], mean);
        close(&row["loss"]["half_interval"], half);
        assert_eq!(row["loss"]["runs"], 3);
        close(&row["eval_ppl"], mean.exp());
        close(&row["eval_ppl_interval"][0], (mean - half).exp());
        close(&row["eval_ppl_interval"][1], (mean + half).exp());
        close(&row["recovery"], (rounded - mean) / (rounded - 2.6));
        close(&row["tokens"], 1000.0);
        close(&row["bits_per_weight"], 1.7);
        assert!(row["memory"].as_u64().unwrap() > 0 && row["artifact_bytes"].as_f64().unwrap() > 0.0);
    }
    let (mean, half) = interval([0, 1, 2].map(|seed| losses[1][seed] - losses[0][seed]));
    close(&arms[1]["difference"]["nats"], mean);
    close(&arms[1]["difference"]["half_interval"], half);
    assert!(arms[0]["difference"].is_null());
    close(&arms[2]["loss"]["nats"], rounded);
    close(&arms[2]["recovery"], 0.0);
    assert!(arms[2]["eval_ppl_interval"].is_null(), "one run has no interval");

    let show = |form: &str| repository.output(&["compare", "first", "second", "--show", form]);
    let shown = String::from_utf8(show("--markdown").stdout).unwrap();
    assert!(shown.starts_with("| arm | runs | eval_ppl |"), "{shown}");
    assert!(
        shown.contains("| full precision |  | 13.464 |") && shown.contains("**second**: what second does"),
        "{shown}"
    );
    assert_eq!(serde_json::from_slice::<Value>(&show("--json").stdout).unwrap(), table);
    // It is no search: nothing of it is in the checkout, the table of searches, or their views.
    assert_eq!(repository.git(&["status", "--porcelain"]), "");
    assert_eq!(repository.output(&["status"]).status.code(), Some(9));
}

#[test]
fn what_was_run_and_is_unchanged_is_not_run_again() {
    let repository = repository(&ARMS);
    let compare = |more: &[&str]| {
        let arguments = [&["compare", "first", "second", "--json"], more].concat();
        repository.json(&arguments)
    };
    let table = compare(&["--seeds", "1"]);
    assert_eq!(calls(&repository).len(), 3);
    assert_eq!((compare(&["--seeds", "1"]), calls(&repository).len()), (table, 3));
    compare(&["--seeds", "2"]);
    assert_eq!(calls(&repository)[3..], ["4e-3 1", "0.02 1"]);
    // A comment is no change; another value is one, for this arm alone.
    write_arm(&repository, "second", "# twice\nlearning_rate = 0.02");
    compare(&["--seeds", "2"]);
    assert_eq!(calls(&repository).len(), 5);
    write_arm(&repository, "second", "learning_rate = 0.03");
    compare(&["--seeds", "2"]);
    assert_eq!(calls(&repository)[5..], ["0.03 0", "0.03 1"]);
}

#[test]
fn broken_off_it_loses_the_run_in_progress_and_nothing_else() {
    let undisturbed = repository(&ARMS);
    let command = ["compare", "first", "second", "--seeds", "2", "--json"];
    let expected = without_memory(undisturbed.json(&command));
    for (signal, code) in [(Signal::INT, Some(0)), (Signal::KILL, None)] {
        let repository = repository(&ARMS);
        repository.run(&["compare", "first", "second", "--seeds", "1"]);
        let hangs = repository.dir.path().join("hangs");
        let mut child = repository.start(&command, &[("TRAINER_HANGS", hangs.to_str().unwrap())]);
        wait_for("a training run", || hangs.exists());
        kill_process(Pid::from_child(&child), signal).unwrap();
        assert_eq!(child.wait().unwrap().code(), code);
        repository.wait_for_silence();
        assert_eq!(without_memory(repository.json(&command)), expected, "{signal:?}");
        assert_eq!(calls(&repository), calls(&undisturbed), "{signal:?}");
    }
}

/// What the system measures differs from run to run.
fn without_memory(mut table: Value) -> Value {
    for row in table["arms"].as_array_mut().unwrap() {
        row["memory"].take();
    }
    table
}

#[test]
fn an_arm_that_fails_says_so_in_its_row_and_stops_no_other() {
    let repository = repository(&[
        ("panics", "learning_rate = 6.66"),
        ("unbuildable", "scale = \"BROKEN\""),
        ("fine", "learning_rate = 0.02"),
    ]);
    let command = ["compare", "panics", "unbuildable", "fine", "--seeds", "2", "--json"];
    let table = repository.json(&command);
    let arms = table["arms"].as_array().unwrap();
    let failed = |row: &Value| -> Vec<String> {
        row["failed"].as_array().unwrap().iter().map(|of| of[1].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(failed(&arms[0]).len(), 2);
    assert!(failed(&arms[0])[0].contains("no such shape"), "{table}");
    assert_eq!(failed(&arms[1]).len(), 1, "what does not build is not built for each seed");
    assert!(failed(&arms[1])[0].contains("cannot find value `BROKEN`"), "{table}");
    assert_eq!((arms[2]["loss"]["runs"].as_u64(), failed(&arms[2])), (Some(2), vec![]));
    assert!(arms[2]["difference"].is_null(), "there is nothing to compare it with");

    let before = calls(&repository).len();
    assert_eq!((repository.json(&command), calls(&repository).len()), (table, before));
    repository.json(&[&command[..], &["--retry-failed"]].concat());
    assert_eq!(calls(&repository)[before..], ["6.66 0", "6.66 1"]);
}

#[test]
fn mistakes_are_told_before_anything_is_run() {
    let repository = repository(&[("first", ""), ("wrong", "learning_rte = 0.02")]);
    fs::write(repository.root().join("experiments/methods/other.toml"), "description = \"d\"\ncampaign = \"x\"\n")
        .unwrap();
    for (arms, code, said) in [
        (&["first", "wrong"][..], 10, "no field `learning_rte`; it has learning_rate, scale"),
        (&["frist"], 7, "arms in experiments/methods: first, other, wrong"),
        (&["first", "other"], 7, "arms are compared on one campaign"),
        (&["first", "first"], 7, "named twice"),
        (&["first", "--show"], 9, "was not begun"),
    ] {
        let out = repository.output(&[&["compare"], arms].concat());
        let stderr = String::from_utf8_lossy(&out.stderr).into_owned();
        assert_eq!(out.status.code(), Some(code), "{arms:?}: {stderr}");
        assert!(stderr.contains(said), "{arms:?}: {stderr}");
        assert_eq!(calls(&repository), Vec::<String>::new());
    }
    let arm: PathBuf = repository.root().join("experiments/methods/first.toml");
    repository.run(&["compare", arm.to_str().unwrap(), "--seeds", "1"]);
    assert_eq!(calls(&repository), ["4e-3 0"]);
}
