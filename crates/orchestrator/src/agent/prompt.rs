//! What a language model is asked: the same state of a search always gives the same prompt, what changes least comes first,
//! so that endpoints can cache it.
//!
//! What candidates printed is quoted as data. Reads nothing: the search hands over what it knows.

use std::collections::BTreeMap;

use language_model::edit::{Rules, instructions};
use language_model::history::{Outcome, Past, family, table};
use language_model::{Lessons, Prompt, QUOTING_NOTE, Section, quote};

use crate::ledger::{Row, State, Status};
use crate::verdict::Noise;

/// Tokens for the lessons.
const LESSON_TOKENS: u64 = 3000;
/// Most bytes of the incumbent's log.
const LOG_BYTES: usize = 2400;
/// Most bytes of the change that is in training.
const DIFF_BYTES: usize = 6000;

/// What stands around the file in its section.
const FILE_BEGINS: &str = "````rust\n";
const FILE_ENDS: &str = "\n````";

/// What a prompt is made from, beside the state of the search.
pub struct Knowledge {
    /// program.md; empty where there is none.
    pub program: String,
    /// What a recipe may call.
    pub outline: String,
    /// What an edit may be.
    pub rules: Rules<'static>,
    /// The campaign in its own words.
    pub campaign: String,
    /// Tokens for the table of experiments.
    pub history_tokens: u64,
    /// How each kept commit changed its parent, by experiment.
    pub diffs: BTreeMap<u64, String>,
    /// Lines of the incumbent's log, thinned out.
    pub log: String,
    /// What is left, in words.
    pub left: String,
    /// What is in training, if anything is: its number, what it tries, and how it changes the incumbent.
    pub in_flight: Option<(u64, String, String)>,
    /// The incumbent's recipe.
    pub recipe: String,
}

/// The prompt for the next experiment.
pub fn prompt(state: &State, knowledge: &Knowledge) -> Prompt {
    let mut stable = Vec::new();
    if !knowledge.program.trim().is_empty() {
        stable.push(Section::new("The program", knowledge.program.as_str()));
    }
    stable.push(Section::new("What a recipe may call", knowledge.outline.as_str()));
    stable.push(Section::new("The campaign", format!("```toml\n{}\n```", knowledge.campaign.trim_end())));
    stable.push(Section::new("How to answer", format!("{}\n\n{QUOTING_NOTE}", instructions(&knowledge.rules))));
    let mut changing =
        vec![Section::new("Experiments so far", table(&pasts(state, &knowledge.diffs), knowledge.history_tokens))];
    let mut lessons = Lessons::default();
    for (experiment, lesson) in &state.lessons {
        lessons.add(*experiment, lesson);
    }
    if !lessons.all().is_empty() {
        changing.push(Section::new("Lessons", lessons.list(LESSON_TOKENS)));
    }
    if let Some((number, description, diff)) = &knowledge.in_flight {
        let text = format!(
            "Experiment {number} trains now, and its result is not known yet: {description}\n{}\nYour change is tried next, \
             against the incumbent if experiment {number} is not kept, and merged into it if it is. Propose something else.",
            quote("Its change of the incumbent", diff.as_bytes(), DIFF_BYTES)
        );
        changing.push(Section::new("In training", text));
    }
    changing.push(Section::new("Noise, and what is left", format!("{}\n{}", noise(state.noise()), knowledge.left)));
    changing.push(Section::new("The incumbent's run", quote("train.tsv", knowledge.log.as_bytes(), LOG_BYTES)));
    let file = format!("{FILE_BEGINS}{}{FILE_ENDS}", knowledge.recipe.trim_end());
    changing.push(Section::new(file_title(knowledge.rules.path), file));
    Prompt { stable, changing, turns: Vec::new() }
}

fn file_title(path: &str) -> String {
    format!("The file {path}")
}

/// The file that a prompt shows for a change, if it does.
pub fn shown_file(prompt: &Prompt, path: &str) -> Option<String> {
    let section = prompt.changing.iter().find(|section| section.title == file_title(path))?;
    let text = section.text.strip_prefix(FILE_BEGINS)?.strip_suffix(FILE_ENDS)?;
    Some(format!("{text}\n"))
}

fn noise(noise: Option<Noise>) -> String {
    noise.map_or_else(
        || "The run-to-run noise of this campaign is not measured yet.".into(),
        |noise| {
            format!(
                "The run-to-run standard deviation of the loss is {:.4} nats per token. A gain must stand out from it; a \
                 borderline one is run again with other seeds.",
                noise.sd
            )
        },
    )
}

fn pasts(state: &State, diffs: &BTreeMap<u64, String>) -> Vec<Past> {
    let outcome = |row: &Row| match (row.status, row.loss()) {
        (Status::Keep, Some(loss)) => {
            let diff = diffs.get(&row.experiment).cloned().unwrap_or_default();
            Outcome::Kept { loss, gain: row.gain.unwrap_or_default(), diff }
        }
        (Status::Discard, Some(loss)) => Outcome::Discarded { loss, gain: row.gain.unwrap_or_default() },
        _ => Outcome::Failed { family: family(row.reason.as_deref().unwrap_or(row.status.name())) },
    };
    let past = |row: &Row| Past {
        number: row.experiment,
        agent: row.agent.clone(),
        description: row.description.clone(),
        outcome: outcome(row),
    };
    state.rows.iter().map(past).collect()
}

/// What came of an experiment, for the model that proposed it.
pub fn result(row: &Row, noise: Option<Noise>) -> String {
    let spread = noise.map_or_else(String::new, |noise| format!(" The noise of one run is {:.4}.", noise.sd));
    match (row.status, &row.comparison) {
        (Status::Keep | Status::Discard, Some(comparison)) => {
            let verdict = if row.status == Status::Keep { "kept" } else { "discarded" };
            format!(
                "Your change was {verdict}: it gained {:+.4} nats per token (standard error {:.4}, {} runs).{spread}",
                comparison.gain, comparison.error, comparison.runs
            )
        }
        _ => {
            let reason = row.reason.as_deref().unwrap_or(row.status.name());
            format!("Your change gave nothing to measure.\n{}", quote("Reason", reason.as_bytes(), LOG_BYTES))
        }
    }
}

/// Lines of a training log, spread over its length, with its header.
pub fn thinned(log: &str, lines: usize) -> String {
    let all: Vec<&str> = log.lines().collect();
    let Some((header, rest)) = all.split_first() else { return String::new() };
    let count = rest.len().min(lines);
    let mut text = format!("{header}\n");
    for i in 0..count {
        // The last line is always there.
        text.push_str(rest[(i + 1) * rest.len() / count - 1]);
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_thinned_evenly_and_ends_with_its_end() {
        let log: String = std::iter::once("step\tloss".to_owned())
            .chain((1..=100).map(|i| format!("{i}\t3")))
            .collect::<Vec<_>>()
            .join("\n");
        assert_eq!(thinned(&log, 4), "step\tloss\n25\t3\n50\t3\n75\t3\n100\t3\n");
        assert_eq!(thinned("step\n1", 4), "step\n1\n");
        assert_eq!(thinned("", 4), "");
    }
}
