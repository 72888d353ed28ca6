//! The `orchestrator` binary: see the library's `cli` module.

use std::process::ExitCode;

fn main() -> ExitCode {
    // Before any thread: this process may have been started to become a confined command.
    sandbox::intercept().unwrap_or_else(orchestrator::main)
}
