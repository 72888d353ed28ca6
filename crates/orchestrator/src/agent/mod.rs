//! Agents. The built-in ones turn the annotated knobs of the incumbent; `model` asks a language model for code.
//!
//! A built-in proposal is a pure function of its request: the state of the search is the history, told anew each time, so
//! that a campaign that was stopped goes on exactly as if it had not been.

mod command;
pub mod model;
pub mod outline;
pub mod prompt;
mod random;
pub mod thread;
mod tpe;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::process::Stdio;

use formats::campaign::AgentKind;
use rand::SeedableRng;
use rand::rngs::StdRng;
use sha2::{Digest, Sha256};

use crate::knobs::{self, KnobError, Space};
use crate::secrets;

pub use model::Cost;
pub use outline::outline;

/// Draws after which a space counts as used up when each gave a recipe that was tried before.
const DRAWS: usize = 1000;

/// One finished experiment.
#[derive(Debug, Clone, PartialEq)]
pub struct Trial {
    /// Its knobs, as literals.
    pub knobs: BTreeMap<String, String>,
    /// Loss on the select part, nats per token; `None` when it gave no valid artifact.
    pub loss: Option<f64>,
}

/// All that a proposal depends on.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// Text of the incumbent's train.rs.
    pub incumbent: &'a str,
    /// The constant that holds its knobs.
    pub const_name: &'a str,
    /// Every finished experiment in order, the baseline first.
    pub history: &'a [Trial],
    /// Hashes of the tokens of every recipe tried so far.
    pub tried: &'a BTreeSet<String>,
    /// Which built-in agent proposes.
    pub kind: AgentKind,
    /// The campaign's seed.
    pub seed: u64,
    /// Random proposals before the optimizer models the results.
    pub startup: usize,
    /// Number of the experiment that the proposal is for.
    pub experiment: u64,
}

/// A recipe to try.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proposal {
    /// Text of train.rs.
    pub source: String,
    /// Every knob in it.
    pub knobs: BTreeMap<String, String>,
    /// [`knobs::token_hash`] of `source`.
    pub hash: String,
    /// What changed against the incumbent: `learning_rate 1e-3 → 2.1e-3, batch 16 → 32`.
    pub description: String,
    /// Who proposes: `search` or `random`.
    pub agent: &'static str,
}

/// Why there is no proposal.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The incumbent's knobs cannot be read.
    #[error("the recipe's knobs cannot be read: {0}")]
    Knobs(#[from] KnobError),
    /// Nothing to turn.
    #[error(
        "`const {0}` in the recipe has no annotated knob; write `// search: A..B` behind the fields that may be turned"
    )]
    NoKnobs(String),
    /// The optimizer refused the history.
    #[error("the optimizer refused the history of this search: {0}")]
    Optimizer(String),
    /// Every draw was a recipe that was tried before.
    #[error("{DRAWS} draws gave no new recipe: the space is used up; widen the annotations in the recipe's constant")]
    UsedUp,
}

/// Proposes the next recipe; the same request always gives the same proposal.
///
/// # Errors
/// When the incumbent has no readable knobs, or all its space was tried.
pub fn propose(request: &Request) -> Result<Proposal, AgentError> {
    let space = knobs::parse(request.incumbent, request.const_name)?;
    if space.knobs.is_empty() {
        return Err(AgentError::NoKnobs(request.const_name.to_owned()));
    }
    let mut rng = rng(request.seed, request.experiment);
    // The baseline is no proposal, so a history of `startup + 1` trials ends the random start.
    let modelled = request.kind == AgentKind::Tpe && request.history.len() > request.startup;
    let mut drawn = BTreeSet::new();
    for draw in 0..DRAWS {
        // A space of few choices can hold the optimizer in recipes that were tried: then chance goes on.
        let values = if modelled && draw < DRAWS / 2 {
            tpe::sample(&space, request.history, &mut rng)?
        } else {
            random::sample(&space, &mut rng)
        };
        if !drawn.insert(values.clone()) {
            continue;
        }
        let source = space.apply(&values)?;
        let hash = knobs::token_hash(&source)?;
        if !request.tried.contains(&hash) {
            return Ok(Proposal {
                description: describe(&space, &values),
                source: formatted(source),
                knobs: values,
                hash,
                agent: request.kind.name(),
            });
        }
    }
    Err(AgentError::UsedUp)
}

/// A generator of its own for each experiment, so that what happened before does not shift it.
fn rng(seed: u64, experiment: u64) -> StdRng {
    let digest = Sha256::new()
        .chain_update(b"proposal")
        .chain_update(seed.to_le_bytes())
        .chain_update(experiment.to_le_bytes())
        .finalize();
    StdRng::from_seed(digest.into())
}

/// A lesson out of an answer, unless it says nothing, or nothing new.
pub fn lesson(known: &[(u64, String)], experiment: u64, answer: &str) -> Option<String> {
    let mut lessons = language_model::Lessons::default();
    for (experiment, lesson) in known {
        lessons.add(*experiment, lesson);
    }
    lessons.add(experiment, answer).map(|lesson| lesson.text.clone())
}

fn describe(space: &Space, values: &BTreeMap<String, String>) -> String {
    let changes: Vec<String> = space
        .knobs
        .iter()
        .filter_map(|knob| {
            let value = values.get(&knob.name).filter(|value| **value != knob.value)?;
            Some(format!("{} {} → {value}", knob.name, knob.value))
        })
        .collect();
    if changes.is_empty() { "the incumbent's knobs".to_owned() } else { changes.join(", ") }
}

/// Aligns the comments again, as rustfmt wants them, so that a kept recipe passes the checks; tokens stay the same.
/// rustfmt reads its settings from the working directory, which lies in the checkout. Where it is missing the text is
/// left as it is.
fn formatted(source: String) -> String {
    let run = || -> std::io::Result<Option<String>> {
        let mut child = secrets::command("rustfmt")
            .args(["--edition", "2024", "--emit", "stdout"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        // rustfmt reads all of its input before it writes, so one pipe after the other cannot block.
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(source.as_bytes())?;
        }
        let output = child.wait_with_output()?;
        Ok(String::from_utf8(output.stdout).ok().filter(|text| output.status.success() && !text.is_empty()))
    };
    run().ok().flatten().unwrap_or(source)
}

#[cfg(test)]
mod tests;
