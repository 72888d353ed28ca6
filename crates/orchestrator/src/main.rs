//! The `orchestrator` binary: see the library's `cli` module.

use std::process::ExitCode;

fn main() -> ExitCode {
    orchestrator::main()
}
