//! What a search with a real model must have kept to, read from what it left: its journal, its log, and the recorded
//! exchanges.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// What the orchestrator's log says of an answer that is no edit, before the reason.
const REFUSED: &str = "the model's answer is refused reply=";
/// Most characters of a reason that tell its kind.
const KIND: usize = 72;

/// Counts, by whatever tells them apart.
type Counts = BTreeMap<String, usize>;

/// What is counted.
#[derive(Debug, Default, PartialEq)]
struct Figures {
    /// Rows by agent and status.
    rows: Counts,
    /// Rows of the model.
    model_rows: usize,
    /// Rows of the model that gave no figure: whatever was trained of them is wasted.
    wasted: usize,
    /// Recipes of the model that were put in flight, and that were not: tried meanwhile, or in conflict with a keep.
    proposed: usize,
    dropped: usize,
    /// Training runs of which nobody proposed the recipe.
    foreign: usize,
    /// Training runs with their seconds, from start to end: of the model's recipes, and of all.
    model_runs: (usize, f64),
    runs: (usize, f64),
    /// Exchanges with an answer, and with none by why.
    answers: usize,
    silent: Counts,
    /// Tokens of questions and answers.
    tokens: [u64; 2],
    /// Refusals by reason; an empty one is none.
    refusals: Counts,
}

/// Prints what was found in a search's folder; `status` is what `orchestrator status --json` says of it.
///
/// # Errors
/// With the first thing that does not hold.
pub fn check(search: &Path, status: &Value, model: &str, experiments: usize) -> Result<()> {
    let read = |name: &str| {
        let path = search.join(name);
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
    };
    let mut figures = Figures::default();
    figures.journal(&read("journal.jsonl")?, model)?;
    figures.log(&read("orchestrator.log")?);
    let mut exchanges: Vec<_> = fs::read_dir(search.join("exchanges"))?.collect::<Result<_, _>>()?;
    exchanges.sort_by_key(std::fs::DirEntry::path);
    for entry in exchanges {
        figures.exchange(&serde_json::from_slice(&fs::read(entry.path())?)?);
    }
    print!("{}", figures.report(status));
    figures.hold(experiments)
}

impl Figures {
    fn journal(&mut self, text: &str, model: &str) -> Result<()> {
        let mut authors: BTreeMap<u64, String> = BTreeMap::new();
        for line in text.lines().skip(1) {
            let record: Value = serde_json::from_str(line).context("the journal is damaged")?;
            let Some((kind, event)) = record["event"].as_object().and_then(|event| event.iter().next()) else {
                continue;
            };
            let agent = event["agent"].as_str().unwrap_or_default();
            match kind.as_str() {
                "proposed" => {
                    self.proposed += usize::from(agent == model);
                    authors.insert(event["experiment"].as_u64().unwrap_or_default(), agent.to_owned());
                }
                "unused" => self.dropped += usize::from(event["drafted"] == true),
                "trained" => self.train(event, &authors, model),
                "replicated" => self.train(&event["trained"], &authors, model),
                "ended" => {
                    let status = event["status"].as_str().unwrap_or_default();
                    *self.rows.entry(format!("{agent}: {status}")).or_default() += 1;
                    self.model_rows += usize::from(agent == model);
                    self.wasted += usize::from(agent == model && event["evaluation"].is_null());
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn train(&mut self, trained: &Value, authors: &BTreeMap<u64, String>, model: &str) {
        let seconds = trained["wall_s"].as_f64().unwrap_or_default();
        let add = |runs: &mut (usize, f64)| *runs = (runs.0 + 1, runs.1 + seconds);
        add(&mut self.runs);
        match trained["experiment"].as_u64().and_then(|experiment| authors.get(&experiment)) {
            Some(author) if author == model => add(&mut self.model_runs),
            Some(_) => {}
            None => self.foreign += 1,
        }
    }

    fn log(&mut self, text: &str) {
        for line in text.lines() {
            let Some((_, reason)) = line.split_once(REFUSED) else { continue };
            *self.refusals.entry(reason.chars().take(KIND).collect::<String>().trim().to_owned()).or_default() += 1;
        }
    }

    fn exchange(&mut self, recording: &Value) {
        let exchange = &recording["exchange"];
        let usage = |key: &str| exchange["usage"][key].as_u64().unwrap_or_default();
        self.tokens[0] += usage("input") + usage("cached_input") + usage("cache_write");
        self.tokens[1] += usage("output");
        match &exchange["outcome"]["Err"] {
            Value::Null => self.answers += 1,
            error => *self.silent.entry(error.to_string().chars().take(KIND).collect()).or_default() += 1,
        }
    }

    fn report(&self, status: &Value) -> String {
        let mut out = String::from("\n── what came of it ──\n");
        let refused: usize = self.refusals.values().sum();
        let list = |out: &mut String, title: &str, counts: &Counts| {
            let _ = writeln!(out, "{title}");
            for (what, count) in counts {
                let _ = writeln!(out, "  {count:>4} × {what}");
            }
        };
        list(&mut out, "rows, by agent and status:", &self.rows);
        let _ = writeln!(
            out,
            "answers: {} ({refused} refused, {} put in flight, {} dropped); {} tokens read, {} written",
            self.answers, self.proposed, self.dropped, self.tokens[0], self.tokens[1]
        );
        list(&mut out, "refusals, by reason:", &self.refusals);
        if !self.silent.is_empty() {
            list(&mut out, "questions without an answer:", &self.silent);
        }
        let _ = writeln!(
            out,
            "training runs: {} in {:.1} s; of the model's recipes {} in {:.1} s, {} of its rows without a figure",
            self.runs.0, self.runs.1, self.model_runs.0, self.model_runs.1, self.wasted
        );
        let seconds = |key: &str| status["time"][key].as_f64().unwrap_or_default();
        let worked = seconds("worked").max(f64::MIN_POSITIVE);
        let _ = writeln!(out, "time: {worked:.0} s");
        for key in ["thinking", "building", "rehearsing", "training", "overhead", "evaluating"] {
            let _ = writeln!(out, "  {key:<10} {:>6.1} s {:>5.1} %", seconds(key), 100.0 * seconds(key) / worked);
        }
        out
    }

    /// What the loop must keep to, whatever a model says.
    fn hold(&self, experiments: usize) -> Result<()> {
        let rows: usize = self.rows.values().sum();
        ensure!(rows == experiments, "{rows} rows instead of {experiments}");
        ensure!(self.answers > 0, "the model never answered: {:?}", self.silent);
        let refused: usize = self.refusals.values().sum();
        // A row of the model is followed by a question for its lesson.
        let taken = refused + self.proposed + self.dropped;
        let accounted = taken..=taken + self.model_rows;
        ensure!(
            accounted.contains(&self.answers),
            "{} answers, but {refused} refusals and {} recipes: some answer was neither taken nor explained",
            self.answers,
            self.proposed
        );
        ensure!(!self.refusals.contains_key(""), "an answer was refused without a reason");
        ensure!(self.foreign == 0, "{} training runs of recipes that nobody proposed", self.foreign);
        ensure!(self.wasted == 0, "{} recipes of the model were trained for nothing", self.wasted);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const JOURNAL: &str = r#"{"journal":"ternary-autoresearch","version":1}
{"time":"t","event":{"proposed":{"experiment":1,"agent":"baseline"}}}
{"time":"t","event":{"trained":{"experiment":1,"wall_s":6.0}}}
{"time":"t","event":{"ended":{"experiment":1,"agent":"baseline","status":"keep","evaluation":{}}}}
{"time":"t","event":{"replicated":{"trained":{"experiment":1,"wall_s":7.0}}}}
{"time":"t","event":{"proposed":{"experiment":2,"agent":"m"}}}
{"time":"t","event":{"trained":{"experiment":2,"wall_s":8.0}}}
{"time":"t","event":{"ended":{"experiment":2,"agent":"m","status":"discard","evaluation":{}}}}
"#;

    fn figures(journal: &str, log: &str, answers: usize) -> Figures {
        let mut figures = Figures::default();
        figures.journal(journal, "m").expect("a journal");
        figures.log(log);
        for _ in 0..answers {
            figures.exchange(
                &serde_json::json!({"exchange": {"outcome": {"Ok": {}}, "usage": {"input": 5, "output": 2}}}),
            );
        }
        figures
    }

    #[test]
    fn a_healthy_search_holds() {
        let log = format!("INFO {REFUSED}No block was found. Give one.\nthe second line\nWARN other\n");
        let figures = figures(JOURNAL, &log, 3);
        figures.hold(2).expect("all holds");
        assert_eq!((figures.runs, figures.model_runs), ((3, 21.0), (1, 8.0)));
        let report = figures.report(&serde_json::json!({"time": {"worked": 40.0, "thinking": 10.0}}));
        for line in
            ["1 × m: discard", "answers: 3 (1 refused, 1 put in flight, 0 dropped); 15 tokens", "10.0 s  25.0 %"]
        {
            assert!(report.contains(line), "{line}: {report}");
        }
    }

    #[test]
    fn what_does_not_hold_is_named() {
        let refused = format!("INFO {REFUSED}Why.\n");
        let wasted = JOURNAL.replace(r#""status":"discard","evaluation":{}"#, r#""status":"crash","evaluation":null"#);
        let foreign = JOURNAL.replace(r#"{"experiment":2,"wall_s""#, r#"{"experiment":9,"wall_s""#);
        for (figures, rows, wanted) in [
            (figures(JOURNAL, &refused, 3), 10, "2 rows instead of 10"),
            (figures(JOURNAL, "", 0), 2, "never answered"),
            (figures(JOURNAL, "", 5), 2, "neither taken nor explained"),
            (figures(JOURNAL, &refused.replace("Why.", ""), 2), 2, "without a reason"),
            (figures(&foreign, &refused, 3), 2, "nobody proposed"),
            (figures(&wasted, &refused, 3), 2, "trained for nothing"),
        ] {
            let error = figures.hold(rows).expect_err(wanted).to_string();
            assert!(error.contains(wanted), "{wanted}: {error}");
        }
    }
}
