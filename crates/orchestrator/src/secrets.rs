//! The variables of this process that hold an endpoint's keys: no program that is started here inherits them.

use std::ffi::OsStr;
use std::process::Command;
use std::sync::OnceLock;

static HIDDEN: OnceLock<Vec<String>> = OnceLock::new();

/// Hides variables from every later [`command`]. There is one endpoint, so this is called once.
pub fn hide(variables: Vec<String>) {
    let _ = HIDDEN.set(variables);
}

/// A command that does not inherit what is hidden; nothing here is started in another way.
pub fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    for variable in HIDDEN.get().into_iter().flatten() {
        command.env_remove(variable);
    }
    command
}
