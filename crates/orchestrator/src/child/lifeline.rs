//! A process that outlives the orchestrator by an instant, to take the running child along.
//!
//! It reads group ids from a pipe whose other end only the orchestrator holds. When the orchestrator ends, however it
//! ends, the pipe closes, and the group that was named last is killed. This works on every Unix, catches the children
//! of the child too, and has none of the traps of a parent-death signal, which hangs on the spawning thread.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, Stdio};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result};
use rustix::process::Pid;

use crate::secrets;

const SCRIPT: &str = "trap '' INT TERM HUP
group=
while read -r line; do group=$line; done
if [ -n \"$group\" ]; then kill -s KILL -- \"-$group\"; fi";

#[derive(Debug)]
pub(super) struct Lifeline {
    child: Child,
    pipe: Mutex<Option<ChildStdin>>,
}

impl Lifeline {
    pub(super) fn start() -> Result<Self> {
        let mut child = secrets::command("/bin/sh")
            .args(["-c", SCRIPT])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // Not the terminal's group: Ctrl-C is not for it.
            .process_group(0)
            .spawn()
            .context("cannot start /bin/sh")?;
        let pipe = child.stdin.take();
        Ok(Self { child, pipe: Mutex::new(pipe) })
    }

    /// Names the group that must not outlive the orchestrator, or none.
    pub(super) fn hold(&self, group: Option<Pid>) -> Result<()> {
        let line = group.map_or_else(|| "\n".into(), |pid| format!("{}\n", pid.as_raw_nonzero()));
        let mut pipe = self.pipe.lock().unwrap_or_else(PoisonError::into_inner);
        let pipe = pipe.as_mut().context("the lifeline has no pipe")?;
        pipe.write_all(line.as_bytes()).context("the lifeline process is gone; start again")
    }
}

impl Drop for Lifeline {
    fn drop(&mut self) {
        *self.pipe.lock().unwrap_or_else(PoisonError::into_inner) = None;
        let _ = self.child.wait();
    }
}
