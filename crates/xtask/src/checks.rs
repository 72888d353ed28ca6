//! `cargo xtask test`: the checks one after the other, each with its time; the first failure ends it.
//!
//! All of them share the release profile, so that the C++ bridge to libtorch is compiled once.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use crate::{cargo, root};

/// The version of cargo-deny that is installed where none is.
const DENY_VERSION: &str = "0.20.2";
/// What cargo-deny checks from the repository alone.
const DENY_OFFLINE: [&str; 3] = ["bans", "licenses", "sources"];

/// One step of `cargo xtask test`, in the order they run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Check {
    /// Formatting.
    Rustfmt,
    /// libtorch is in its place, or is fetched.
    Libtorch,
    /// Lints, warnings as errors.
    Clippy,
    /// Documentation, warnings as errors.
    Docs,
    /// Licences, sources and bans of all dependencies; known vulnerabilities where their list can be fetched.
    Deny,
    /// Every test.
    Test,
    /// On Linux, what depends on the user's rights once more: as an ordinary user where root runs this, and as root
    /// otherwise.
    OtherUser,
}

impl Check {
    fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }

    fn run(self, root: &Path) -> Result<()> {
        match self {
            Self::Rustfmt => succeed(cargo(root).args(["fmt", "--all", "--check"]), "run `cargo fmt --all`"),
            Self::Libtorch => succeed(
                cargo(root)
                    .args(["run", "--quiet", "--release", "--package", "orchestrator", "--"])
                    .args(["setup", "--libtorch-only"]),
                "its message above says what to do",
            ),
            Self::Clippy => succeed(
                cargo(root)
                    .args(["clippy", "--release", "--locked", "--workspace", "--all-targets"])
                    .args(["--", "-D", "warnings"]),
                "fix the lints above",
            ),
            Self::Docs => succeed(
                cargo(root)
                    .args(["doc", "--release", "--locked", "--workspace", "--no-deps", "--document-private-items"])
                    // Private items are documented too, for those who work on this; so links to them lead somewhere.
                    .env("RUSTDOCFLAGS", "-D warnings -A rustdoc::private_intra_doc_links"),
                "fix the documentation above",
            ),
            Self::Deny => deny(root),
            Self::Test => succeed(
                cargo(root).args(["test", "--release", "--locked", "--workspace", "--no-fail-fast"]),
                "the failing tests are listed above",
            ),
            Self::OtherUser => other_user(root),
        }
    }
}

/// Runs the checks in `only`, or all of them.
///
/// # Errors
/// With the first check that failed.
pub fn run(only: &[Check]) -> Result<()> {
    let root = root()?;
    let started = Instant::now();
    let mut summary = Vec::new();
    let wanted = |check: &&Check| only.is_empty() || only.contains(check);
    let mut outcome = Ok(());
    for check in Check::value_variants().iter().filter(wanted) {
        println!("\n── {} ──", check.name());
        let began = Instant::now();
        outcome = check.run(&root).with_context(|| check.name());
        let verdict = if outcome.is_ok() { "ok" } else { "FAILED" };
        summary.push((check.name(), verdict, began.elapsed()));
        if outcome.is_err() {
            break;
        }
    }
    println!();
    for (name, verdict, time) in &summary {
        println!("{name:<10} {verdict:<7} {:>7.1} s", time.as_secs_f64());
    }
    println!("{:<18} {:>7.1} s", "total", started.elapsed().as_secs_f64());
    outcome
}

/// Runs a command with our own terminal; `advice` says what to do when it fails.
fn succeed(command: &mut Command, advice: &str) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot start {:?}", command.get_program()))?;
    if !status.success() {
        bail!("{status}: {advice}");
    }
    Ok(())
}

/// The tests that start programs in the sandbox, in a user namespace in which this user is another one: ordinary users have
/// no capabilities there, and root has all that the namespace gives.
fn other_user(root: &Path) -> Result<()> {
    if !cfg!(target_os = "linux") {
        println!("skipped: Linux alone has user namespaces");
        return Ok(());
    }
    let user = Command::new("id").arg("-u").output().context("cannot start id")?;
    let as_other = match user.stdout.trim_ascii() {
        b"0" => ["--map-user=1000", "--map-group=1000"],
        _ => ["--map-user=0", "--map-group=0"],
    };
    let unshare = |program: &Command| {
        let mut unshare = Command::new("unshare");
        unshare.arg("--user").args(as_other).arg("--").arg(program.get_program()).current_dir(root);
        unshare
    };
    if !unshare(&Command::new("true")).stderr(Stdio::null()).status().is_ok_and(|status| status.success()) {
        println!("NOT CHECKED: this machine has no user namespaces");
        return Ok(());
    }
    let mut command = unshare(&cargo(root));
    command.args(["test", "--release", "--locked", "--no-fail-fast", "--package", "orchestrator"]);
    succeed(&mut command, "these tests passed as the user who runs this, and fail as another")
}

fn deny(root: &Path) -> Result<()> {
    let program = cargo_deny(root)?;
    let check = |what: &[&str]| {
        let mut command = Command::new(&program);
        command.current_dir(root).args(["--all-features", "--workspace", "check"]).args(what);
        command
    };
    succeed(&mut check(&DENY_OFFLINE), "see deny.toml for what is allowed and why")?;
    // The list of vulnerabilities lives in a repository of its own that not every machine reaches.
    let (status, output) = within(&mut check(&["advisories"]), Duration::from_secs(120))?;
    if status.is_some_and(|status| status.success()) {
        return Ok(());
    }
    let unreachable = status.is_none() || output.contains("failed to fetch advisory database");
    if unreachable {
        println!("advisories: NOT CHECKED, the list of known vulnerabilities cannot be fetched from here");
        return Ok(());
    }
    bail!("a dependency has a known vulnerability or was yanked:\n{output}")
}

/// Runs a command to its end or for `limit`, and gives what it wrote on stderr; no status when the time ran out.
fn within(command: &mut Command, limit: Duration) -> Result<(Option<ExitStatus>, String)> {
    let mut child = command.stderr(Stdio::piped()).spawn().context("cannot start cargo-deny")?;
    let pipe = child.stderr.take().context("cargo-deny has no stderr")?;
    let (sender, ended) = std::sync::mpsc::channel();
    let reader = std::thread::spawn(move || {
        let text: Vec<String> = BufReader::new(pipe).lines().map_while(Result::ok).collect();
        // Nobody listens any more once the time ran out.
        let _ = sender.send(());
        text.join("\n")
    });
    if ended.recv_timeout(limit).is_err() {
        child.kill().context("cannot end cargo-deny")?;
        child.wait().context("cannot wait for cargo-deny")?;
        return Ok((None, String::new()));
    }
    let status = child.wait().context("cannot wait for cargo-deny")?;
    Ok((Some(status), reader.join().unwrap_or_default()))
}

/// cargo-deny: the one installed here, the user's own, or a new one under `.cache/tools`.
fn cargo_deny(root: &Path) -> Result<PathBuf> {
    let tools = root.join(".cache/tools");
    let ours = tools.join("bin/cargo-deny");
    for program in [ours.clone(), PathBuf::from("cargo-deny")] {
        let version = Command::new(&program).arg("--version").stderr(Stdio::null()).output();
        if version.is_ok_and(|v| v.status.success() && is_compatible(&String::from_utf8_lossy(&v.stdout))) {
            return Ok(program);
        }
    }
    println!("installing cargo-deny {DENY_VERSION} into .cache/tools; this takes some minutes, once");
    succeed(
        cargo(root)
            .args(["install", "cargo-deny", "--locked", "--version", DENY_VERSION, "--root"])
            .arg(&tools)
            // Half the time of the optimized build, for a program that runs for a second.
            .args(["--profile", "dev", "--config", "profile.dev.debug=false"]),
        "cargo-deny could not be installed; check the network, or install it yourself",
    )?;
    Ok(ours)
}

/// `cargo-deny 0.18.3`: the same major version, or before 1.0 the same minor version, reads the same deny.toml.
fn is_compatible(printed: &str) -> bool {
    let release = |version: &str| {
        let mut parts = version.split('.').map(str::to_owned);
        (parts.next(), parts.next())
    };
    printed.split_whitespace().nth(1).is_some_and(|version| release(version) == release(DENY_VERSION))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_installed_cargo_deny_must_read_the_same_configuration() {
        assert!(is_compatible(&format!("cargo-deny {DENY_VERSION}\n")));
        assert!(!is_compatible("cargo-deny 0.14.0\n"));
        assert!(!is_compatible(""));
    }

    #[test]
    fn a_command_that_hangs_is_ended() {
        let (status, _) = within(Command::new("sleep").arg("60"), Duration::from_millis(50)).expect("sleep starts");
        assert!(status.is_none());
        let mut quick = Command::new("sh");
        quick.args(["-c", "echo why >&2; exit 3"]);
        let (status, output) = within(&mut quick, Duration::from_secs(30)).expect("sh starts");
        assert_eq!((status.and_then(|s| s.code()), output.as_str()), (Some(3), "why"));
    }

    #[test]
    fn every_check_has_a_name_for_the_command_line() {
        for check in Check::value_variants() {
            assert_eq!(Check::from_str(&check.name(), false), Ok(*check));
        }
    }
}
