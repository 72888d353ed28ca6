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

use super::confine::{enforced, toolchain_folder, unconfined};
use super::{Broken, oid};
use crate::child::{self, End, Runner, Task};
use crate::error::Failure;
use crate::files;
use crate::hold;
use crate::layout::{Layout, RECIPE, Run};
use crate::ledger::{Built, Proposed, Status};
use crate::search::Search;
use crate::setup;
use crate::workspace::{Workspace, Worktree};

/// More than a build from nothing takes on a slow machine; a candidate that compiles longer is hopeless.
const LIMIT: Duration = Duration::from_secs(40 * 60);
const GRACE: Duration = Duration::from_secs(5);
/// How often a build looks whether another search's is over.
const WAIT: Duration = Duration::from_millis(100);

/// What compiles candidates, one at a time in the search's worktree. It holds none of git's handles, so that it can go to
/// another thread.
#[derive(Debug, Clone)]
pub struct Workshop {
    /// The search's folders.
    pub layout: Layout,
    /// The commit that the search started from.
    pub start: Oid,
    /// Compiled dependencies, shared with other searches.
    pub build_dir: PathBuf,
    /// Whether compilers run in the sandbox.
    pub sandboxed: bool,
}

/// What is compiled with: of the thread that compiles.
pub struct Tools<'a> {
    /// The repository.
    pub workspace: &'a Workspace,
    /// The search's checkout.
    pub worktree: &'a Worktree<'a>,
    /// Starts cargo.
    pub runner: &'a Runner,
}

impl Search<'_> {
    /// From the candidate's commit to a trainer in the experiment's folder.
    pub(super) fn build(&self, run: Run, proposed: &Proposed) -> Result<Built, Broken> {
        let tools = Tools { workspace: self.workspace, worktree: &self.worktree, runner: &self.runner };
        let bar = self.printer.spinner(format!("{run} building"));
        let (commit, parent) = (oid(&proposed.commit)?, proposed.parent.as_deref().map(oid).transpose()?);
        self.workshop()
            .build(&tools, run, commit, parent, |elapsed| bar.tick(elapsed))
            .map(|built| Built { experiment: proposed.experiment, ..built })
    }

    /// What compiles this search's candidates.
    pub(super) fn workshop(&self) -> Workshop {
        Workshop {
            layout: self.layout.clone(),
            start: self.start,
            build_dir: self.build_dir.clone(),
            sandboxed: self.sandboxed(),
        }
    }
}

impl Workshop {
    /// Compiles a commit to a trainer in the run's folder, which must be there. Which experiment it is, is for the caller
    /// to say.
    pub(super) fn build(
        &self,
        tools: &Tools,
        run: Run,
        commit: Oid,
        parent: Option<Oid>,
        tick: impl FnMut(Duration),
    ) -> Result<Built, Broken> {
        if let Some(parent) = parent
            && let Err(refused) = tools.workspace.check_one_file(commit, parent)
        {
            return Err(Broken::Failed(Status::Invalid, refused.to_string()));
        }
        let Some(_alone) = self.alone(tools.runner)? else { return Err(Broken::Interrupted("building")) };
        self.show_candidate(tools, commit)?;
        hold::at("worktree-shown");
        self.freshen()?;
        let folder = self.layout.folder(run);
        let log = folder.join("build.log");
        let target = self.layout.run().join("target");
        let temporary = target.join("tmp");
        fs::create_dir_all(&temporary).with_context(|| format!("cannot make {}", temporary.display()))?;
        let confined = self.sandboxed.then(|| self.confine_build(run, &target)).transpose()?;
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let task = Task::new(cargo, &self.layout.worktree(), log.clone(), LIMIT, GRACE)
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
            .env("TMPDIR", &temporary)
            .confined(confined.clone());
        let homes = [("RUSTUP_HOME", ".rustup"), ("CARGO_HOME", ".cargo")];
        let task = homes.iter().fold(task, |task, (variable, name)| match toolchain_folder(variable, name) {
            Some(folder) => task.env(variable, folder),
            None => task,
        });
        let finished = tools.runner.run(&task, tick)?;
        let reason = match finished.end {
            End::Exited(0) => {
                hold::at("trainer-compiled");
                let trainer = folder.join("trainer");
                let trainer_sha256 = files::copy(&target.join("release").join("trainer"), &trainer)
                    .with_context(|| format!("cannot copy the built trainer to {}", trainer.display()))?;
                hold::at("trainer-copied");
                return Ok(Built {
                    experiment: 0,
                    seconds: finished.elapsed.as_secs_f64(),
                    ahead: run == Run::Ahead,
                    rehearsed: 0.0,
                    trainer_sha256,
                    sandbox: confined.as_ref().and_then(enforced),
                });
            }
            End::Interrupted => return Err(Broken::Interrupted("building")),
            End::Overflowed => "wrote more than a build may".into(),
            End::TimedOut => return Err(Broken::Failed(Status::Timeout, "the build took too long".into())),
            End::Exited(code) if unconfined(code, confined.as_ref()) => {
                return Err(anyhow!("the build could not be confined: {}", child::last_lines(&log, 2)).into());
            }
            End::Exited(_) => first_error(&fs::read_to_string(&log).unwrap_or_default()),
            End::Killed(signal) => format!("the compiler was killed by signal {signal}"),
        };
        Err(Broken::Failed(Status::Crash, format!("does not build: {reason}")))
    }

    /// Keeps everybody else out of worktree and build folder, this search's other thread included, until the lock that it
    /// returns is dropped. None when interrupted.
    fn alone(&self, runner: &Runner) -> Result<Option<File>> {
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
    fn show_candidate(&self, tools: &Tools, commit: Oid) -> Result<(), Broken> {
        let mut changed = tools.worktree.show(commit)?;
        changed.retain(|path| path != RECIPE);
        changed.extend(tools.workspace.differences(commit, self.start)?.into_iter().filter(|path| path != RECIPE));
        if changed.is_empty() {
            return Ok(());
        }
        Err(Broken::Cannot(Failure::Checkout {
            message: format!(
                "somebody changed {} in the search's worktree {}",
                changed.join(", "),
                tools.worktree.folder().display()
            ),
            hint: "the files are what they should be again; keep away from that folder, and run again".into(),
        }))
    }

    /// Makes cargo compile what differs from what another search built in the same folder. Cargo goes by times: what
    /// another search compiled after our files were written would pass for ours.
    fn freshen(&self) -> Result<()> {
        let now = SystemTime::now();
        // Candidates of a search differ in the recipe alone; searches from one commit, too.
        let marker = self.build_dir.join(".autoresearch-start");
        let (start, worktree) = (self.start.to_string(), self.layout.worktree());
        if fs::read_to_string(&marker).is_ok_and(|text| text == start) {
            return touch(&worktree.join(RECIPE), now);
        }
        for entry in fs::read_dir(&worktree).context("cannot list the worktree")? {
            let path = entry?.path();
            if path.file_name().is_none_or(|name| name != ".git") {
                touch_all(&path, now)?;
            }
        }
        fs::write(&marker, &start).with_context(|| format!("cannot write {}", marker.display()))
    }
}

fn touch_all(path: &Path, now: SystemTime) -> Result<()> {
    let kind = fs::symlink_metadata(path).with_context(|| format!("cannot see {}", path.display()))?;
    if kind.is_dir() {
        for entry in fs::read_dir(path).with_context(|| format!("cannot list {}", path.display()))? {
            touch_all(&entry?.path(), now)?;
        }
    }
    if kind.is_file() { touch(path, now) } else { Ok(()) }
}

fn touch(path: &Path, now: SystemTime) -> Result<()> {
    let file = File::options().append(true).open(path).with_context(|| format!("cannot open {}", path.display()))?;
    file.set_modified(now).with_context(|| format!("cannot touch {}", path.display()))
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
