//! Runs one command at a time in a process group of its own, with its output in a capped file and a hard limit.
//!
//! At the limit the whole group gets SIGTERM and, after a grace period, SIGKILL. A leader that exits takes the rest of
//! its group with it. The group dies with the orchestrator, even when that is killed: a `lifeline` process waits on a
//! pipe that only the orchestrator holds open. A command whose code nobody has read runs in the sandbox besides, whose
//! process namespace takes along what left the group.

mod interrupts;
mod lifeline;
mod output;
mod scratch;
mod usage;

use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
use sandbox::{Policy, Request};
use wait4::Wait4;

use crate::failpoints;
use crate::files;
use crate::secrets;
pub use interrupts::Interrupts;
use lifeline::Lifeline;
pub use output::last_lines;
pub use usage::Usage;

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
    /// File that it reads on standard input; nothing when absent.
    pub input: Option<PathBuf>,
    /// File for its output and error output; replaced.
    pub log: PathBuf,
    /// File for its error output, where that is to be kept apart; replaced.
    pub errors: Option<PathBuf>,
    /// Time after which the group gets SIGTERM.
    pub limit: Duration,
    /// Time of the processor after which it gets SIGTERM as well.
    pub most: Option<Most>,
    /// Time between SIGTERM and SIGKILL.
    pub grace: Duration,
    /// How it is confined; not at all when absent.
    pub confined: Option<Confined>,
}

/// What a command of unknown origin may do.
#[derive(Debug, Clone)]
pub struct Confined {
    /// Files, devices and limits.
    pub policy: Policy,
    /// Names of the variables that it inherits; a `*` at the end stands for any rest.
    pub inherited: &'static [&'static str],
    /// Where the sandbox says what it enforces.
    pub report: PathBuf,
    /// A folder that may not grow beyond so many bytes; no limit of the system's says so.
    pub watched: Option<(PathBuf, u64)>,
    /// Files of its scratch folders that stay when it has ended, and the most bytes of each. They are copied, with a mode
    /// of our own; everything else in those folders goes.
    pub keep: Vec<(PathBuf, u64)>,
    /// Whether it must not start in a sandbox that is not complete.
    pub complete: bool,
}

impl Task {
    /// A command without arguments yet.
    pub fn new(program: impl AsRef<OsStr>, folder: &Path, log: PathBuf, limit: Duration, grace: Duration) -> Self {
        Self {
            program: program.as_ref().to_owned(),
            arguments: Vec::new(),
            folder: folder.to_owned(),
            environment: Vec::new(),
            input: None,
            log,
            errors: None,
            limit,
            most: None,
            grace,
            confined: None,
        }
    }

    /// Confines it.
    #[must_use]
    pub fn confined(mut self, confined: Option<Confined>) -> Self {
        self.confined = confined;
        self
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

    /// Whether the watched folder is larger than it may be.
    fn overflows(&self) -> bool {
        let watched = self.confined.as_ref().and_then(|confined| confined.watched.as_ref());
        watched.is_some_and(|(folder, most)| files::size(folder) > *most)
    }

    /// Whether it computed for longer than it may.
    pub fn exceeds(&self, used: &Usage) -> bool {
        self.most.is_some_and(|most| most.is_exceeded(used))
    }

    /// Sets a variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.environment.push((name.into(), value.as_ref().to_owned()));
        self
    }
}

/// Most time of the processor, of all threads and children of a command.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Most {
    /// All of it.
    Processor(Duration),
    /// That outside of the kernel.
    User(Duration),
}

impl Most {
    fn is_exceeded(self, used: &Usage) -> bool {
        match self {
            Self::Processor(most) => used.processor > most,
            Self::User(most) => used.user > most,
        }
    }
}

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// It exited by itself with this code.
    Exited(i32),
    /// A signal that was not ours killed it: a fault, or the system short of memory.
    Killed(i32),
    /// It ran past its limit, or computed for longer than it may, and was stopped.
    TimedOut,
    /// It wrote more than it may and was stopped.
    Overflowed,
    /// The user stopped it.
    Interrupted,
}

/// A command that runs.
#[derive(Debug, Clone, Copy)]
pub struct Progress<'a> {
    /// Since its start.
    pub elapsed: Duration,
    /// Where its first scratch folder can be read from outside; nothing in it is to be trusted.
    pub scratch: Option<&'a Path>,
}

/// A command that is over.
#[derive(Debug, Clone)]
pub struct Finished {
    /// How it ended.
    pub end: End,
    /// From start to end; suspended time does not count.
    pub elapsed: Duration,
    /// What it used.
    pub usage: Usage,
    /// Most bytes that its scratch folders held at the end.
    pub disk: u64,
    /// Files to keep that could not be kept, and why.
    pub refused: Vec<String>,
}

impl Finished {
    /// Of a command that was not started.
    fn interrupted() -> Self {
        let usage = Usage::default();
        Self { end: End::Interrupted, elapsed: Duration::ZERO, usage, disk: 0, refused: Vec::new() }
    }
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

/// Starts commands, one at a time. Lives as long as the search.
#[derive(Debug)]
pub struct Runner {
    lifeline: Lifeline,
    interrupts: Interrupts,
}

impl Runner {
    /// Another one, to run a command beside this one's.
    ///
    /// # Errors
    /// As [`Runner::new`].
    pub fn another(&self) -> Result<Self> {
        Self::new(self.interrupts.clone())
    }

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

    /// Runs a command to its end; `tick` is told how far it is, about twice a second.
    ///
    /// # Errors
    /// When it could not be started, or does not disappear after SIGKILL.
    pub fn run(&self, task: &Task, mut tick: impl FnMut(Progress)) -> Result<Finished> {
        if self.interrupted() {
            return Ok(Finished::interrupted());
        }
        let program = Path::new(&task.program);
        if program.is_absolute() && !program.is_file() {
            bail!("the program {} is missing", program.display());
        }
        let (reader, writer) = std::io::pipe().context("cannot make a pipe")?;
        let log = output::Log::start(reader, &task.log)?;
        let (errors, error_log) = match &task.errors {
            Some(path) => {
                let (reader, writer) = std::io::pipe().context("cannot make a pipe")?;
                (writer, Some(output::Log::start(reader, path)?))
            }
            None => (writer.try_clone().context("cannot share a pipe")?, None),
        };
        let (mut command, request) = gate(task)?;
        let (gate, theirs) = UnixStream::pair().context("cannot make a pair of sockets")?;
        command
            .envs(task.environment.iter().map(|(name, value)| (name, value)))
            .current_dir(&task.folder)
            .stdin(OwnedFd::from(theirs))
            .stdout(writer)
            .stderr(errors)
            .process_group(0);
        let (sender, events) = mpsc::channel();
        let mut child = command
            .spawn()
            .with_context(|| format!("cannot start {} in {}", program.display(), task.folder.display()))?;
        // The command holds the pipes' writing ends, which must be the child's alone.
        drop(command);
        let started = Instant::now();
        let pid = Pid::from_child(&child);
        self.interrupts.subscribe(pid, sender.clone());
        self.lifeline.hold(Some(pid))?;
        let opened = match &request {
            Some(request) => sandbox::hand_over(&gate, request),
            None => (&gate).write_all(b"\n").map(|()| Vec::new()),
        };
        let scratch = scratch::Handles(opened.context("the command ended before it began")?);
        drop(gate);
        let visible = scratch.visible();
        tracing::debug!(program = %program.display(), pid = pid.as_raw_nonzero().get(), "started");
        failpoints::at("program-started");
        std::thread::spawn(move || {
            // NOWAIT leaves a zombie behind, so that the group's id cannot be taken by others until it is killed.
            let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
            while let Err(rustix::io::Errno::INTR) = waitid(WaitId::Pid(pid), options) {}
            let _ = sender.send(Event::Exited);
        });

        let mut phase = Phase::Running;
        let mut deadline = started + task.limit;
        let mut meter = usage::Meter::start(pid);
        loop {
            let wait = deadline.saturating_duration_since(Instant::now()).min(TICK);
            let event = events.recv_timeout(wait);
            let used = meter.read();
            match (event, &phase) {
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
                (Err(RecvTimeoutError::Timeout), Phase::Running) if task.overflows() => {
                    // At once: each second of grace could be another gigabyte.
                    signal(pid, Signal::KILL);
                    phase = Phase::Killed(End::Overflowed);
                    deadline = Instant::now() + UNKILLABLE;
                }
                (Err(RecvTimeoutError::Timeout), Phase::Running) if task.exceeds(&used) => {
                    signal(pid, Signal::TERM);
                    phase = Phase::Terminating(End::TimedOut);
                    deadline = Instant::now() + task.grace;
                }
                (Err(RecvTimeoutError::Timeout), _) if Instant::now() < deadline => {
                    tick(Progress { elapsed: started.elapsed(), scratch: visible.as_deref() });
                }
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
        let rusage = &used.rusage;
        let usage = meter.end(rusage.utime + rusage.stime, rusage.utime, rusage.maxrss);
        self.lifeline.hold(None)?;
        self.interrupts.unsubscribe(pid);
        sandbox::clean();
        log.finish();
        if let Some(log) = error_log {
            log.finish();
        }
        let end = match phase {
            Phase::Running => match (used.status.code(), used.status.signal()) {
                (Some(0), _) => End::Exited(0),
                _ if scratch.is_full() => End::Overflowed,
                (Some(code), _) => End::Exited(code),
                (None, signal) => End::Killed(signal.unwrap_or_default()),
            },
            Phase::Terminating(end) | Phase::Killed(end) => end,
        };
        let disk = scratch.bytes();
        let refused = match &task.confined {
            Some(confined) => scratch.collect(confined)?,
            None => Vec::new(),
        };
        tracing::debug!(?end, ?elapsed, ?usage, disk, ?refused, "ended");
        Ok(Finished { end, elapsed, usage, disk, refused })
    }
}

/// What is started in the command's place, and what it waits for on its input before it becomes the command: so nothing
/// of that runs before the lifeline knows its group.
fn gate(task: &Task) -> Result<(Command, Option<Request>)> {
    let Some(confined) = &task.confined else {
        let mut command = secrets::command("/bin/sh");
        let input = task.input.as_deref().unwrap_or(Path::new("/dev/null"));
        command.args(["-c", "read -r _ && exec \"$@\" <\"$0\""]).arg(input).arg(&task.program).args(&task.arguments);
        return Ok((command, None));
    };
    let request = Request {
        program: task.program.clone(),
        arguments: task.arguments.clone(),
        input: task.input.clone(),
        policy: confined.policy.clone(),
        report: Some(confined.report.clone()),
        complete: confined.complete,
    };
    // The file may have been built anew since this process started; the link is to what runs.
    let stage = if cfg!(target_os = "linux") {
        PathBuf::from("/proc/self/exe")
    } else {
        std::env::current_exe().context("cannot find the orchestrator's own program")?
    };
    let mut command = secrets::command(stage);
    command.arg(sandbox::STAGE).env_clear();
    for (name, value) in std::env::vars_os() {
        let inherits = |pattern: &&str| match pattern.strip_suffix('*') {
            Some(prefix) => name.as_encoded_bytes().starts_with(prefix.as_bytes()),
            None => name == **pattern,
        };
        if confined.inherited.iter().any(inherits) {
            command.env(name, value);
        }
    }
    Ok((command, Some(request)))
}

/// Signals a whole group; a group that is gone already is fine. A stopped group is woken to see it.
fn signal(group: Pid, signal: Signal) {
    let _ = kill_process_group(group, signal);
    let _ = kill_process_group(group, Signal::CONT);
}

#[cfg(test)]
mod tests;
