//! The table of a comparison: of each arm mean and interval on the report part, what it gains over the first, what it
//! recovers, what it takes.
//!
//! Means and intervals are of losses in nats per token, which are what noise adds to; a perplexity is exp of them. An
//! interval is Student's at 95 % over the runs' seeds: it says how sure the mean of this budget and data is, not what
//! another text would give.

use std::fmt::Write;

use serde::Serialize;
use statrs::distribution::{ContinuousCDF, StudentsT};

use super::arm::ROUND_TO_NEAREST;
use crate::ledger::{Arm, ArmRun, Measured, Outcome, State};

/// Confidence of the intervals, two-sided.
const CONFIDENCE: f64 = 0.95;
const MIB: f64 = (1 << 20) as f64;
const GIB: f64 = (1 << 30) as f64;

/// A mean over seeds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Mean {
    /// Nats per token.
    pub nats: f64,
    /// Half of its 95 % interval; `None` of a single run.
    pub half_interval: Option<f64>,
    /// Runs.
    pub runs: usize,
}

impl Mean {
    /// Of some losses; `None` of none.
    pub fn of(values: &[f64]) -> Option<Self> {
        let runs = values.len();
        let nats = values.iter().sum::<f64>() / runs as f64;
        let variance = values.iter().map(|value| (value - nats).powi(2)).sum::<f64>() / (runs as f64 - 1.0);
        let students = StudentsT::new(0.0, 1.0, runs as f64 - 1.0).ok();
        let quantile = students.filter(|_| runs > 1).map(|t| t.inverse_cdf((1.0 + CONFIDENCE) / 2.0));
        let half_interval = quantile.map(|quantile| quantile * (variance / runs as f64).sqrt());
        (runs > 0).then_some(Self { nats, half_interval, runs })
    }

    /// exp of the mean.
    fn perplexity(&self) -> f64 {
        self.nats.exp()
    }

    /// exp of the interval's ends.
    fn perplexities(&self) -> Option<[f64; 2]> {
        self.half_interval.map(|half| [(self.nats - half).exp(), (self.nats + half).exp()])
    }
}

/// A comparison's figures on `report`.
#[derive(Debug, Serialize)]
pub struct Table {
    /// The campaign.
    pub campaign: String,
    /// The comparison's tag.
    pub tag: String,
    /// Loss of the full-precision parent, where there is one.
    pub full_precision: Option<f64>,
    /// The arms, in the order in which they were asked for.
    pub arms: Vec<Row>,
}

/// An arm's figures.
#[derive(Debug, Serialize)]
pub struct Row {
    /// Its name.
    pub arm: String,
    /// What it does.
    pub description: String,
    /// Mean loss on `report`.
    pub loss: Option<Mean>,
    /// exp of it.
    pub eval_ppl: Option<f64>,
    /// exp of the ends of its interval.
    pub eval_ppl_interval: Option<[f64; 2]>,
    /// Mean loss minus the first arm's, over the seeds that both have; negative is better.
    pub difference: Option<Mean>,
    /// Share of the way from rounding to nearest to the full-precision parent, in nats.
    pub recovery: Option<f64>,
    /// Everything stored for the projections over their number of weights.
    pub bits_per_weight: Option<f64>,
    /// Mean size of the artifacts.
    pub artifact_bytes: Option<f64>,
    /// Mean of the tokens that were trained on.
    pub tokens: Option<f64>,
    /// Mean seconds of training.
    pub train_s: Option<f64>,
    /// Most memory of a run, bytes.
    pub memory: Option<u64>,
    /// Runs without a figure: seed and why.
    pub failed: Vec<(u64, String)>,
}

/// An arm as it is asked for now.
#[derive(Debug, Clone)]
pub struct Asked {
    /// What it does.
    pub description: String,
    /// Its recipe; `None` where it was not run yet.
    pub arm: Option<Arm>,
    /// Name of its file.
    pub name: String,
}

impl Table {
    /// From a comparison's records; `seeds` are those asked for.
    pub fn of(state: &State, campaign: &str, tag: &str, asked: &[Asked], seeds: std::ops::Range<u64>) -> Self {
        let runs: Vec<Vec<&ArmRun>> = asked.iter().map(|asked| latest(state, asked, &seeds)).collect();
        let losses = |runs: &[&ArmRun]| -> Vec<(u64, f64)> {
            runs.iter().filter_map(|run| Some((run.seed, run.measured()?.report.eval_loss))).collect()
        };
        let mean = |runs: &[&ArmRun]| Mean::of(&losses(runs).iter().map(|&(_, loss)| loss).collect::<Vec<_>>());
        let full_precision = state.reported.get(&(None, None)).map(|found| found.eval_loss);
        let rounded = asked.iter().zip(&runs).find(|(asked, _)| asked.name == ROUND_TO_NEAREST);
        let rounded = rounded.and_then(|(_, runs)| mean(runs)).map(|mean| mean.nats);
        let first = runs.first().map(|runs| losses(runs)).unwrap_or_default();
        let arms = asked.iter().zip(&runs).enumerate().map(|(index, (asked, runs))| {
            let measured: Vec<&Measured> = runs.iter().filter_map(|run| run.measured()).collect();
            let average = |value: fn(&Measured) -> f64| {
                let sum: f64 = measured.iter().map(|measured| value(measured)).sum();
                (!measured.is_empty()).then(|| sum / measured.len() as f64)
            };
            let loss = mean(runs);
            let differences: Vec<f64> = losses(runs)
                .iter()
                .filter_map(|&(seed, loss)| first.iter().find(|(of, _)| *of == seed).map(|(_, first)| loss - first))
                .collect();
            let recovery = |loss: &Mean| Some((rounded? - loss.nats) / (rounded? - full_precision?));
            Row {
                arm: asked.name.clone(),
                description: asked.description.clone(),
                eval_ppl: loss.map(|loss| loss.perplexity()),
                eval_ppl_interval: loss.and_then(|loss| loss.perplexities()),
                difference: Mean::of(&differences).filter(|_| index > 0),
                recovery: loss.as_ref().and_then(recovery),
                loss,
                bits_per_weight: average(|m| m.report.bits_per_weight),
                artifact_bytes: average(|m| m.artifact_bytes as f64),
                tokens: average(|m| m.trained.tokens as f64),
                train_s: average(|m| m.trained.train_s),
                memory: measured.iter().map(|m| m.trained.memory).max(),
                failed: runs.iter().filter_map(|run| failure(run)).collect(),
            }
        });
        Self { campaign: campaign.into(), tag: tag.into(), full_precision, arms: arms.collect() }
    }

    /// For a terminal.
    pub fn text(&self) -> String {
        let width = self.arms.iter().map(|row| row.arm.len()).chain([FULL_PRECISION.len()]).max().unwrap_or_default();
        let mut text = String::new();
        for cells in std::iter::once(HEADER.map(str::to_owned).to_vec()).chain(self.cells()) {
            let mut line = format!("{:<width$}", cells[0]);
            for (cell, width) in cells[1..].iter().zip([4, 9, 19, 19, 8, 6, 8, 8, 7, 6]) {
                let _ = write!(line, " {cell:>width$}");
            }
            let _ = writeln!(text, "{}", line.trim_end());
        }
        for row in &self.arms {
            for (seed, reason) in &row.failed {
                let _ = writeln!(text, "{} failed with seed {seed}: {reason}", row.arm);
            }
        }
        text
    }

    /// For documents.
    pub fn markdown(&self) -> String {
        let mut text = format!("| {} |\n|---|{}\n", HEADER.join(" | "), "---:|".repeat(HEADER.len() - 1));
        for cells in self.cells() {
            let _ = writeln!(text, "| {} |", cells.join(" | "));
        }
        text.push('\n');
        for row in &self.arms {
            let _ = writeln!(text, "- **{}**: {}", row.arm, row.description);
            for (seed, reason) in &row.failed {
                let _ = writeln!(text, "  Failed with seed {seed}: {reason}");
            }
        }
        text
    }

    fn cells(&self) -> Vec<Vec<String>> {
        let mut lines = Vec::new();
        if let Some(loss) = self.full_precision {
            let mut cells = vec![String::new(); HEADER.len()];
            (cells[0], cells[2]) = (FULL_PRECISION.into(), format!("{:.3}", loss.exp()));
            cells[5] = "100.0 %".into();
            lines.push(cells);
        }
        for row in &self.arms {
            let number = |value: Option<f64>, digits: usize| value.map_or("-".into(), |v| format!("{v:.digits$}"));
            lines.push(vec![
                row.arm.clone(),
                row.loss.map_or(0, |loss| loss.runs).to_string(),
                number(row.eval_ppl, 3),
                row.eval_ppl_interval.map_or("-".into(), |[low, high]| format!("{low:.3} to {high:.3}")),
                row.difference.map_or("-".into(), |mean| {
                    let half = mean.half_interval.map_or(String::new(), |half| format!(" ± {half:.4}"));
                    format!("{:+.4}{half}", mean.nats)
                }),
                row.recovery.map_or("-".into(), |share| format!("{:.1} %", share * 100.0)),
                number(row.bits_per_weight, 3),
                number(row.artifact_bytes.map(|bytes| bytes / MIB), 2),
                number(row.tokens.map(|tokens| tokens / 1e6), 2),
                number(row.train_s, 1),
                number(row.memory.map(|bytes| bytes as f64 / GIB), 2),
            ]);
        }
        lines
    }
}

const HEADER: [&str; 11] = [
    "arm",
    "runs",
    "eval_ppl",
    "95 % interval",
    "nats over the first",
    "recovery",
    "bits",
    "MiB",
    "Mtokens",
    "sec",
    "GiB",
];
const FULL_PRECISION: &str = "full precision";

/// The last run of each seed.
fn latest<'a>(state: &'a State, asked: &Asked, seeds: &std::ops::Range<u64>) -> Vec<&'a ArmRun> {
    let Some(arm) = &asked.arm else { return Vec::new() };
    let of = |seed: u64| state.arm_runs.iter().rev().find(|run| run.arm == arm.number && run.seed == seed);
    seeds.clone().filter_map(of).collect()
}

fn failure(run: &ArmRun) -> Option<(u64, String)> {
    match &run.outcome {
        Outcome::Failed { status, reason } => {
            Some((run.seed, format!("{}: {}", status.name(), crate::results::plain(reason))))
        }
        Outcome::Measured(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interval_is_students() {
        // Mean 2, standard deviation 1 over 3 runs; 4.3027 is the table's 97.5 % point with 2 degrees of freedom.
        let mean = Mean::of(&[1.0, 2.0, 3.0]).unwrap();
        assert_eq!((mean.nats, mean.runs), (2.0, 3));
        assert!((mean.half_interval.unwrap() - 4.302_65 / 3.0_f64.sqrt()).abs() < 1e-4);
        let [low, high] = mean.perplexities().unwrap();
        assert!((low * high - mean.perplexity().powi(2)).abs() < 1e-9, "symmetric in nats");
        assert_eq!(Mean::of(&[1.5]).unwrap().half_interval, None);
        assert_eq!(Mean::of(&[]), None);
    }
}
