//! What each kept experiment gained over the baseline: when it was kept, on fresh seeds, and on the report part. What the
//! first says more than the others is the gain by selection.

use formats::corpus::Part;
use serde::Serialize;

use crate::ledger::{Evaluation, Row, State, Status, compare};
use crate::verdict::Comparison;

/// A kept experiment's figures.
#[derive(Debug, Serialize)]
pub struct Kept<'a> {
    /// Its number.
    pub experiment: u64,
    /// Its commit.
    pub commit: &'a str,
    /// Nats per token on `select` by which it beat its parent when it was kept; `None` for the baseline.
    pub won_by: Option<f64>,
    /// Over the baseline on `select`, from runs that did not select it; `None` for the baseline.
    pub select: Option<Gain>,
    /// The same on `report`; `None` too before that is measured.
    pub report: Option<Gain>,
    /// Perplexity of its recipe on `report`: exp of the mean loss of those runs.
    pub report_ppl: Option<f64>,
    /// Perplexity there of the artifact that is kept.
    pub artifact_report_ppl: Option<f64>,
}

/// A gain over the baseline.
#[derive(Debug, Serialize)]
pub struct Gain {
    /// Nats per token; positive is better.
    pub nats: f64,
    /// Half of its 95 % confidence interval, where the noise is known.
    pub half_interval: Option<f64>,
    /// Runs of the baseline that it is taken from.
    pub baseline_runs: usize,
    /// Runs of the kept recipe.
    pub runs: usize,
}

impl Gain {
    fn of(comparison: &Comparison) -> Self {
        Self {
            nats: comparison.gain,
            half_interval: comparison.half_interval(),
            baseline_runs: comparison.incumbent_runs,
            runs: comparison.runs,
        }
    }
}

/// A recipe's mean over the runs that had no part in its being kept.
#[derive(Debug, Serialize)]
pub struct Mean {
    /// Number of the experiment.
    pub experiment: u64,
    /// Commit of the recipe.
    pub commit: String,
    /// Nats per token.
    pub loss: f64,
    /// exp of that.
    pub perplexity: f64,
    /// Half of the 95 % confidence interval of the loss, of luck alone; where the noise is known.
    pub half_interval: Option<f64>,
    /// How many runs.
    pub runs: usize,
    /// Whether there is no run yet but the one that selected it.
    pub selected: bool,
}

/// Baseline and best on a part of the text.
#[derive(Debug, Serialize)]
pub struct Figures {
    /// The first recipe.
    pub baseline: Mean,
    /// The incumbent.
    pub best: Mean,
    /// Of the best over the baseline; `None` where it is the baseline.
    pub gain: Option<Gain>,
}

/// Compares the means of baseline and best; `None` before both are measured on `part`.
pub fn figures(state: &State, part: Part) -> Option<Figures> {
    let (baseline, best) = (state.baseline()?, state.incumbent()?);
    let runs = |row| if part == Part::Report { reported(state, row) } else { state.unselected(row) };
    let mean = |row: &Row, runs: &[&Evaluation]| {
        let loss = runs.iter().map(|run| run.eval_loss).sum::<f64>() / runs.len() as f64;
        (!runs.is_empty()).then(|| Mean {
            experiment: row.experiment,
            commit: row.commit.clone(),
            loss,
            perplexity: loss.exp(),
            half_interval: state.noise().and_then(|noise| noise.half_interval(runs.len())),
            runs: runs.len(),
            selected: row.parent.is_some() && state.fresh(row).next().is_none(),
        })
    };
    let (of_baseline, of_best) = (runs(baseline), runs(best));
    let (first, now) = (mean(baseline, &of_baseline)?, mean(best, &of_best)?);
    let changed = best.experiment != baseline.experiment;
    let gain = changed.then(|| Gain::of(&compare(&of_baseline, &of_best, state.noise())));
    Some(Figures { baseline: first, best: now, gain })
}

/// Perplexity at which a plot shows an experiment on `select`: of a kept one exp of the mean loss over the runs that did
/// not select it, of others that of the only run that all of them have, the first.
pub fn drawn(state: &State, row: &Row) -> Option<f64> {
    let runs = if row.status == Status::Keep { state.unselected(row) } else { row.evaluation.iter().collect() };
    let loss = runs.iter().map(|run| run.eval_loss).sum::<f64>() / runs.len() as f64;
    (!runs.is_empty()).then(|| loss.exp())
}

/// All of them, oldest first.
pub fn kept(state: &State) -> Vec<Kept<'_>> {
    let Some(baseline) = state.baseline() else { return Vec::new() };
    let rows = state.rows.iter().filter(|row| row.status == Status::Keep);
    rows.map(|row| {
        let over = |bar: &[&Evaluation], runs: &[&Evaluation]| {
            let comparable = row.parent.is_some() && !bar.is_empty() && !runs.is_empty();
            comparable.then(|| Gain::of(&compare(bar, runs, state.noise())))
        };
        let reported = reported(state, row);
        let mean = reported.iter().map(|run| run.eval_loss).sum::<f64>() / reported.len() as f64;
        Kept {
            experiment: row.experiment,
            commit: &row.commit,
            won_by: row.gain.filter(|_| row.parent.is_some()),
            select: over(&state.unselected(baseline), &state.unselected(row)),
            report: over(&self::reported(state, baseline), &reported),
            report_ppl: (!reported.is_empty()).then(|| mean.exp()),
            artifact_report_ppl: state.reported.get(&(Some(row.experiment), None)).map(|run| run.eval_ppl),
        }
    })
    .collect()
}

/// The measurements on `report` of the runs that [`State::unselected`] names on `select`.
fn reported<'a>(state: &'a State, row: &'a Row) -> Vec<&'a Evaluation> {
    let fresh: Vec<_> = state.fresh(row).map(|replicate| Some(replicate.number)).collect();
    let own = (fresh.is_empty() || row.parent.is_none()).then_some(None);
    let runs = own.into_iter().chain(fresh);
    runs.filter_map(|replicate| state.reported.get(&(Some(row.experiment), replicate))).collect()
}
