//! One experiment: propose, commit, build, train, evaluate, decide.
//!
//! Every step is written to the journal before the next one acts on it, and each can be gone on from after a crash:
//! what was being built or trained is done again from its commit, what was trained is evaluated, what was measured is
//! decided. Nothing is built or evaluated while a trainer runs.

mod build;
mod confine;
mod evaluate;
mod train;

use std::fs;
use std::path::PathBuf;

use anyhow::Context;
use git2::Oid;

use crate::agent::{self, Trial};
use crate::clock;
use crate::error::Failure;
use crate::files;
use crate::knobs;
use crate::layout::Run;
use crate::ledger::{Abandoned, Evaluation, Event, Proposed, Replicate, Row, Status};
use crate::results;
use crate::search::Search;
use crate::verdict;

pub use evaluate::Subject;

/// Who proposes what a person wrote.
const HUMAN: &str = "human";

/// How a turn of the loop ended.
pub enum Turn {
    /// One more row.
    Done,
    /// The user stopped it; the experiment stays in flight.
    Interrupted,
    /// The agent has nothing new to propose.
    Exhausted(String),
}

/// How a step of an experiment ended.
enum Step<T> {
    Next(T),
    /// The candidate failed; the experiment is over.
    Failed(Status, String),
    Interrupted,
}

impl Search<'_> {
    /// Takes the experiment in flight, or a new one, to its row.
    ///
    /// # Errors
    /// When the search cannot go on; the experiment stays in flight.
    pub fn turn(&mut self) -> Result<Turn, Failure> {
        if self.state.flight.is_none()
            && let Some(nothing) = self.propose()?
        {
            return Ok(Turn::Exhausted(nothing));
        }
        let flight = self.state.flight.clone().context("no experiment is in flight")?;
        let number = flight.proposed.experiment;
        let run = Run::Experiment(number);
        if flight.measured.is_none() && flight.trained.is_none() {
            self.empty(run)?;
            let built = match self.build(run, &flight.proposed)? {
                Step::Next(built) => built,
                Step::Failed(status, reason) => return self.fail(status, reason),
                Step::Interrupted => return self.abandon("interrupted while building"),
            };
            self.write(Event::Built(built))?;
            let trained = match self.train(run, &flight.proposed)? {
                Step::Next(trained) => trained,
                Step::Failed(status, reason) => return self.fail(status, reason),
                Step::Interrupted => return self.abandon("interrupted while training"),
            };
            self.write(Event::Trained(trained))?;
        }
        let measured = match flight.measured {
            Some(measured) => measured,
            None => match self.evaluate(Subject::Run(run), corpus::Part::Select)? {
                Step::Next(measured) => {
                    self.write(Event::Measured(measured.clone()))?;
                    measured
                }
                Step::Failed(status, reason) => return self.fail(status, reason),
                // The artifact is there: the next run only evaluates.
                Step::Interrupted => return Ok(Turn::Interrupted),
            },
        };
        let best = self.state.incumbent().and_then(Row::loss);
        let status = verdict::decide(best, measured.eval_loss);
        let gain = verdict::gain(best, measured.eval_loss);
        self.end(status, None, Some((gain, measured)))?;
        Ok(Turn::Done)
    }

    /// Makes an empty folder for a run.
    fn empty(&self, run: Run) -> Result<(), Failure> {
        let (folder, out) = (self.layout.folder(run), self.layout.out(run));
        if folder.exists() {
            fs::remove_dir_all(&folder).with_context(|| format!("cannot empty {}", folder.display()))?;
        }
        fs::create_dir_all(&out).with_context(|| format!("cannot make {}", out.display()))?;
        Ok(())
    }

    /// Trains and measures a commit that was measured before, with another seed; false when interrupted.
    ///
    /// # Errors
    /// When the run fails: what was measured before should not.
    pub fn replicate(&mut self, row: &Row, seed: u64) -> Result<bool, Failure> {
        let number = self.state.replicates.len() as u64 + 1;
        let run = Run::Replicate(number);
        self.empty(run)?;
        let proposed = Proposed {
            experiment: number,
            commit: row.commit.clone(),
            parent: None,
            agent: row.agent.clone(),
            description: format!("experiment {} with seed {seed}", row.experiment),
            knobs: Default::default(),
            recipe: String::new(),
            seed,
        };
        let failed = |reason: String| {
            let log = self.layout.folder(run);
            Failure::Other(anyhow::anyhow!("{run} failed: {reason} (its logs are in {})", log.display()))
        };
        match self.build(run, &proposed)? {
            Step::Next(_) => {}
            Step::Failed(_, reason) => return Err(failed(reason)),
            Step::Interrupted => return Ok(false),
        }
        let trained = match self.train(run, &proposed)? {
            Step::Next(trained) => trained,
            Step::Failed(_, reason) => return Err(failed(reason)),
            Step::Interrupted => return Ok(false),
        };
        let evaluation = match self.evaluate(Subject::Run(run), corpus::Part::Select)? {
            Step::Next(evaluation) => evaluation,
            Step::Failed(_, reason) => return Err(failed(reason)),
            Step::Interrupted => return Ok(false),
        };
        self.printer.line(&format!(
            "{run}: experiment {} with seed {seed}: ppl {:.6}, {:.6} nats",
            row.experiment, evaluation.eval_ppl, evaluation.eval_loss
        ));
        let replicate =
            Replicate { number, experiment: row.experiment, commit: row.commit.clone(), seed, trained, evaluation };
        self.write(Event::Replicated(replicate))?;
        self.clear(run, false);
        Ok(true)
    }

    /// Puts a new candidate in flight, or says why there is none.
    fn propose(&mut self) -> Result<Option<String>, Failure> {
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
                    kind: self.agent,
                    seed: self.seed,
                    startup: self.campaign.agent.startup,
                    experiment: number,
                };
                let proposal = match agent::propose(&request) {
                    Ok(proposal) => proposal,
                    Err(e) => return Ok(Some(e.to_string())),
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
                }
            }
        };
        self.put_in_flight(proposed)?;
        Ok(None)
    }

    /// Puts a person's recipe in flight, as a change of the incumbent.
    ///
    /// # Errors
    /// When it is not Rust, was tried before, or an experiment is in flight.
    pub fn propose_recipe(&mut self, source: &str, description: &str) -> Result<(), Failure> {
        let refused = |message: &str, hint: &str| Failure::Recipe { message: message.into(), hint: hint.into() };
        if let Some(flight) = &self.state.flight {
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
            commit: self.workspace.commit(parent, source, HUMAN, &message)?.to_string(),
            parent: Some(parent.to_string()),
            agent: HUMAN.into(),
            description: description.into(),
            // Without readable knobs the optimizer learns nothing of it, and that is all.
            knobs: knobs::parse(source, self.knobs_constant()).map(|space| space.values()).unwrap_or_default(),
            recipe,
            seed: self.seed,
        };
        self.put_in_flight(proposed)
    }

    fn put_in_flight(&mut self, proposed: Proposed) -> Result<(), Failure> {
        let (number, commit) = (proposed.experiment, oid(&proposed.commit)?);
        self.write(Event::Proposed(proposed))?;
        Ok(self.workspace.record(&self.layout.tag, number, commit)?)
    }

    /// What was tried and what came of it, in order.
    fn history(&self) -> Vec<Trial> {
        let tried = |row: &Row| {
            let proposed = self.state.proposals.get(&row.experiment)?;
            Some(Trial { knobs: proposed.knobs.clone(), loss: row.loss() })
        };
        self.state.rows.iter().filter_map(tried).collect()
    }

    /// Ends the experiment in flight without a measurement. A failed baseline ends the search instead.
    fn fail(&mut self, status: Status, reason: String) -> Result<Turn, Failure> {
        let number = self.state.next();
        if self.state.incumbent().is_none() {
            self.write(Event::Abandoned(Abandoned { experiment: number, reason: reason.clone(), again: true }))?;
            let folder = self.layout.folder(Run::Experiment(number));
            // The log of the last step that it came to.
            let logs = ["eval.log", "run.log", "build.log"].map(|name| folder.join(name));
            let log = logs.into_iter().find(|log| log.exists()).unwrap_or(folder);
            return Err(Failure::Baseline { reason, log });
        }
        self.end(status, Some(reason), None)?;
        Ok(Turn::Done)
    }

    fn abandon(&mut self, reason: &str) -> Result<Turn, Failure> {
        let experiment = self.state.next();
        self.write(Event::Abandoned(Abandoned { experiment, reason: reason.into(), again: true }))?;
        Ok(Turn::Interrupted)
    }

    /// Writes the row; then moves the branch, removes what nobody needs any more and renews the views.
    fn end(
        &mut self,
        status: Status,
        reason: Option<String>,
        figures: Option<(f64, Evaluation)>,
    ) -> Result<(), Failure> {
        let flight = self.state.flight.clone().context("no experiment is in flight")?;
        let proposed = flight.proposed;
        let (gain, evaluation) = figures.unzip();
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
            evaluation,
            trained: flight.trained,
            finished_at: clock::now(),
        };
        self.write(Event::Ended(row.clone()))?;
        if status == Status::Keep {
            self.move_branch()?;
        }
        self.remove_superfluous(&row);
        results::publish(self.workspace, &self.layout.tag, &self.state.rows)?;
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

    /// Frees the space of an experiment that is over: the trainer, which its commit can give again, and all that the
    /// run left but its log and summary and, where it was kept, the artifact.
    pub fn remove_superfluous(&self, row: &Row) {
        self.clear(Run::Experiment(row.experiment), row.status == Status::Keep);
    }

    fn clear(&self, run: Run, keep: bool) {
        let out = self.layout.out(run);
        let wanted = |path: &PathBuf| {
            let kept = keep && *path == self.layout.artifact(run);
            kept || ["train.tsv", "summary.json"].iter().any(|name| *path == out.join(name))
        };
        let left = fs::read_dir(&out).map(|entries| entries.flatten().map(|entry| entry.path()).collect());
        let mut superfluous: Vec<PathBuf> = left.unwrap_or_default();
        superfluous.retain(|path| !wanted(path));
        superfluous.push(self.layout.folder(run).join("trainer"));
        for path in superfluous {
            let is_folder = fs::symlink_metadata(&path).is_ok_and(|metadata| metadata.is_dir());
            let removed = if is_folder { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            match removed {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                    tracing::warn!(path = %path.display(), error = %e, "cannot remove a superfluous file");
                }
                _ => {}
            }
        }
    }

    /// Refuses to measure with anything but what the search started with.
    pub fn check_pins(&self) -> Result<(), Failure> {
        let pins = [
            ("the evaluator", self.layout.evaluator(), &self.started.evaluator_sha256),
            ("the campaign file", self.layout.campaign_copy(), &self.started.campaign_sha256),
            ("the prepared data", self.data.join("prepared.json"), &self.started.data_sha256),
        ];
        for (what, path, pinned) in pins {
            let now = files::sha256(&path).with_context(|| format!("cannot read {}", path.display()))?;
            if now != *pinned {
                return Err(Failure::Checkout {
                    message: format!("{what} {} is not what this search started with", path.display()),
                    hint: "figures would not compare: put it back, or start another search with --tag".into(),
                });
            }
        }
        Ok(())
    }
}

/// A commit as the journal writes it.
pub fn oid(text: &str) -> anyhow::Result<Oid> {
    Oid::from_str(text).with_context(|| format!("{text:?} is no commit"))
}

/// Whether a run left what the evaluator needs: a file, not a link to one.
pub fn handed_over(search: &Search, run: Run) -> bool {
    fs::symlink_metadata(search.layout.artifact(run)).is_ok_and(|artifact| artifact.is_file())
}
