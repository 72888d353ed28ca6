//! `doctor`: whether this machine has what a search needs, and what of the sandbox it can enforce.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use sandbox::{Enforced, Limits, Policy, Request, Scratch};
use serde::Serialize;

use crate::secrets;
use crate::setup::{self, Accelerator};
use crate::workspace::Workspace;

/// Free space that a first run needs: libtorch with its wheels, the build, a model and its text.
const FREE_BYTES: u64 = 12 << 30;

/// One finding.
#[derive(Debug, Serialize)]
pub struct Check {
    /// What was looked at.
    pub name: &'static str,
    /// Whether a search can run with it.
    pub ok: bool,
    /// What was found.
    pub found: String,
    /// What to do, where something is missing.
    pub advice: Option<&'static str>,
}

impl Check {
    fn of(name: &'static str, found: Result<String>, advice: &'static str) -> Self {
        match found {
            Ok(found) => Self { name, ok: true, found, advice: None },
            Err(error) => Self { name, ok: false, found: format!("{error:#}"), advice: Some(advice) },
        }
    }
}

/// Looks at everything.
pub fn examine(root: &Path) -> Vec<Check> {
    let accelerator = match setup::accelerator() {
        Accelerator::None => "none: training runs on the processor",
        Accelerator::Cuda => "an NVIDIA GPU",
        Accelerator::Mps => "Apple's GPU",
    };
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".into());
    vec![
        Check::of("repository", repository(root), "run it in a git clone, and commit what experiments are built from"),
        Check::of("cargo", version("cargo", &["--version"]), "install Rust from rustup.rs"),
        Check::of("C++ compiler", version(&compiler, &["--version"]), "install g++ or clang"),
        Check::of("pip", version("python3", &["-m", "pip", "--version"]), "install python3 with pip"),
        Check::of("libtorch", libtorch(root), "`orchestrator setup` or `run` fetches it"),
        Check::of("accelerator", Ok(accelerator.into()), ""),
        Check::of("disk", disk(root), "free some space: a first run takes about 12 GB"),
        Check::of(
            "sandbox",
            sandbox_here(),
            "the built-in agents run all the same, as they only turn knobs; for code of a language model use a kernel \
             with Landlock and user namespaces, or set sandbox = \"best-effort\" in campaign.toml",
        ),
    ]
}

fn repository(root: &Path) -> Result<String> {
    let workspace = Workspace::open(root)?;
    let head = workspace.head()?;
    workspace.check_committed()?;
    Ok(format!("{} at {}", root.display(), &head.to_string()[..7]))
}

fn version(program: &str, arguments: &[&str]) -> Result<String> {
    let output =
        secrets::command(program).args(arguments).output().with_context(|| format!("cannot start {program}"))?;
    ensure!(output.status.success(), "{program} {} fails", arguments.join(" "));
    Ok(String::from_utf8_lossy(&output.stdout).lines().next().unwrap_or_default().to_owned())
}

fn libtorch(root: &Path) -> Result<String> {
    let folder = setup::libtorch_folder(root);
    ensure!(folder.join("lib").is_dir(), "not fetched yet");
    Ok(folder.display().to_string())
}

fn disk(root: &Path) -> Result<String> {
    let space = rustix::fs::statvfs(root)?;
    let free = space.f_bavail.saturating_mul(space.f_frsize);
    let text = format!("{:.1} GB free", free as f64 / 1e9);
    ensure!(free >= FREE_BYTES, "{text}");
    Ok(text)
}

fn sandbox_here() -> Result<String> {
    let enforced = probe()?;
    ensure!(enforced.is_complete(), "{}", enforced.summary());
    Ok(enforced.summary())
}

/// What the sandbox enforces on this machine, by entering it.
///
/// # Errors
/// When it cannot be entered at all.
pub fn probe() -> Result<Enforced> {
    let folder = tempfile::tempdir().context("cannot make a temporary folder; TMPDIR says where")?;
    let (report, scratch) = (folder.path().join("report.json"), folder.path().join("scratch"));
    std::fs::create_dir(&scratch)?;
    let system = ["/usr", "/bin", "/lib", "/lib64", "/nix/store", "/etc/ld.so.cache", "/proc", "/System"];
    let request = Request {
        program: "true".into(),
        arguments: Vec::new(),
        input: None,
        policy: Policy {
            read: system.iter().map(PathBuf::from).collect(),
            devices: vec!["/dev/null".into()],
            limits: Limits { processes: Some(16), memory_bytes: Some(1 << 30), ..Limits::default() },
            scratch: vec![Scratch { folder: scratch, bytes: 1 << 20, over: true }],
            ..Policy::default()
        },
        report: Some(report.clone()),
        complete: false,
    };
    let (ours, theirs) = UnixStream::pair()?;
    let child = secrets::command(std::env::current_exe()?)
        .arg(sandbox::STAGE)
        .stdin(OwnedFd::from(theirs))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    drop(sandbox::hand_over(&ours, &request)?);
    let output = child.wait_with_output()?;
    sandbox::clean();
    let said = std::fs::read(&report);
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(serde_json::from_slice(&said.context("the sandbox left no report")?)?)
}
