//! The search agent: a tree-structured Parzen estimator (Bergstra et al. 2011, "Algorithms for hyper-parameter
//! optimization") for each knob, from the tpe crate.
//!
//! Ranges are modelled on the unit interval by Parzen windows, choices by histograms; knobs are modelled one by one, as
//! in the paper. A campaign has tens of experiments, not thousands, so each knob keeps the incumbent's value with
//! probability [`KEEP`]. The settings below are the best of those tried on the simulated campaigns of the tests.

use std::collections::BTreeMap;

use rand::RngExt;
use rand::rngs::StdRng;

use super::{AgentError, Trial};
use crate::knobs::{Knob, Space};

/// Share of the trials that count as good.
const GAMMA: f64 = 0.1;
/// Draws from the density of the good among which the best ratio wins; few draws explore more.
const CANDIDATES: usize = 8;
/// Probability that a knob keeps the incumbent's value.
const KEEP: f64 = 0.5;
/// The estimator's unit interval excludes its upper end.
const LAST: f64 = 1.0 - 1e-9;

/// One draw of all knobs, given every trial so far.
///
/// # Errors
/// When the library refuses what it is told, which would be a defect here.
pub fn sample(space: &Space, history: &[Trial], rng: &mut StdRng) -> Result<BTreeMap<String, String>, AgentError> {
    let losses = losses(history);
    space
        .knobs
        .iter()
        .map(|knob| {
            let value = if rng.random_bool(KEEP) {
                knob.value.clone()
            } else {
                let position = ask(knob, history, &losses, rng).map_err(|e| AgentError::Optimizer(e.to_string()))?;
                knob.domain.at(position)
            };
            Ok((knob.name.clone(), value))
        })
        .collect()
}

/// What each trial counts as; what crashed counts as the worst that was measured.
fn losses(history: &[Trial]) -> Vec<f64> {
    let measured = |trial: &Trial| trial.loss.filter(|loss| loss.is_finite());
    let worst = history.iter().filter_map(measured).reduce(f64::max).unwrap_or(0.0);
    history.iter().map(|trial| measured(trial).unwrap_or(worst)).collect()
}

fn ask(knob: &Knob, history: &[Trial], losses: &[f64], rng: &mut StdRng) -> Result<f64, Box<dyn std::error::Error>> {
    let (estimator, range) = match knob.domain.choices() {
        Some(choices) => (tpe::histogram_estimator(), tpe::categorical_range(choices)?),
        None => (tpe::parzen_estimator(), tpe::range(0.0, 1.0)?),
    };
    let mut optimizer = tpe::TpeOptimizerBuilder::new().gamma(GAMMA).candidates(CANDIDATES).build(estimator, range)?;
    for (trial, &loss) in history.iter().zip(losses) {
        // A trial of an older recipe may lack the knob or lie outside of what is now allowed.
        let position = trial.knobs.get(&knob.name).and_then(|value| knob.domain.position(value));
        let inside = position.map(|p| if knob.domain.choices().is_none() { p.clamp(0.0, LAST) } else { p });
        optimizer.tell(inside.unwrap_or(f64::NAN), loss)?;
    }
    Ok(optimizer.ask(rng)?)
}
