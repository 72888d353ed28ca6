//! Runs the trainer of a candidate within the campaign's budget and hard limit.

use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use formats::campaign::{Clock, LARGEST_CORRECTION};
use formats::contract::{self, Ended, Summary};

use super::confine::{enforced, unconfined};
use super::{StepError, Trainer, has_artifact};
use crate::child::{self, End, Finished, Most, Task, Usage};
use crate::error::Failure;
use crate::files;
use crate::layout::Run;
use crate::ledger::{Processor, Proposed, Speed, Status, Trained};
use crate::results::figure;
use crate::search::Search;

/// [`contract::DIVERGED`] as the system gives it.
const DIVERGED: i32 = contract::DIVERGED as i32;

/// Bytes of a summary that are read.
const LONGEST_SUMMARY: u64 = 1 << 16;

/// How a training run came out.
enum Outcome {
    Trained(Trained),
    /// Others had the processor that it needed, or the machine was not as the run says.
    Starved(String),
}

/// Runs of one recipe that may starve before the incumbent shows who is to blame.
const STARVED_RUNS: usize = 3;

impl Search<'_> {
    /// From a built trainer to an artifact, within the campaign's budget or so many steps. What starved is run again; where
    /// it starves each time, the incumbent is run in its place: when that comes to its end, it was the recipe.
    pub(super) fn train(
        &self,
        run: Run,
        trainer: &Trainer,
        proposed: &Proposed,
        max_steps: Option<u64>,
    ) -> Result<Trained, StepError> {
        let mut last = String::new();
        for _ in 0..STARVED_RUNS {
            match self.train_once(run, trainer, proposed, max_steps)? {
                Outcome::Trained(trained) => return Ok(trained),
                Outcome::Starved(how) => {
                    self.printer.notice(&format!("{run} {how}: it is not blamed for that"));
                    self.empty_out(run)?;
                    last = how;
                }
            }
        }
        let busy = || Failure::TooBusy(format!("other programs keep this machine too busy: {run} {last}"));
        let incumbent = self.state.incumbent().filter(|row| row.experiment != proposed.experiment).ok_or_else(busy)?;
        let path = self.trainer(Run::Experiment(incumbent.experiment));
        let (Some(sha256), Some(recipe)) =
            (self.state.trainers.get(&incumbent.experiment), self.state.proposals.get(&incumbent.experiment))
        else {
            return Err(busy().into());
        };
        let control = self.train_once(run, &Trainer { path, sha256: sha256.clone() }, recipe, max_steps);
        self.empty_out(run)?;
        match control {
            Ok(Outcome::Trained(_)) => {
                let reason = format!("{STARVED_RUNS} times it {last}; beside them the incumbent came to its end");
                Err(StepError::Failed(Status::Timeout, reason))
            }
            Err(StepError::Interrupted(what)) => Err(StepError::Interrupted(what)),
            _ => Err(busy().into()),
        }
    }

    fn train_once(
        &self,
        run: Run,
        trainer: &Trainer,
        proposed: &Proposed,
        max_steps: Option<u64>,
    ) -> Result<Outcome, StepError> {
        self.check_trainer(trainer)?;
        let folder = self.layout.folder(run);
        let log = folder.join("run.log");
        let out = self.layout.out(run);
        let budget = &self.campaign.budget;
        let fair = |slower| if max_steps.is_none() { self.fair(slower) } else { Fair::Unknown };
        // By how much the machine was slower, its end shows.
        let longest = fair(if self.reference().is_some() { LARGEST_CORRECTION } else { 1.0 });
        let seconds = match longest {
            Fair::Wall(seconds) => seconds.min(budget.hard_limit_seconds),
            Fair::Processor(_) | Fair::Unknown => budget.hard_limit_seconds,
        };
        let limit = Duration::try_from_secs_f64(seconds).context("budget.hard_limit_seconds")?;
        let grace = Duration::try_from_secs_f64(budget.grace_seconds).context("budget.grace_seconds")?;
        let confined = self.sandboxed().then(|| self.confine_training(run, &trainer.path)).transpose()?;
        let task = Task::new(&trainer.path, &folder, log.clone(), limit, grace).confined(confined.clone());
        let mut task = self.arguments(task, run, proposed);
        if let Fair::Processor(seconds) = longest {
            let seconds = Duration::try_from_secs_f64(seconds).context("budget.seconds")?;
            task.most = Some(if self.by_work() { Most::User(seconds) } else { Most::Processor(seconds) });
        }
        let task = match max_steps {
            Some(steps) => task.flag("--max-steps", steps.to_string()),
            None => task,
        };
        let bar = self.printer.bar(format!("{run} training"));
        let finished = self.runner.run(&task, |progress| {
            if bar.visible() {
                let step = last_step(&progress.scratch.unwrap_or(&out).join(contract::LOG));
                let message = step.as_ref().map_or_else(
                    || proposed.description.clone(),
                    |s| format!("step {} loss {}", s.step, figure(s.train_loss, 3)),
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
        let usage = finished.usage;
        let said = || child::last_lines(&log, 1);
        let computed = self.computed(&usage);
        let over = |most: f64| {
            let reason = format!(
                "computed for {computed:.0} s, all cores together, and what trains no longer than its budget needs \
                 {most:.0} s at most: training was over its budget"
            );
            StepError::Failed(Status::Timeout, reason)
        };
        let reason = match finished.end {
            End::Interrupted => return Err(StepError::Interrupted("training")),
            End::TimedOut | End::Exited(0) if task.exceeds(&usage) => {
                return Err(over(longest.seconds()));
            }
            End::TimedOut => {
                if let Some(how) = self.starved(&finished) {
                    return Ok(Outcome::Starved(how));
                }
                let reason = match longest {
                    Fair::Wall(fair) if fair <= seconds => format!(
                        "stopped after {seconds:.0} s: with what the baseline takes besides, training was over its \
                         budget"
                    ),
                    _ => format!("stopped at the hard limit of {seconds} s"),
                };
                return Err(StepError::Failed(Status::Timeout, reason));
            }
            End::Overflowed => "wrote more than an experiment may".into(),
            End::Exited(code) if unconfined(code, confined.as_ref()) => {
                return Err(anyhow!("the trainer could not be confined: {}", child::last_lines(&log, 2)).into());
            }
            End::Exited(0) => match read_summary(&out.join(contract::SUMMARY)) {
                Ok(summary) if summary.status == Ended::Terminated => "ended early by a signal from outside".into(),
                Ok(summary) if summary.status == Ended::Returned => {
                    "returned before its budget was spent: it trains until progress() is None".into()
                }
                Ok(_) if !has_artifact(self, run) => finished.refused.first().map_or_else(
                    || "left no artifact".to_owned(),
                    |refused| format!("left no artifact that can be used: {refused}"),
                ),
                Ok(summary) => {
                    let wall_s = finished.elapsed.as_secs_f64();
                    if let Some(reason) = self.implausible(&summary, wall_s, max_steps) {
                        return Err(StepError::Failed(Status::Invalid, reason));
                    }
                    let slower = self.slower(&summary);
                    if let Fair::Processor(most) = fair(slower)
                        && computed > most
                    {
                        return Err(over(most));
                    }
                    let speed = match self.speed(&summary)? {
                        Ok(speed) => speed,
                        Err(how) => return Ok(Outcome::Starved(how)),
                    };
                    return Ok(Outcome::Trained(Trained {
                        experiment: proposed.experiment,
                        train_s: summary.training_seconds,
                        wall_s,
                        steps: summary.num_steps,
                        tokens: summary.tokens,
                        memory: usage.memory,
                        sandbox: confined.as_ref().and_then(enforced),
                        processor: Some(Processor {
                            seconds: computed,
                            counted: summary.processor_seconds,
                            others: usage.others,
                            speed,
                        }),
                    }));
                }
                Err(e) => format!("left no summary: {e:#}"),
            },
            End::Exited(DIVERGED) => format!("diverged: {}", said()),
            End::Exited(code) => format!("trainer failed with code {code}: {}", said()),
            End::Killed(_) if usage.out_of_memory == Some(true) => {
                format!("trainer was killed: it needs more memory than the {} that it may take", gibibytes(&task))
            }
            // Without a counter of OOM kills the cause is unknown.
            End::Killed(signal) => format!("trainer was killed by signal {signal}"),
        };
        Err(StepError::Failed(Status::Crash, reason))
    }
}

/// Rounds that a thread of the trainer's looks for work before it sleeps, where processor time counts: to that clock, what a
/// thread spends waiting for one that other programs hold up is work. `cargo bench -p trainer --profile release --bench
/// clock` compares others. GNU's OpenMP alone reads it.
const SPINS: &str = "0";

/// The limit of a program's memory, for people.
fn gibibytes(task: &Task) -> String {
    let most = task.confined.as_ref().and_then(|confined| confined.policy.limits.memory_bytes);
    most.map_or_else(|| "memory".to_owned(), |bytes| format!("{:.1} GiB", bytes as f64 / f64::from(1 << 30)))
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
        let task = match self.reference() {
            Some(speed) => task.flag("--probe-seconds", speed.probe_s.to_string()),
            None => task,
        };
        self.machine(self.spinning(task))
    }

    /// Sets how long its threads wait awake.
    pub(super) fn spinning(&self, task: Task) -> Task {
        match self.campaign.budget.clock {
            Clock::Wall => task,
            Clock::Processor | Clock::Work => task.env("GOMP_SPINCOUNT", SPINS),
        }
    }

    /// How fast the machine was when the search began, where its clock counts by that.
    fn reference(&self) -> Option<Speed> {
        self.state.speed.filter(|_| self.by_work())
    }

    fn by_work(&self) -> bool {
        self.campaign.budget.clock == Clock::Work
    }

    /// Seconds of the processor that the campaign's clock is held against.
    fn computed(&self, usage: &Usage) -> f64 {
        if self.by_work() { usage.user.as_secs_f64() } else { usage.processor.as_secs_f64() }
    }

    /// A few steps, start and export included, of a recipe that a language model wrote: what panics, diverges at once or
    /// needs too much memory is found in seconds, and the model can repair it. Returns how many.
    pub(super) fn rehearse(&self, run: Run, trainer: &Trainer, proposed: &Proposed) -> Result<f64, StepError> {
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
            End::Interrupted => return Err(StepError::Interrupted("rehearsing")),
            End::Exited(code) if unconfined(code, confined.as_ref()) => {
                return Err(anyhow!("the trainer could not be confined: {}", child::last_lines(&log, 2)).into());
            }
            End::Exited(code) => format!("ended with code {code}"),
            End::Killed(signal) => format!("was killed by signal {signal}"),
            End::TimedOut => "did not end".into(),
            End::Overflowed => "wrote more than an experiment may".into(),
        };
        let said = child::last_lines(&log, 1);
        Err(StepError::Failed(Status::Crash, format!("the first {REHEARSED_STEPS} steps {how}: {said}")))
    }
}

/// What a run may take beyond its budget and what the baseline takes besides training: shares of the two, and seconds.
const FAIR_BUDGET: f64 = 1.02;
const FAIR_REST: f64 = 1.5;
const FAIR_SECONDS: f64 = 3.0;
/// The share of the budget by the wall clock, which other programs move.
const FAIR_WALL: f64 = 1.05;
/// Share of the cores' time that others must have taken where a run is said to have starved.
const STARVED_OTHERS: f64 = 0.25;
/// Factor by which a run may say that the machine was slower than the evaluator finds right after it. The two differ by 4 %
/// (standard deviation) on a machine whose host has other guests; what is not believed is run again.
const BELIEVED_SLOWNESS: f64 = 1.06;
/// Seconds that a probe can take on any machine.
const SHORTEST_PROBE: f64 = 1e-6;
const LONGEST_PROBE: f64 = 60.0;
/// What a run may say beyond our own wall clock: seconds.
const BELIEVED_SECONDS: f64 = 3.0;
/// What it may say of tokens: times the budget's; times the baseline's in the same time; and, without a baseline, a second.
const BELIEVED_TOKENS: f64 = 1.25;
const BELIEVED_SPEED: f64 = 100.0;
const BELIEVED_RATE: f64 = 1e9;

/// What shows that a run trained for longer than its budget.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fair {
    /// More seconds of the processor than this, as the kernel counts them; outside of the kernel, where the campaign's clock
    /// does so.
    Processor(f64),
    /// More seconds of wall time than this.
    Wall(f64),
    /// Nothing: a budget in tokens, and the baseline itself, which a person wrote.
    Unknown,
}

impl Fair {
    fn seconds(self) -> f64 {
        match self {
            Self::Processor(seconds) | Self::Wall(seconds) => seconds,
            Self::Unknown => f64::INFINITY,
        }
    }
}

impl Search<'_> {
    /// What a run may use when it trains no longer than it may. What it says of itself comes from the process that the
    /// recipe runs in, so this is by the kernel's count. Start, dev evaluation and export take what they took the
    /// baseline, about. Where a GPU computes, or the baseline is from before processor time was written down, it is wall
    /// time.
    ///
    /// On a machine that was `slower` by a factor, training takes so much more.
    fn fair(&self, slower: f64) -> Fair {
        let (Some(budget), Some(baseline)) = (self.campaign.budget.seconds, self.state.baseline()) else {
            return Fair::Unknown;
        };
        let replicates = self.state.replicates_of(baseline.experiment).map(|replicate| &replicate.trained);
        let runs: Vec<&Trained> = baseline.trained.iter().chain(replicates).collect();
        // Of the runs that say it, what they used besides training.
        let rest = runs.iter().filter_map(|run| run.processor.and_then(|used| Some(used.seconds - used.counted?)));
        let on_processor = self.started.accelerator == "none" || self.on_processor();
        match rest.reduce(f64::max).filter(|_| on_processor) {
            Some(rest) => {
                let cores = self.threads() as f64;
                Fair::Processor(budget * slower * cores * FAIR_BUDGET + rest.max(0.0) * FAIR_REST + FAIR_SECONDS)
            }
            None => {
                let rest = runs.iter().map(|run| run.wall_s - run.train_s).fold(0.0, f64::max);
                Fair::Wall(budget * FAIR_WALL + rest * FAIR_REST + FAIR_SECONDS)
            }
        }
    }

    /// How a run that was stopped for its wall time starved, if it did: others took much of the cores, and what it
    /// computed and what it waited to compute would have been a whole run, or half of its time. One that slept did not
    /// starve.
    fn starved(&self, finished: &Finished) -> Option<String> {
        let (usage, wall) = (&finished.usage, finished.elapsed.as_secs_f64());
        let needs = match self.fair(1.0) {
            Fair::Processor(seconds) => seconds.min(wall / 2.0),
            Fair::Wall(_) | Fair::Unknown => wall / 2.0,
        };
        let wanted = (usage.processor + usage.delayed).as_secs_f64();
        (usage.others >= STARVED_OTHERS && wanted >= needs).then(|| {
            format!(
                "had {:.0} s of the processor in {wall:.0} s, while other programs took {:.0} % of the cores",
                usage.processor.as_secs_f64(),
                100.0 * usage.others
            )
        })
    }

    /// By which factor a run says that the machine was slower than when the search began, as far as its clock counts it.
    fn slower(&self, summary: &Summary) -> f64 {
        let factor = |speed: Speed| Some(summary.probe_seconds? / speed.probe_s);
        let factor = self.reference().and_then(factor).unwrap_or(1.0);
        factor.clamp(1.0 / LARGEST_CORRECTION, LARGEST_CORRECTION)
    }

    /// How fast the machine was in a run; `Err` with how, where the run says that it was slower than it is right after.
    /// The run's probes are in the process of the recipe, which could slow them to train for longer.
    fn speed(&self, summary: &Summary) -> Result<Result<Option<Speed>, String>, StepError> {
        let Some(probe_s) = summary.probe_seconds.filter(|_| self.by_work()) else { return Ok(Ok(None)) };
        let speed = Speed { probe_s, alone_s: self.probe()? };
        // The piece of work takes another time beside nothing else: how many times that, runs of the baseline say.
        let baseline = self.state.baseline();
        let again = baseline.into_iter().flat_map(|row| self.state.replicates_of(row.experiment));
        let runs = baseline.and_then(|row| row.trained.as_ref()).into_iter().chain(again.map(|found| &found.trained));
        let known: Vec<f64> =
            runs.filter_map(|run| run.processor?.speed).map(|speed| speed.probe_s / speed.alone_s).collect();
        let found = speed.alone_s * known.iter().sum::<f64>() / known.len() as f64;
        if !known.is_empty() && probe_s > found * BELIEVED_SLOWNESS {
            let percent = 100.0 * (probe_s / found - 1.0);
            return Ok(Err(format!("says that the machine was {percent:.0} % slower than it is right after")));
        }
        Ok(Ok(Some(speed)))
    }

    /// Why figures that a run says of itself cannot be: they are held against our own clock, the budget, and what the
    /// baseline does in the same time.
    fn implausible(&self, summary: &Summary, wall: f64, max_steps: Option<u64>) -> Option<String> {
        let Summary { training_seconds: seconds, processor_seconds, probe_seconds, num_steps: steps, tokens, .. } =
            *summary;
        if probe_seconds.is_some_and(|seconds| !(SHORTEST_PROBE..=LONGEST_PROBE).contains(&seconds)) {
            return Some(format!("says that its probes took {} s each", figure(probe_seconds.unwrap_or_default(), 9)));
        }
        let cores = std::thread::available_parallelism().map_or(1, |n| n.get()) as f64;
        // With more threads than it is given, processor time runs faster than the wall's.
        let faster = if self.reference().is_some() { LARGEST_CORRECTION } else { 1.0 };
        let most_seconds = (wall + BELIEVED_SECONDS) * (cores / self.threads() as f64).max(1.0) * faster;
        if !(0.0..=most_seconds).contains(&seconds) {
            return Some(format!("says that it trained for {} s, and ran for {wall:.1} s", figure(seconds, 1)));
        }
        let computed = processor_seconds.unwrap_or_default();
        if !(0.0..=(wall + BELIEVED_SECONDS) * cores).contains(&computed) {
            let computed = figure(computed, 1);
            return Some(format!("says that it computed for {computed} s, and ran for {wall:.1} s on {cores} cores"));
        }
        if steps > tokens {
            return Some(format!("says that it did {steps} steps on {tokens} tokens; each step takes one at least"));
        }
        let baseline = self.state.baseline().and_then(|row| row.trained.as_ref());
        let rate = baseline.map_or(BELIEVED_RATE, |run| BELIEVED_SPEED * run.tokens as f64 / run.wall_s.max(1e-3));
        let most = match (max_steps, self.campaign.budget.tokens) {
            (None, Some(budget)) => budget as f64 * BELIEVED_TOKENS,
            _ => rate * (wall + BELIEVED_SECONDS),
        };
        (tokens as f64 > most).then(|| format!("says that it trained on {tokens} tokens, where {most:.0} is the most"))
    }
}

/// It comes from the process that the recipe runs in, so it is believed within what [`Search::implausible`] allows, and no
/// verdict depends on it.
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
        train_loss: column(contract::TRAIN_LOSS)?,
        time_s: column(contract::TIME_S)?,
        tokens_per_s: column(contract::TOKENS_PER_S).unwrap_or(0.0),
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
