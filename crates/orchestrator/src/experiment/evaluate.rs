//! Runs the pinned evaluator: on an experiment's artifact, or on the full-precision parent.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, anyhow};
use corpus::Part;
use serde::Deserialize;

use super::{Broken, handed_over};
use crate::child::{self, End, Task};
use crate::error::Failure;
use crate::files;
use crate::hold;
use crate::layout::Run;
use crate::ledger::{Evaluation, Event, Reported, Status};
use crate::search::Search;

/// The evaluator's exit code for an artifact that breaks the campaign's constraints.
const INVALID: i32 = 4;
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

/// The evaluator's JSON. A figure that is not a number is written as null.
#[derive(Debug, Deserialize)]
struct Figures {
    #[serde(default)]
    invalid: Option<String>,
    #[serde(default)]
    eval_loss: Option<f64>,
    #[serde(default)]
    eval_ppl: Option<f64>,
    #[serde(default)]
    eval_bpb: Option<f64>,
    #[serde(default)]
    tokens: u64,
    #[serde(default)]
    bits_per_weight: Option<f64>,
    #[serde(default)]
    q_neg1: Option<f64>,
    #[serde(default)]
    q_zero: Option<f64>,
    #[serde(default)]
    q_pos1: Option<f64>,
    #[serde(default)]
    seconds: f64,
    #[serde(default)]
    window_losses: Vec<f32>,
}

impl Figures {
    fn evaluation(&self, part: Part) -> Option<Evaluation> {
        let finite = |x: Option<f64>| x.filter(|x| x.is_finite());
        Some(Evaluation {
            part,
            eval_loss: finite(self.eval_loss)?,
            eval_ppl: finite(self.eval_ppl)?,
            eval_bpb: finite(self.eval_bpb)?,
            tokens: self.tokens,
            bits_per_weight: finite(self.bits_per_weight)?,
            shares: [self.q_neg1, self.q_zero, self.q_pos1].map(|share| share.unwrap_or(0.0)),
            seconds: self.seconds,
            windows: self.window_losses.clone(),
        })
    }
}

impl Search<'_> {
    /// Measures; the figures also stay as a file beside what was measured. Where the evaluator breaks down, it tries
    /// again, and then measures the incumbent: if that works, the artifact is to blame, and else this machine is.
    pub(super) fn evaluate(&self, subject: Subject, part: Part) -> Result<Evaluation, Broken> {
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
            return Err(Broken::Failed(Status::Invalid, reason));
        }
        Err(anyhow!(
            "the evaluator {broke}, which is no recipe's fault. Its output is in {}; run again and the experiment \
             continues from here",
            self.evaluation_folder(subject).display()
        )
        .into())
    }

    /// The figures, or how the evaluator broke down.
    fn evaluate_once(&self, subject: Subject, part: Part) -> Result<Result<Evaluation, String>, Broken> {
        self.check_pins()?;
        let part_name = match part {
            Part::Train => "train",
            Part::Dev => "dev",
            Part::Select => "select",
            Part::Report => "report",
        };
        let folder = self.evaluation_folder(subject);
        let (what, stem) = match subject {
            Subject::Run(run) => (run.to_string(), "eval"),
            Subject::Base => ("full-precision parent".into(), "floor"),
        };
        let stem = if part == Part::Select { stem.to_owned() } else { format!("{stem}-{part_name}") };
        std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let out: PathBuf = folder.join(format!("{stem}.json"));
        let log = folder.join(format!("{stem}.log"));
        if out.exists() {
            std::fs::remove_file(&out).with_context(|| format!("cannot replace {}", out.display()))?;
        }
        let mut task = self.evaluator(&folder, &log, part_name, &out);
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
        let bar = self.printer.spinner(format!("{what} evaluating on {part_name}"));
        let finished = self.runner.run(&task, |progress| bar.tick(progress.elapsed))?;
        drop(bar);
        let figures = || -> anyhow::Result<Figures> {
            let bytes = files::read_regular(&out, files::LARGEST_TEXT)
                .with_context(|| format!("the evaluator left no {}", out.display()))?;
            serde_json::from_slice(&bytes).with_context(|| format!("cannot read {}", out.display()))
        };
        let said = || child::last_lines(&log, 6);
        let broke = match finished.end {
            End::Exited(0) => match figures()?.evaluation(part) {
                Some(evaluation) => return Ok(Ok(evaluation)),
                None => return Err(Broken::Failed(Status::Invalid, "its loss is not a number".into())),
            },
            End::Exited(INVALID) => {
                let reason = figures().ok().and_then(|f| f.invalid);
                return Err(Broken::Failed(Status::Invalid, reason.unwrap_or_else(|| child::last_lines(&log, 1))));
            }
            End::Interrupted => return Err(Broken::Interrupted("evaluating")),
            // Its own way of saying that it could not measure at all.
            End::Exited(code) if code == 1 || code == i32::from(sandbox::FAILED) => {
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

    fn evaluator(&self, folder: &Path, log: &Path, part: &str, out: &Path) -> Task {
        Task::new(self.layout.evaluator(), folder, log.to_owned(), LIMIT, GRACE)
            .flag("--campaign", self.layout.campaign_copy())
            .flag("--data", &self.data)
            .flag("--part", part)
            .flag("--out", out)
    }

    /// Seconds of the processor that the evaluator's fixed piece of work takes now: how fast the machine is, measured out of
    /// any recipe's reach.
    pub(super) fn probe(&self) -> Result<f64, Broken> {
        #[derive(Deserialize)]
        struct Probed {
            probe_seconds: f64,
        }
        self.check_pins()?;
        let folder = self.layout.run().join("speed");
        std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let (out, log) = (folder.join("probe.json"), folder.join("probe.log"));
        let confined = self.sandboxed().then(|| self.confine_evaluation(None, &folder)).transpose()?;
        let task = self.evaluator(&folder, &log, "dev", &out).arg("--probe");
        let task = self.spinning(self.machine(task)).env("TMPDIR", &folder).confined(confined);
        let finished = self.runner.run(&task, |_| {})?;
        if matches!(finished.end, End::Interrupted) {
            return Err(Broken::Interrupted("timing the machine"));
        }
        let read = || -> anyhow::Result<f64> {
            anyhow::ensure!(matches!(finished.end, End::Exited(0)), "it ended with {:?}", finished.end);
            let probed: Probed = serde_json::from_slice(&files::read_regular(&out, files::LARGEST_TEXT)?)?;
            anyhow::ensure!(probed.probe_seconds > 0.0, "it took {} s", probed.probe_seconds);
            Ok(probed.probe_seconds)
        };
        Ok(read().with_context(|| format!("the evaluator cannot time this machine: {}", child::last_lines(&log, 2)))?)
    }

    /// Where a measurement is written down.
    fn evaluation_folder(&self, subject: Subject) -> PathBuf {
        match subject {
            Subject::Run(run) => self.layout.folder(run),
            Subject::Base => self.layout.run().join("floor"),
        }
    }

    /// Measures the full-precision parent once, for campaigns that have one. False when interrupted.
    pub fn measure_floor(&mut self) -> Result<bool, Failure> {
        if !self.campaign.model.has_parent() || self.state.floor.is_some() {
            return Ok(true);
        }
        match self.evaluate(Subject::Base, Part::Select) {
            Ok(floor) => {
                self.printer.line(&format!("full-precision parent: ppl {:.6} on select", floor.eval_ppl));
                self.write(Event::Floor(floor))?;
                Ok(true)
            }
            Err(Broken::Interrupted(_)) => Ok(false),
            Err(Broken::Cannot(failure)) => Err(failure),
            Err(Broken::Failed(_, reason)) => {
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
            if run.is_some_and(|run| !handed_over(self, run)) {
                tracing::warn!(?run, "its artifact is gone, so it has no final figure");
                continue;
            }
            let subject = run.map_or(Subject::Base, Subject::Run);
            match self.evaluate(subject, Part::Report) {
                Ok(evaluation) => {
                    hold::at("report-over");
                    self.write(Event::Reported(Reported { experiment, replicate, evaluation }))?;
                    hold::at("report-written");
                }
                Err(Broken::Interrupted(_)) => return Ok(false),
                Err(Broken::Cannot(failure)) => return Err(failure),
                Err(Broken::Failed(_, reason)) => {
                    return Err(Failure::Other(anyhow!("no final figure of {subject:?}: {reason}")));
                }
            }
        }
        Ok(true)
    }
}
