//! What the machine and its people do to a search meanwhile: a full disk, a table that was edited or locked, a clock that
//! jumped, a process that was stopped, a checkout that was rewritten. Whatever it is, the search ends as it would have.

#![allow(clippy::unwrap_used, reason = "the whole file is tests")]

#[allow(dead_code, reason = "other tests use the rest")]
mod stand_ins;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::sync::LazyLock;

use orchestrator::failpoints;
use rustix::process::{Pid, Signal, kill_process};
use stand_ins::{Outcome, RECIPE, Repository, wait_for};

fn arguments(experiments: &'static str) -> [&'static str; 6] {
    ["run", "nano", "--tag", "t", "--experiments", experiments]
}

/// What comes of four experiments when nothing happens.
static UNDISTURBED: LazyLock<Outcome> = LazyLock::new(|| {
    let repository = Repository::new();
    repository.run(&arguments("4"));
    repository.check(4);
    repository.outcome()
});

/// A search of two experiments, to which something happens before the others.
fn half_way() -> Repository {
    let repository = Repository::new();
    repository.run(&arguments("2"));
    repository
}

fn goes_on_as_if_nothing_had_been(repository: &Repository) {
    repository.run(&arguments("4"));
    assert_eq!(repository.outcome(), *UNDISTURBED);
    repository.check(4);
}

/// On a small file system of its own, in a mount namespace.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_stops_it_and_loses_nothing() {
    let repository = Repository::new();
    let (runs, full, kept) = (
        repository.root().join("experiments/nano/runs"),
        repository.dir.path().join("full once"),
        repository.dir.path().join("kept"),
    );
    fs::create_dir_all(&runs).unwrap();
    // The third training run fills the disk, once.
    let trainer = repository.dir.path().join("stand-ins/bin/trainer");
    let fills = format!(
        "if [ \"$seed\" = 2 ] && [ ! -e '{full}' ]; then\n    touch '{full}'\n    head -c 2G /dev/zero > '{}/full'\nfi\n",
        runs.display(),
        full = full.display(),
    );
    let script = fs::read_to_string(&trainer).unwrap();
    fs::write(&trainer, script.replacen("echo RATE", &format!("{fills}echo RATE"), 1)).unwrap();

    let inside = format!(
        "mount -t tmpfs -o size=1200m none '{runs}' && '{program}' {run}; first=$?; rm '{runs}/full'; \
         '{program}' {run}; echo $first $?; cp -r '{runs}/t' '{kept}'",
        runs = runs.display(),
        program = env!("CARGO_BIN_EXE_orchestrator"),
        run = arguments("4").join(" "),
        kept = kept.display(),
    );
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--mount", "sh", "-c", &inside]).current_dir(repository.root());
    for (name, value) in repository.command(&[]).get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    let out = command.output().unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(stdout.trim_end().ends_with("\n1 0"), "{stdout}\n{stderr}");
    assert!(stderr.contains("less than 1 GiB is free") || stderr.contains("cannot write"), "{stderr}");
    fs::remove_dir(&runs).unwrap();
    fs::create_dir(&runs).unwrap();
    fs::rename(&kept, runs.join("t")).unwrap();
    assert_eq!(repository.outcome(), *UNDISTURBED);
}

#[test]
fn a_table_that_is_read_only_or_no_table_stops_nothing_and_is_left_alone() {
    let repository = half_way();
    let table = repository.root().join("results.tsv");
    let before = fs::read(&table).unwrap();
    fs::set_permissions(&table, fs::Permissions::from_mode(0o444)).unwrap();
    let out = repository.output(&arguments("3"));
    assert!(out.status.success());
    assert!(String::from_utf8_lossy(&out.stderr).contains("read-only"));
    assert_eq!(fs::read(&table).unwrap(), before);

    fs::set_permissions(&table, fs::Permissions::from_mode(0o644)).unwrap();
    fs::write(&table, "notes of mine\n").unwrap();
    let out = repository.output(&arguments("4"));
    assert!(out.status.success());
    assert!(String::from_utf8_lossy(&out.stderr).contains("orchestrator repair"));
    assert_eq!(fs::read_to_string(&table).unwrap(), "notes of mine\n");

    repository.run(&["repair"]);
    assert_eq!(repository.outcome(), *UNDISTURBED);
    assert_eq!(fs::read_to_string(repository.root().join("results.1.tsv")).unwrap(), "notes of mine\n");
    fs::remove_file(repository.root().join("results.1.tsv")).unwrap();
    repository.check(4);
}

#[test]
fn a_table_that_was_edited_is_written_from_the_journal_and_the_edit_is_kept() {
    let repository = half_way();
    let table = repository.root().join("results.tsv");
    let edited = fs::read_to_string(&table).unwrap().replace("\tbaseline\t", "\tmy baseline\t");
    fs::write(&table, &edited).unwrap();
    let out = repository.output(&arguments("4"));
    assert!(String::from_utf8_lossy(&out.stderr).contains("somebody edited"));
    assert_eq!(fs::read_to_string(repository.run_folder().join("results-edited-1.tsv")).unwrap(), edited);
    assert_eq!(repository.outcome(), *UNDISTURBED);
    repository.check(4);
}

#[test]
fn repair_rebuilds_every_view_and_says_what_differed() {
    let repository = half_way();
    repository.run(&arguments("4"));
    let unharmed = repository.json(&["repair", "--json"]);
    assert_eq!(unharmed[0]["findings"].as_array().unwrap().len(), 0, "{unharmed}");

    let table = repository.root().join("results.tsv");
    let lines: Vec<String> = fs::read_to_string(&table).unwrap().lines().map(str::to_owned).collect();
    fs::write(&table, format!("{}\n{}\n{}\n", lines[0], lines[1], lines[3].replace('4', "5"))).unwrap();
    repository.git(&["update-ref", "refs/heads/autoresearch/t", "refs/heads/main"]);
    repository.git(&["update-ref", "-d", "refs/autoresearch/t/3"]);
    let journal = repository.run_folder().join("journal.jsonl");
    let whole = fs::read(&journal).unwrap();
    fs::write(&journal, [&whole[..], b"{\"time\":\"20"].concat()).unwrap();

    let found = repository.json(&["repair", "--tag", "t", "--json"])[0]["findings"].to_string();
    for wanted in ["cut short", "the ref of #3 was missing", "results.tsv: #2", "somebody edited"] {
        assert!(found.contains(wanted), "{wanted}: {found}");
    }
    assert_eq!(fs::read(&journal).unwrap(), whole);
    assert_eq!(repository.outcome(), *UNDISTURBED);
    repository.check(4);
}

#[test]
fn a_clock_that_jumped_changes_no_order_and_no_decision() {
    let repository = half_way();
    // As if it had been ahead by decades so far.
    let journal = repository.run_folder().join("journal.jsonl");
    let text = fs::read_to_string(&journal).unwrap();
    let year = &text[text.find("\"time\":\"").unwrap() + 8..][..4];
    fs::write(&journal, text.replace(&format!("\"{year}-"), "\"2099-")).unwrap();
    repository.run(&["repair"]);
    assert!(fs::read_to_string(repository.root().join("results.tsv")).unwrap().contains("2099-"));
    goes_on_as_if_nothing_had_been(&repository);
    let status = repository.json(&["status", "--json"]);
    assert!(status["in_flight"].is_null(), "{status}");
}

#[test]
fn a_stop_as_long_as_a_suspend_changes_nothing() {
    let repository = Repository::new();
    let held = repository.dir.path().join("held");
    // After the builds of the dependencies and of the baseline, and its run: a training run.
    let hold = format!("program-started:5:{}", held.display());
    let mut child = repository.start(&arguments("4"), &[(failpoints::VARIABLE, &hold)]);
    wait_for("a program", || held.exists());
    let orchestrator = Pid::from_child(&child);
    kill_process(orchestrator, Signal::STOP).unwrap();
    fs::remove_file(&held).unwrap();
    // What it sees when it wakes is the past.
    wait_for("the training run", || repository.run_folder().join("replicates/0001/out/summary.json").exists());
    kill_process(orchestrator, Signal::CONT).unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!(repository.outcome(), *UNDISTURBED);
    repository.check(4);
}

#[test]
fn a_checkout_that_is_dirty_or_rewritten_and_a_worktree_that_is_gone_change_nothing() {
    let repository = half_way();
    fs::write(repository.root().join("crates/trainer/src/train.rs"), "not even Rust").unwrap();
    fs::write(repository.root().join("notes.txt"), "mine").unwrap();
    // The commit that the search started from is on no branch of the user's any more.
    repository.git(&["commit", "-q", "--amend", "-m", "rewritten", "--allow-empty"]);
    repository.git(&["reflog", "expire", "--expire=now", "--all"]);
    repository.git(&["gc", "-q", "--prune=now"]);
    fs::remove_dir_all(repository.run_folder().join("worktree")).unwrap();
    let head = repository.git(&["rev-parse", "HEAD"]);
    repository.run(&arguments("4"));
    assert_eq!(repository.outcome(), *UNDISTURBED);
    assert_eq!(repository.git(&["rev-parse", "HEAD"]), head);
    assert_eq!(fs::read_to_string(repository.root().join("notes.txt")).unwrap(), "mine");
    assert_eq!(fs::read_to_string(repository.root().join("crates/trainer/src/train.rs")).unwrap(), "not even Rust");
    repository.git(&["checkout", "-q", "--", "."]);
    fs::remove_file(repository.root().join("notes.txt")).unwrap();
    repository.check(4);
}

#[test]
fn a_table_that_never_ends_is_not_read() {
    let repository = half_way();
    let table = repository.root().join("results.tsv");
    fs::remove_file(&table).unwrap();
    std::os::unix::fs::symlink("/dev/zero", &table).unwrap();
    repository.run(&arguments("4"));
    assert_eq!(repository.outcome(), *UNDISTURBED);
    fs::remove_file(&table).unwrap();
    repository.run(&["repair"]);
    repository.check(4);
}

#[test]
fn a_second_orchestrator_is_refused() {
    let repository = half_way();
    let held = repository.dir.path().join("held");
    let hold = format!("folder-emptied:1:{}", held.display());
    let mut child = repository.start(&arguments("4"), &[(failpoints::VARIABLE, &hold)]);
    wait_for("the point", || held.exists());
    for second in [&arguments("4")[..], &["repair", "--tag", "t"], &["replicate", "--tag", "t"]] {
        let refused = repository.output(second);
        assert_eq!(refused.status.code(), Some(5), "{second:?}: {}", String::from_utf8_lossy(&refused.stderr));
    }
    fs::remove_file(&held).unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!(repository.outcome(), *UNDISTURBED);
    repository.check(4);
}

#[test]
fn data_that_are_prepared_anew_leave_a_search_its_own() {
    for has_its_own in [true, false] {
        let repository = half_way();
        let kept = repository.run_folder().join("data");
        if !has_its_own {
            // As in a search that began before there were such folders.
            fs::remove_dir_all(&kept).unwrap();
        }
        let prepare = repository.dir.path().join("stand-ins/bin/prepare");
        let script = fs::read_to_string(&prepare).unwrap();
        let (old, new) = ("echo '{}' > \"$data/prepared.json\"", "echo '{\"version\":2}' > \"$data/new\"");
        assert!(script.contains(old));
        fs::write(&prepare, script.replace(old, &format!("{new}; mv \"$data/new\" \"$data/prepared.json\""))).unwrap();
        repository.run(&["setup", "nano"]);
        let stamp = |folder: &Path| fs::read_to_string(folder.join("prepared.json")).unwrap();
        assert_eq!(stamp(&repository.root().join("experiments/nano/data")), "{\"version\":2}\n");
        assert_eq!(stamp(&kept), "{}\n");
        goes_on_as_if_nothing_had_been(&repository);
    }
}

#[test]
fn a_changed_frame_stops_the_search_with_its_name() {
    let repository = half_way();
    let held = repository.dir.path().join("held");
    let hold = format!("table-written:1:{}", held.display());
    let mut child = repository.start(&arguments("4"), &[(failpoints::VARIABLE, &hold)]);
    wait_for("the point", || held.exists());
    let worktree = repository.run_folder().join("worktree");
    fs::write(worktree.join("Cargo.toml"), "[workspace]\nmembers = []\n").unwrap();
    fs::write(worktree.join("build.rs"), "fn main() {}\n").unwrap();
    fs::remove_file(&held).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(4));
    let told = fs::read_to_string(repository.log()).unwrap();
    assert!(told.contains("somebody changed") && told.contains("Cargo.toml") && told.contains("build.rs"), "{told}");
    goes_on_as_if_nothing_had_been(&repository);
}

#[test]
fn code_that_no_person_wrote_needs_the_whole_sandbox() {
    let repository = half_way();
    let file = repository.dir.path().join("candidate.rs");
    fs::write(&file, RECIPE.replace("4e-3", "6e-3")).unwrap();
    let by = |author| {
        let arguments = ["try", file.to_str().unwrap(), "--tag", "t", "--author", author];
        let out = repository.output(&arguments);
        (out.status.code(), String::from_utf8_lossy(&out.stderr).into_owned())
    };
    let (code, told) = by("a-model");
    assert_eq!(code, Some(10), "{told}");
    assert!(told.contains("switches it off") && told.contains("best-effort"), "{told}");
    assert_eq!(repository.outcome().len(), 2);
    assert_eq!(by("human").0, Some(0));
    assert_eq!(repository.outcome().len(), 3);
}

/// A search of the baseline, whose trainer takes these lines when the recipe's learning rate is 7e-3, and the recipe.
fn with_trainer(budget: &str, lines: &str) -> (Repository, String) {
    let repository = Repository::new();
    let campaign = repository.root().join("experiments/nano/campaign.toml");
    let text = fs::read_to_string(&campaign).unwrap();
    let (before, rest) = text.split_once("seconds = 60.0").unwrap();
    let (_, behind) = rest.split_once("grace_seconds = 10.0").unwrap();
    fs::write(&campaign, format!("{before}{budget}\ngrace_seconds = 1.0{behind}")).unwrap();
    let trainer = repository.dir.path().join("stand-ins/bin/trainer");
    let script = fs::read_to_string(&trainer).unwrap();
    fs::write(&trainer, script.replacen("echo RATE", &format!("{lines}\necho RATE"), 1)).unwrap();
    repository.git(&["commit", "-q", "-am", "short"]);
    let file = repository.dir.path().join("candidate.rs");
    fs::write(&file, RECIPE.replace("4e-3", "7e-3")).unwrap();
    (repository, file.display().to_string())
}

/// The row of a recipe that is tried.
fn tried(repository: &Repository, file: &str) -> serde_json::Value {
    let out = repository.output(&["try", file, "--tag", "t"]);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    repository.json(&["results", "--json"])["experiments"].as_array().unwrap().last().unwrap().clone()
}

const SHORT: &str = "seconds = 0.1\nclock = \"processor\"\nhard_limit_seconds = 60.0";

#[test]
fn computing_past_the_budget_is_seen_whatever_process_does_it() {
    for burns in ["while :; do :; done", "while :; do :; done & wait"] {
        let (repository, file) = with_trainer(SHORT, &format!("if [ RATE = 7e-3 ]; then {burns}; fi"));
        repository.run(&arguments("1"));
        let row = tried(&repository, &file);
        assert_eq!(row["status"], "timeout", "{row}");
        assert!(row["reason"].as_str().unwrap().contains("over its budget"), "{row}");
    }
}

#[test]
fn a_run_that_gets_little_of_the_processor_is_no_timeout() {
    // Far longer by the wall clock than the baseline, as beside other programs.
    let (repository, file) = with_trainer(SHORT, "[ RATE = 7e-3 ] && sleep 5");
    repository.run(&arguments("1"));
    let row = tried(&repository, &file);
    assert!(row["evaluation"].is_object(), "{row}");
}

/// Computes until it is dropped.
#[cfg(target_os = "linux")]
struct Busy(Vec<std::process::Child>);

#[cfg(target_os = "linux")]
impl Busy {
    fn start() -> Self {
        let cores = std::thread::available_parallelism().unwrap().get();
        let start = |_| Command::new("/bin/sh").args(["-c", "while :; do :; done"]).spawn().unwrap();
        Self((0..3 * cores).map(start).collect())
    }
}

#[cfg(target_os = "linux")]
impl Drop for Busy {
    fn drop(&mut self) {
        for child in &mut self.0 {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}

#[cfg(target_os = "linux")]
#[test]
fn what_starves_is_run_again_and_nothing_is_blamed_but_a_recipe_that_starves_alone() {
    let budget = "seconds = 2.0\nclock = \"processor\"\nhard_limit_seconds = 3.0";
    let lines = "if [ -e \"${0%/*}/../../../../../../burns\" ] || [ RATE = 7e-3 ]; then while :; do :; done; fi";
    let (repository, file) = with_trainer(budget, lines);
    let burns = repository.root().join("burns");
    let _busy = Busy::start();

    // Where the baseline starves, too, the machine is to blame.
    fs::write(repository.root().join(".git/info/exclude"), "burns\n").unwrap();
    fs::write(&burns, "").unwrap();
    let out = repository.output(&arguments("1"));
    let told = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(11), "{told}");
    assert!(told.contains("keep this machine too busy") && told.contains("--cores"), "{told}");
    assert!(repository.outcome().is_empty());
    fs::remove_file(&burns).unwrap();

    repository.run(&arguments("1"));
    let status = repository.json(&["status", "--json"]);
    assert!(status["others"]["most"].as_f64().unwrap() > 0.25, "{status}");
    let row = tried(&repository, &file);
    assert_eq!(row["status"], "timeout", "{row}");
    assert!(row["reason"].as_str().unwrap().contains("the incumbent came to its end"), "{row}");
}

/// What the evaluator says of the machine's speed is in file `probe` beside the clone; the trainer says what a shell gives.
fn with_probes(seconds: &str) -> (Repository, String) {
    let (repository, file) = with_trainer("seconds = 0.1\nclock = \"work\"\nhard_limit_seconds = 60.0", seconds);
    let bin = repository.dir.path().join("stand-ins/bin");
    let trainer = fs::read_to_string(bin.join("trainer")).unwrap();
    let said = trainer.replace(r#""processor_seconds":0"#, r#""processor_seconds":0,"probe_seconds":'$probe'"#);
    assert_ne!(said, trainer);
    fs::write(bin.join("trainer"), said).unwrap();
    let evaluator = fs::read_to_string(bin.join("evaluator")).unwrap();
    let probe = format!(
        "for word; do [ \"$before\" = --out ] && out=$word; [ $word = --probe ] && probe=1; before=$word; done\n\
         [ $probe ] && {{ cp {} \"$out\"; exit 0; }}\nwhile",
        repository.dir.path().join("probe").display()
    );
    fs::write(bin.join("evaluator"), evaluator.replacen("while", &probe, 1)).unwrap();
    (repository, file)
}

#[test]
fn that_the_machine_was_slower_is_believed_where_it_is() {
    let (repository, file) = with_probes(
        "probe=0.01; case RATE in 7e-3|8e-3) probe=0.0125 ;; \
         4e-3) [ ! -e \"${0%/*}/../../../../../../fast\" ] || probe=0.008 ;; esac",
    );
    let probe = repository.dir.path().join("probe");
    let alone = |seconds: &str| fs::write(&probe, format!("{{\"probe_seconds\":{seconds}}}")).unwrap();
    alone("0.02");
    repository.run(&arguments("1"));

    // A quarter slower in the run, and as fast as ever after it.
    let row = tried(&repository, &file);
    assert_eq!(row["status"], "timeout", "{row}");
    let reason = row["reason"].as_str().unwrap();
    assert!(
        reason.contains("25 % slower than it is right after") && reason.contains("the incumbent came to its end"),
        "{reason}"
    );

    // As fast as ever in the run, and a fifth faster after it.
    alone("0.016");
    fs::write(repository.root().join(".git/info/exclude"), "fast\n").unwrap();
    fs::write(repository.root().join("fast"), "").unwrap();
    fs::write(&file, RECIPE.replace("4e-3", "4.1e-3")).unwrap();
    assert_eq!(tried(&repository, &file)["status"], "timeout");

    alone("0.024");
    fs::write(&file, RECIPE.replace("4e-3", "8e-3")).unwrap();
    let row = tried(&repository, &file);
    assert_eq!(row["trained"]["processor"]["speed"]["alone_s"], 0.024, "{row}");
    assert!(row["evaluation"].is_object(), "{row}");
}

#[test]
fn what_a_run_says_of_itself_is_believed_within_reason() {
    for (figures, says) in [
        (r#""training_seconds":1e300,"num_steps":10,"tokens":1000"#, "trained for 1.000e300 s"),
        (r#""training_seconds":-1,"num_steps":10,"tokens":1000"#, "trained for -1.0 s"),
        (r#""training_seconds":1,"processor_seconds":1e9,"num_steps":10,"tokens":1000"#, "computed for"),
        (r#""training_seconds":1,"probe_seconds":1e9,"num_steps":10,"tokens":1000"#, "its probes took"),
        (r#""training_seconds":1,"num_steps":1001,"tokens":1000"#, "did 1001 steps on 1000 tokens"),
        (
            r#""training_seconds":1,"num_steps":10,"tokens":18446744073709551615"#,
            "trained on 18446744073709551615 tokens",
        ),
    ] {
        let summary = format!("echo '{{\"status\":\"completed\",{figures}}}' > \"$out/summary.json\"");
        let lines = format!("[ RATE = 7e-3 ] && {{ echo RATE 0 > \"$out/artifact.ternary\"; {summary}; exit 0; }}");
        let (repository, file) = with_trainer(SHORT, &lines);
        repository.run(&arguments("1"));
        let row = tried(&repository, &file);
        assert_eq!(row["status"], "invalid", "{row}");
        assert!(row["reason"].as_str().unwrap().contains(says), "{row}");
        assert!(row["trained"].is_null(), "{row}");
    }
}
