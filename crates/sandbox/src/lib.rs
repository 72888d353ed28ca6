//! Runs a command that nobody has read: a candidate's build, and its training.
//!
//! The orchestrator starts itself again as the *stage*, hands it a [`Request`] on standard input, and the stage becomes
//! the command, with as much taken away as this system allows. What was really enforced is written to the request's
//! report, which the command cannot reach.
//!
//! On Linux, in this order: a cgroup's limits where one may be made; every inherited handle closed; user, mount, process,
//! IPC and network namespaces; scratch folders in memory; a fresh `/proc`; every other mount read-only and without
//! set-uid programs; resource limits; no capabilities and no new privileges; Landlock for files, TCP and signals; a
//! seccomp filter. The command is not process 1 of its namespace but a child of it, so when
//! either ends, the kernel kills whatever else it started, however it tried to get away.
//!
//! On macOS `sandbox-exec` gets an equivalent profile. That has not been run.

#[cfg(target_os = "linux")]
mod linux;
#[cfg(target_os = "macos")]
mod macos;
mod policy;

use std::io::Write;
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;

pub use policy::{Enforced, Limits, Memory, Policy, Request, Scratch};

/// First argument of the orchestrator when it is the stage.
pub const STAGE: &str = "__sandbox";
/// First argument of the stage's child, which is process 1 of its namespace.
#[cfg(target_os = "linux")]
const INIT: &str = "__sandbox-init";
/// Exit code when the sandbox could not be set up; the reason is on standard error.
pub const FAILED: u8 = 125;

/// Hands a request to a stage that was started with the other end of the socket as its standard input. Returns a handle
/// of each scratch folder, which stays readable after the command is gone; none where they could not be mounted.
///
/// # Errors
/// When the stage ended before it had read the request.
pub fn hand_over(stage: &UnixStream, request: &Request) -> std::io::Result<Vec<OwnedFd>> {
    (&*stage).write_all(&serde_json::to_vec(request)?)?;
    stage.shutdown(Shutdown::Write)?;
    #[cfg(target_os = "linux")]
    return linux::receive(stage);
    #[cfg(not(target_os = "linux"))]
    return Ok(Vec::new());
}

/// Removes what ended commands left behind in the system (empty cgroups).
pub fn clean() {
    #[cfg(target_os = "linux")]
    linux::remove_empty();
}

/// Runs the stage when this process was started as one. Call it first in `main`, before any thread exists.
pub fn intercept() -> Option<ExitCode> {
    let first = std::env::args_os().nth(1)?;
    let outcome = match first.to_str()? {
        #[cfg(target_os = "linux")]
        STAGE => linux::stage(),
        #[cfg(target_os = "linux")]
        INIT => linux::init(),
        #[cfg(target_os = "macos")]
        STAGE => macos::stage(),
        _ => return None,
    };
    Some(outcome.unwrap_or_else(|error| {
        eprintln!("the sandbox could not be set up: {error:#}");
        ExitCode::from(FAILED)
    }))
}
