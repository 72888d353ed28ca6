//! The share of wall time in which the device trains, with a language model that needs half the budget for an answer and a
//! build of a twelfth of it: once with the compiler beside the trainer, as on a GPU, and once between two trainings, as on a
//! processor. Cargo, trainer and evaluator are scripts; the trainer only waits.
//!
//! By default everything is a tenth as long as at a budget of 60 s, and the orchestrator's own work is not; `--seconds 60` or
//! `--seconds 300` (with answers after 30 s and builds of 5 s, as always then) takes the time itself.

#![allow(clippy::unwrap_used, reason = "a benchmark that cannot run has nothing to say")]

#[allow(dead_code, reason = "tests use the rest")]
#[path = "../../language-model/tests/loopback/server.rs"]
mod server;
#[allow(dead_code, reason = "the tests use more of it")]
#[path = "../tests/stand_ins/mod.rs"]
mod stand_ins;

use std::fs;
use std::time::Duration;

use server::{Server, Step, openai, stream};
use stand_ins::Repository;

/// Experiments, the baseline included; its two replicates come on top.
const EXPERIMENTS: u64 = 6;

/// Lengths in seconds.
struct Lengths {
    budget: f64,
    answer: f64,
    build: f64,
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let given = arguments.iter().position(|argument| argument == "--seconds");
    let lengths = match given.map(|at| arguments[at + 1].parse().unwrap()) {
        Some(budget) => Lengths { budget, answer: 30.0, build: 5.0 },
        None => Lengths { budget: 6.0, answer: 3.0, build: 0.5 },
    };
    let Lengths { budget, answer, build } = lengths;
    println!("budget {budget} s, an answer after {answer} s, a build of {build} s");
    for (place, ahead) in [("beside the trainer", true), ("between trainings", false)] {
        let time = share(&lengths, ahead);
        let of = |key: &str| time[key].as_f64().unwrap();
        let own = of("worked")
            - ["training", "overhead", "building", "rehearsing", "evaluating", "thinking"].map(of).iter().sum::<f64>();
        println!(
            "compiler {place}: {:.1} % training (thinking {:.1} s, building {:.1} s, own work and scripts {:.2} s a run)",
            100.0 * of("training") / of("worked"),
            of("thinking"),
            of("building"),
            (own + of("overhead") + of("rehearsing") + of("evaluating")) / (EXPERIMENTS + 2) as f64,
        );
    }
}

/// Runs a search; where its time went.
fn share(lengths: &Lengths, ahead: bool) -> serde_json::Value {
    // Worse and worse rates, so that nothing is kept; and a lesson between two proposals.
    let line = |rate: &str| format!("    learning_rate: {rate}, // search: log 5e-4..2e-2");
    let proposal = |number: u64| {
        let (from, to) = (line("4e-3"), line(&format!("{:.1}e-4", 20.0 - number as f64)));
        format!("HYPOTHESIS: rate {number}\nEXPECTED: x\n\n<<<<<<< SEARCH\n{from}\n=======\n{to}\n>>>>>>> REPLACE\n")
    };
    // The first two are asked for before there is anything to learn from.
    let proposals = (2..=EXPERIMENTS).map(proposal);
    let texts = proposals.enumerate().flat_map(|(before, text)| {
        let lesson = (before >= 2).then(|| "NONE".to_owned());
        lesson.into_iter().chain([text])
    });
    let pause = Step::Pause(Duration::from_secs_f64(lengths.answer));
    let replies = texts.chain(["NONE".to_owned(), "NONE".to_owned()]).map(|text| {
        let wait = (text != "NONE").then(|| pause.clone());
        wait.into_iter().chain(stream(openai(&text))).collect()
    });
    let server = Server::start(replies);

    let repository = Repository::new();
    let campaign = repository.root().join("experiments/nano/campaign.toml");
    let text = fs::read_to_string(&campaign).unwrap();
    let agent = format!(
        "kind = \"openai\"\nmodel = \"m\"\nbase_url = \"{}\"\nkey_variable = \"\"\nbuild_ahead = {ahead}\n",
        server.base_url()
    );
    let text = text
        .replacen("kind = \"tpe\"\n", &agent, 1)
        .replace("sandbox = \"off\"", "sandbox = \"best-effort\"")
        .replace("seconds = 60.0", &format!("seconds = {:?}", lengths.budget))
        .replace("hard_limit_seconds = 300.0", &format!("hard_limit_seconds = {:?}", lengths.budget * 3.0));
    fs::write(&campaign, text).unwrap();
    repository.git(&["commit", "-qam", "a model"]);
    let program = |name: &str, from: &str, to: &str| {
        let path = repository.dir.path().join("stand-ins/bin").join(name);
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains(from), "{from}");
        fs::write(&path, text.replacen(from, to, 1)).unwrap();
    };
    // The programs that are built at the start are none of the model's.
    program("cargo", "rate=", &format!("[ ! -e \"$target/trainer\" ] || sleep {}\nrate=", lengths.build));
    program("trainer", "echo RATE", &format!("[ -n \"$rehearsal\" ] || sleep {}\necho RATE", lengths.budget));
    program("trainer", "case $1 in", "case $1 in --max-steps) rehearsal=1 ;;");
    program("trainer", "\"training_seconds\":1.5", &format!("\"training_seconds\":{}", lengths.budget));
    let experiments = EXPERIMENTS.to_string();
    let out = repository.output(&["run", "nano", "--tag", "t", "--experiments", &experiments]);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let rows = repository.json(&["results", "--json"]);
    let rows = rows["experiments"].as_array().unwrap();
    let of_the_model = rows.iter().filter(|row| row["agent"] == "m").count() as u64;
    assert_eq!(of_the_model, EXPERIMENTS - 1, "the model was late: {rows:?}");
    repository.json(&["status", "--json"])["time"].clone()
}
