//! What a candidate's build, its training and the reading of what it made may do; everything else is refused by the
//! sandbox.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use formats::campaign::Sandbox;
use formats::contract;
use sandbox::{Enforced, Limits, Policy, Scratch};

use super::build::Builder;
use crate::child::Confined;
use crate::layout::{Layout, Run};
use crate::ledger::{Built, Proposed};
use crate::search::{HUMAN, Search};
use crate::setup;

/// What every program reads besides libraries: their list, time zones, other programs, and what the system says of its
/// processors.
const SYSTEM: &[&str] = &[
    "/usr/bin",
    "/usr/sbin",
    "/bin",
    "/sbin",
    "/nix/store",
    "/etc/alternatives",
    "/etc/ld.so.cache",
    "/etc/ld.so.conf",
    "/etc/ld.so.conf.d",
    "/etc/localtime",
    "/usr/share/zoneinfo",
    "/proc",
    "/sys/devices/system",
    "/System",
    "/Library/Developer",
];
/// Folders with libraries. What else lies there is not read: a Python package may hold the text of `select`.
const LIBRARIES: &[&str] =
    &["/lib", "/lib32", "/lib64", "/usr/lib", "/usr/lib32", "/usr/lib64", "/usr/local/lib", "/usr/local/lib64"];
/// Parts of the names of folders that hold libraries for one kind of machine, or for graphics processors.
const LIBRARY_FOLDERS: &[&str] = &["linux-gnu", "linux-musl", "nvidia", "wsl", "locale"];
/// Where graphics processors' libraries are installed apart.
const GRAPHICS_LIBRARIES: &[&str] = &["/usr/local/cuda*", "/usr/local/nvidia*", "/opt/cuda*", "/opt/rocm*"];
/// What compilers and linkers need besides.
const TOOLCHAIN: &[&str] = &[
    "/usr/include",
    "/usr/libexec",
    "/usr/local/bin",
    "/usr/local/include",
    "/usr/local/libexec",
    "/usr/lib/gcc*",
    "/usr/lib/llvm*",
    "/usr/lib/clang*",
    "/usr/lib/rust*",
    "/usr/lib/cargo*",
    "/usr/lib/bfd-plugins",
    "/usr/lib64/gcc*",
    "/usr/lib64/llvm*",
    "/usr/lib64/clang*",
    "/usr/x86_64*",
    "/usr/aarch64*",
];
/// Everything that the system has, for a coding program: it may be written in any language.
const PROGRAMS: &[&str] = &["/usr", "/lib", "/lib32", "/lib64", "/opt"];
/// Nodes without a memory of their own.
const DEVICES: &[&str] = &["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom"];
/// Begin of the names of nodes of graphics processors below `/dev`.
const GRAPHICS: &[&str] = &["nvidia", "dri", "kfd"];

/// Variables of a training run: what chooses threads, vectors and devices.
const TRAINING: &[&str] =
    &["PATH", "LANG", "LC_ALL", "TZ", "RUST_BACKTRACE", "OMP_*", "GOMP_*", "MKL_*", "ONEDNN_*", "CUDA_*", "NVIDIA_*"];
/// Variables of a build: those that the checkout's own build sees, or everything would be compiled again.
const BUILDING: &[&str] = &[
    "PATH",
    "LANG",
    "LC_ALL",
    "RUST_BACKTRACE",
    "RUSTUP_HOME",
    "RUSTUP_TOOLCHAIN",
    "RUSTC",
    "RUSTC_WRAPPER",
    "RUSTFLAGS",
    "CARGO",
    "CARGO_HOME",
    "CARGO_ENCODED_RUSTFLAGS",
    "CARGO_BUILD_*",
    "CARGO_PROFILE_*",
    "CARGO_INCREMENTAL",
    "CC",
    "CXX",
    "AR",
    "CFLAGS",
    "CXXFLAGS",
    "SDKROOT",
    "MACOSX_DEPLOYMENT_TARGET",
];

/// Variables of a coding program: its language and the way out of this machine. Those with keys are named by the campaign.
const ASKING: &[&str] = &[
    "PATH",
    "LANG",
    "LC_*",
    "TZ",
    "USER",
    "LOGNAME",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "NODE_EXTRA_CA_CERTS",
];
/// What a program reads that uses the network: names, certificates, and who the user is.
const NETWORK: &[&str] = &[
    "/etc/resolv.conf",
    "/etc/hosts",
    "/etc/host.conf",
    "/etc/nsswitch.conf",
    "/etc/gai.conf",
    "/etc/services",
    "/etc/protocols",
    "/etc/passwd",
    "/etc/group",
    "/etc/ssl",
    "/etc/pki",
    "/etc/ca-certificates",
];

/// Threads and processes of a coding program.
const ASKING_PROCESSES: u64 = 1024;
/// Threads and processes of a training run.
const TRAINING_PROCESSES: u64 = 1024;
/// Threads and processes of a build.
const BUILD_PROCESSES: u64 = 4096;
/// Open files of a process.
const OPEN_FILES: u64 = 4096;
/// Largest file: far above any artifact, far below a disk.
const FILE_BYTES: u64 = 16 << 30;
/// Niceness that leaves every other process the processor.
const LEAST_PRIORITY: i32 = 19;
const GIB: f64 = (1_u64 << 30) as f64;
/// Share of the machine's memory, in percent, that one command may take.
const MEMORY_PERCENT: u64 = 90;
/// Bytes that are kept of a summary.
const SUMMARY_BYTES: u64 = 1 << 20;
/// Bytes that are kept of a log of steps.
const STEPS_BYTES: u64 = 256 << 20;
/// Bytes that are kept of a built trainer.
const TRAINER_BYTES: u64 = 2 << 30;

/// What a build may take of what the first one took: times, and on top. A recipe is one file, so that is far from what
/// any honest one needs.
const BUILD_TIMES: u64 = 4;
const BUILD_SECONDS: u64 = 30;
const BUILD_MEMORY: u64 = 2 << 30;
const BUILD_DISK: u64 = 128 << 20;
/// The same before there is a first one.
const FIRST_BUILD_DISK: u64 = 4 << 30;

impl Search<'_> {
    /// How the trainer of an experiment is confined: it reads what it trains on, and writes its own `out`.
    pub(super) fn confine_training(&self, run: Run, trainer: &Path) -> Result<Confined> {
        let out = self.layout.out(run);
        let text = self.data.join("text");
        let mut read = system(&self.layout.root);
        read.extend(self.campaign.sandbox_read.iter().cloned());
        read.extend([trainer.to_owned(), self.layout.campaign_copy()]);
        read.extend(["prepared.json", "tokenizer.json", "base"].map(|name| self.data.join(name)));
        read.extend(["manifest.json", "token_bytes.u16"].map(|name| text.join(name)));
        // Not `select` and `report`: what decides and what is reported is for the evaluator.
        read.extend(beginning_with(&text, &["train-", "dev-"]));
        let devices = with_graphics();
        let budget = &self.campaign.budget;
        let cores = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
        let seconds = (budget.hard_limit_seconds + budget.grace_seconds).ceil() as u64;
        let limits = Limits {
            processes: Some(TRAINING_PROCESSES),
            cpu_seconds: Some(seconds.saturating_mul(cores)),
            // Drivers of graphics processors reserve far more than there is.
            memory_bytes: match budget.memory_gb {
                _ if self.started.accelerator != "none" => None,
                Some(most) => Some((most * GIB) as u64),
                None => memory(),
            },
            ..limits()
        };
        let bytes = in_memory((budget.disk_gb * GIB) as u64);
        let keep = [
            (self.layout.artifact(run), bytes),
            (out.join(contract::SUMMARY), SUMMARY_BYTES),
            (out.join(contract::LOG), STEPS_BYTES),
        ];
        let watched = Some((out.clone(), bytes));
        let scratch = vec![Scratch { folder: out, bytes, over: false }];
        let policy = Policy { read, scratch, devices, limits, ..Policy::default() };
        Ok(Confined {
            policy,
            inherited: TRAINING,
            report: report(&self.layout, &name(run), "training")?,
            watched,
            keep: keep.to_vec(),
            complete: self.foreign(),
        })
    }

    /// Whether the code of this search was not written by a person alone, and must run in the complete sandbox.
    pub(super) fn foreign(&self) -> bool {
        let written = |proposed: &Proposed| !BUILT_IN.contains(&proposed.agent.as_str());
        self.campaign.sandbox == Sandbox::On && self.state.proposals.values().any(written)
    }

    /// How the evaluator is confined: it is our own, but what it reads was written by code that is not.
    pub(super) fn confine_evaluation(&self, artifact: Option<PathBuf>, folder: &Path) -> Result<Confined> {
        let mut read = system(&self.layout.root);
        read.extend([self.layout.evaluator(), self.layout.campaign_copy(), self.data.clone()]);
        read.extend(artifact);
        let limits = Limits {
            processes: Some(TRAINING_PROCESSES),
            memory_bytes: (self.started.accelerator == "none").then(memory).flatten(),
            ..limits()
        };
        let policy =
            Policy { read, write: vec![folder.to_owned()], devices: with_graphics(), limits, ..Policy::default() };
        Ok(Confined {
            policy,
            inherited: TRAINING,
            report: report(&self.layout, "last", "evaluation")?,
            watched: None,
            keep: Vec::new(),
            complete: false,
        })
    }
}

/// Who proposes what a person wrote, or turns its knobs.
const BUILT_IN: [&str; 6] = ["baseline", "tpe", "search", "random", "comparison", HUMAN];

impl Builder {
    /// How a build is confined: it reads the toolchain and its own source. What it writes to the compiled dependencies
    /// and to its target folder vanishes with it, but for the trainer; unless it is the build of the `dependencies`
    /// themselves, from the commit that the search started with.
    pub(super) fn confine_build(&self, run: Run, target: &Path, dependencies: bool) -> Result<Confined> {
        let mut read = system(&self.layout.root);
        read.extend(TOOLCHAIN.iter().flat_map(|pattern| matching(pattern)));
        read.extend(self.read.iter().cloned());
        read.extend([self.layout.worktree(), self.layout.root.join(".cargo")]);
        if let Some(rustup) = toolchain_folder("RUSTUP_HOME", ".rustup") {
            read.push(rustup);
        }
        if let Some(cargo) = toolchain_folder("CARGO_HOME", ".cargo") {
            // Not its credentials.
            read.extend(["bin", "registry", "git", "config", "config.toml"].map(|name| cargo.join(name)));
        }
        for folder in [target, &self.build_dir] {
            fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        }
        let bounds = self.first.as_ref().filter(|first| first.processor_s > 0.0 && !dependencies);
        let disk = in_memory(bounds.map_or(FIRST_BUILD_DISK, |first| first.disk * BUILD_TIMES + BUILD_DISK));
        let scratch = |folder: &Path, over| Scratch { folder: folder.to_owned(), bytes: disk, over };
        let (write, scratch) = match dependencies {
            true => (vec![target.to_owned(), self.build_dir.clone()], Vec::new()),
            false => (Vec::new(), vec![scratch(target, false), scratch(&self.build_dir, true)]),
        };
        let devices = DEVICES.iter().map(PathBuf::from).collect();
        let enough = |first: &Built| first.memory.saturating_mul(BUILD_TIMES).saturating_add(BUILD_MEMORY);
        let limits = Limits {
            processes: Some(BUILD_PROCESSES),
            cpu_seconds: bounds.map(build_seconds),
            memory_bytes: memory().into_iter().chain(bounds.map(enough)).min(),
            ..limits()
        };
        let policy = Policy { read, write, scratch, devices, limits, ..Policy::default() };
        Ok(Confined {
            policy,
            inherited: BUILDING,
            report: report(&self.layout, &name(run), "build")?,
            watched: None,
            keep: vec![(target.join("release/trainer"), TRAINER_BYTES)],
            complete: self.foreign,
        })
    }
}

/// Processor seconds that one process of a build may take.
pub(super) fn build_seconds(first: &Built) -> u64 {
    first.processor_s.ceil() as u64 * BUILD_TIMES + BUILD_SECONDS
}

/// Where the sandbox says what it enforces, out of reach of what it confines.
fn report(layout: &Layout, of: &str, what: &str) -> Result<PathBuf> {
    let folder = layout.run().join("sandbox");
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    fresh(folder.join(format!("{of}-{what}.json")))
}

/// A report that no earlier command wrote.
fn fresh(report: PathBuf) -> Result<PathBuf> {
    match fs::remove_file(&report) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(e).with_context(|| format!("cannot replace {}", report.display()))
        }
        _ => Ok(report),
    }
}

/// How a coding program is confined: it reads the system and what is named, and gets what nobody else wants of the
/// processor, since a timed run may be beside it.
///
/// # Errors
/// When the last report of the sandbox cannot be removed.
pub(crate) fn command(
    mut read: Vec<PathBuf>,
    write: Vec<PathBuf>,
    network: bool,
    watched: (PathBuf, u64),
    report: PathBuf,
) -> Result<Confined> {
    read.extend(SYSTEM.iter().chain(PROGRAMS).map(PathBuf::from));
    if network {
        read.extend(NETWORK.iter().map(PathBuf::from));
    }
    let devices = DEVICES.iter().map(PathBuf::from).collect();
    let limits =
        Limits { processes: Some(ASKING_PROCESSES), memory_bytes: memory(), nice: Some(LEAST_PRIORITY), ..limits() };
    let policy = Policy { read, write, scratch: Vec::new(), devices, network, limits };
    Ok(Confined {
        policy,
        inherited: ASKING,
        report: fresh(report)?,
        watched: Some(watched),
        keep: Vec::new(),
        complete: false,
    })
}

/// A run in the name of a file.
fn name(run: Run) -> String {
    match run {
        Run::Experiment(number) => format!("experiment-{number:04}"),
        Run::Replicate(number) => format!("replicate-{number:04}"),
        Run::Ahead => "ahead".into(),
    }
}

/// Whether a command ended before it was started, for want of a sandbox. One that was may exit with the same code.
pub(crate) fn unconfined(code: i32, confined: Option<&Confined>) -> bool {
    let refused = |confined: &Confined| enforced(confined).is_none_or(|e| confined.complete && !e.is_complete());
    code == i32::from(sandbox::FAILED) && confined.is_some_and(refused)
}

/// Where rustup and cargo keep theirs; a confined build, which has no home, must be told.
pub(super) fn toolchain_folder(variable: &str, name: &str) -> Option<PathBuf> {
    let given = std::env::var_os(variable).map(PathBuf::from);
    given.or_else(|| Some(std::env::home_dir()?.join(name))).filter(|folder| folder.is_dir())
}

/// What the sandbox said that it enforces, if it came so far.
pub(crate) fn enforced(confined: &Confined) -> Option<Enforced> {
    serde_json::from_slice(&fs::read(&confined.report).ok()?).ok()
}

fn system(root: &Path) -> Vec<PathBuf> {
    let libtorch = setup::libtorch_folder(root);
    // The CUDA libraries of the wheels lie beside it.
    let beside = libtorch.parent().map(|folder| folder.join("nvidia"));
    let graphics = GRAPHICS_LIBRARIES.iter().flat_map(|pattern| matching(pattern));
    SYSTEM.iter().map(PathBuf::from).chain(libraries()).chain(graphics).chain([libtorch]).chain(beside).collect()
}

/// The libraries of the system, and nothing else in the folders where they lie.
fn libraries() -> Vec<PathBuf> {
    let library = |name: &str, is_folder: bool| match is_folder {
        true => LIBRARY_FOLDERS.iter().any(|part| name.contains(part)),
        false => name.contains(".so") || [".a", ".o"].iter().any(|end| name.ends_with(end)),
    };
    let found = LIBRARIES.iter().flat_map(|folder| fs::read_dir(folder).into_iter().flatten().flatten());
    found
        .filter(|entry| entry.file_name().to_str().is_some_and(|name| library(name, entry.path().is_dir())))
        .map(|entry| entry.path())
        .collect()
}

/// Paths that begin as a pattern does before its `*`; without one, the path itself.
fn matching(pattern: &str) -> Vec<PathBuf> {
    let path = Path::new(pattern);
    let begin = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_suffix('*'));
    match (begin, path.parent()) {
        (Some(begin), Some(folder)) => beginning_with(folder, &[begin]),
        _ => vec![path.to_owned()],
    }
}

fn with_graphics() -> Vec<PathBuf> {
    DEVICES.iter().map(PathBuf::from).chain(beginning_with(Path::new("/dev"), GRAPHICS)).collect()
}

fn limits() -> Limits {
    Limits { open_files: Some(OPEN_FILES), file_bytes: Some(FILE_BYTES), ..Limits::default() }
}

/// Entries of a folder whose names begin so.
fn beginning_with(folder: &Path, prefixes: &[&str]) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let wanted = |name: &str| prefixes.iter().any(|prefix| name.starts_with(prefix));
    entries.flatten().filter(|e| e.file_name().to_str().is_some_and(wanted)).map(|e| e.path()).collect()
}

/// Bytes of a scratch folder that lies in memory: at most half of what a command may take, so that it fits.
fn in_memory(bytes: u64) -> u64 {
    memory().map_or(bytes, |most| bytes.min(most / 2))
}

/// Bytes that a command may take.
fn memory() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kib * 1024 / 100 * MEMORY_PERCENT)
}
