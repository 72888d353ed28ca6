//! What a search is doing and what it has found, read from its journal alone: it may be running or not.

use std::path::Path;

use formats::campaign::Campaign;
use formats::corpus::Part;
use sandbox::Enforced;
use serde::Serialize;

use crate::agent::Cost;
use crate::clock;
use crate::error::Failure;
use crate::journal;
use crate::layout::{self, Layout};
use crate::ledger::{Evaluation, Row, State, Time};
use crate::results::{self, Figures};
use crate::search;
use crate::secrets;
use crate::verdict::Noise;

/// What `status --json` prints.
#[derive(Debug, Serialize)]
pub struct Status<'a> {
    /// Campaign and tag.
    pub campaign: &'a str,
    /// Tag of the search.
    pub tag: &'a str,
    /// Whether an orchestrator works on it now.
    pub running: bool,
    /// When it started, UTC.
    pub started_at: &'a str,
    /// Why it stopped, when it did so in good order.
    pub stopped: Option<&'a str>,
    /// Rows.
    pub experiments: usize,
    /// Rows that were kept, the baseline included.
    pub kept: usize,
    /// The experiment that is not over.
    pub in_flight: Option<Current<'a>>,
    /// Baseline and best on `select`, by the means of runs that selected neither.
    pub select: Option<Figures>,
    /// The same on `report`.
    pub report: Option<Figures>,
    /// The first row, with the figures of its first run.
    pub baseline: Option<&'a Row>,
    /// The best row, with the figures of its first run.
    pub best: Option<&'a Row>,
    /// The full-precision parent on `select`.
    pub full_precision: Option<&'a Evaluation>,
    /// Final figures of the baseline's artifact, that of its first run.
    pub baseline_report: Option<&'a Evaluation>,
    /// The same of the best.
    pub best_report: Option<&'a Evaluation>,
    /// Where the time went.
    pub time: Time,
    /// What language models cost so far.
    pub cost: Option<Cost>,
    /// The run-to-run noise, where it was measured.
    pub noise: Option<Noise>,
    /// Whether every run of each recipe gave the same loss to the bit, so that luck cannot be measured.
    pub noise_is_blind: bool,
    /// What this noise does not allow of the campaign's settings.
    pub noise_hint: Option<String>,
    /// What the sandbox enforced in the last run that trained.
    pub sandbox: Option<&'a Enforced>,
    /// How busy others kept the machine, where that was looked at.
    pub others: Option<Others>,
}

/// How busy others kept the cores of this search, over its training runs.
#[derive(Debug, Serialize)]
pub struct Others {
    /// Mean share of the cores' time that they took.
    pub mean: f64,
    /// The largest of a run.
    pub most: f64,
    /// How long the fixed piece of work took in the fastest and in the slowest run, against the search's first; `None` where
    /// the campaign's clock does not ask for it.
    pub work: Option<[f64; 2]>,
}

impl Others {
    fn of(state: &State) -> Option<Self> {
        let rows = state.rows.iter().filter_map(|row| row.trained.as_ref());
        let arms = state.arm_runs.iter().filter_map(|run| run.measured()).map(|measured| &measured.trained);
        let again = state.replicates.iter().map(|replicate| &replicate.trained);
        let used: Vec<_> = rows.chain(again).chain(arms).filter_map(|run| run.processor).collect();
        let others = || used.iter().map(|used| used.others);
        let work = || used.iter().filter_map(|used| Some(used.speed?.probe_s / state.speed?.probe_s));
        let work = work().reduce(f64::min).zip(work().reduce(f64::max)).map(<[f64; 2]>::from);
        Some(Self { mean: others().sum::<f64>() / used.len() as f64, most: others().reduce(f64::max)?, work })
    }
}

/// The experiment that is not over.
#[derive(Debug, Serialize)]
pub struct Current<'a> {
    /// Its number.
    pub experiment: u64,
    /// building, training, evaluating or deciding; of a search that does not run, what it goes on with.
    pub stage: &'static str,
    /// Seconds in that stage.
    pub elapsed_s: f64,
    /// What it changes.
    pub description: &'a str,
}

impl<'a> Status<'a> {
    /// The view of a state.
    pub fn of(layout: &'a Layout, state: &'a State) -> Self {
        let reported = |row: Option<&Row>| row.and_then(|row| state.reported.get(&(Some(row.experiment), None)));
        Self {
            campaign: &layout.name,
            tag: &layout.tag,
            running: search::is_running(layout),
            started_at: &state.started_at,
            stopped: state.stopped.as_deref(),
            experiments: state.rows.len(),
            kept: state.kept(),
            in_flight: state.in_flight.as_ref().map(|flight| Current {
                experiment: flight.proposed.experiment,
                stage: flight.stage(),
                elapsed_s: clock::seconds_since(&flight.since).round(),
                description: &flight.proposed.description,
            }),
            select: results::figures(state, Part::Select),
            report: results::figures(state, Part::Report),
            baseline: state.baseline(),
            best: state.incumbent(),
            full_precision: state.full_precision.as_ref(),
            baseline_report: reported(state.baseline()),
            best_report: reported(state.incumbent()),
            time: state.time,
            cost: state.cost(),
            noise: state.noise(),
            noise_is_blind: state.noise().is_some_and(|noise| noise.is_blind()),
            noise_hint: state.noise().and_then(|noise| {
                let campaign = Campaign::load(&layout.campaign_copy()).ok()?;
                results::unsupported(&noise, &campaign.noise)
            }),
            sandbox: state.rows.iter().rev().find_map(|row| row.trained.as_ref()?.sandbox.as_ref()),
            others: Others::of(state),
        }
    }

    /// The same for people.
    pub fn lines(&self, state: &State) -> Vec<String> {
        let condition = match (self.running, self.stopped) {
            (true, _) => "running".to_owned(),
            (false, Some(why)) => format!("stopped: {why}"),
            (false, None) => "not running; `run` goes on where it was".to_owned(),
        };
        let mut lines = vec![format!("{} / {}: {condition}", self.campaign, self.tag)];
        if let Some(flight) = &self.in_flight {
            let when = if self.running { format!("for {:.0} s", flight.elapsed_s) } else { "when it goes on".into() };
            lines.push(format!("#{} {} {when}: {}", flight.experiment, flight.stage, flight.description));
        }
        lines.extend(results::summary(state));
        lines.extend(self.noise_hint.clone());
        if let Some(row) = state.rows.last() {
            lines.push(format!("last: {}", results::line(row).trim_start()));
        }
        if let Some(others) = &self.others {
            let [mean, most] = [others.mean, others.most].map(|share| 100.0 * share);
            lines.push(format!("others took {mean:.0} % of the cores while it trained, {most:.0} % at most in a run"));
            if let Some([least, most]) = others.work {
                lines.push(format!(
                    "the same work took {least:.2} to {most:.2} times the processor time of the first run"
                ));
            }
        }
        if let Some(sandbox) = self.sandbox {
            lines.push(format!("sandbox: {}", sandbox.summary()));
        }
        lines
    }
}

/// The search that `status` and `results` mean, with its state: by tag, by campaign, else the one written to last.
///
/// # Errors
/// [`Failure::NothingYet`] when there is none.
pub fn find(root: &Path, name: Option<&str>, tag: Option<&str>) -> Result<(Layout, State), Failure> {
    let mut searches = layout::searches(root, name);
    searches.retain(|layout| tag.is_none_or(|tag| layout.tag == tag));
    let Some(layout) = searches.into_iter().next() else {
        let of = |what: &str, value: Option<&str>| value.map_or_else(String::new, |v| format!(" {what} {v}"));
        let message = format!("no search{}{} has been run here yet", of("of campaign", name), of("with tag", tag));
        return Err(Failure::NothingYet(message));
    };
    let records = journal::read(&layout.journal())?;
    let state = State::rebuild(&records).map_err(|message| Failure::Journal { path: layout.journal(), message })?;
    Ok((layout, state))
}

/// The compiler that cargo uses in a folder, as it names itself.
pub fn compiler(folder: &Path) -> String {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let said = secrets::command(rustc).arg("--version").current_dir(folder).output();
    said.map_or_else(|_| "unknown".into(), |out| String::from_utf8_lossy(&out.stdout).trim().to_owned())
}
