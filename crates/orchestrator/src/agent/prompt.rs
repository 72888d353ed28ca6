//! What a language model is asked: the same state of a search always gives the same prompt, what changes least comes first,
//! so that endpoints can cache it.
//!
//! What candidates printed is quoted as data. Reads nothing but the incumbent's log: the search hands over what it knows.
//!
//! A question stays within the campaign's `prompt_tokens`: over them it is put together again with less of what may be
//! shortened, step by step, and says what it leaves out.

mod incumbent;
mod left;
mod shown;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use formats::campaign::Campaign;
use language_model::edit::{Rules, instructions};
use language_model::history::{Outcome, Past, family, table};
use language_model::{Lessons, Prompt, QUOTING_NOTE, Section, estimated_tokens, quote};

use crate::agent::outline::Outline;
use crate::ledger::{Row, State, Status};
use crate::verdict::Noise;

pub use incumbent::log;
pub use left::Left;
use shown::Shown;

/// Lessons get this part of what the table of experiments gets.
const LESSON_SHARE: u64 = 4;
/// Most bytes of the reason why an experiment gave nothing.
const REASON_BYTES: usize = 2400;
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
    pub outline: Outline,
    /// What an edit may be.
    pub rules: Rules<'static>,
    /// The campaign in its own words: [`campaign()`].
    pub campaign: String,
    /// Most tokens of the question.
    pub prompt_tokens: u64,
    /// Tokens for the table of experiments.
    pub history_tokens: u64,
    /// How each kept commit changed its parent, by experiment.
    pub diffs: BTreeMap<u64, String>,
    /// The incumbent's log: [`log()`].
    pub log: String,
    /// What is left: [`Left`] in words.
    pub left: String,
    /// What is in training, if anything is: its number, what it tries, and how it changes the incumbent.
    pub in_flight: Option<(u64, String, String)>,
    /// The incumbent's recipe.
    pub recipe: String,
}

/// Why there is no question.
#[derive(Debug, thiserror::Error)]
#[error(
    "the shortest question takes {tokens} tokens, about, and agent.prompt_tokens is {limit}: raise it, with the context of \
     the endpoint, or shorten what is long ({parts})"
)]
pub struct TooLong {
    /// Its tokens, estimated.
    tokens: u64,
    /// What it may have.
    limit: u64,
    /// Its sections with the tokens of each.
    parts: String,
}

/// The prompt for the next experiment: as much of what is known as fits.
///
/// # Errors
/// When not even the shortest one fits.
pub fn prompt(state: &State, knowledge: &Knowledge) -> Result<Prompt, TooLong> {
    let pasts = pasts(state, &knowledge.diffs);
    let (limit, history) = (knowledge.prompt_tokens, knowledge.history_tokens);
    let mut shortest = Prompt::default();
    for shown in shown::steps(&knowledge.program, history) {
        let left_out = shown.left_out(history);
        shortest = assemble(state, knowledge, &pasts, &shown, &left_out);
        if shortest.tokens() <= limit {
            if !left_out.is_empty() {
                tracing::info!(limit, tokens = shortest.tokens(), left_out = left_out.join("; "), "a shorter question");
            }
            return Ok(shortest);
        }
    }
    let sections = shortest.stable.iter().chain(&shortest.changing);
    let parts = sections.map(|section| format!("{}: {}", section.title, estimated_tokens(&section.text)));
    Err(TooLong { tokens: shortest.tokens(), limit, parts: parts.collect::<Vec<_>>().join(", ") })
}

fn assemble(state: &State, knowledge: &Knowledge, pasts: &[Past], shown: &Shown, left_out: &[String]) -> Prompt {
    let mut stable = Vec::new();
    let program = shown.program(&knowledge.program);
    if !program.trim().is_empty() {
        stable.push(Section::new("The program", program));
    }
    let outline = knowledge.outline.text(shown.outline, &knowledge.recipe);
    if !outline.is_empty() {
        stable.push(Section::new("What a recipe may call", outline));
    }
    stable.push(Section::new("The campaign", format!("```toml\n{}\n```", knowledge.campaign.trim_end())));
    stable.push(Section::new("How to answer", format!("{}\n\n{QUOTING_NOTE}", instructions(&knowledge.rules))));
    // It changes with the incumbent only, the table below with every experiment.
    let file = format!("{FILE_BEGINS}{}{FILE_ENDS}", knowledge.recipe.trim_end());
    stable.push(Section::new(file_title(knowledge.rules.path), file));
    let mut changing = Vec::new();
    if !left_out.is_empty() {
        let list = left_out.iter().map(|part| format!("- {part}\n")).collect::<String>();
        let text = format!("There is room for {} tokens. Left out:\n\n{list}", knowledge.prompt_tokens);
        changing.push(Section::new("What is not shown here", text));
    }
    changing.push(Section::new("Experiments so far", table(pasts, shown.history)));
    let mut lessons = Lessons::default();
    for (experiment, lesson) in &state.lessons {
        lessons.add(*experiment, lesson);
    }
    if !lessons.all().is_empty() {
        changing.push(Section::new("Lessons", lessons.list(shown.history / LESSON_SHARE)));
    }
    if let Some((number, description, diff)) = &knowledge.in_flight {
        let change = match shown.change {
            true => quote("Its change of the incumbent", diff.as_bytes(), DIFF_BYTES),
            false => "There is no room for its change of the incumbent.".into(),
        };
        let text = format!(
            "Experiment {number} trains now, and its result is not known yet: {description}\n{change}\nYour change is tried \
             next, against the incumbent if experiment {number} is not kept, and merged into it if it is. Propose something \
             else."
        );
        changing.push(Section::new("In training", text));
    }
    changing.push(Section::new("Noise, and what is left", format!("{}\n{}", noise(state.noise()), knowledge.left)));
    changing.push(Section::new("The incumbent's run", incumbent::section(state, &knowledge.log, shown.curve)));
    Prompt { stable, changing, turns: Vec::new() }
}

fn file_title(path: &str) -> String {
    format!("The file {path}")
}

/// The file that a prompt shows for a change, if it does.
pub fn shown_file(prompt: &Prompt, path: &str) -> Option<String> {
    let section = prompt.stable.iter().find(|section| section.title == file_title(path))?;
    let text = section.text.strip_prefix(FILE_BEGINS)?.strip_suffix(FILE_ENDS)?;
    Some(format!("{text}\n"))
}

/// What a campaign says that concerns a recipe. Who proposes and where keys lie does not, nor how candidates are confined.
///
/// # Errors
/// When it cannot be written as TOML.
pub fn campaign(campaign: &Campaign) -> Result<String, toml::ser::Error> {
    let mut table = toml::Table::try_from(campaign)?;
    for section in ["agent", "sandbox"] {
        table.remove(section);
    }
    toml::to_string(&table)
}

fn noise(noise: Option<Noise>) -> String {
    noise.map_or_else(
        || "The run-to-run noise of this campaign is not measured yet.".into(),
        |noise| {
            if noise.is_blind() {
                return "The recipe gives the same loss with every seed, so luck cannot be measured in this campaign.".into();
            }
            format!(
                "The run-to-run standard deviation of the loss is {:.4} ± {:.4} nats per token. A gain must stand out from \
                 it; a borderline one is run again with other seeds.",
                noise.sd, noise.error
            )
        },
    )
}

fn pasts(state: &State, diffs: &BTreeMap<u64, String>) -> Vec<Past> {
    let outcome = |row: &Row| match (row.status, state.mean_loss(row)) {
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
            format!("Your change gave nothing to measure.\n{}", quote("Reason", reason.as_bytes(), REASON_BYTES))
        }
    }
}
