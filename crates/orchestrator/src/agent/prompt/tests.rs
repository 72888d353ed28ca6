//! Questions about a search, in whatever room there is.

use formats::campaign;
use std::path::Path;

use language_model::edit::Format;
use proptest::prelude::*;

use super::*;
use crate::agent::{model, outline};
use crate::layout::RECIPE;
use crate::ledger::{Evaluation, Trained};

/// The repository's own texts.
struct Texts {
    program: String,
    outline: Outline,
    campaign: String,
    recipe: String,
}

impl Texts {
    fn new() -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let read = |path: &str| std::fs::read_to_string(root.join(path)).expect("a file");
        let nano = Campaign::parse(&read("experiments/nano/campaign.toml")).expect("a campaign");
        Self {
            program: read("program.md"),
            outline: outline::outline(&root).expect("an outline"),
            campaign: campaign(&nano).expect("TOML"),
            recipe: read(RECIPE),
        }
    }

    fn ask(&self, state: &State, prompt_tokens: u64) -> Result<Prompt, TooLong> {
        let kept = state.rows.iter().filter(|row| row.status == Status::Keep);
        let knowledge = Knowledge {
            program: self.program.clone(),
            outline: self.outline.clone(),
            rules: model::rules(Format::Blocks),
            campaign: self.campaign.clone(),
            prompt_tokens,
            history_tokens: 12_000,
            diffs: kept.map(|row| (row.experiment, format!("+ line of {}\n", row.experiment))).collect(),
            log: "step\tlambda\tgrad_norm\n100\t1.0\t0.5\n".into(),
            left: "Much is left.".into(),
            in_flight: Some((state.rows.len() as u64 + 1, "A change.".into(), "+ a line\n".repeat(400))),
            recipe: self.recipe.clone(),
        };
        prompt(state, &knowledge)
    }
}

/// A search with a kept baseline, and then a keep, a crash and two discards in turn.
fn search(experiments: u64) -> State {
    let row = |experiment: u64| {
        let status = match experiment % 4 {
            1 => Status::Keep,
            2 => Status::Crash,
            _ => Status::Discard,
        };
        let evaluation = Evaluation {
            part: campaign::Part::Select,
            eval_loss: 3.25,
            eval_ppl: 25.79,
            eval_bpb: 1.5,
            tokens: 100,
            bits_per_weight: 1.7344,
            shares: [0.271, 0.459, 0.27],
            seconds: 0.1,
            windows: Vec::new(),
        };
        let trained = Trained {
            experiment,
            train_s: 60.0,
            wall_s: 64.0,
            steps: 1200,
            tokens: 1_228_800,
            memory: 812_000_000,
            sandbox: None,
            processor: None,
        };
        Row {
            experiment,
            commit: format!("{experiment:040}"),
            parent: (experiment > 1).then(|| "0".repeat(40)),
            status,
            reason: (status == Status::Crash).then(|| format!("panicked at line {experiment}")),
            description: format!("idea {experiment}"),
            agent: "search".into(),
            seed: 0,
            gain: Some(0.01),
            comparison: None,
            evaluation: (status != Status::Crash).then_some(evaluation),
            trained: Some(trained),
            finished_at: String::new(),
        }
    };
    let lessons = (1..=experiments / 4).map(|n| (n, format!("Lesson {n} has its own word{n} and thing{n}."))).collect();
    State { rows: (1..=experiments).map(row).collect(), lessons, ..State::default() }
}

#[test]
fn the_incumbents_figures_are_told() {
    let text = Texts::new().ask(&search(5), u64::MAX).expect("room").text();
    for figure in [
        "shares of −1, 0, +1: 27.1 %, 45.9 %, 27.0 %",
        "1200 steps, 1228800 tokens, 20480 tokens/s",
        "at most 812 MB of memory",
        "3.2500 nats per token, the mean of 1 of its runs",
        "grad_norm",
        "Much is left.",
    ] {
        assert!(text.contains(figure), "{figure}: {text}");
    }
    assert!(!text.contains("What is not shown here"));
    // Until the incumbent changes, what endpoints cache stays.
    let later = Texts::new().ask(&search(8), u64::MAX).expect("room");
    assert_eq!(later.stable, Texts::new().ask(&search(5), u64::MAX).expect("room").stable);
    assert_ne!(later.text(), text);
    // Who proposes, and where keys are, is not the model's business.
    assert!(text.contains("[constraints]") && !text.contains("[agent]"));
}

#[test]
fn with_less_room_less_is_shown_and_that_is_said() {
    let (texts, state) = (Texts::new(), search(300));
    let whole = texts.ask(&state, u64::MAX).expect("room").tokens();
    let mut said = std::collections::BTreeSet::new();
    for limit in (7100..whole).step_by(250) {
        let prompt = texts.ask(&state, limit).expect("room");
        assert!(prompt.tokens() <= limit, "{} of {limit}", prompt.tokens());
        assert_eq!(prompt, texts.ask(&state, limit).expect("room"));
        let note = prompt.changing.iter().find(|section| section.title == "What is not shown here");
        said.insert(note.expect("a note").text.lines().filter(|line| line.starts_with("- ")).collect::<String>());
        let text = prompt.text();
        assert!(text.contains(texts.recipe.trim_end()) && text.contains("300 experiments so far: 75 kept"));
        assert!(text.contains(&texts.campaign) && text.contains("SEARCH"));
        if !text.contains("section \"") {
            assert!(text.contains(texts.program.trim_end()), "program.md is cut last");
        }
    }
    assert!(said.len() > 6, "{said:#?}");
}

#[test]
fn a_small_context_is_enough_and_where_it_is_not_the_parts_are_named() {
    let texts = Texts::new();
    let prompt = texts.ask(&search(5), 7000).expect("room in a context of 8192");
    assert!(prompt.text().contains("the section \"What can be tried\" of the program"));
    let error = texts.ask(&State::default(), 3000).expect_err("no room").to_string();
    for part in ["agent.prompt_tokens is 3000", "The program: ", "The file crates/trainer/src/train.rs: "] {
        assert!(error.contains(part), "{part}: {error}");
    }
}

proptest! {
    #[test]
    fn a_question_is_within_its_room_or_refused(experiments in 0..60u64, limit in 0..60_000u64) {
        thread_local!(static TEXTS: Texts = Texts::new());
        let (first, second) = TEXTS.with(|texts| {
            let state = search(experiments);
            (texts.ask(&state, limit), texts.ask(&state, limit + 500))
        });
        if let Ok(prompt) = &first {
            prop_assert!(prompt.tokens() <= limit);
            // More room never shows less.
            let second = second.expect("more room");
            prop_assert!(second.tokens() + 200 >= prompt.tokens(), "{} {}", second.tokens(), prompt.tokens());
        }
    }
}
