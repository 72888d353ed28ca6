//! Builds trainer, pretrain, evaluator and prepare with the cargo that runs us.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use super::step::Step;

use crate::secrets;

/// What is built.
const PROGRAMS: [&str; 4] = ["trainer", "pretrain", "evaluator", "prepare"];

/// A program of the checkout's release build.
pub fn path(root: &Path, program: &str) -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), |dir| root.join(dir));
    target.join("release").join(program)
}

/// Looks for what cargo cannot bring: a C++ compiler for the bridge to libtorch.
///
/// # Errors
/// With how to install one.
pub fn check_compiler() -> Result<()> {
    let compiler = std::env::var_os("CXX").unwrap_or_else(|| "c++".into());
    // CXX may carry arguments or a wrapper (`ccache g++`).
    let words = compiler.to_string_lossy().into_owned();
    let mut words = words.split_whitespace();
    let works = words.next().is_some_and(|program| {
        secrets::command(program).args(words).arg("--version").output().is_ok_and(|output| output.status.success())
    });
    if works {
        return Ok(());
    }
    let install =
        if cfg!(target_os = "macos") { "xcode-select --install" } else { "apt-get install g++, or your system's way" };
    bail!(
        "there is no working C++ compiler ({}): install one ({install}), then run this again",
        compiler.to_string_lossy()
    )
}

/// Builds the programs; cargo does nothing where nothing changed.
///
/// # Errors
/// With the compiler's messages and what to do about the common ones.
pub fn build(root: &Path) -> Result<()> {
    let step = Step::begin("build trainer, pretrain, evaluator and prepare");
    let mut cargo = secrets::command(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    // The whole workspace decides on the features of the dependencies, here and when a candidate is built: a choice per
    // package would compile libtorch's bindings once more for each set of features.
    cargo.current_dir(root).args(["build", "--release", "--locked", "--workspace"]);
    for program in PROGRAMS {
        cargo.args(["--bin", program]);
    }
    // Cargo draws its bar into the pipe, and `step` draws it again.
    cargo.env("CARGO_TERM_PROGRESS_WHEN", "always").env("CARGO_TERM_PROGRESS_WIDTH", "200");
    cargo.env("CARGO_TERM_COLOR", "never").env("CARGO_TERM_QUIET", "false");
    let mut compiled = false;
    let ended = step.run(&mut cargo, |step, line| {
        let Some(line) = line else { return };
        compiled |= line.trim_start().starts_with("Compiling");
        if let Some((done, total, now)) = progress(line) {
            step.progress(done, total, now);
        }
    })?;
    if !ended.status.success() {
        let messages: Vec<&str> = ended.output.lines().filter(|line| progress(line).is_none()).collect();
        bail!("the build failed: {}\n\n{}", explain(&ended.output), messages.join("\n"));
    }
    if compiled {
        step.done()
    } else {
        step.skip()
    }
    Ok(())
}

/// Cargo's bar: `Building [====>   ] 12/345: tch, model`.
fn progress(line: &str) -> Option<(u64, u64, &str)> {
    let (_, rest) = line.trim_start().strip_prefix("Building [")?.split_once("] ")?;
    let (counts, now) = rest.split_once(':').unwrap_or((rest, ""));
    let (done, total) = counts.trim().split_once('/')?;
    Some((done.parse().ok()?, total.parse().ok()?, now.trim()))
}

fn explain(output: &str) -> &'static str {
    let has = |text: &str| output.contains(text);
    if has("No space left on device") {
        "the disk is full; the build needs about 2 GB under target/. Make room, then run this again"
    } else if has("lock file") && has("--locked") {
        "Cargo.lock does not fit the manifests; undo the change to it (git checkout Cargo.lock)"
    } else if has("linker `cc` not found") || has("failed to find tool") {
        "a C and C++ compiler is missing (apt-get install g++, or xcode-select --install)"
    } else if has("Could not resolve host") || has("failed to download") || has("Couldn't connect") {
        "crates cannot be fetched. Check the network, then run this again; it goes on from here"
    } else if has("requires rustc") {
        "the Rust toolchain is too old: rustup update"
    } else {
        "the compiler's messages are below"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cargos_bar_is_read() {
        let line = "    Building [=====>          ] 12/345: tch, model(build)...";
        assert_eq!(progress(line), Some((12, 345, "tch, model(build)...")));
        assert_eq!(progress("   Compiling tch v0.24.0"), None);
        assert_eq!(progress("    Building [ half a line"), None);
    }

    #[test]
    fn failures_say_what_to_do() {
        assert!(explain("error: linker `cc` not found").contains("g++"));
        assert!(explain("cannot update the lock file because --locked was passed").contains("git checkout"));
        assert!(explain("No space left on device (os error 28)").contains("2 GB"));
    }
}
