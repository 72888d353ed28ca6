//! Real shells that misbehave.

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use super::*;

const LONG: Duration = Duration::from_secs(60);

fn shell(dir: &Path, script: &str) -> Task {
    Task::new("/bin/sh", dir, dir.join("log"), LONG, LONG).arg("-c").arg(script)
}

fn runner() -> (tempfile::TempDir, Runner) {
    (tempfile::tempdir().unwrap(), Runner::new(Interrupts::default()).unwrap())
}

fn log(dir: &Path) -> String {
    std::fs::read_to_string(dir.join("log")).unwrap()
}

/// Whether a process runs; a zombie that nobody has waited for yet does not.
fn alive(pid: &str) -> bool {
    let out = Command::new("ps").args(["-o", "stat=", "-p", pid]).output().unwrap();
    let stat = String::from_utf8(out.stdout).unwrap();
    !stat.trim().is_empty() && !stat.trim().starts_with('Z')
}

fn gone_soon(pid: &str) -> bool {
    let until = Instant::now() + Duration::from_secs(10);
    while Instant::now() < until {
        if !alive(pid) {
            return true;
        }
        std::thread::yield_now();
    }
    false
}

#[test]
fn exit_code_output_and_memory_come_back() {
    let (dir, runner) = runner();
    let task = shell(dir.path(), "echo out; echo err >&2; echo $NAME; exit 3").env("NAME", "set");
    let finished = runner.run(&task, |_| {}).unwrap();
    assert_eq!(finished.end, End::Exited(3));
    assert_eq!(log(dir.path()), "out\nerr\nset\n");
    assert!(finished.usage.memory > 100_000, "{}", finished.usage.memory);
}

#[test]
fn input_comes_from_a_file_and_errors_can_be_kept_apart() {
    let (dir, runner) = runner();
    std::fs::write(dir.path().join("in put"), "a question\n").unwrap();
    let mut task = shell(dir.path(), "cat; echo no >&2");
    task.input = Some(dir.path().join("in put"));
    task.errors = Some(dir.path().join("errors"));
    assert_eq!(runner.run(&task, |_| {}).unwrap().end, End::Exited(0));
    assert_eq!(log(dir.path()), "a question\n");
    assert_eq!(std::fs::read_to_string(dir.path().join("errors")).unwrap(), "no\n");
}

#[test]
fn memory_is_the_childs_own() {
    let (dir, runner) = runner();
    // One buffer of 768 MiB, in a child of the leader. A child begins with what this process had when it was forked, which
    // the other tests make large.
    let script = "dd if=/dev/zero of=/dev/null bs=805306368 count=1; true";
    let finished = runner.run(&shell(dir.path(), script), |_| {}).unwrap();
    assert_eq!(finished.end, End::Exited(0));
    assert!((768 << 20..2 << 30).contains(&finished.usage.memory), "{}", finished.usage.memory);
    let small = runner.run(&shell(dir.path(), "true"), |_| {}).unwrap();
    assert!(small.usage.memory < finished.usage.memory / 2, "{} {}", small.usage.memory, finished.usage.memory);
}

#[test]
fn a_fault_is_no_timeout() {
    let (dir, runner) = runner();
    let finished = runner.run(&shell(dir.path(), "kill -s SEGV $$"), |_| {}).unwrap();
    assert_eq!(finished.end, End::Killed(11));
}

#[test]
fn the_limit_ends_a_child_that_listens() {
    let (dir, runner) = runner();
    let mut task = shell(dir.path(), "trap 'echo gently; exit 0' TERM; while :; do sleep 0.05; done");
    task.limit = Duration::from_millis(300);
    let finished = runner.run(&task, |_| {}).unwrap();
    assert_eq!(finished.end, End::TimedOut);
    assert!(log(dir.path()).ends_with("gently\n"), "{}", log(dir.path()));
    assert!(finished.elapsed < LONG);
}

#[test]
fn a_group_that_ignores_sigterm_is_killed_with_its_children() {
    let (dir, runner) = runner();
    let mut task = shell(dir.path(), "trap '' TERM; sleep 1000 & echo $!; wait; sleep 1000");
    task.limit = Duration::from_millis(300);
    task.grace = Duration::from_millis(200);
    let finished = runner.run(&task, |_| {}).unwrap();
    assert_eq!(finished.end, End::TimedOut);
    assert!(finished.elapsed >= Duration::from_millis(500) && finished.elapsed < LONG);
    assert!(gone_soon(log(dir.path()).trim()));
}

#[test]
fn a_leader_takes_what_it_left_behind_along() {
    let (dir, runner) = runner();
    let finished = runner.run(&shell(dir.path(), "trap '' TERM; sleep 1000 & echo $!"), |_| {}).unwrap();
    assert_eq!(finished.end, End::Exited(0));
    assert!(finished.elapsed < LONG);
    assert!(gone_soon(log(dir.path()).trim()));
}

#[test]
fn an_interrupt_is_passed_on_and_a_second_kills() {
    let (dir, runner) = runner();
    let interrupts = runner.interrupts.clone();
    let task = shell(dir.path(), "trap 'echo once' TERM; while :; do sleep 0.05; done");
    let log_file = dir.path().join("log");
    let mut stage = 0;
    let finished = runner
        .run(&task, |_| {
            if stage == 0 {
                interrupts.raise();
                stage = 1;
            } else if std::fs::read_to_string(&log_file).unwrap().contains("once") {
                interrupts.raise();
            }
        })
        .unwrap();
    assert_eq!(finished.end, End::Interrupted);
    assert_eq!(runner.run(&task, |_| {}).unwrap().end, End::Interrupted, "nothing starts afterwards");
}

#[test]
fn a_missing_program_is_named() {
    let (dir, runner) = runner();
    let task = Task::new("/no/such/program", dir.path(), dir.path().join("log"), LONG, LONG);
    assert!(runner.run(&task, |_| {}).unwrap_err().to_string().contains("/no/such/program"));
}

/// Not a test of its own: the process that `children_die_with_a_killed_orchestrator` kills.
#[test]
fn child_of_a_killed_orchestrator() {
    let Some(dir) = std::env::var_os("CHILD_TEST_FOLDER") else { return };
    let runner = Runner::new(Interrupts::default()).unwrap();
    let script = "trap '' TERM HUP; sleep 1000 & echo $$ $! > pids.new; mv pids.new pids; wait; sleep 1000";
    let _ = runner.run(&shell(Path::new(&dir), script), |_| {});
}

#[test]
fn children_die_with_a_killed_orchestrator() {
    let dir = tempfile::tempdir().unwrap();
    let mut orchestrator = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child::tests::child_of_a_killed_orchestrator"])
        .env("CHILD_TEST_FOLDER", dir.path())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let pids = dir.path().join("pids");
    let until = Instant::now() + Duration::from_secs(20);
    while !pids.exists() && Instant::now() < until {
        std::thread::yield_now();
    }
    let pids = std::fs::read_to_string(pids).unwrap();
    assert!(pids.split_whitespace().all(alive));
    orchestrator.kill().unwrap();
    orchestrator.wait().unwrap();
    assert!(pids.split_whitespace().all(gone_soon), "{pids}");
}

#[cfg(target_os = "linux")]
#[test]
fn processor_time_is_limited_for_the_whole_tree() {
    let (dir, runner) = runner();
    let mut task = shell(dir.path(), "sh -c 'while :; do :; done' & wait");
    task.most = Some(Most::Processor(Duration::from_millis(300)));
    let finished = runner.run(&task, |_| {}).unwrap();
    assert_eq!(finished.end, End::TimedOut);
    assert!(task.exceeds(&finished.usage), "{:?}", finished.usage);
    assert!(finished.elapsed < LONG);
}

#[cfg(target_os = "linux")]
#[test]
fn a_child_that_its_parent_waited_for_counts_once() {
    let (dir, runner) = runner();
    // About a second on one core, three processes down.
    let burn = "n=0; while [ $n -lt 1500000 ]; do n=$((n+1)); done";
    let script = format!("sh -c 'sh -c \"{}\"; :'; :", burn.replace('$', "\\$"));
    let finished = runner.run(&shell(dir.path(), &script), |_| {}).unwrap();
    assert_eq!(finished.end, End::Exited(0), "{}", log(dir.path()));
    let (usage, tick) = (finished.usage, Duration::from_millis(50));
    assert!(usage.processor > Duration::from_millis(200) && usage.processor <= finished.elapsed + tick, "{usage:?}");
    assert!(usage.user <= usage.processor + tick, "{usage:?}");
}

#[cfg(target_os = "linux")]
#[test]
fn a_child_that_is_not_waited_for_has_memory_and_processor_time_as_well() {
    let (dir, runner) = runner();
    // The child is not waited for, and keeps 300 MB long enough for two readings.
    let script = "dd if=/dev/zero of=/dev/null bs=314572800 & while kill -0 $!; do \
        kb=$(sed -n 's/^VmRSS: *\\([0-9]*\\).*/\\1/p' /proc/$!/status); [ \"$kb\" -lt 250000 ] || break; done; sleep 1.2";
    let finished = runner.run(&shell(dir.path(), script), |_| {}).unwrap();
    assert_eq!(finished.end, End::Exited(0), "{}", log(dir.path()));
    assert!(finished.usage.memory > 200 << 20, "{}", finished.usage.memory);
    assert!(finished.usage.processor > Duration::from_millis(20), "{:?}", finished.usage);
}
