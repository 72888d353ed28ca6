//! Runs one command at a time in a process group of its own, with its output in a capped file and a hard limit.
//!
//! At the limit the whole group gets SIGTERM and, after a grace period, SIGKILL. A leader that exits takes the rest of
//! its group with it. The group dies with the orchestrator, even when that is killed: a `lifeline` process waits on a
//! pipe that only the orchestrator holds open. A child that leaves its group by setsid is not caught here; that needs
//! a PID namespace.

mod interrupts;
mod lifeline;
mod output;

use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
use wait4::Wait4;

pub use interrupts::Interrupts;
use lifeline::Lifeline;
pub use output::last_lines;

/// How often a waiting caller is told how long it has been waiting.
const TICK: Duration = Duration::from_millis(500);
/// How long a killed process may take to disappear; more means that the kernel holds it.
const UNKILLABLE: Duration = Duration::from_secs(60);

/// A command and its limits.
#[derive(Debug)]
pub struct Task {
    /// Program, by path or by name.
    pub program: OsString,
    /// Its arguments.
    pub arguments: Vec<OsString>,
    /// Folder that it runs in.
    pub folder: PathBuf,
    /// Variables set besides the inherited ones.
    pub environment: Vec<(OsString, OsString)>,
    /// File for its output and error output; replaced.
    pub log: PathBuf,
    /// Time after which the group gets SIGTERM.
    pub limit: Duration,
    /// Time between SIGTERM and SIGKILL.
    pub grace: Duration,
}

impl Task {
    /// A command without arguments yet.
    pub fn new(program: impl AsRef<OsStr>, folder: &Path, log: PathBuf, limit: Duration, grace: Duration) -> Self {
        Self {
            program: program.as_ref().to_owned(),
            arguments: Vec::new(),
            folder: folder.to_owned(),
            environment: Vec::new(),
            log,
            limit,
            grace,
        }
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.arguments.push(argument.as_ref().to_owned());
        self
    }

    /// Adds a flag and its value.
    #[must_use]
    pub fn flag(self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.arg(name).arg(value)
    }

    /// Sets a variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.environment.push((name.into(), value.as_ref().to_owned()));
        self
    }
}

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// It exited by itself with this code.
    Exited(i32),
    /// A signal that was not ours killed it: a fault, or the system short of memory.
    Killed(i32),
    /// It ran past its limit and was stopped.
    TimedOut,
    /// The user stopped it.
    Interrupted,
}

/// A command that is over.
#[derive(Debug, Clone, Copy)]
pub struct Finished {
    /// How it ended.
    pub end: End,
    /// From start to end; suspended time does not count.
    pub elapsed: Duration,
    /// Peak resident bytes of the largest process among the leader and the children it waited for (`wait4`).
    pub memory: u64,
}

pub(crate) enum Event {
    Exited,
    Interrupt,
}

enum Phase {
    Running,
    Terminating(End),
    Killed(End),
}

/// Starts commands. Lives as long as the search.
#[derive(Debug)]
pub struct Runner {
    lifeline: Lifeline,
    interrupts: Interrupts,
}

impl Runner {
    /// A runner whose commands stop when `interrupts` says so.
    ///
    /// # Errors
    /// When `/bin/sh` cannot be started.
    pub fn new(interrupts: Interrupts) -> Result<Self> {
        Ok(Self { lifeline: Lifeline::start()?, interrupts })
    }

    /// Whether the user asked to stop.
    pub fn interrupted(&self) -> bool {
        self.interrupts.count() > 0
    }

    /// Runs a command to its end; `tick` is told how long it has run, about twice a second.
    ///
    /// # Errors
    /// When it could not be started, or does not disappear after SIGKILL.
    pub fn run(&self, task: &Task, mut tick: impl FnMut(Duration)) -> Result<Finished> {
        if self.interrupted() {
            return Ok(Finished { end: End::Interrupted, elapsed: Duration::ZERO, memory: 0 });
        }
        let program = Path::new(&task.program);
        if program.is_absolute() && !program.is_file() {
            bail!("the program {} is missing", program.display());
        }
        let (reader, writer) = std::io::pipe().context("cannot make a pipe")?;
        let log = output::Log::start(reader, &task.log)?;
        // The shell waits for a line, so that nothing of the command runs before the lifeline knows its group.
        let mut command = Command::new("/bin/sh");
        command
            .args(["-c", "read -r _ && exec \"$@\" </dev/null", "sh"])
            .arg(&task.program)
            .args(&task.arguments)
            .envs(task.environment.iter().map(|(name, value)| (name, value)))
            .current_dir(&task.folder)
            .stdin(Stdio::piped())
            .stdout(writer.try_clone().context("cannot share a pipe")?)
            .stderr(writer)
            .process_group(0);
        let (sender, events) = mpsc::channel();
        self.interrupts.subscribe(sender.clone());
        let mut child = command
            .spawn()
            .with_context(|| format!("cannot start {} in {}", program.display(), task.folder.display()))?;
        // The command holds the pipe's writing end, which must be the child's alone.
        drop(command);
        let started = Instant::now();
        let pid = Pid::from_child(&child);
        self.lifeline.hold(Some(pid))?;
        if let Some(mut gate) = child.stdin.take() {
            gate.write_all(b"\n").context("the command ended before it began")?;
        }
        tracing::debug!(program = %program.display(), pid = pid.as_raw_nonzero().get(), "started");
        std::thread::spawn(move || {
            // NOWAIT leaves a zombie behind, so that the group's id cannot be taken by others until it is killed.
            let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
            while let Err(rustix::io::Errno::INTR) = waitid(WaitId::Pid(pid), options) {}
            let _ = sender.send(Event::Exited);
        });

        let mut phase = Phase::Running;
        let mut deadline = started + task.limit;
        loop {
            let wait = deadline.saturating_duration_since(Instant::now()).min(TICK);
            match (events.recv_timeout(wait), &phase) {
                (Ok(Event::Exited), _) => break,
                (Ok(Event::Interrupt), Phase::Running) => {
                    signal(pid, Signal::TERM);
                    phase = Phase::Terminating(End::Interrupted);
                    deadline = Instant::now() + task.grace;
                }
                (Ok(Event::Interrupt), Phase::Terminating(end)) if self.interrupts.count() > 1 => {
                    signal(pid, Signal::KILL);
                    phase = Phase::Killed(*end);
                    deadline = Instant::now() + UNKILLABLE;
                }
                (Ok(Event::Interrupt), _) => {}
                (Err(RecvTimeoutError::Timeout), _) if Instant::now() < deadline => tick(started.elapsed()),
                (Err(RecvTimeoutError::Timeout), Phase::Running) => {
                    signal(pid, Signal::TERM);
                    phase = Phase::Terminating(End::TimedOut);
                    deadline = Instant::now() + task.grace;
                }
                (Err(RecvTimeoutError::Timeout), Phase::Terminating(end)) => {
                    signal(pid, Signal::KILL);
                    phase = Phase::Killed(*end);
                    deadline = Instant::now() + UNKILLABLE;
                }
                (Err(RecvTimeoutError::Timeout), Phase::Killed(_)) => {
                    bail!("process {pid:?} ({}) does not end after SIGKILL", program.display());
                }
                (Err(RecvTimeoutError::Disconnected), _) => bail!("lost sight of {}", program.display()),
            }
        }
        let elapsed = started.elapsed();
        // What the leader left running in its group.
        signal(pid, Signal::KILL);
        let used = child.wait4().context("cannot wait for a child")?;
        self.lifeline.hold(None)?;
        self.interrupts.unsubscribe();
        log.finish();
        let end = match phase {
            Phase::Running => match (used.status.code(), used.status.signal()) {
                (Some(code), _) => End::Exited(code),
                (None, signal) => End::Killed(signal.unwrap_or_default()),
            },
            Phase::Terminating(end) | Phase::Killed(end) => end,
        };
        tracing::debug!(?end, ?elapsed, memory = used.rusage.maxrss, "ended");
        Ok(Finished { end, elapsed, memory: used.rusage.maxrss })
    }
}

/// Signals a whole group; a group that is gone already is fine. A stopped group is woken to see it.
fn signal(group: Pid, signal: Signal) {
    let _ = kill_process_group(group, signal);
    let _ = kill_process_group(group, Signal::CONT);
}

#[cfg(test)]
mod tests;
