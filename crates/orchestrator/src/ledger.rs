//! The state of a search, rebuilt from the journal's records, whose meaning is in `events`.
//!
//! Pure: reads and writes nothing. Every experiment number ends in exactly one [`Row`]; until then it is the
//! [`InFlight`], of which there is at most one.

mod arms;
mod events;

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use crate::agent::Cost;
use crate::clock;
use crate::verdict::{self, Comparison, Evidence, Noise, Windows};

pub use arms::{Arm, ArmRun, Measured, Outcome};
pub use events::*;

/// Where the time of a search went, in seconds by the machine's clock; what is not listed is its own work.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Time {
    /// While an orchestrator worked on it.
    pub worked: f64,
    /// Training, as the frame counts it.
    pub training: f64,
    /// Start, dev evaluation and export of training runs.
    pub overhead: f64,
    /// Compiling candidates, while nothing trained.
    pub building: f64,
    /// Trying the first steps of what a language model wrote.
    pub rehearsing: f64,
    /// Measuring artifacts.
    pub evaluating: f64,
    /// Waiting for language models, while nothing trained.
    pub thinking: f64,
}

impl Time {
    fn train(&mut self, run: &Trained) {
        self.training += run.train_s;
        self.overhead += (run.wall_s - run.train_s).max(0.0);
    }
}

/// The experiment that is not over yet.
#[derive(Debug, Clone, PartialEq)]
pub struct InFlight {
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

impl InFlight {
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
    pub full_precision: Option<Evaluation>,
    /// The experiments that are over, in order.
    pub rows: Vec<Row>,
    /// The one that is not.
    pub in_flight: Option<InFlight>,
    /// Final figures by experiment and replicate of it; of no experiment, the full-precision parent's.
    pub reported: BTreeMap<(Option<u64>, Option<u64>), Evaluation>,
    /// Why it stopped, when it did so in good order and has not gone on since.
    pub stopped: Option<String>,
    /// Measurements with other seeds, in order.
    pub replicates: Vec<Replicate>,
    /// Runs with other seeds that failed.
    pub failed_replicates: Vec<ReplicateFailed>,
    /// What the trainer of each experiment was when it was built: sha256.
    pub trainers: BTreeMap<u64, String>,
    /// The first of them.
    pub first_built: Option<Built>,
    /// How fast the machine was in the first run that says so: the measure for all others.
    pub speed: Option<Speed>,
    /// Where the time went.
    pub time: Time,
    /// When the last record was written, UTC; empty after a stop.
    pub last_record: String,
    /// What language models learnt, with the experiments that taught it.
    pub lessons: Vec<(u64, String)>,
    /// What was asked of language models in vain, in order.
    pub wasted_requests: Vec<WastedRequest>,
    /// Candidates by experiment, the one in flight included.
    pub proposals: BTreeMap<u64, Proposed>,
    /// Of a comparison: its arms, in order; their trainers are among the others by number.
    pub arms: Vec<Arm>,
    /// Of a comparison: its runs, in order.
    pub arm_runs: Vec<ArmRun>,
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

    fn remember(&mut self, built: &Built) {
        self.trainers.insert(built.experiment, built.trainer_sha256.clone());
        self.first_built.get_or_insert_with(|| built.clone());
    }

    /// The state after one more record.
    ///
    /// # Errors
    /// When it cannot follow the ones before it.
    pub fn apply(&mut self, record: &Record) -> Result<(), String> {
        let time = &record.time;
        if !matches!(record.event, Event::Started(_) | Event::Resumed(_)) {
            self.time.worked += clock::seconds_between(&self.last_record, time);
        }
        self.last_record.clone_from(time);
        self.account(&record.event);
        match &record.event {
            Event::Started(started) => {
                if self.started.is_some() {
                    return Err("the search starts twice".into());
                }
                self.started = Some(started.clone());
                self.started_at.clone_from(time);
            }
            Event::Resumed(_) => self.stopped = None,
            Event::FullPrecision(evaluation) => self.full_precision = Some(evaluation.clone()),
            Event::Proposed(proposed) => {
                if self.in_flight.is_some() || proposed.experiment != self.next() {
                    return Err(format!("experiment {} does not come next", proposed.experiment));
                }
                self.proposals.insert(proposed.experiment, proposed.clone());
                self.in_flight = Some(InFlight {
                    proposed: proposed.clone(),
                    built: None,
                    trained: None,
                    measured: None,
                    since: time.clone(),
                });
            }
            Event::Built(built) => {
                self.in_flight(built.experiment, time)?.built = Some(built.clone());
                self.remember(built);
            }
            Event::Trained(trained) => self.in_flight(trained.experiment, time)?.trained = Some(trained.clone()),
            Event::Measured(evaluation) => {
                let flight = self.in_flight.as_mut().ok_or("a measurement of no experiment")?;
                flight.measured = Some(evaluation.clone());
                flight.since.clone_from(time);
            }
            Event::Ended(row) => {
                self.in_flight(row.experiment, time)?;
                self.in_flight = None;
                self.rows.push((**row).clone());
            }
            Event::Abandoned(abandoned) => {
                let flight = self.in_flight(abandoned.experiment, time)?;
                (flight.built, flight.trained, flight.measured) = (None, None, None);
                if !abandoned.again {
                    self.in_flight = None;
                    self.proposals.remove(&abandoned.experiment);
                }
            }
            Event::Reported(reported) => {
                self.reported.insert((reported.experiment, reported.replicate), reported.evaluation.clone());
            }
            Event::Replicated(replicate) => {
                if replicate.number != self.replicates.len() as u64 + 1 {
                    return Err(format!("replicate {} does not come next", replicate.number));
                }
                self.replicates.push(replicate.clone());
                if let Some(flight) = &mut self.in_flight {
                    flight.since.clone_from(time);
                }
            }
            Event::WastedRequest(wasted) => self.wasted_requests.push(wasted.clone()),
            Event::ReplicateFailed(failed) => self.failed_replicates.push(failed.clone()),
            Event::Arm(arm) => {
                if arm.number != self.arms.len() as u64 + 1 {
                    return Err(format!("arm {} does not come next", arm.number));
                }
                self.arms.push(arm.clone());
            }
            Event::ArmBuilt(built) => {
                self.remember(built);
            }
            Event::ArmRun(run) => {
                if run.run != self.arm_runs.len() as u64 + 1 {
                    return Err(format!("run {} does not come next", run.run));
                }
                self.arm_runs.push(run.clone());
            }
            Event::Learnt { experiment, lesson } => self.lessons.push((*experiment, lesson.clone())),
            Event::Stopped { reason } => {
                self.stopped = Some(reason.clone());
                // Nobody works on it until the next record.
                self.last_record.clear();
            }
        }
        Ok(())
    }

    fn account(&mut self, event: &Event) {
        let (time, first) = (&mut self.time, &mut self.speed);
        let mut speed = |run: &Trained| *first = first.or(run.processor.and_then(|used| used.speed));
        match event {
            Event::Proposed(proposed) => {
                time.thinking += proposed.waited.unwrap_or_else(|| proposed.cost.map_or(0.0, |cost| cost.seconds));
            }
            Event::Built(built) | Event::ArmBuilt(built) => {
                time.building += if built.ahead { 0.0 } else { built.seconds };
                time.rehearsing += built.rehearsed;
            }
            Event::ArmRun(run) => {
                if let Some(measured) = run.measured() {
                    speed(&measured.trained);
                    time.train(&measured.trained);
                    time.evaluating += measured.select.seconds + measured.report.seconds;
                }
            }
            Event::Trained(trained) => {
                speed(trained);
                time.train(trained);
            }
            Event::FullPrecision(evaluation) | Event::Measured(evaluation) => time.evaluating += evaluation.seconds,
            Event::Reported(reported) => time.evaluating += reported.evaluation.seconds,
            Event::Replicated(replicate) => {
                speed(&replicate.trained);
                time.train(&replicate.trained);
                time.evaluating += replicate.evaluation.seconds;
            }
            _ => {}
        }
    }

    fn in_flight(&mut self, experiment: u64, time: &str) -> Result<&mut InFlight, String> {
        let flight = self.in_flight.as_mut().filter(|flight| flight.proposed.experiment == experiment);
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

    /// Runs of an experiment's recipe with other seeds, in order.
    pub fn replicates_of(&self, experiment: u64) -> impl Iterator<Item = &Replicate> {
        self.replicates.iter().filter(move |replicate| replicate.experiment == experiment)
    }

    /// Runs of a kept experiment's recipe that had no part in its being kept, in order: on fresh seeds.
    pub fn fresh(&self, row: &Row) -> impl Iterator<Item = &Replicate> {
        let selected = row.comparison.as_ref().map_or(0, |comparison| comparison.runs - 1);
        self.replicates_of(row.experiment).skip(selected)
    }

    /// What a candidate has to beat: all runs of the incumbent but its first, which was lucky enough to be looked at again.
    /// Nobody chose the baseline, so its first counts too; and where there is no other, there is only the first.
    pub fn bar<'a>(&'a self, row: &'a Row) -> Vec<&'a Evaluation> {
        self.with_own(row, self.replicates_of(row.experiment).map(|replicate| &replicate.evaluation).collect())
    }

    /// What a kept recipe really does: its runs that had no part in its being kept.
    pub fn unselected<'a>(&'a self, row: &'a Row) -> Vec<&'a Evaluation> {
        self.with_own(row, self.fresh(row).map(|replicate| &replicate.evaluation).collect())
    }

    /// Mean loss of an experiment, nats per token: of a kept one over the runs that did not select it, of others over all
    /// their runs. `None` where nothing was measured.
    pub fn mean_loss(&self, row: &Row) -> Option<f64> {
        let runs: Vec<&Evaluation> = match row.status {
            Status::Keep => self.unselected(row),
            _ => {
                let again = self.replicates_of(row.experiment).map(|replicate| &replicate.evaluation);
                row.evaluation.iter().chain(again.filter(|_| row.evaluation.is_some())).collect()
            }
        };
        (!runs.is_empty()).then(|| runs.iter().map(|run| run.eval_loss).sum::<f64>() / runs.len() as f64)
    }

    fn with_own<'a>(&self, row: &'a Row, others: Vec<&'a Evaluation>) -> Vec<&'a Evaluation> {
        let own = (others.is_empty() || row.parent.is_none()).then_some(&row.evaluation).into_iter().flatten();
        own.chain(others).collect()
    }

    /// The run-to-run noise, once a recipe has runs of two seeds. A candidate's first run decided whether there would
    /// be more of it, so only the baseline's counts.
    pub fn noise(&self) -> Option<Noise> {
        let mut groups: BTreeMap<u64, Vec<f64>> = BTreeMap::new();
        groups.extend(self.baseline().and_then(|row| Some((row.experiment, vec![row.loss()?]))));
        for replicate in &self.replicates {
            groups.entry(replicate.experiment).or_default().push(replicate.evaluation.eval_loss);
        }
        Noise::pooled(groups.values().map(Vec::as_slice))
    }

    /// The seed of the next run of an experiment's recipe: the search's own is the first, and each run takes the next.
    pub fn next_seed(&self, experiment: u64) -> u64 {
        let failed = self.failed_replicates.iter().filter(|failed| failed.experiment == experiment).count();
        let before = self.replicates_of(experiment).count() + failed;
        let first = self.started.as_ref().map_or(0, |started| started.seed);
        first.wrapping_add(1 + before as u64)
    }

    /// What language models cost so far.
    pub fn cost(&self) -> Option<Cost> {
        let proposals = self.proposals.values().filter_map(|proposed| proposed.cost);
        proposals.chain(self.wasted_requests.iter().map(|wasted| wasted.cost)).reduce(|mut all, cost| {
            all.add(&cost);
            all
        })
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

/// Compares the runs of two recipes on the same windows.
pub fn compare(incumbent: &[&Evaluation], candidate: &[&Evaluation], noise: Option<Noise>) -> Comparison {
    let losses = |runs: &[&Evaluation]| runs.iter().map(|run| run.eval_loss).collect::<Vec<_>>();
    let windows = |runs: &[&Evaluation]| -> Vec<f64> {
        let count = runs.first().map_or(0, |run| run.windows.len());
        let at = |i: usize| runs.iter().filter_map(|run| run.windows.get(i)).map(|&loss| f64::from(loss)).sum::<f64>();
        (0..count).map(|i| at(i) / runs.len() as f64).collect()
    };
    verdict::compare(&Evidence {
        candidate: &losses(candidate),
        incumbent: &losses(incumbent),
        windows: Windows::paired(&windows(incumbent), &windows(candidate)),
        noise,
    })
}

#[cfg(test)]
mod tests;
