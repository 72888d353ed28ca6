//! Builds the trainer of a candidate in the search's worktree: offline, from the locked dependencies, in the sandbox
//! (source can read files while it is compiled).
//!
//! Compiled dependencies are shared with other searches (cargo's build directory), so that libtorch's bindings, minutes
//! of C++, are compiled once; what is built for the search lands in a folder of its own.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, anyhow};
use git2::Oid;

use super::confine::{build_seconds, enforced, toolchain_folder, unconfined};
use super::{StepError, oid};
use crate::child::{self, Confined, End, Runner, Task};
use crate::error::Failure;
use crate::failpoints;
use crate::files;
use crate::layout::{Layout, RECIPE, Run};
use crate::ledger::{Built, Proposed, Status};
use crate::search::Search;
use crate::setup;
use crate::workspace::{Workspace, Worktree};

/// More than a build from nothing takes on a slow machine; a candidate that compiles longer is hopeless.
const LIMIT: Duration = Duration::from_secs(40 * 60);
const GRACE: Duration = Duration::from_secs(5);
/// Since 1970: before any build.
const LONG_AGO: Duration = Duration::from_secs(24 * 3600);
/// How often a build looks whether another search's is over.
const WAIT: Duration = Duration::from_millis(100);

/// What compiles candidates, one at a time in the search's worktree. It holds none of git's handles, so that it can go to
/// another thread.
#[derive(Debug, Clone)]
pub struct Builder {
    /// The search's folders.
    pub layout: Layout,
    /// The commit that the search started from.
    pub start: Oid,
    /// Compiled dependencies, shared with other searches.
    pub build_dir: PathBuf,
    /// Whether compilers run in the sandbox.
    pub sandboxed: bool,
    /// Whether an agent wrote the code, so that it must be compiled in the complete sandbox.
    pub foreign: bool,
    /// What else may be read, as the campaign says.
    pub read: Vec<PathBuf>,
    /// The first trainer that the search built: what bounds the others.
    pub first: Option<Built>,
}

/// What is compiled with: of the thread that compiles.
pub struct BuildContext<'a> {
    /// The repository.
    pub workspace: &'a Workspace,
    /// The search's checkout.
    pub worktree: &'a Worktree<'a>,
    /// Starts cargo.
    pub runner: &'a Runner,
}

impl Search<'_> {
    /// From the candidate's commit to a trainer in the experiment's folder.
    pub(super) fn build(&self, run: Run, proposed: &Proposed) -> Result<Built, StepError> {
        let tools = BuildContext { workspace: self.workspace, worktree: &self.worktree, runner: &self.runner };
        let bar = self.printer.spinner(format!("{run} building"));
        let (commit, parent) = (oid(&proposed.commit)?, proposed.parent.as_deref().map(oid).transpose()?);
        self.workshop()
            .build(&tools, run, commit, parent, |elapsed| bar.tick(elapsed))
            .map(|built| Built { experiment: proposed.experiment, ..built })
    }

    /// What compiles this search's candidates.
    pub(super) fn workshop(&self) -> Builder {
        Builder {
            layout: self.layout.clone(),
            start: self.start,
            build_dir: self.build_dir.clone(),
            sandboxed: self.sandboxed(),
            foreign: self.foreign(),
            read: self.campaign.sandbox_read.clone(),
            first: self.state.first_built.clone(),
        }
    }
}

impl Builder {
    /// Compiles a commit to a trainer in the run's folder, which must be there. Which experiment it is, is for the caller
    /// to say.
    pub(super) fn build(
        &self,
        tools: &BuildContext,
        run: Run,
        commit: Oid,
        parent: Option<Oid>,
        tick: impl FnMut(Duration),
    ) -> Result<Built, StepError> {
        if let Some(parent) = parent
            && let Err(refused) = tools.workspace.check_one_file(commit, parent)
        {
            return Err(StepError::Failed(Status::Invalid, refused.to_string()));
        }
        let Some(_alone) = self.lock_build_dir(tools.runner)? else { return Err(StepError::Interrupted("building")) };
        let mut tick = tick;
        if !self.has_dependencies() {
            self.build_dependencies(tools, run, &mut tick)?;
        }
        self.show_candidate(tools, commit)?;
        failpoints::at("worktree-shown");
        self.date_sources()?;
        self.forget_trainers()?;
        let folder = self.layout.folder(run);
        let log = folder.join("build.log");
        let target = self.target();
        let built = target.join("release").join("trainer");
        files::remove_tree(&built).with_context(|| format!("cannot remove {}", built.display()))?;
        let confined = self.sandboxed.then(|| self.confine_build(run, &target, false)).transpose()?;
        let finished = tools.runner.run(&self.cargo(&log, confined.clone()), |progress| tick(progress.elapsed))?;
        self.judge(&finished.end, &log, confined.as_ref(), finished.usage.processor)?;
        failpoints::at("trainer-compiled");
        if !finished.refused.is_empty() {
            let reason = format!("its trainer cannot be used: {}", finished.refused.join("; "));
            return Err(StepError::Failed(Status::Crash, reason));
        }
        let trainer = folder.join("trainer");
        let trainer_sha256 = files::copy(&built, &trainer)
            .with_context(|| format!("cannot copy the built trainer to {}", trainer.display()))?;
        failpoints::at("trainer-copied");
        Ok(Built {
            experiment: 0,
            seconds: finished.elapsed.as_secs_f64(),
            processor_s: finished.usage.processor.as_secs_f64(),
            memory: finished.usage.memory,
            disk: finished.disk,
            ahead: run == Run::Ahead,
            rehearsed: 0.0,
            trainer_sha256,
            sandbox: confined.as_ref().and_then(enforced),
        })
    }

    /// What cargo builds for this search, its dependencies apart.
    fn target(&self) -> PathBuf {
        self.layout.run().join("target")
    }

    fn cargo(&self, log: &Path, confined: Option<Confined>) -> Task {
        let target = self.target();
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let task = Task::new(cargo, &self.layout.worktree(), log.to_owned(), LIMIT, GRACE)
            .arg("build")
            .arg("--release")
            .arg("--offline")
            .arg("--locked")
            .arg("--workspace")
            .flag("--bin", "trainer")
            .flag("--color", "never")
            .env("CARGO_TERM_PROGRESS_WHEN", "never")
            .env("CARGO_TARGET_DIR", &target)
            .env("CARGO_BUILD_BUILD_DIR", &self.build_dir)
            .env("LIBTORCH", setup::libtorch_folder(&self.layout.root))
            .env("TMPDIR", &target)
            .confined(confined);
        let homes = [("RUSTUP_HOME", ".rustup"), ("CARGO_HOME", ".cargo")];
        homes.iter().fold(task, |task, (variable, name)| match toolchain_folder(variable, name) {
            Some(folder) => task.env(variable, folder),
            None => task,
        })
    }

    /// Why a build that ended so made no trainer.
    fn judge(&self, end: &End, log: &Path, confined: Option<&Confined>, processor: Duration) -> Result<(), StepError> {
        let said = || String::from_utf8_lossy(&fs::read(log).unwrap_or_default()).into_owned();
        let seconds = self.first.as_ref().map(build_seconds);
        let reason = match *end {
            End::Exited(0) => return Ok(()),
            End::Interrupted => return Err(StepError::Interrupted("building")),
            End::Overflowed => "it writes more than a build may".into(),
            End::TimedOut => return Err(StepError::Failed(Status::Timeout, "the build took too long".into())),
            End::Exited(code) if unconfined(code, confined) => {
                return Err(anyhow!("the build could not be confined: {}", child::last_lines(log, 2)).into());
            }
            // The compiler is cargo's child; what it was killed by, cargo says.
            End::Exited(_) => match seconds {
                Some(seconds) if processor.as_secs() >= seconds => {
                    let reason = format!("the compiler took more than {seconds} s of processor time");
                    return Err(StepError::Failed(Status::Timeout, reason));
                }
                _ => first_error(&said()),
            },
            End::Killed(signal) => format!("the compiler was killed by signal {signal}"),
        };
        Err(StepError::Failed(Status::Crash, format!("does not build: {reason}")))
    }

    /// Whether the compiled dependencies are those of the commit that this search started from.
    fn has_dependencies(&self) -> bool {
        fs::read_to_string(self.marker()).is_ok_and(|text| text == self.start.to_string())
    }

    /// Says which commit the compiled dependencies were built from.
    fn marker(&self) -> PathBuf {
        self.build_dir.join(".autoresearch-start")
    }

    /// Builds the commit that the search started from into the folder of compiled dependencies, the one build that
    /// writes there.
    fn build_dependencies(
        &self,
        tools: &BuildContext,
        run: Run,
        mut tick: impl FnMut(Duration),
    ) -> Result<(), StepError> {
        self.show_candidate(tools, self.start)?;
        // What another search compiled after these files were written would pass for theirs: cargo goes by times.
        date_all(&self.layout.worktree(), SystemTime::now())?;
        let log = self.layout.folder(run).join("dependencies.log");
        let target = self.target();
        let confined = self.sandboxed.then(|| self.confine_build(run, &target, true)).transpose()?;
        let finished = tools.runner.run(&self.cargo(&log, confined.clone()), |progress| tick(progress.elapsed))?;
        if let Err(broken) = self.judge(&finished.end, &log, confined.as_ref(), Duration::ZERO) {
            return Err(match broken {
                StepError::Failed(_, reason) => StepError::Cannot(Failure::Baseline { reason, log }),
                other => other,
            });
        }
        failpoints::at("dependencies-compiled");
        let marker = self.marker();
        fs::write(&marker, self.start.to_string()).with_context(|| format!("cannot write {}", marker.display()))?;
        Ok(())
    }

    /// Makes cargo compile the recipe, and nothing else that the compiled dependencies have: it goes by times, and every
    /// other file is what they were compiled from.
    fn date_sources(&self) -> Result<()> {
        let worktree = self.layout.worktree();
        date_all(&worktree, SystemTime::UNIX_EPOCH + LONG_AGO)?;
        date(&worktree.join(RECIPE), SystemTime::now())
    }

    /// Removes what cargo knows of trainers that were built, so that none passes for the next one.
    fn forget_trainers(&self) -> Result<()> {
        let known = self.build_dir.join("release").join(".fingerprint");
        let Ok(entries) = fs::read_dir(&known) else { return Ok(()) };
        for entry in entries {
            let entry = entry.with_context(|| format!("cannot list {}", known.display()))?;
            if entry.file_name().as_encoded_bytes().starts_with(b"trainer-") {
                let path = entry.path();
                files::remove_tree(&path).with_context(|| format!("cannot remove {}", path.display()))?;
            }
        }
        Ok(())
    }

    /// Keeps everybody else out of worktree and build folder, this search's other thread included, until the lock that it
    /// returns is dropped. None when interrupted.
    fn lock_build_dir(&self, runner: &Runner) -> Result<Option<File>> {
        fs::create_dir_all(&self.build_dir).with_context(|| format!("cannot make {}", self.build_dir.display()))?;
        let lock = self.build_dir.join(".autoresearch-lock");
        let lock = File::create(&lock).with_context(|| format!("cannot open {}", lock.display()))?;
        while let Err(TryLockError::WouldBlock) = lock.try_lock() {
            if runner.interrupted() {
                return Ok(None);
            }
            std::thread::sleep(WAIT);
        }
        Ok(Some(lock))
    }

    /// Puts a candidate's files into the worktree, and refuses to build it when anything but the recipe was changed there
    /// or differs from what the search started with.
    fn show_candidate(&self, tools: &BuildContext, commit: Oid) -> Result<(), StepError> {
        let mut changed = tools.worktree.show(commit)?;
        changed.retain(|path| path != RECIPE);
        changed.extend(tools.workspace.differences(commit, self.start)?.into_iter().filter(|path| path != RECIPE));
        if changed.is_empty() {
            return Ok(());
        }
        Err(StepError::Cannot(Failure::Checkout {
            message: format!(
                "somebody changed {} in the search's worktree {}",
                changed.join(", "),
                tools.worktree.folder().display()
            ),
            hint: "the files are what they should be again; keep away from that folder, and run again".into(),
        }))
    }
}

/// Sets the time of every file below a folder that is not git's.
fn date_all(folder: &Path, time: SystemTime) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))? {
        let entry = entry.with_context(|| format!("cannot list {}", folder.display()))?;
        let (path, kind) = (entry.path(), entry.file_type()?);
        if entry.file_name() == ".git" {
            continue;
        }
        if kind.is_dir() {
            date_all(&path, time)?;
        } else if kind.is_file() {
            date(&path, time)?;
        }
    }
    Ok(())
}

fn date(path: &Path, time: SystemTime) -> Result<()> {
    let file = File::options().append(true).open(path).with_context(|| format!("cannot open {}", path.display()))?;
    file.set_modified(time).with_context(|| format!("cannot set the time of {}", path.display()))
}

/// What the compiler complained about first.
fn first_error(log: &str) -> String {
    let line = log.lines().find(|line| line.starts_with("error")).or_else(|| log.lines().last());
    line.unwrap_or("no output").trim().to_owned()
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_first_error_is_told() {
        let log =
            "   Compiling trainer\nwarning: x\nerror[E0308]: mismatched types\n --> a\nerror: could not compile\n";
        assert_eq!(super::first_error(log), "error[E0308]: mismatched types");
        assert_eq!(super::first_error("what\nelse\n"), "else");
        assert_eq!(super::first_error(""), "no output");
    }
}
