//! Runs the pinned evaluator: on an experiment's artifact, or on the full-precision parent.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, anyhow};
use formats::contract::{self, Probed, Refused};
use formats::corpus::Part;
use serde::de::DeserializeOwned;

use super::{StepError, has_artifact};
use crate::child::{self, End, Task};
use crate::error::Failure;
use crate::failpoints;
use crate::files;
use crate::layout::Run;
use crate::ledger::{Evaluation, Event, Reported, Status};
use crate::search::Search;

/// Exit codes as the system gives them.
const INVALID: i32 = contract::INVALID as i32;
const FAILED: i32 = contract::FAILED as i32;
/// It reads text of a fixed size; longer than this it hangs.
const LIMIT: Duration = Duration::from_secs(3 * 3600);
const GRACE: Duration = Duration::from_secs(5);
/// How often it is started before what it broke down on is looked into.
const ATTEMPTS: usize = 2;

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subject {
    /// The artifact of a run.
    Run(Run),
    /// The full-precision parent.
    Base,
}

/// The record of what the evaluator found; `None` where a figure is not a number.
fn record(found: contract::Evaluation) -> Option<Evaluation> {
    let figures = [found.eval_loss, found.eval_ppl, found.eval_bpb, found.bits_per_weight];
    figures.iter().all(|figure| figure.is_finite()).then(|| Evaluation {
        part: found.part,
        eval_loss: found.eval_loss,
        eval_ppl: found.eval_ppl,
        eval_bpb: found.eval_bpb,
        tokens: found.tokens,
        bits_per_weight: found.bits_per_weight,
        shares: [found.q_neg1, found.q_zero, found.q_pos1],
        seconds: found.seconds,
        windows: found.window_losses.iter().map(|&loss| loss as f32).collect(),
    })
}

/// What the evaluator left.
fn read<T: DeserializeOwned>(path: &Path) -> anyhow::Result<T> {
    let bytes = files::read_regular(path, files::LARGEST_TEXT)
        .with_context(|| format!("the evaluator left no {}", path.display()))?;
    serde_json::from_slice(&bytes).with_context(|| format!("cannot read {}", path.display()))
}

impl Search<'_> {
    /// Measures; the figures also stay as a file beside what was measured. Where the evaluator breaks down, it tries
    /// again, and then measures the incumbent: if that works, the artifact is to blame, and else this machine is.
    pub(super) fn evaluate(&self, subject: Subject, part: Part) -> Result<Evaluation, StepError> {
        let mut broke = String::new();
        for _ in 0..ATTEMPTS {
            match self.evaluate_once(subject, part)? {
                Ok(evaluation) => return Ok(evaluation),
                Err(how) => broke = how,
            }
            tracing::warn!(?subject, how = broke, "the evaluator broke down");
        }
        let incumbent = self.state.incumbent().map(|row| Subject::Run(Run::Experiment(row.experiment)));
        let control = incumbent.filter(|incumbent| *incumbent != subject);
        if let Some(control) = control
            && self.evaluate_once(control, part)?.is_ok()
        {
            let reason = format!("the evaluator {broke}, though it measures the incumbent");
            return Err(StepError::Failed(Status::Invalid, reason));
        }
        Err(anyhow!(
            "the evaluator {broke}, which is no recipe's fault. Its output is in {}; run again and the experiment \
             continues from here",
            self.evaluation_folder(subject).display()
        )
        .into())
    }

    /// The figures, or how the evaluator broke down.
    fn evaluate_once(&self, subject: Subject, part: Part) -> Result<Result<Evaluation, String>, StepError> {
        self.check_pins()?;
        let folder = self.evaluation_folder(subject);
        let (what, stem) = match subject {
            Subject::Run(run) => (run.to_string(), "eval"),
            Subject::Base => ("full-precision parent".into(), "full-precision"),
        };
        let stem = if part == Part::Select { stem.to_owned() } else { format!("{stem}-{part}") };
        std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let out: PathBuf = folder.join(format!("{stem}.json"));
        let log = folder.join(format!("{stem}.log"));
        if out.exists() {
            std::fs::remove_file(&out).with_context(|| format!("cannot replace {}", out.display()))?;
        }
        let mut task = self.evaluator(&folder, &log, part, &out);
        task = match subject {
            Subject::Run(run) => task.flag("--artifact", self.layout.artifact(run)),
            Subject::Base => task.arg("--base"),
        };
        let artifact = match subject {
            Subject::Run(run) => Some(self.layout.artifact(run)),
            Subject::Base => None,
        };
        let confined = self.sandboxed().then(|| self.confine_evaluation(artifact, &folder)).transpose()?;
        task = self.machine(task).env("TMPDIR", &folder).confined(confined);
        let bar = self.printer.spinner(format!("{what} evaluating on {part}"));
        let finished = self.runner.run(&task, |progress| bar.tick(progress.elapsed))?;
        drop(bar);
        let said = || child::last_lines(&log, 6);
        let broke = match finished.end {
            End::Exited(0) => match record(read(&out)?) {
                Some(evaluation) => return Ok(Ok(evaluation)),
                None => return Err(StepError::Failed(Status::Invalid, "its loss is not a number".into())),
            },
            End::Exited(INVALID) => {
                let reason = read::<Refused>(&out).map_or_else(|_| child::last_lines(&log, 1), |found| found.invalid);
                return Err(StepError::Failed(Status::Invalid, reason));
            }
            End::Interrupted => return Err(StepError::Interrupted("evaluating")),
            // Its own way of saying that it could not measure at all.
            End::Exited(code) if code == FAILED || code == i32::from(sandbox::FAILED) => {
                return Err(anyhow!(
                    "the evaluator could not measure {what}; its output is in {}:\n{}\nfix that and run again: the \
                     experiment continues from here",
                    log.display(),
                    said()
                )
                .into());
            }
            End::Exited(code) => format!("failed with code {code}: {}", child::last_lines(&log, 1)),
            End::Killed(signal) => format!("was killed by signal {signal}"),
            End::TimedOut => format!("took longer than {} h", LIMIT.as_secs() / 3600),
            End::Overflowed => "wrote more than it may".into(),
        };
        Ok(Err(broke))
    }

    fn evaluator(&self, folder: &Path, log: &Path, part: Part, out: &Path) -> Task {
        Task::new(self.layout.evaluator(), folder, log.to_owned(), LIMIT, GRACE)
            .flag("--campaign", self.layout.campaign_copy())
            .flag("--data", &self.data)
            .flag("--part", part.name())
            .flag("--out", out)
    }

    /// Seconds of the processor that the evaluator's fixed piece of work takes now: how fast the machine is, measured out of
    /// any recipe's reach.
    pub(super) fn probe(&self) -> Result<f64, StepError> {
        self.check_pins()?;
        let folder = self.layout.run().join("speed");
        std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let (out, log) = (folder.join("probe.json"), folder.join("probe.log"));
        let confined = self.sandboxed().then(|| self.confine_evaluation(None, &folder)).transpose()?;
        let task = self.evaluator(&folder, &log, Part::Dev, &out).arg("--probe");
        let task = self.spinning(self.machine(task)).env("TMPDIR", &folder).confined(confined);
        let finished = self.runner.run(&task, |_| {})?;
        if matches!(finished.end, End::Interrupted) {
            return Err(StepError::Interrupted("timing the machine"));
        }
        let found = || -> anyhow::Result<f64> {
            anyhow::ensure!(matches!(finished.end, End::Exited(0)), "it ended with {:?}", finished.end);
            let probed: Probed = read(&out)?;
            anyhow::ensure!(probed.probe_seconds > 0.0, "it took {} s", probed.probe_seconds);
            Ok(probed.probe_seconds)
        };
        Ok(found()
            .with_context(|| format!("the evaluator cannot time this machine: {}", child::last_lines(&log, 2)))?)
    }

    /// Where a measurement is written down.
    fn evaluation_folder(&self, subject: Subject) -> PathBuf {
        match subject {
            Subject::Run(run) => self.layout.folder(run),
            Subject::Base => self.layout.run().join("full-precision"),
        }
    }

    /// Measures the full-precision parent once, for campaigns that have one. False when interrupted.
    pub fn measure_full_precision(&mut self) -> Result<bool, Failure> {
        if !self.campaign.model.has_parent() || self.state.full_precision.is_some() {
            return Ok(true);
        }
        match self.evaluate(Subject::Base, Part::Select) {
            Ok(found) => {
                self.printer.line(&format!("full-precision parent: ppl {:.6} on select", found.eval_ppl));
                self.write(Event::FullPrecision(found))?;
                Ok(true)
            }
            Err(StepError::Interrupted(_)) => Ok(false),
            Err(StepError::Cannot(failure)) => Err(failure),
            Err(StepError::Failed(_, reason)) => {
                Err(Failure::Other(anyhow!("the full-precision parent could not be measured: {reason}")))
            }
        }
    }

    /// Measures what has no final figure yet: the full-precision parent where there is one, and of the baseline and
    /// every kept experiment the artifact and those of its fresh runs. False when interrupted.
    pub fn measure_report(&mut self) -> Result<bool, Failure> {
        let mut wanted: Vec<(Option<u64>, Option<u64>)> = Vec::new();
        if self.campaign.model.has_parent() {
            wanted.push((None, None));
        }
        for row in self.state.rows.iter().filter(|row| row.status == Status::Keep) {
            wanted.push((Some(row.experiment), None));
            wanted.extend(self.state.fresh(row).map(|replicate| (Some(row.experiment), Some(replicate.number))));
        }
        for (experiment, replicate) in wanted {
            if self.state.reported.contains_key(&(experiment, replicate)) {
                continue;
            }
            let run = replicate.map(Run::Replicate).or(experiment.map(Run::Experiment));
            if run.is_some_and(|run| !has_artifact(self, run)) {
                tracing::warn!(?run, "its artifact is gone, so it has no final figure");
                continue;
            }
            let subject = run.map_or(Subject::Base, Subject::Run);
            match self.evaluate(subject, Part::Report) {
                Ok(evaluation) => {
                    failpoints::at("report-over");
                    self.write(Event::Reported(Reported { experiment, replicate, evaluation }))?;
                    failpoints::at("report-written");
                }
                Err(StepError::Interrupted(_)) => return Ok(false),
                Err(StepError::Cannot(failure)) => return Err(failure),
                Err(StepError::Failed(_, reason)) => {
                    return Err(Failure::Other(anyhow!("no final figure of {subject:?}: {reason}")));
                }
            }
        }
        Ok(true)
    }
}
