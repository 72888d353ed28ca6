//! One experiment: propose, commit, build, train, evaluate, decide.
//!
//! Every step is written to the journal before the next one acts on it, and each can be gone on from after a crash:
//! what was being built or trained is done again from its commit, what was trained is evaluated, what was measured is
//! decided. Nothing is evaluated while a trainer runs, and nothing compiled but where the device is not the processor.

mod arm;
mod build;
pub(crate) mod confine;
mod evaluate;
mod pins;
mod think;
mod train;

use formats::campaign::Noise;
use formats::contract;
use formats::corpus::Part;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use git2::Oid;

use crate::agent::{self, Trial};
use crate::clock;
use crate::error::Failure;
use crate::failpoints;
use crate::files;
use crate::knobs;
use crate::layout::Run;
use crate::ledger::{self, Abandoned, Built, Evaluation, Event, Proposed, Replicate, ReplicateFailed, Row, Status};
use crate::results;
use crate::search::Search;
use crate::verdict::{self, Comparison, Next};

pub use evaluate::Subject;
use pins::Trainer;
use think::Asked;
pub use think::Thinking;

/// How a turn of the loop ended.
pub enum Turn {
    /// One more row.
    Done,
    /// The user stopped it; the experiment stays in flight.
    Interrupted,
    /// The agent has nothing new to propose.
    Exhausted(String),
}

/// Why an experiment goes no further.
#[derive(Debug)]
pub enum StepError {
    /// The candidate failed.
    Failed(Status, String),
    /// The user stopped it, while this was done.
    Interrupted(&'static str),
    /// The search cannot go on.
    Cannot(Failure),
}

impl<E> From<E> for StepError
where
    Failure: From<E>,
{
    fn from(error: E) -> Self {
        Self::Cannot(error.into())
    }
}

impl Search<'_> {
    /// Takes the experiment in flight, or a new one, to its row. Before it, the incumbent is run on as many seeds as the
    /// campaign asks for.
    ///
    /// # Errors
    /// When the search cannot go on; the experiment stays in flight.
    pub fn run_one(&mut self) -> Result<Turn, Failure> {
        if !self.replicate_incumbent()? {
            return Ok(Turn::Interrupted);
        }
        loop {
            if self.state.in_flight.is_none()
                && let Some(ended) = self.propose()?
            {
                return Ok(ended);
            }
            match self.experiment() {
                Ok(()) => {}
                Err(StepError::Failed(status, reason)) => {
                    // A full disk is no fault of the candidate's.
                    self.check_space()?;
                    if self.hand_back(&reason)? {
                        continue;
                    }
                    self.fail(status, reason)?;
                }
                Err(StepError::Interrupted(what)) => return self.interrupted(what),
                Err(StepError::Cannot(failure)) => return Err(failure),
            }
            self.note_lesson();
            return Ok(Turn::Done);
        }
    }

    fn experiment(&mut self) -> Result<(), StepError> {
        let flight = self.state.in_flight.clone().context("no experiment is in flight")?;
        let run = Run::Experiment(flight.proposed.experiment);
        if flight.measured.is_none() && flight.trained.is_none() {
            self.empty(run)?;
            failpoints::at("folder-emptied");
            let mut built = match self.built_ahead.take().filter(|built| built.experiment == flight.proposed.experiment)
            {
                Some(built) => self.fetch_built(run, built)?,
                None => self.build(run, &flight.proposed)?,
            };
            self.check_new(&flight.proposed, &built)?;
            let trainer = Trainer { path: self.trainer(run), sha256: built.trainer_sha256.clone() };
            if flight.proposed.cost.is_some() {
                built.rehearsed = self.rehearse(run, &trainer, &flight.proposed)?;
            }
            self.write(Event::Built(built))?;
            failpoints::at("build-written");
            self.think_ahead()?;
            let trained = self.train(run, &trainer, &flight.proposed, None)?;
            failpoints::at("training-over");
            self.write(Event::Trained(trained))?;
            failpoints::at("training-written");
        }
        let measured = match flight.measured {
            Some(measured) => measured,
            None => {
                let measured = self.evaluate(Subject::Run(run), Part::Select)?;
                failpoints::at("evaluation-over");
                self.write(Event::Measured(measured.clone()))?;
                failpoints::at("evaluation-written");
                measured
            }
        };
        let Some(incumbent) = self.state.incumbent().cloned() else {
            return Ok(self.end(Status::Keep, None, Some(measured), None)?);
        };
        let Noise { margin, max_runs, .. } = self.campaign.noise;
        loop {
            let smaller = incumbent.evaluation.as_ref().is_some_and(|e| measured.bits_per_weight < e.bits_per_weight);
            let comparison = self.compare(&incumbent, flight.proposed.experiment, &measured);
            let (status, reason) = match verdict::decide(&comparison, smaller, &self.campaign.noise) {
                Next::Keep => (Status::Keep, None),
                Next::KeepSmaller => (Status::Keep, Some(format!("smaller, and less than {margin} nats worse"))),
                Next::RunIncumbent if self.rerun_incumbent(&incumbent)? => continue,
                // Where the incumbent's other seeds fail, the candidate has to show it with runs of its own.
                Next::RunCandidate | Next::RunIncumbent if comparison.runs < self.campaign.noise.max_runs => {
                    self.rerun(flight.proposed.experiment)?;
                    continue;
                }
                Next::Discard | Next::RunCandidate | Next::RunIncumbent => {
                    let unshown = smaller && self.campaign.noise.replicates > 0 && comparison.gain > -margin;
                    let reason = format!(
                        "smaller, but {max_runs} runs do not show at this noise that it is less than {margin} nats worse"
                    );
                    (Status::Discard, unshown.then_some(reason))
                }
            };
            return Ok(self.end(status, reason, Some(measured), Some(comparison))?);
        }
    }

    /// Refuses a trainer that another recipe was compiled to: there is nothing new to measure, or it was not compiled.
    fn check_new(&self, proposed: &Proposed, built: &Built) -> Result<(), StepError> {
        let same = self.state.trainers.iter().find(|(experiment, sha256)| {
            let other = self.state.proposals.get(experiment);
            **sha256 == built.trainer_sha256 && other.is_some_and(|other| other.recipe != proposed.recipe)
        });
        let Some((experiment, _)) = same else { return Ok(()) };
        let reason = format!("it compiles to the same program as #{experiment}: nothing that runs was changed");
        Err(StepError::Failed(Status::Invalid, reason))
    }

    /// What the runs so far say of the candidate in flight.
    fn compare(&self, incumbent: &Row, experiment: u64, measured: &Evaluation) -> Comparison {
        let others = self.state.replicates_of(experiment).map(|replicate| &replicate.evaluation);
        let runs: Vec<&Evaluation> = [measured].into_iter().chain(others).collect();
        ledger::compare(&self.state.bar(incumbent), &runs, self.state.noise())
    }

    /// Runs the incumbent on fresh seeds until it has as many runs as the campaign asks for: the noise of the search is
    /// taken from the baseline's, and no incumbent's bar is the lucky number that made it one. False when interrupted.
    ///
    /// # Errors
    /// When the search cannot go on.
    pub fn replicate_incumbent(&mut self) -> Result<bool, Failure> {
        let noise = self.campaign.noise;
        let Some(row) = self.state.incumbent().cloned().filter(|_| noise.replicates > 0) else { return Ok(true) };
        let wanted = if row.parent.is_none() { noise.replicates } else { noise.fresh_runs };
        let before = self.state.fresh(&row).count();
        while self.state.fresh(&row).count() < wanted {
            match self.rerun_incumbent(&row) {
                Ok(true) => {}
                Ok(false) => break,
                Err(StepError::Cannot(failure)) => return Err(failure),
                Err(StepError::Interrupted(_) | StepError::Failed(..)) => return Ok(false),
            }
        }
        if row.parent.is_none() && before < wanted {
            self.tell_noise(&row);
        }
        Ok(true)
    }

    /// Tells what the baseline's runs say of the noise, and what it does not allow.
    fn tell_noise(&self, row: &Row) {
        let Some(noise) = self.state.noise() else { return };
        self.printer.notice(&results::noise(&noise, row));
        if let Some(told) = results::unsupported(&noise, &self.campaign.noise) {
            self.printer.notice(&told);
        }
    }

    /// Runs a kept recipe with another seed. A failure is written down; after as many as runs are wanted, the recipe is
    /// not tried again, and it returns false.
    fn rerun_incumbent(&mut self, row: &Row) -> Result<bool, StepError> {
        let failures = self.state.failed_replicates.iter().filter(|f| f.experiment == row.experiment).count();
        if failures >= self.campaign.noise.max_runs {
            return Ok(false);
        }
        let seed = self.state.next_seed(row.experiment);
        let reason = match self.rerun(row.experiment) {
            Ok(()) => return Ok(true),
            Err(StepError::Failed(_, reason)) => reason,
            Err(other) => return Err(other),
        };
        self.check_space()?;
        // Before the search began in earnest, somebody is likely to be there still.
        if self.state.rows.len() == 1 {
            let log = self.layout.folder(self.next_replicate());
            return Err(StepError::Cannot(Failure::Baseline { reason: format!("with seed {seed}: {reason}"), log }));
        }
        self.printer.line(&format!("the incumbent failed with seed {seed}: {reason}"));
        let (experiment, commit) = (row.experiment, row.commit.clone());
        self.write(Event::ReplicateFailed(ReplicateFailed { experiment, commit, seed, reason }))?;
        Ok(true)
    }

    /// Puts a trainer that was compiled while another one ran, and its log, into the folder of a run.
    fn fetch_built(&self, run: Run, built: Built) -> anyhow::Result<Built> {
        for name in ["trainer", "build.log"] {
            let (from, to) = (self.layout.folder(Run::Ahead).join(name), self.layout.folder(run).join(name));
            fs::rename(&from, &to).with_context(|| format!("cannot move {} to {}", from.display(), to.display()))?;
        }
        Ok(built)
    }

    /// Makes an empty folder for a run.
    fn empty(&self, run: Run) -> Result<(), Failure> {
        let (folder, out) = (self.layout.folder(run), self.layout.out(run));
        self.clear_away(&folder)?;
        fs::create_dir_all(&out).with_context(|| format!("cannot make {}", out.display()))?;
        Ok(())
    }

    /// Empties what a run's trainer may write.
    fn empty_out(&self, run: Run) -> Result<(), Failure> {
        let out = self.layout.out(run);
        self.clear_away(&out)?;
        fs::create_dir_all(&out).with_context(|| format!("cannot make {}", out.display()))?;
        Ok(())
    }

    /// Removes what an earlier run left, or moves it aside.
    fn clear_away(&self, path: &Path) -> Result<(), Failure> {
        let aside = self.layout.run().join("aside");
        let left = files::clear_away(path, &aside).with_context(|| format!("cannot empty {}", path.display()))?;
        if let Some(left) = left {
            self.printer.line(&format!("cannot remove {}; it was moved to {}", path.display(), left.display()));
        }
        Ok(())
    }

    /// The run that the next replicate will be.
    fn next_replicate(&self) -> Run {
        Run::Replicate(self.state.replicates.len() as u64 + 1)
    }

    /// Trains and measures the recipe of an experiment once more, with its next seed.
    ///
    /// # Errors
    /// [`StepError::Failed`] when the recipe does not get through with that seed.
    pub fn rerun(&mut self, experiment: u64) -> Result<(), StepError> {
        let run = self.next_replicate();
        self.empty(run)?;
        let proposed = self.state.proposals.get(&experiment).context("an experiment without a candidate")?;
        let seed = self.state.next_seed(experiment);
        let proposed = Proposed { seed, ..proposed.clone() };
        tracing::debug!(%run, experiment, seed, "another seed");
        let path = self.trainer(Run::Experiment(experiment));
        let trainer = match self.state.trainers.get(&experiment) {
            Some(sha256) if path.is_file() => Trainer { path, sha256: sha256.clone() },
            _ => Trainer { path: self.trainer(run), sha256: self.build(run, &proposed)?.trainer_sha256 },
        };
        self.think_ahead()?;
        let trained = self.train(run, &trainer, &proposed, None)?;
        let evaluation = self.evaluate(Subject::Run(run), Part::Select)?;
        self.printer.line(&format!(
            "     #{experiment} with seed {seed}: ppl {:.6}, {:.6} nats",
            evaluation.eval_ppl, evaluation.eval_loss
        ));
        let Run::Replicate(number) = run else { unreachable!("it is one") };
        let commit = proposed.commit;
        failpoints::at("rerun-over");
        self.write(Event::Replicated(Replicate { number, experiment, commit, seed, trained, evaluation }))?;
        failpoints::at("rerun-written");
        self.clear(run, true);
        Ok(())
    }

    /// Where a run's trainer is built to. An experiment's stays there while it may be run again.
    fn trainer(&self, run: Run) -> PathBuf {
        self.layout.folder(run).join("trainer")
    }

    /// Puts a new candidate in flight, or says how the turn ends without one.
    fn propose(&mut self) -> Result<Option<Turn>, Failure> {
        let waited = match self.think()? {
            Asked::InFlight => return Ok(None),
            Asked::Interrupted => return Ok(Some(Turn::Interrupted)),
            Asked::Nothing(seconds) => Some(seconds),
        };
        let number = self.state.next();
        let knobs_of = self.knobs_constant();
        let proposed = match self.state.incumbent() {
            None => {
                let source = self.workspace.recipe(self.start)?;
                let space =
                    knobs::parse(&source, knobs_of).with_context(|| format!("knobs of {}", crate::layout::RECIPE))?;
                Proposed {
                    experiment: number,
                    commit: self.start.to_string(),
                    parent: None,
                    agent: "baseline".into(),
                    description: "baseline".into(),
                    knobs: space.values(),
                    recipe: knobs::token_hash(&source).context("the recipe is not Rust")?,
                    seed: self.seed,
                    expected: None,
                    cost: None,
                    waited,
                }
            }
            Some(incumbent) => {
                let parent = oid(&incumbent.commit)?;
                let source = self.workspace.recipe(parent)?;
                let history = self.history();
                let request = agent::Request {
                    incumbent: &source,
                    const_name: knobs_of,
                    history: &history,
                    tried: &self.state.tried(),
                    kind: self.builtin(),
                    seed: self.seed,
                    startup: self.campaign.agent.startup,
                    experiment: number,
                };
                let proposal = match agent::propose(&request) {
                    Ok(proposal) => proposal,
                    Err(e) => return Ok(Some(Turn::Exhausted(e.to_string()))),
                };
                let message = format!("experiment {number}: {}\n", proposal.description);
                let commit = self.workspace.commit(parent, &proposal.source, proposal.agent, &message)?;
                Proposed {
                    experiment: number,
                    commit: commit.to_string(),
                    parent: Some(parent.to_string()),
                    agent: proposal.agent.into(),
                    description: proposal.description,
                    knobs: proposal.knobs,
                    recipe: proposal.hash,
                    seed: self.seed,
                    expected: None,
                    cost: None,
                    waited,
                }
            }
        };
        self.put_in_flight(proposed)?;
        Ok(None)
    }

    /// Puts a recipe from elsewhere in flight, as a change of the incumbent; `author` is who wrote it.
    ///
    /// # Errors
    /// When it is not Rust, was tried before, or an experiment is in flight.
    pub fn propose_recipe(&mut self, source: &str, author: &str, description: &str) -> Result<(), Failure> {
        let refused = |message: &str, hint: &str| Failure::Recipe { message: message.into(), hint: hint.into() };
        if let Some(flight) = &self.state.in_flight {
            return Err(refused(
                &format!("experiment {} of this search is not over", flight.proposed.experiment),
                "`orchestrator run` goes on with it; stop it when its row is there",
            ));
        }
        let Some(incumbent) = self.state.incumbent() else {
            return Err(refused("this search has no baseline yet", "`orchestrator run --experiments 1` measures it"));
        };
        let parent = oid(&incumbent.commit)?;
        let recipe = knobs::token_hash(source)
            .map_err(|e| refused(&format!("it is not Rust: {e}"), "compile it as crates/trainer/src/train.rs"))?;
        if self.state.tried().contains(&recipe) {
            return Err(refused("this recipe was tried before", "`orchestrator results` has its row"));
        }
        let number = self.state.next();
        let message = format!("experiment {number}: {description}\n");
        let proposed = Proposed {
            experiment: number,
            commit: self.workspace.commit(parent, source, author, &message)?.to_string(),
            parent: Some(parent.to_string()),
            agent: author.into(),
            description: description.into(),
            // Without readable knobs the optimizer learns nothing of it, and that is all.
            knobs: knobs::parse(source, self.knobs_constant()).map(|space| space.values()).unwrap_or_default(),
            recipe,
            seed: self.seed,
            expected: None,
            cost: None,
            waited: None,
        };
        self.put_in_flight(proposed)
    }

    fn put_in_flight(&mut self, proposed: Proposed) -> Result<(), Failure> {
        let (number, commit) = (proposed.experiment, oid(&proposed.commit)?);
        failpoints::at("candidate-committed");
        self.write(Event::Proposed(proposed))?;
        failpoints::at("candidate-proposed");
        self.workspace.record(&self.layout.tag, number, commit)?;
        failpoints::at("candidate-recorded");
        Ok(())
    }

    /// What was tried and what came of it, in order.
    fn history(&self) -> Vec<Trial> {
        let tried = |row: &Row| {
            let proposed = self.state.proposals.get(&row.experiment)?;
            Some(Trial { knobs: proposed.knobs.clone(), loss: self.state.mean_loss(row) })
        };
        self.state.rows.iter().filter_map(tried).collect()
    }

    /// Ends the experiment in flight without a measurement. A failed baseline ends the search instead.
    fn fail(&mut self, status: Status, reason: String) -> Result<(), Failure> {
        let number = self.state.next();
        if self.state.incumbent().is_none() {
            self.write(Event::Abandoned(Abandoned { experiment: number, reason: reason.clone(), again: true }))?;
            let folder = self.layout.folder(Run::Experiment(number));
            // The log of the last step that it came to.
            let logs = ["eval.log", "run.log", "build.log"].map(|name| folder.join(name));
            let log = logs.into_iter().find(|log| log.exists()).unwrap_or(folder);
            return Err(Failure::Baseline { reason, log });
        }
        self.end(status, Some(reason), None, None)
    }

    /// What is trained goes on from there; anything before that is done again.
    fn interrupted(&mut self, what: &str) -> Result<Turn, Failure> {
        if let Some(flight) = self.state.in_flight.as_ref().filter(|flight| flight.trained.is_none()) {
            let (experiment, reason) = (flight.proposed.experiment, format!("interrupted while {what}"));
            self.write(Event::Abandoned(Abandoned { experiment, reason, again: true }))?;
        }
        Ok(Turn::Interrupted)
    }

    /// Writes the row; then moves the branch, removes what nobody needs any more and renews the views.
    fn end(
        &mut self,
        status: Status,
        reason: Option<String>,
        evaluation: Option<Evaluation>,
        comparison: Option<Comparison>,
    ) -> Result<(), Failure> {
        let flight = self.state.in_flight.clone().context("no experiment is in flight")?;
        let before = self.state.incumbent().cloned();
        let proposed = flight.proposed;
        // The baseline has nothing to gain over.
        let gain = evaluation.as_ref().map(|_| comparison.as_ref().map_or(0.0, |comparison| comparison.gain));
        let row = Row {
            experiment: proposed.experiment,
            commit: proposed.commit,
            parent: proposed.parent,
            status,
            reason,
            description: proposed.description,
            agent: proposed.agent,
            seed: proposed.seed,
            gain,
            comparison,
            evaluation,
            trained: flight.trained,
            finished_at: clock::now(),
        };
        failpoints::at("verdict-reached");
        self.write(Event::Ended(Box::new(row.clone())))?;
        failpoints::at("row-written");
        if status == Status::Keep {
            self.move_branch()?;
            failpoints::at("branch-moved");
        }
        for row in before.iter().chain([&row]) {
            self.remove_superfluous(row);
        }
        failpoints::at("files-removed");
        self.publish();
        failpoints::at("table-written");
        self.printer.record(&results::line(&row), &row);
        Ok(())
    }

    /// Moves the branch to the incumbent; harmless when it is there.
    pub fn move_branch(&self) -> Result<(), Failure> {
        let Some(incumbent) = self.state.incumbent() else { return Ok(()) };
        let to = oid(&incumbent.commit)?;
        let from = incumbent.parent.as_deref().map_or(Ok(to), oid)?;
        self.workspace.advance(&self.layout.tag, from, to)
    }

    /// Frees the space of an experiment that is over: all that its runs left but their logs and summaries and, where it
    /// was kept, the artifacts; and the trainer, which its commit can give again, unless it is the incumbent's.
    pub fn remove_superfluous(&self, row: &Row) {
        let kept = row.status == Status::Keep;
        let incumbent = self.state.incumbent().is_some_and(|incumbent| incumbent.experiment == row.experiment);
        self.clear(Run::Experiment(row.experiment), kept);
        if !incumbent {
            remove(&self.trainer(Run::Experiment(row.experiment)));
        }
        for replicate in self.state.replicates_of(row.experiment) {
            self.clear(Run::Replicate(replicate.number), kept);
        }
    }

    /// Removes from a run's folder what is not wanted any more; the trainer of an experiment stays.
    fn clear(&self, run: Run, keep: bool) {
        let out = self.layout.out(run);
        let wanted = |path: &PathBuf| {
            let kept = keep && *path == self.layout.artifact(run);
            kept || [contract::LOG, contract::SUMMARY].iter().any(|name| *path == out.join(name))
        };
        let left = fs::read_dir(&out).map(|entries| entries.flatten().map(|entry| entry.path()).collect());
        let mut superfluous: Vec<PathBuf> = left.unwrap_or_default();
        superfluous.retain(|path| !wanted(path));
        if let Run::Replicate(_) = run {
            superfluous.push(self.trainer(run));
        }
        superfluous.iter().for_each(|path| remove(path));
    }
}

/// Removes a file or folder; the search does not depend on it.
fn remove(path: &Path) {
    if let Err(e) = files::remove_tree(path) {
        tracing::warn!(path = %path.display(), error = %e, "cannot remove a superfluous file");
    }
}

/// A commit as the journal writes it.
pub fn oid(text: &str) -> anyhow::Result<Oid> {
    Oid::from_str(text).with_context(|| format!("{text:?} is no commit"))
}

/// Whether a run left what the evaluator needs: a file, not a link to one.
pub fn has_artifact(search: &Search, run: Run) -> bool {
    fs::symlink_metadata(search.layout.artifact(run)).is_ok_and(|artifact| artifact.is_file())
}
