//! A language model as the agent of a real search: a server on loopback answers as one would, well and badly.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "the whole file is tests")]

#[allow(dead_code, reason = "its own tests use the rest")]
#[path = "../../language-model/tests/loopback/server.rs"]
mod server;
#[allow(dead_code, reason = "other tests use the rest")]
mod stand_ins;

use std::fs;
use std::path::Path;
use std::process::{Output, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use server::{Server, openai, reply, stream};
use stand_ins::Repository;

const KEY: &str = "sk-a-key-that-nobody-else-may-see";
const RUN: [&str; 6] = ["run", "nano", "--tag", "t", "--experiments", "4"];
const LINE: &str = "    learning_rate: 4e-3, // search: log 5e-4..2e-2";
const BATCH: &str = "const BATCH: usize = 4;";

/// A repository whose campaign asks a model. What a model writes runs in the sandbox only.
fn repository(agent: &str) -> Repository {
    let repository = Repository::new();
    let campaign = repository.root().join("experiments/nano/campaign.toml");
    let text = fs::read_to_string(&campaign).unwrap();
    let text = text.replace("sandbox = \"off\"", "sandbox = \"best-effort\"");
    // What a trainer waits for, that is told to.
    let told = repository.dir.path().join("told");
    fs::create_dir(&told).unwrap();
    let text = text.replace("sandbox_read = []", &format!("sandbox_read = [{told:?}]"));
    assert!(text.contains("kind = \"tpe\"\n"));
    fs::write(&campaign, text.replacen("kind = \"tpe\"\n", agent, 1)).unwrap();
    fs::write(repository.root().join("program.md"), "Find the best learning rate.\n").unwrap();
    let recipe = repository.root().join("crates/trainer/src/train.rs");
    let text = fs::read_to_string(&recipe).unwrap() + &"// far from the other\n".repeat(10) + BATCH + "\n";
    fs::write(&recipe, text).unwrap();
    repository.git(&["add", "."]);
    repository.git(&["commit", "-q", "-m", "a model"]);
    repository
}

fn asking(server: &Server) -> Repository {
    repository(&format!(
        "kind = \"openai\"\nmodel = \"test-model\"\nbase_url = \"{}\"\nkey_variable = \"TEST_KEY\"\n\
         prices = {{ input = 1.0, output = 10.0 }}\nrepairs = 4\nwait_seconds = 600.0\n",
        server.base_url()
    ))
}

fn run(repository: &Repository) -> Output {
    let out = repository.command(&RUN).env("TEST_KEY", KEY).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    out
}

fn edit(hypothesis: &str, from: &str, to: &str) -> server::Reply {
    let block = format!("<<<<<<< SEARCH\n{from}\n=======\n{to}\n>>>>>>> REPLACE\n");
    stream(openai(&format!("HYPOTHESIS: {hypothesis}\nEXPECTED: a lower loss\n\n{block}")))
}

/// Refused four times, for four reasons, and then right; while that trains, another one; then a lesson; then nothing but a
/// refusal of the key.
fn replies() -> Vec<server::Reply> {
    vec![
        edit("a line that is not there", "    batch: 4,", "    batch: 8,"),
        edit("no Rust", LINE, "    learning_rate: ((,"),
        edit("it does not build", LINE, "    learning_rate: BROKEN, // search: log 5e-4..2e-2"),
        edit("it panics", LINE, "    learning_rate: 6.66e-3, // search: log 5e-4..2e-2"),
        edit("a higher rate", LINE, "    learning_rate: 9.5e-3, // search: log 5e-4..2e-2"),
        edit("a larger batch", BATCH, "const BATCH: usize = 8;"),
        stream(openai("Rates below 5e-3 are too low. Stay near 1e-2.")),
        reply("401 Unauthorized", "content-type: application/json\r\n", r#"{"error":{"message":"no"}}"#),
    ]
}

fn rows(repository: &Repository) -> Vec<Value> {
    repository.json(&["results", "--json"])["experiments"].as_array().unwrap().clone()
}

#[test]
fn a_model_is_told_what_was_wrong_until_it_is_right_and_the_search_goes_on_without_it() {
    let server = Server::start(replies());
    let repository = asking(&server);
    let out = run(&repository);

    let rows = rows(&repository);
    let of = |row: &Value, key: &str| row[key].as_str().unwrap_or_default().to_owned();
    assert_eq!((of(&rows[1], "agent"), of(&rows[1], "status")), ("test-model".into(), "keep".into()), "{}", rows[1]);
    assert_eq!(of(&rows[1], "description"), "a higher rate");
    assert_eq!((of(&rows[2], "agent"), of(&rows[2], "description")), ("test-model".into(), "a larger batch".into()));
    assert_eq!(of(&rows[3], "agent"), "tpe", "the endpoint was away: {}", rows[3]);
    let told = String::from_utf8_lossy(&out.stdout);
    assert!(told.contains("no proposal of test-model") && told.contains("goes on without it"), "{told}");

    // Each reason reached the model, and it saw the program, the file and the noise.
    let requests: Vec<String> = (0..8).map(|_| server.request()).collect();
    assert_eq!(server.unseen(), 0, "a key that is refused is not tried again at once");
    for (request, wanted) in [
        (0, "Find the best learning rate."),
        (0, "learning_rate: 4e-3"),
        (0, "noise of this campaign is not measured yet"),
        (0, "This is experiment 2 of at most 4; 1 were kept so far."),
        (0, "30.0 %, 40.0 %, 30.0 %"),
        (1, "does not occur in the file"),
        (2, "no valid Rust"),
        (3, "cannot find value `BROKEN`"),
        (4, "fails in its first steps"),
        (4, "no such shape"),
        (5, "Experiment 2 trains now, and its result is not known yet: a higher rate"),
        (5, "standard deviation of the loss"),
        (6, "Your change was kept"),
        (7, "Stay near 1e-2."),
    ] {
        assert!(requests[request].contains(wanted), "{wanted}: {}", requests[request]);
    }
    let parent = repository.git(&["diff", "--name-only", "refs/autoresearch/t/2~", "refs/autoresearch/t/2"]);
    assert_eq!(parent, "crates/trainer/src/train.rs");
    // What was proposed for the baseline is tried as a change of what was kept meanwhile.
    assert_eq!(rows[2]["parent"], rows[1]["commit"]);
    let change = repository.git(&["diff", "-U0", "refs/autoresearch/t/3~", "refs/autoresearch/t/3"]);
    let change: Vec<&str> = change.lines().filter(|line| !line.starts_with(['d', 'i', '@'])).skip(2).collect();
    assert_eq!(change, [format!("-{BATCH}"), "+const BATCH: usize = 8;".into()]);

    // Cost is counted, exchanges are recorded, and the key is nowhere.
    let status = repository.json(&["status", "--json"]);
    assert!(status["cost"]["calls"].as_u64() >= Some(4) && status["cost"]["dollars"].as_f64() > Some(0.0), "{status}");
    assert_eq!(fs::read_dir(repository.run_folder().join("exchanges")).unwrap().count(), 8);
    assert!(!holds(repository.dir.path(), KEY.as_bytes()));

    let results = repository.json(&["results", "--json"]);
    assert!(results["costs"]["2"]["usage"]["output"].as_u64() > Some(0), "{results}");
    assert_eq!(results["wasted_requests"][0]["agent"], "test-model", "{results}");

    // The same search out of the recordings, without a server and a key.
    let recorded = repository.run_folder().join("exchanges").display().to_string();
    drop(server);
    let again = self::repository(&format!("kind = \"replay\"\nreplay = {recorded:?}\nrepairs = 4\n"));
    again.run(&RUN);
    assert_eq!(again.outcome()[..3], repository.outcome()[..3]);
}

#[test]
fn an_answer_that_would_overflow_the_stack_is_one_refused_answer() {
    let deep = |value: &str| format!("    learning_rate: {value}4e-3, // search: log 5e-4..2e-2");
    let server = Server::start([
        edit("deep", LINE, &deep(&"!".repeat(40_000))),
        edit("nested", LINE, &format!("    learning_rate: {}4e-3{},", "(".repeat(9000), ")".repeat(9000))),
        edit("a higher rate", LINE, "    learning_rate: 9.5e-3, // search: log 5e-4..2e-2"),
        stream(openai("NONE")),
        reply("401 Unauthorized", "content-type: application/json\r\n", r#"{"error":{"message":"no"}}"#),
    ]);
    let repository = asking(&server);
    run(&repository);
    let rows = rows(&repository);
    assert_eq!((&rows[1]["agent"], &rows[1]["description"]), (&"test-model".into(), &"a higher rate".into()));
    assert_eq!(rows.len(), 4);
    for asked in [server.request(), server.request(), server.request()].iter().skip(1) {
        assert!(asked.contains("nested too deeply"), "{asked}");
    }
    // A person's is refused as well, before it costs a row.
    let file = repository.dir.path().join("deep.rs");
    for text in ["(".repeat(9000) + &")".repeat(9000), "!".repeat(200_000), "1+".repeat(100_000) + "1"] {
        fs::write(&file, format!("const SCRATCH: Knobs = Knobs {{ learning_rate: {text} }};\n")).unwrap();
        let out = repository.output(&["try", file.to_str().unwrap(), "--tag", "t"]);
        assert_eq!(out.status.code(), Some(10), "{}", String::from_utf8_lossy(&out.stderr));
    }
    assert_eq!(self::rows(&repository).len(), 4);
}

#[test]
fn a_thinker_that_panics_is_asked_again() {
    let server = Server::start([
        edit("a higher rate", LINE, "    learning_rate: 9.5e-3, // search: log 5e-4..2e-2"),
        stream(openai("NONE")),
        reply("401 Unauthorized", "content-type: application/json\r\n", r#"{"error":{"message":"no"}}"#),
    ]);
    let repository = asking(&server);
    let out = repository
        .command(&RUN)
        .env("TEST_KEY", KEY)
        .env(orchestrator::failpoints::PANIC, "thinking:1")
        .output()
        .unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let agents: Vec<String> =
        rows(&repository).iter().map(|row| row["agent"].as_str().unwrap_or_default().to_owned()).collect();
    assert_eq!(agents[0], "baseline");
    assert!(agents.len() == 4 && agents.contains(&"test-model".to_owned()), "{agents:?}");
    let told = String::from_utf8_lossy(&out.stdout);
    assert!(told.contains("a fault of ours, please report it"), "{told}");
}

#[test]
fn a_mixed_search_takes_turns() {
    let server = Server::start([
        edit("a higher rate", LINE, "    learning_rate: 9.5e-3, // search: log 5e-4..2e-2"),
        stream(openai("NONE")),
        edit("a larger batch", BATCH, "const BATCH: usize = 8;"),
    ]);
    let repository = repository(&format!(
        "kind = \"mixed\"\nwith = \"openai\"\nmodel = \"m\"\nbase_url = \"{}\"\nkey_variable = \"\"\n\
         wait_seconds = 600.0\n",
        server.base_url()
    ));
    repository.run(&RUN);
    let agents: Vec<String> =
        rows(&repository)[1..].iter().map(|row| row["agent"].as_str().unwrap_or_default().to_owned()).collect();
    assert_eq!(agents, ["tpe", "m", "tpe"]);
}

#[test]
fn a_model_thinks_and_its_proposal_is_compiled_while_something_trains() {
    let server = Server::start([
        edit("it does not build", LINE, "    learning_rate: BROKEN, // search: log 5e-4..2e-2"),
        edit("a higher rate", LINE, "    learning_rate: 9.5e-3, // search: log 5e-4..2e-2"),
        stream(openai("NONE")),
    ]);
    let repository = repository(&format!(
        "kind = \"openai\"\nmodel = \"m\"\nbase_url = \"{}\"\nkey_variable = \"\"\nbuild_ahead = true\n",
        server.base_url()
    ));
    // The first replicate trains until it is told to end.
    let trainer = repository.dir.path().join("stand-ins/bin/trainer");
    let text = fs::read_to_string(&trainer).unwrap();
    let told = repository.dir.path().join("told/go");
    let wait = format!("[ \"$seed RATE\" != \"1 4e-3\" ] || while [ ! -e {told:?} ]; do sleep 0.05; done\n");
    fs::write(&trainer, text.replacen("case RATE", &format!("{wait}case RATE"), 1)).unwrap();
    let mut running = repository.start(&["run", "nano", "--tag", "t", "--experiments", "2"], &[]);

    let draft = repository.run_folder().join("draft.json");
    let questions = [server.request(), server.request()];
    assert!(questions[1].contains("cannot find value `BROKEN`"), "{}", questions[1]);
    let trains = repository.run_folder().join("replicates/0001/out");
    stand_ins::wait_for("the compiler", || repository.run_folder().join("ahead/trainer").exists());
    assert!(trains.exists() && !trains.join("summary.json").exists() && !draft.exists());
    fs::write(told, "").unwrap();
    assert!(running.wait().unwrap().success(), "{}", fs::read_to_string(repository.log()).unwrap());

    let rows = rows(&repository);
    assert_eq!((&rows[1]["agent"], &rows[1]["description"]), (&"m".into(), &"a higher rate".into()), "{}", rows[1]);
    let journal = fs::read_to_string(repository.run_folder().join("journal.jsonl")).unwrap();
    let built = journal.lines().filter(|line| line.contains("\"ahead\":true")).count();
    assert_eq!((built, journal.contains("handed back"), draft.exists()), (1, false, false), "{journal}");
}

#[test]
fn a_proposal_that_waits_outlives_a_stop_and_one_that_a_keep_contradicts_does_not() {
    // The second is for the same line as the first, which is kept.
    let again = "    learning_rate: 9.0e-3, // search: log 5e-4..2e-2";
    let server = Server::start([
        edit("a higher rate", LINE, "    learning_rate: 9.5e-3, // search: log 5e-4..2e-2"),
        edit("another rate", LINE, again),
        reply("401 Unauthorized", "content-type: application/json\r\n", r#"{"error":{"message":"no"}}"#),
    ]);
    let repository = repository(&format!(
        "kind = \"openai\"\nmodel = \"m\"\nbase_url = \"{}\"\nkey_variable = \"\"\nwait_seconds = 600.0\n",
        server.base_url()
    ));
    // The first replicate trains until it is told to end; the first time it is stopped.
    let trainer = repository.dir.path().join("stand-ins/bin/trainer");
    let text = fs::read_to_string(&trainer).unwrap();
    let told = repository.dir.path().join("told/go");
    let wait = format!("[ \"$seed RATE\" != \"1 4e-3\" ] || while [ ! -e {told:?} ]; do sleep 0.05; done\n");
    fs::write(&trainer, text.replacen("case RATE", &format!("{wait}case RATE"), 1)).unwrap();
    let mut running = repository.start(&RUN, &[]);
    server.request();
    let exchanges = repository.run_folder().join("exchanges");
    stand_ins::wait_for("the answer", || fs::read_dir(&exchanges).is_ok_and(|files| files.count() == 1));
    kill_process(Pid::from_child(&running), Signal::INT).unwrap();
    assert!(running.wait().unwrap().success(), "{}", fs::read_to_string(repository.log()).unwrap());
    assert!(repository.run_folder().join("draft.json").exists());

    let replicate = repository.run_folder().join("replicates/0001");
    fs::remove_dir_all(&replicate).unwrap();
    let mut command = repository.command(&RUN);
    let running = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    stand_ins::wait_for("the replicate", || replicate.join("out").exists());
    fs::write(told, "").unwrap();
    let out = running.wait_with_output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let rows = rows(&repository);
    assert_eq!((&rows[1]["agent"], &rows[1]["status"]), (&"m".into(), &"keep".into()), "{}", rows[1]);
    let told = String::from_utf8_lossy(&out.stdout);
    assert!(told.contains("a proposal of m is thrown away: it does not fit the new incumbent"), "{told}");
    let journal = fs::read_to_string(repository.run_folder().join("journal.jsonl")).unwrap();
    assert!(journal.contains("\"drafted\":true") && !journal.contains("another rate"), "{journal}");
}

#[test]
fn a_missing_key_and_a_want_of_room_are_named_and_a_cap_is_kept() {
    let server = Server::start([]);
    let repository = asking(&server);
    let out = repository.output(&RUN);
    assert_eq!(out.status.code(), Some(7));
    assert!(String::from_utf8_lossy(&out.stderr).contains("TEST_KEY is not set"), "{out:?}");

    let short = self::repository("kind = \"openai\"\nmodel = \"m\"\nkey_variable = \"\"\nprompt_tokens = 100\n");
    let out = short.output(&RUN);
    let told = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(7), "{told}");
    assert!(told.contains("agent.prompt_tokens is 100") && told.contains("The campaign: "), "{told}");
    assert!(!short.run_folder().join("journal.jsonl").exists(), "nothing is begun");

    let capped = self::repository(&format!(
        "kind = \"openai\"\nmodel = \"m\"\nbase_url = \"{}\"\nkey_variable = \"\"\ncaps = {{ tokens = 10 }}\n",
        server.base_url()
    ));
    let out = capped.output(&RUN);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    assert!(String::from_utf8_lossy(&out.stdout).contains("cap of 10 tokens"));
    assert_eq!((server.unseen(), rows(&capped).len()), (0, 4));
}

#[test]
fn the_endpoint_can_be_checked_and_the_next_question_seen() {
    let refusal = reply("401 Unauthorized", "content-type: application/json\r\n", r#"{"error":{"message":"no"}}"#);
    let server = Server::start([stream(openai("ready")), refusal]);
    let repository = asking(&server);
    let check = |more: &[&str]| {
        let arguments = [&["agent", "check", "nano"], more].concat();
        repository.command(&arguments).env("TEST_KEY", KEY).output().unwrap()
    };
    let out = check(&[]);
    let told = String::from_utf8_lossy(&out.stdout);
    assert!(out.status.success() && told.starts_with("test-model answers \"ready\" after"), "{told}");
    assert!(told.contains(", $0.00"), "{told}");
    let refused = check(&["--json"]);
    assert_eq!(refused.status.code(), Some(7));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("refuses"), "{refused:?}");

    let baseline = ["run", "nano", "--tag", "t", "--experiments", "1"];
    assert!(repository.command(&baseline).env("TEST_KEY", KEY).output().unwrap().status.success());
    let prompt = String::from_utf8(check(&["--prompt"]).stdout).unwrap();
    for wanted in ["# The program", "# How to answer", "1 experiments so far: 1 kept", "learning_rate: 4e-3"] {
        assert!(prompt.contains(wanted), "{wanted}: {prompt}");
    }
}

/// Whether any file below a folder has these bytes.
fn holds(folder: &Path, bytes: &[u8]) -> bool {
    fs::read_dir(folder).unwrap().flatten().any(|entry| {
        let path = entry.path();
        match entry.file_type().unwrap() {
            kind if kind.is_dir() => holds(&path, bytes),
            kind if kind.is_file() => fs::read(&path).unwrap().windows(bytes.len()).any(|window| window == bytes),
            _ => false,
        }
    })
}
