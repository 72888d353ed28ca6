//! Builds the trainer of a candidate in the search's worktree: offline, from the locked dependencies, in the sandbox
//! (source can read files while it is compiled).
//!
//! Compiled dependencies are shared with the user's checkout (cargo's build directory), so that libtorch's bindings,
//! minutes of C++, are compiled once; what is built for the search lands in a folder of its own.

use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::confine::{enforced, toolchain_folder};
use super::{Step, oid};
use crate::child::{self, End, Task};
use crate::files;
use crate::layout::Run;
use crate::ledger::{Built, Proposed, Status};
use crate::search::Search;
use crate::setup;

/// More than a build from nothing takes on a slow machine; a candidate that compiles longer is hopeless.
const LIMIT: Duration = Duration::from_secs(40 * 60);
const GRACE: Duration = Duration::from_secs(5);

impl Search<'_> {
    /// From the candidate's commit to a trainer in the experiment's folder.
    pub(super) fn build(&self, run: Run, proposed: &Proposed) -> Result<Step<Built>> {
        let commit = oid(&proposed.commit)?;
        if let Some(parent) = &proposed.parent
            && let Err(refused) = self.workspace.check_one_file(commit, oid(parent)?)
        {
            return Ok(Step::Failed(Status::Invalid, refused.to_string()));
        }
        self.worktree.show(commit)?;
        let folder = self.layout.folder(run);
        let log = folder.join("build.log");
        let target = self.layout.run().join("target");
        let temporary = target.join("tmp");
        std::fs::create_dir_all(&temporary).with_context(|| format!("cannot make {}", temporary.display()))?;
        let confined = self.sandboxed().then(|| self.confine_build(run, &target)).transpose()?;
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let task = Task::new(cargo, self.worktree.folder(), log.clone(), LIMIT, GRACE)
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
        let bar = self.printer.spinner(format!("{run} building"));
        let finished = self.runner.run(&task, |elapsed| bar.tick(elapsed))?;
        let reason = match finished.end {
            End::Exited(0) => {
                let trainer = folder.join("trainer");
                let trainer_sha256 = files::copy(&target.join("release").join("trainer"), &trainer)
                    .with_context(|| format!("cannot copy the built trainer to {}", trainer.display()))?;
                return Ok(Step::Next(Built {
                    experiment: proposed.experiment,
                    seconds: finished.elapsed.as_secs_f64(),
                    trainer_sha256,
                    sandbox: confined.as_ref().and_then(enforced),
                }));
            }
            End::Interrupted => return Ok(Step::Interrupted),
            End::Overflowed => "wrote more than a build may".into(),
            End::TimedOut => return Ok(Step::Failed(Status::Timeout, "the build took too long".into())),
            End::Exited(code) if confined.is_some() && code == i32::from(sandbox::FAILED) => {
                bail!("the build could not be confined: {}", child::last_lines(&log, 2))
            }
            End::Exited(_) => first_error(&std::fs::read_to_string(&log).unwrap_or_default()),
            End::Killed(signal) => format!("the compiler was killed by signal {signal}"),
        };
        Ok(Step::Failed(Status::Crash, format!("does not build: {reason}")))
    }
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
