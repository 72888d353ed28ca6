//! A search from start to stop: what it is pinned to, going on after a stop, the loop, and its end.
//!
//! Restore policy: the journal is the truth. What it says was kept is where the branch must be; an experiment in
//! flight goes on from the last step that is written down; the views are written anew.

mod ask;
mod question;
mod start;

use std::fs::{self, File, TryLockError};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;
use formats::campaign::{AgentKind, Campaign, Sandbox};
use git2::Oid;

use crate::child::{Interrupts, Runner, Task};
use crate::error::Failure;
use crate::experiment::{Thinking, Turn, has_artifact, oid};
use crate::journal::Journal;
use crate::layout::{Kind, Layout, Run};
use crate::ledger::{Abandoned, Built, Event, Resumed, Started, State};
use crate::printer::Printer;
use crate::results;
use crate::workspace::{Workspace, Worktree};

pub use ask::{check_agent, next_prompt};
pub use start::{Attempt, HUMAN, attempt, campaign_file, parse_agent, replicate, report, run};
pub(crate) use start::{begin, enter};

/// Free space below which no experiment is begun: a full disk would fail it for no fault of its own.
const FREE_BYTES: u64 = 1 << 30;

/// What the command line says about a search.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Name of the campaign; the machine's default when absent.
    pub campaign: Option<String>,
    /// Tag; the campaign's last search when absent.
    pub tag: Option<String>,
    /// Agent, instead of the campaign's.
    pub agent: Option<AgentKind>,
    /// Seed, instead of the campaign's.
    pub seed: Option<u64>,
    /// Stop at this many rows.
    pub experiments: Option<u64>,
    /// Begin no experiment after this long.
    pub hours: Option<f64>,
    /// How the programs use the machine.
    pub machine: Machine,
    /// Records instead of lines.
    pub json: bool,
}

/// How trainer and evaluator use the machine.
#[derive(Debug, Clone, Default)]
pub struct Machine {
    /// CPU threads; as many as there are cores when absent.
    pub threads: Option<usize>,
    /// Cores that everything of this search is confined to.
    pub cores: Option<Vec<usize>>,
    /// Device, as the programs name it.
    pub device: Option<String>,
    /// Folder of compiled dependencies, instead of `target/search`.
    pub build_dir: Option<PathBuf>,
}

/// One search, open for writing: whoever has it holds its lock.
pub struct Search<'a> {
    /// Its folders.
    pub layout: Layout,
    /// What is searched.
    pub campaign: Campaign,
    /// The prepared data.
    pub data: PathBuf,
    /// What it is pinned to.
    pub started: Started,
    /// The commit that it started from.
    pub start: Oid,
    /// Seed of proposals and training.
    pub seed: u64,
    /// Who proposes.
    pub agent: AgentKind,
    /// The language model that is asked, where one is.
    pub thinking: Option<Thinking>,
    /// The trainer of the experiment in flight, where it was compiled before.
    pub built_ahead: Option<Built>,
    /// Compiled dependencies, shared with other searches.
    pub build_dir: PathBuf,
    /// The repository.
    pub workspace: &'a Workspace,
    /// The search's own checkout.
    pub worktree: Worktree<'a>,
    /// Starts programs.
    pub runner: Runner,
    /// Shows progress.
    pub printer: Printer,
    /// What the journal says.
    pub state: State,
    journal: Journal,
    machine: Machine,
    /// Where the command line ends it.
    pub limits: Limits,
    _lock: File,
}

/// When a search ends, as the command line says.
#[derive(Debug, Clone, Copy, Default)]
pub struct Limits {
    /// At so many rows.
    pub experiments: Option<u64>,
    /// At this time.
    pub until: Option<Instant>,
}

impl Limits {
    /// Hours until then, none once it is over.
    pub fn hours_left(&self) -> Option<f64> {
        self.until.map(|until| until.saturating_duration_since(Instant::now()).as_secs_f64() / 3600.0)
    }
}

/// Takes the lock of a search, which ends with the file that is returned.
///
/// # Errors
/// [`Failure::Busy`] when another process has it.
pub fn lock(layout: &Layout) -> Result<File, Failure> {
    fs::create_dir_all(layout.run()).with_context(|| format!("cannot make {}", layout.run().display()))?;
    let path = layout.lock();
    let mut file = File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .with_context(|| format!("cannot open {}", path.display()))?;
    // `status` holds the lock for an instant to see whether it is free.
    for _ in 0..20 {
        match file.try_lock() {
            Ok(()) => {
                let _ = file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id()));
                return Ok(file);
            }
            Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(50)),
            Err(TryLockError::Error(e)) => {
                return Err(Failure::Other(anyhow::Error::new(e).context(format!("cannot lock {}", path.display()))));
            }
        }
    }
    Err(Failure::Busy { tag: layout.tag.clone(), lock: path })
}

/// Whether some process works on a search.
pub fn is_running(layout: &Layout) -> bool {
    let Ok(file) = File::open(layout.lock()) else { return false };
    matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock))
}

impl<'a> Search<'a> {
    /// Goes on with a search whose journal has begun, and puts right what a crash left half done.
    ///
    /// # Errors
    /// When anything that it is pinned to has changed.
    pub fn open(
        layout: Layout,
        lock: File,
        workspace: &'a Workspace,
        interrupts: Interrupts,
        printer: Printer,
        machine: Machine,
    ) -> Result<Self, Failure> {
        let (journal, records) = Journal::open(&layout.journal())?;
        let damaged = |message| Failure::Journal { path: layout.journal(), message };
        let state = State::rebuild(&records).map_err(damaged)?;
        let started = state.started.clone().ok_or_else(|| damaged("it does not say how the search started".into()))?;
        let campaign = Campaign::load(&layout.campaign_copy()).map_err(|e| Failure::Campaign {
            message: e.to_string(),
            hint: "the search's copy of its campaign file is damaged; start another with --tag".into(),
        })?;
        let start = oid(&started.start)?;
        let tip = state.incumbent().map_or(Ok(start), |row| oid(&row.commit))?;
        let worktree = workspace.prepare(&layout.tag, &layout.worktree(), tip)?;
        // A search that began before each had its own data shares the campaign's.
        let own = layout.data();
        let data = if own.exists() { own } else { layout.campaign().join("data") };
        let build_dir = machine.build_dir.clone().unwrap_or_else(|| build_dir(&layout.root));
        let mut search = Self {
            data,
            seed: started.seed,
            agent: campaign.agent.kind,
            thinking: None,
            built_ahead: None,
            runner: Runner::new(interrupts)?,
            layout,
            campaign,
            started,
            start,
            build_dir,
            workspace,
            worktree,
            printer,
            state,
            journal,
            machine,
            limits: Limits::default(),
            _lock: lock,
        };
        search.check_pins()?;
        search.worktree.show(tip)?;
        search.recover()?;
        Ok(search)
    }

    fn recover(&mut self) -> Result<(), Failure> {
        self.move_branch()?;
        if let Some(flight) = self.state.in_flight.clone() {
            let experiment = flight.proposed.experiment;
            let commit = oid(&flight.proposed.commit)?;
            let abandoned =
                |reason: &str, again| Event::Abandoned(Abandoned { experiment, reason: reason.into(), again });
            if !self.workspace.has(commit) {
                self.write(abandoned("its commit was lost", false))?;
            } else {
                self.workspace.record(&self.layout.tag, experiment, commit)?;
                let lost = flight
                    .trained
                    .as_ref()
                    .is_some_and(|trained| !has_artifact(self, Run::Experiment(trained.experiment)));
                let broken_off = flight.built.is_some() && flight.trained.is_none();
                if flight.measured.is_none() && (lost || broken_off) {
                    self.write(abandoned("the orchestrator ended while it ran", true))?;
                }
            }
        }
        for row in &self.state.rows {
            self.remove_superfluous(row);
        }
        self.publish();
        Ok(())
    }

    /// Renews this search's rows in results.tsv. The journal is the truth, so a table that cannot be written does not
    /// stop the search.
    pub fn publish(&self) {
        if self.layout.kind == Kind::Comparison {
            return;
        }
        let told = match results::publish(self.workspace, &self.layout.tag, &self.state.rows, &self.layout.run()) {
            Ok(differences) if differences.edited.is_empty() => return,
            Ok(differences) => format!(
                "results.tsv is written from the journal: {}; what it said is kept in {}",
                differences.summary().unwrap_or_default(),
                self.layout.run().display()
            ),
            Err(e) => format!(
                "results.tsv is not written: {e:#}; the search goes on, its rows are in the journal, and \
                 `orchestrator repair` writes them"
            ),
        };
        self.printer.notice(&told);
    }

    /// Writes a record; when this returns it is on disk and in the state.
    ///
    /// # Errors
    /// When it could not be written.
    pub fn write(&mut self, event: Event) -> Result<(), Failure> {
        let record = self.journal.append(event)?;
        self.state.apply(&record).map_err(|message| Failure::Journal { path: self.layout.journal(), message })
    }

    /// Name of the constant in the recipe that holds this campaign's knobs.
    pub fn knobs_constant(&self) -> &'static str {
        knobs_constant(&self.campaign)
    }

    /// The built-in agent that proposes when no language model does.
    pub fn builtin(&self) -> AgentKind {
        if self.agent.writes_code() { AgentKind::Tpe } else { self.agent }
    }

    /// Whether candidates are built and run in the sandbox.
    pub fn sandboxed(&self) -> bool {
        self.campaign.sandbox != Sandbox::Off
    }

    /// Threads that its programs use.
    pub fn threads(&self) -> usize {
        self.asked_threads().or_else(|| Some(std::thread::available_parallelism().ok()?.get())).unwrap_or(1).max(1)
    }

    fn asked_threads(&self) -> Option<usize> {
        self.machine.threads.or_else(|| self.machine.cores.as_ref().map(Vec::len))
    }

    /// Adds to a program's arguments how it may use the machine.
    pub fn machine(&self, task: Task) -> Task {
        let threads = self.asked_threads();
        let task = match threads {
            Some(threads) => task.flag("--threads", threads.to_string()),
            None => task,
        };
        match &self.machine.device {
            Some(device) => task.flag("--device", device),
            None => task,
        }
    }

    /// Whether programs are told to compute on the processor, whatever else there is.
    pub fn on_processor(&self) -> bool {
        self.machine.device.as_deref() == Some("cpu")
    }

    /// Experiments until a limit or the user ends it; returns why it ended.
    ///
    /// # Errors
    /// When it cannot go on.
    pub fn search(&mut self, experiments: Option<u64>, hours: Option<f64>) -> Result<Stop, Failure> {
        let hours = hours.map(|hours| Duration::try_from_secs_f64((hours * 3600.0).max(0.0)));
        self.limits = Limits { experiments, until: hours.and_then(|hours| Instant::now().checked_add(hours.ok()?)) };
        if !self.measure_full_precision()? {
            return Ok(Stop::Interrupted);
        }
        loop {
            if self.runner.interrupted() {
                return Ok(Stop::Interrupted);
            }
            if experiments.is_some_and(|limit| self.state.rows.len() as u64 >= limit) {
                return Ok(Stop::Limit(format!("{} experiments are done", self.state.rows.len())));
            }
            if self.limits.until.is_some_and(|until| Instant::now() >= until) {
                return Ok(Stop::Limit("its hours are over".into()));
            }
            self.check_space()?;
            match self.run_one()? {
                Turn::Done => {}
                Turn::Interrupted => return Ok(Stop::Interrupted),
                Turn::Exhausted(why) => return Ok(Stop::Limit(why)),
            }
        }
    }

    /// Leaves the worktree at the incumbent, whatever happened.
    pub fn reset_worktree(&self) {
        if let Some(row) = self.state.incumbent()
            && let Err(e) = oid(&row.commit).and_then(|commit| self.worktree.show(commit))
        {
            tracing::warn!(error = %format!("{e:#}"), "the worktree is not at the incumbent");
        }
    }

    /// Refuses to go on where a full disk would be taken for a candidate's failure.
    ///
    /// # Errors
    /// When too little is free.
    pub fn check_space(&self) -> Result<(), Failure> {
        let run = self.layout.run();
        let Ok(space) = rustix::fs::statvfs(&run) else { return Ok(()) };
        if space.f_bavail.saturating_mul(space.f_frsize) < FREE_BYTES {
            return Err(Failure::Other(anyhow::anyhow!(
                "less than 1 GiB is free for {}: free some space and run again, the search goes on where it was",
                run.display()
            )));
        }
        Ok(())
    }
}

/// Name of the constant in a recipe that holds a campaign's knobs.
pub fn knobs_constant(campaign: &Campaign) -> &'static str {
    if campaign.model.has_parent() { "PRETRAINED" } else { "SCRATCH" }
}

/// Why a search ended in good order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stop {
    /// The user.
    Interrupted,
    /// A limit of the command line, or nothing is left to try.
    Limit(String),
}

/// Where searches keep compiled dependencies: beside the checkout's own, never among them. Cargo names what it compiles
/// of a workspace by paths within it, so two checkouts that build into one folder take each other's files for theirs.
fn build_dir(root: &Path) -> PathBuf {
    ["CARGO_BUILD_BUILD_DIR", "CARGO_TARGET_DIR"]
        .iter()
        .find_map(std::env::var_os)
        .map_or_else(|| root.join("target"), |dir| root.join(dir))
        .join("search")
}

/// The record of going on.
fn resumed() -> Event {
    Event::Resumed(Resumed { version: env!("CARGO_PKG_VERSION").into() })
}
