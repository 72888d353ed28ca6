//! The variable of this process that holds an endpoint's key: no program that is started here inherits it.

use std::ffi::OsStr;
use std::process::Command;
use std::sync::OnceLock;

static HIDDEN: OnceLock<String> = OnceLock::new();

/// Hides a variable from every later [`command`]. There is one endpoint, so there is one variable.
pub fn hide(variable: String) {
    let _ = HIDDEN.set(variable);
}

/// A command that does not inherit what is hidden; nothing here is started in another way.
pub fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    if let Some(variable) = HIDDEN.get() {
        command.env_remove(variable);
    }
    command
}
