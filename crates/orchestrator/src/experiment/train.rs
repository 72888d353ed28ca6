//! Runs the trainer of a candidate within the campaign's budget and hard limit.

use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use serde::Deserialize;

use super::confine::{enforced, unconfined};
use super::{Broken, Trainer, handed_over};
use crate::child::{self, End, Task};
use crate::files;
use crate::layout::Run;
use crate::ledger::{Proposed, Status, Trained};
use crate::search::Search;

/// The trainer's exit code for a loss that is not a number or above 100.
const DIVERGED: i32 = 3;

/// Bytes of a summary that are read.
const LONGEST_SUMMARY: u64 = 1 << 16;

/// What is read of the trainer's `summary.json`. For information: no verdict depends on it.
#[derive(Debug, Deserialize)]
struct Summary {
    status: String,
    training_seconds: f64,
    num_steps: u64,
    tokens: u64,
}

impl Search<'_> {
    /// From a built trainer to an artifact, within the campaign's budget or so many steps.
    pub(super) fn train(
        &self,
        run: Run,
        trainer: &Trainer,
        proposed: &Proposed,
        max_steps: Option<u64>,
    ) -> Result<Trained, Broken> {
        self.check_trainer(trainer)?;
        let folder = self.layout.folder(run);
        let log = folder.join("run.log");
        let out = self.layout.out(run);
        let budget = &self.campaign.budget;
        let fair = self.fair_seconds().filter(|&seconds| seconds < budget.hard_limit_seconds);
        let seconds = fair.unwrap_or(budget.hard_limit_seconds);
        let limit = Duration::try_from_secs_f64(seconds).context("budget.hard_limit_seconds")?;
        let grace = Duration::try_from_secs_f64(budget.grace_seconds).context("budget.grace_seconds")?;
        let confined = self.sandboxed().then(|| self.confine_training(run, &trainer.path)).transpose()?;
        let task = Task::new(&trainer.path, &folder, log.clone(), limit, grace).confined(confined.clone());
        let task = self.arguments(task, run, proposed);
        let task = match max_steps {
            Some(steps) => task.flag("--max-steps", steps.to_string()),
            None => task,
        };
        let bar = self.printer.bar(format!("{run} training"));
        let finished = self.runner.run(&task, |progress| {
            if bar.visible() {
                let step = last_step(&progress.scratch.unwrap_or(&out).join("train.tsv"));
                let message = step.as_ref().map_or_else(
                    || proposed.description.clone(),
                    |s| format!("step {} loss {:.3}", s.step, s.train_loss),
                );
                let share = match (budget.seconds, budget.tokens, step) {
                    (Some(seconds), _, Some(step)) => step.time_s / seconds,
                    (_, Some(tokens), Some(step)) => step.time_s * step.tokens_per_s / tokens as f64,
                    _ => 0.0,
                };
                bar.set(share, message);
            }
            bar.tick(progress.elapsed);
        })?;
        drop(bar);
        let said = || child::last_lines(&log, 1);
        let reason = match finished.end {
            End::Interrupted => return Err(Broken::Interrupted("training")),
            End::TimedOut => {
                let reason = match fair {
                    Some(seconds) => format!(
                        "stopped after {seconds:.0} s: with what the baseline takes besides, training was over its \
                         budget"
                    ),
                    None => format!("stopped at the hard limit of {seconds} s"),
                };
                return Err(Broken::Failed(Status::Timeout, reason));
            }
            End::Overflowed => "wrote more than an experiment may".into(),
            End::Exited(code) if unconfined(code, confined.as_ref()) => {
                return Err(anyhow!("the trainer could not be confined: {}", child::last_lines(&log, 2)).into());
            }
            End::Exited(0) => match read_summary(&out.join("summary.json")) {
                Ok(summary) if summary.status == "terminated" => "ended early by a signal from outside".into(),
                Ok(_) if !handed_over(self, run) => finished.refused.first().map_or_else(
                    || "left no artifact".to_owned(),
                    |refused| format!("left no artifact that can be used: {refused}"),
                ),
                Ok(summary) => {
                    return Ok(Trained {
                        experiment: proposed.experiment,
                        train_s: summary.training_seconds,
                        wall_s: finished.elapsed.as_secs_f64(),
                        steps: summary.num_steps,
                        tokens: summary.tokens,
                        memory: finished.memory,
                        sandbox: confined.as_ref().and_then(enforced),
                    });
                }
                Err(e) => format!("left no summary: {e:#}"),
            },
            End::Exited(DIVERGED) => format!("diverged: {}", said()),
            End::Exited(code) => format!("trainer failed with code {code}: {}", said()),
            End::Killed(9) => "trainer was killed, probably for want of memory".into(),
            End::Killed(signal) => format!("trainer was killed by signal {signal}"),
        };
        Err(Broken::Failed(Status::Crash, reason))
    }
}

/// Steps of a rehearsal.
const REHEARSED_STEPS: u64 = 3;
/// File beside the run's logs that it writes to.
pub(super) const REHEARSAL_LOG: &str = "rehearsal.log";

impl Search<'_> {
    fn arguments(&self, task: Task, run: Run, proposed: &Proposed) -> Task {
        let out = self.layout.out(run);
        let task = task
            .flag("--campaign", self.layout.campaign_copy())
            .flag("--data", &self.data)
            .flag("--out", &out)
            .flag("--seed", proposed.seed.to_string())
            .env("TMPDIR", &out);
        self.machine(task)
    }

    /// A few steps, start and export included, of a recipe that a language model wrote: what panics, diverges at once or
    /// needs too much memory is found in seconds, and the model can mend it. Returns how many.
    pub(super) fn rehearse(&self, run: Run, trainer: &Trainer, proposed: &Proposed) -> Result<f64, Broken> {
        self.check_trainer(trainer)?;
        let (folder, budget) = (self.layout.folder(run), &self.campaign.budget);
        let log = folder.join(REHEARSAL_LOG);
        let limit = Duration::try_from_secs_f64(budget.hard_limit_seconds).context("budget.hard_limit_seconds")?;
        let grace = Duration::try_from_secs_f64(budget.grace_seconds).context("budget.grace_seconds")?;
        let confined = self.sandboxed().then(|| self.confine_training(run, &trainer.path)).transpose()?;
        let task = Task::new(&trainer.path, &folder, log.clone(), limit, grace).confined(confined.clone());
        let task = self.arguments(task, run, proposed).flag("--max-steps", REHEARSED_STEPS.to_string());
        let bar = self.printer.spinner(format!("{run} rehearsing"));
        let finished = self.runner.run(&task, |progress| bar.tick(progress.elapsed))?;
        drop(bar);
        let how = match finished.end {
            End::Exited(0) => {
                fs::remove_file(&log).with_context(|| format!("cannot remove {}", log.display()))?;
                self.empty_out(run)?;
                return Ok(finished.elapsed.as_secs_f64());
            }
            End::Interrupted => return Err(Broken::Interrupted("rehearsing")),
            End::Exited(code) if unconfined(code, confined.as_ref()) => {
                return Err(anyhow!("the trainer could not be confined: {}", child::last_lines(&log, 2)).into());
            }
            End::Exited(code) => format!("ended with code {code}"),
            End::Killed(signal) => format!("was killed by signal {signal}"),
            End::TimedOut => "did not end".into(),
            End::Overflowed => "wrote more than an experiment may".into(),
        };
        let said = child::last_lines(&log, 1);
        Err(Broken::Failed(Status::Crash, format!("the first {REHEARSED_STEPS} steps {how}: {said}")))
    }
}

/// What a run may take longer than the budget and the baseline's time besides training: shares of the two, and seconds.
const FAIR_BUDGET: f64 = 1.05;
const FAIR_REST: f64 = 1.5;
const FAIR_SECONDS: f64 = 3.0;

impl Search<'_> {
    /// Seconds after which a run must have trained longer than it may, by our own clock: what it says of itself comes from
    /// the process that the recipe runs in. Start, dev evaluation and export take what they took the baseline, about.
    /// `None` for a budget in tokens, and for the baseline itself, which a person wrote.
    fn fair_seconds(&self) -> Option<f64> {
        let budget = self.campaign.budget.seconds?;
        let baseline = self.state.baseline()?;
        let replicates = self.state.replicates_of(baseline.experiment).map(|replicate| &replicate.trained);
        let rest = baseline.trained.iter().chain(replicates).map(|run| run.wall_s - run.train_s).fold(0.0, f64::max);
        Some(budget * FAIR_BUDGET + rest * FAIR_REST + FAIR_SECONDS)
    }
}

fn read_summary(path: &Path) -> Result<Summary> {
    Ok(serde_json::from_reader(files::open_untrusted(path)?.take(LONGEST_SUMMARY))?)
}

/// The columns of `train.tsv` that the bar shows.
#[derive(Debug, PartialEq)]
struct LastStep {
    step: u64,
    train_loss: f64,
    time_s: f64,
    tokens_per_s: f64,
}

/// The last whole line of the log; only its end is read.
fn last_step(path: &Path) -> Option<LastStep> {
    let mut file = files::open_untrusted(path).ok()?;
    let mut header = vec![0; 512];
    let read = file.read(&mut header).ok()?;
    let header = String::from_utf8_lossy(&header[..read]).into_owned();
    let end = file.seek(SeekFrom::End(0)).ok()?;
    file.seek(SeekFrom::Start(end.saturating_sub(2048))).ok()?;
    let mut tail = Vec::new();
    file.take(2048).read_to_end(&mut tail).ok()?;
    let tail = String::from_utf8_lossy(&tail);
    let line = tail[..tail.rfind('\n')?].lines().last()?;
    let column = |name: &str| {
        let index = header.lines().next()?.split('\t').position(|column| column == name)?;
        line.split('\t').nth(index)?.parse::<f64>().ok()
    };
    Some(LastStep {
        step: column("step")? as u64,
        train_loss: column("train_loss")?,
        time_s: column("time_s")?,
        tokens_per_s: column("tokens_per_s").unwrap_or(0.0),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_whole_line_is_shown() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("train.tsv");
        assert_eq!(last_step(&path), None);
        std::fs::write(&path, "step\ttrain_loss\ttime_s\ttokens_per_s\n").unwrap();
        assert_eq!(last_step(&path), None);
        std::fs::write(&path, "step\ttrain_loss\ttime_s\ttokens_per_s\n1\t5.5\t0.1\t90\n2\t5.25\t0.2\t100\n3\t5")
            .unwrap();
        let expected = LastStep { step: 2, train_loss: 5.25, time_s: 0.2, tokens_per_s: 100.0 };
        assert_eq!(last_step(&path), Some(expected));
    }
}
