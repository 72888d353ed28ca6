//! What the journal's records say, and the state of a search rebuilt from them.
//!
//! Pure: reads and writes nothing. Every experiment number ends in exactly one [`Row`]; until then it is the
//! [`Flight`], of which there is at most one.

use std::collections::{BTreeMap, BTreeSet};

use campaign::AgentKind;
use corpus::Part;
use sandbox::Enforced;
use serde::{Deserialize, Serialize};

use crate::journal::Record;

/// Everything that is written down, in the order in which it can happen.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// A new search; what it is pinned to.
    Started(Started),
    /// The search goes on after a stop or a crash.
    Resumed(Resumed),
    /// The full-precision parent was measured: what no artifact is expected to beat.
    Floor(Evaluation),
    /// A candidate is committed; it will be built next.
    Proposed(Proposed),
    /// The trainer of the experiment in flight is built; it will be trained next.
    Built(Built),
    /// Training ended with an artifact; it will be evaluated next.
    Trained(Trained),
    /// The artifact was measured on `select`; the verdict comes next.
    Measured(Evaluation),
    /// The experiment is over; on a keep the branch moves next.
    Ended(Row),
    /// The experiment in flight was broken off without a result; its number is used again.
    Abandoned(Abandoned),
    /// An artifact was measured for the final figures.
    Reported(Reported),
    /// A commit was trained and measured once more, with another seed.
    Replicated(Replicate),
    /// The search ended in good order.
    Stopped {
        /// Why.
        reason: String,
    },
}

/// What a search is pinned to when it starts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Started {
    /// Name of the campaign.
    pub campaign: String,
    /// Tag of the search.
    pub tag: String,
    /// Commit that the search starts from; its recipe is the baseline.
    pub start: String,
    /// Seed of proposals and of every training run: runs share it, so that they differ by the recipe alone.
    pub seed: u64,
    /// sha256 of the campaign file.
    pub campaign_sha256: String,
    /// sha256 of the stamp of the prepared data, which lists the hashes of all of it.
    pub data_sha256: String,
    /// sha256 of the evaluator that measures every artifact.
    pub evaluator_sha256: String,
    /// Version of the orchestrator.
    pub version: String,
    /// Operating system and processor family.
    pub platform: String,
    /// What the machine computes on beside its processor: none, cuda or mps.
    pub accelerator: String,
    /// Compiler that builds the candidates.
    pub compiler: String,
}

/// Going on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resumed {
    /// Version of the orchestrator.
    pub version: String,
}

/// A candidate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Proposed {
    /// Number of the experiment, from 1.
    pub experiment: u64,
    /// The candidate.
    pub commit: String,
    /// The incumbent that it changes; `None` for the baseline.
    pub parent: Option<String>,
    /// Who proposed it.
    pub agent: String,
    /// What it changes, in one line.
    pub description: String,
    /// Values of the annotated knobs.
    pub knobs: BTreeMap<String, String>,
    /// Hash of the recipe's tokens: no recipe is run twice.
    pub recipe: String,
    /// Seed of the training run.
    pub seed: u64,
}

/// A built trainer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Built {
    /// Number of the experiment.
    pub experiment: u64,
    /// Seconds that the compiler took.
    pub seconds: f64,
    /// sha256 of the trainer.
    pub trainer_sha256: String,
    /// What the sandbox enforced; `None` without one.
    #[serde(default)]
    pub sandbox: Option<Enforced>,
}

/// A finished training run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Trained {
    /// Number of the experiment.
    pub experiment: u64,
    /// Seconds of training as the frame counted them.
    pub train_s: f64,
    /// Seconds from start to end of the process, by the orchestrator's clock.
    pub wall_s: f64,
    /// Optimizer steps.
    pub steps: u64,
    /// Training tokens.
    pub tokens: u64,
    /// Peak resident memory in bytes, from the system.
    pub memory: u64,
    /// What the sandbox enforced; `None` without one.
    #[serde(default)]
    pub sandbox: Option<Enforced>,
}

/// What the evaluator measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// Part of the text.
    pub part: Part,
    /// Nats per token.
    pub eval_loss: f64,
    /// exp(eval_loss).
    pub eval_ppl: f64,
    /// Bits per byte of text.
    pub eval_bpb: f64,
    /// Scored tokens.
    pub tokens: u64,
    /// Everything stored for the projections over their number of weights.
    pub bits_per_weight: f64,
    /// Shares of −1, 0 and +1.
    pub shares: [f64; 3],
    /// Seconds it took.
    pub seconds: f64,
}

/// A final figure.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Reported {
    /// Number of the experiment; `None` for the full-precision parent.
    pub experiment: Option<u64>,
    /// The figures on `report`.
    pub evaluation: Evaluation,
}

/// One more measurement of a commit, with another seed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Replicate {
    /// Its number among the replicates, from 1.
    pub number: u64,
    /// The experiment that it repeats.
    pub experiment: u64,
    /// The commit.
    pub commit: String,
    /// Seed of the training run.
    pub seed: u64,
    /// The training run.
    pub trained: Trained,
    /// The figures on `select`.
    pub evaluation: Evaluation,
}

/// The spread of the loss from run to run of the same commit.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Noise {
    /// Standard deviation, nats per token; pooled over the commits that were replicated.
    pub sd: f64,
    /// Its own standard error, taking the losses as normal: sd/√(2·degrees of freedom).
    pub error: f64,
    /// Runs that it is taken from.
    pub runs: usize,
}

/// A broken-off experiment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Abandoned {
    /// Its number.
    pub experiment: u64,
    /// Why.
    pub reason: String,
    /// Whether the same candidate is tried again; otherwise a new one is proposed.
    pub again: bool,
}

/// How an experiment ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Better than the incumbent: the new incumbent.
    Keep,
    /// Measured, and not better.
    Discard,
    /// It did not build, diverged, or its process died.
    Crash,
    /// It ran past the hard limit.
    Timeout,
    /// Its artifact breaks the campaign's constraints.
    Invalid,
}

impl Status {
    /// As it is written in results.tsv.
    pub fn name(self) -> &'static str {
        match self {
            Self::Keep => "keep",
            Self::Discard => "discard",
            Self::Crash => "crash",
            Self::Timeout => "timeout",
            Self::Invalid => "invalid",
        }
    }
}

/// One experiment's row.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// Number of the experiment.
    pub experiment: u64,
    /// The candidate.
    pub commit: String,
    /// What it changed; `None` for the baseline.
    pub parent: Option<String>,
    /// How it ended.
    pub status: Status,
    /// Why, unless it was measured.
    pub reason: Option<String>,
    /// What it changed, in one line.
    pub description: String,
    /// Who proposed it.
    pub agent: String,
    /// Seed of the training run.
    pub seed: u64,
    /// Nats per token gained over the parent on `select`; `None` when not measured.
    pub gain: Option<f64>,
    /// The figures on `select`; `None` when not measured.
    pub evaluation: Option<Evaluation>,
    /// The training run; `None` when it gave no artifact.
    pub trained: Option<Trained>,
    /// When it ended, UTC.
    pub finished_at: String,
}

impl Row {
    /// Nats per token on `select`, where it was measured.
    pub fn loss(&self) -> Option<f64> {
        self.evaluation.as_ref().map(|e| e.eval_loss)
    }
}

/// The experiment that is not over yet.
#[derive(Debug, Clone, PartialEq)]
pub struct Flight {
    /// The candidate.
    pub proposed: Proposed,
    /// Set once its trainer is built.
    pub built: Option<Built>,
    /// Set once it trained.
    pub trained: Option<Trained>,
    /// Set once it is measured.
    pub measured: Option<Evaluation>,
    /// When the last of these was written, UTC.
    pub since: String,
}

impl Flight {
    /// What is being done with it, for people.
    pub fn stage(&self) -> &'static str {
        match (&self.built, &self.trained, &self.measured) {
            (_, _, Some(_)) => "deciding",
            (_, Some(_), None) => "evaluating",
            (Some(_), None, None) => "training",
            (None, None, None) => "building",
        }
    }
}

/// A search, as its journal tells it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct State {
    /// What it is pinned to.
    pub started: Option<Started>,
    /// When it started, UTC.
    pub started_at: String,
    /// The full-precision parent on `select`.
    pub floor: Option<Evaluation>,
    /// The experiments that are over, in order.
    pub rows: Vec<Row>,
    /// The one that is not.
    pub flight: Option<Flight>,
    /// Final figures by experiment; `None` is the full-precision parent.
    pub reported: BTreeMap<Option<u64>, Evaluation>,
    /// Why it stopped, when it did so in good order and has not gone on since.
    pub stopped: Option<String>,
    /// Measurements with other seeds, in order.
    pub replicates: Vec<Replicate>,
    /// Candidates by experiment, the one in flight included.
    pub proposals: BTreeMap<u64, Proposed>,
}

impl State {
    /// The state after all these records.
    ///
    /// # Errors
    /// When a record cannot follow the ones before it.
    pub fn rebuild(records: &[Record]) -> Result<Self, String> {
        let mut state = Self::default();
        for (index, record) in records.iter().enumerate() {
            state.apply(record).map_err(|e| format!("record {}: {e}", index + 2))?;
        }
        Ok(state)
    }

    /// The state after one more record.
    ///
    /// # Errors
    /// When it cannot follow the ones before it.
    pub fn apply(&mut self, record: &Record) -> Result<(), String> {
        let time = &record.time;
        match &record.event {
            Event::Started(started) => {
                if self.started.is_some() {
                    return Err("the search starts twice".into());
                }
                self.started = Some(started.clone());
                self.started_at.clone_from(time);
            }
            Event::Resumed(_) => self.stopped = None,
            Event::Floor(evaluation) => self.floor = Some(evaluation.clone()),
            Event::Proposed(proposed) => {
                if self.flight.is_some() || proposed.experiment != self.next() {
                    return Err(format!("experiment {} does not come next", proposed.experiment));
                }
                self.proposals.insert(proposed.experiment, proposed.clone());
                self.flight = Some(Flight {
                    proposed: proposed.clone(),
                    built: None,
                    trained: None,
                    measured: None,
                    since: time.clone(),
                });
            }
            Event::Built(built) => self.flight(built.experiment, time)?.built = Some(built.clone()),
            Event::Trained(trained) => self.flight(trained.experiment, time)?.trained = Some(trained.clone()),
            Event::Measured(evaluation) => {
                let flight = self.flight.as_mut().ok_or("a measurement of no experiment")?;
                flight.measured = Some(evaluation.clone());
                flight.since.clone_from(time);
            }
            Event::Ended(row) => {
                self.flight(row.experiment, time)?;
                self.flight = None;
                self.rows.push(row.clone());
            }
            Event::Abandoned(abandoned) => {
                let flight = self.flight(abandoned.experiment, time)?;
                (flight.built, flight.trained, flight.measured) = (None, None, None);
                if !abandoned.again {
                    self.flight = None;
                    self.proposals.remove(&abandoned.experiment);
                }
            }
            Event::Reported(reported) => {
                self.reported.insert(reported.experiment, reported.evaluation.clone());
            }
            Event::Replicated(replicate) => {
                if replicate.number != self.replicates.len() as u64 + 1 {
                    return Err(format!("replicate {} does not come next", replicate.number));
                }
                self.replicates.push(replicate.clone());
            }
            Event::Stopped { reason } => self.stopped = Some(reason.clone()),
        }
        Ok(())
    }

    fn flight(&mut self, experiment: u64, time: &str) -> Result<&mut Flight, String> {
        let flight = self.flight.as_mut().filter(|flight| flight.proposed.experiment == experiment);
        let flight = flight.ok_or_else(|| format!("experiment {experiment} is not in flight"))?;
        flight.since = time.to_owned();
        Ok(flight)
    }

    /// The number of the next experiment.
    pub fn next(&self) -> u64 {
        self.rows.len() as u64 + 1
    }

    /// The best kept experiment: the last keep, as a keep is always better.
    pub fn incumbent(&self) -> Option<&Row> {
        self.rows.iter().rev().find(|row| row.status == Status::Keep)
    }

    /// The first experiment, once it is over.
    pub fn baseline(&self) -> Option<&Row> {
        self.rows.first()
    }

    /// The row of an experiment that was measured: by its number, the begin of its commit, `baseline` or `best`.
    pub fn find(&self, name: &str) -> Option<&Row> {
        match name {
            "baseline" => self.baseline(),
            "best" => self.incumbent(),
            _ => self
                .rows
                .iter()
                .filter(|row| row.evaluation.is_some())
                .find(|row| row.experiment.to_string() == name || (name.len() >= 7 && row.commit.starts_with(name))),
        }
    }

    /// The run-to-run noise, once a commit has runs of two seeds.
    pub fn noise(&self) -> Option<Noise> {
        let mut losses: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
        for replicate in &self.replicates {
            losses.entry(&replicate.commit).or_default().push(replicate.evaluation.eval_loss);
        }
        for row in &self.rows {
            if let (Some(losses), Some(loss)) = (losses.get_mut(row.commit.as_str()), row.loss()) {
                losses.push(loss);
            }
        }
        let (mut squares, mut freedom, mut runs) = (0.0, 0, 0);
        for losses in losses.values() {
            let mean = losses.iter().sum::<f64>() / losses.len() as f64;
            squares += losses.iter().map(|loss| (loss - mean).powi(2)).sum::<f64>();
            freedom += losses.len() - 1;
            runs += losses.len();
        }
        let sd = (squares / freedom as f64).sqrt();
        (freedom > 0).then_some(Noise { sd, error: sd / (2.0 * freedom as f64).sqrt(), runs })
    }

    /// Hashes of every recipe that was proposed.
    pub fn tried(&self) -> BTreeSet<String> {
        self.proposals.values().map(|proposed| proposed.recipe.clone()).collect()
    }

    /// How many were kept, the baseline included.
    pub fn kept(&self) -> usize {
        self.rows.iter().filter(|row| row.status == Status::Keep).count()
    }
}

/// The name of an agent in rows.
pub fn agent_name(kind: AgentKind) -> &'static str {
    match kind {
        AgentKind::Search => "search",
        AgentKind::Random => "random",
    }
}

#[cfg(test)]
mod tests;
