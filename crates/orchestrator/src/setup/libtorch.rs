//! Fetches libtorch: the wheels that a requirements file under deploy/ pins by version and hash, unpacked by pip.
//!
//! pip downloads one wheel after the other into `.libtorch.partial/wheels`, so an interrupted download goes on at the
//! wheel it was at; everything is unpacked beside the old state and takes its place at once. Python never imports it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, anyhow, bail};
use indicatif::HumanBytes;
use sha2::{Digest, Sha256};

use super::step::{Ended, Step};
use super::{Accelerator, accelerator};

use crate::secrets;

/// The versions of CPython that the requirements files have wheels for: 3.10 to 3.14.
const PYTHON_MINORS: std::ops::RangeInclusive<u32> = 10..=14;
/// Which of them is asked for where python3 is another one; libtorch itself does not care.
const PYTHON_OTHERWISE: &str = "3.12";
/// Inside `.libtorch`: the sha256 of the requirements file that was installed.
const STAMP: &str = "requirements.sha256";

/// A set of wheels.
struct Set {
    /// Under deploy/.
    file: &'static str,
    /// For people.
    title: &'static str,
    /// Free bytes needed for the wheels and what they unpack to.
    space: u64,
    /// pip's names of the platform, most specific last.
    platforms: Vec<String>,
    /// Exists in `.libtorch/torch` once the set is installed.
    library: &'static str,
}

impl Set {
    /// The set for this machine.
    fn for_this_machine() -> Result<Self> {
        const GIB: u64 = 1 << 30;
        let linux = cfg!(all(target_os = "linux", target_arch = "x86_64"));
        let manylinux = || {
            let old = ["manylinux1", "manylinux2010", "manylinux2014"].map(|p| format!("{p}_x86_64"));
            // Wheels for C libraries from 2.5 up to the one that torch's own wheel needs.
            old.into_iter().chain((5..=28).map(|minor| format!("manylinux_2_{minor}_x86_64"))).collect()
        };
        match accelerator() {
            Accelerator::Mps => Ok(Self {
                file: "requirements-macos-arm64.txt",
                title: "libtorch for macOS",
                space: GIB,
                platforms: vec!["macosx_11_0_arm64".to_owned()],
                library: "lib/libtorch_cpu.dylib",
            }),
            Accelerator::Cuda if linux => Ok(Self {
                file: "requirements-cuda.txt",
                title: "libtorch with CUDA",
                space: 10 * GIB,
                platforms: manylinux(),
                library: "lib/libtorch_cuda.so",
            }),
            Accelerator::None if linux => Ok(Self {
                file: "requirements-cpu.txt",
                title: "libtorch",
                space: 2 * GIB,
                platforms: manylinux(),
                library: "lib/libtorch_cpu.so",
            }),
            _ => bail!(
                "libtorch is pinned for Linux on x86-64 and for macOS on arm64, not for {} on {}: \
                 install libtorch 2.11.0 yourself and set LIBTORCH to its folder",
                std::env::consts::OS,
                std::env::consts::ARCH
            ),
        }
    }
}

/// Puts libtorch into `.libtorch` of the repository, unless it is there.
///
/// A LIBTORCH of the user's own is left alone and used.
///
/// # Errors
/// With what failed and what to do about it.
pub fn libtorch(root: &Path) -> Result<()> {
    let folder = folder(root);
    if folder == root.join(".libtorch/torch") {
        return install(root, &Set::for_this_machine()?);
    }
    if folder.join("lib").is_dir() {
        return Ok(());
    }
    bail!("LIBTORCH is set to {}, which has no lib/: unset it, and libtorch is fetched", folder.display());
}

/// Where libtorch is: what LIBTORCH says, else in `.libtorch`. Every build must be told the very same text: another one
/// compiles libtorch's bindings again.
pub fn folder(root: &Path) -> PathBuf {
    std::env::var_os("LIBTORCH").map_or_else(|| root.join(".libtorch/torch"), |own| root.join(own))
}

fn install(root: &Path, set: &Set) -> Result<()> {
    let target = root.join(".libtorch");
    let requirements_file = root.join("deploy").join(set.file);
    let requirements = fs::read_to_string(&requirements_file)
        .with_context(|| format!("cannot read {}", requirements_file.display()))?;
    let hash: String = Sha256::digest(&requirements).iter().map(|byte| format!("{byte:02x}")).collect();
    let installed = || {
        fs::read_to_string(target.join(STAMP)).is_ok_and(|stamp| stamp.trim() == hash)
            && target.join("torch").join(set.library).exists()
    };
    if installed() {
        return Ok(());
    }
    let _lock = lock(root)?;
    if installed() {
        return Ok(());
    }
    let python = Python::find(set)?;
    let partial = root.join(".libtorch.partial");
    let wheels = partial.join("wheels");
    let temporary = partial.join("tmp");
    fresh_folder(&temporary)?;
    fs::create_dir_all(&wheels).with_context(|| format!("cannot make {}", wheels.display()))?;
    check_space(&partial, set)?;

    let step = Step::begin(&format!("fetch {}", set.title));
    let pieces = split(&requirements);
    for (index, (name, piece)) in pieces.iter().enumerate() {
        let marker = wheels.join(format!("{name}.{}", sha256_prefix(piece)));
        if marker.exists() {
            continue;
        }
        let one = temporary.join("requirements.txt");
        fs::write(&one, piece).with_context(|| format!("cannot write {}", one.display()))?;
        let mut pip = python.pip("download", &temporary);
        pip.arg("--dest").arg(&wheels).arg("-r").arg(&one);
        let ended = step.run(&mut pip, |step, _| {
            let now = format!("{name} {}", HumanBytes(size(&temporary)));
            step.progress(index as u64, pieces.len() as u64, &now);
        })?;
        check_pip(&ended, &python, name)?;
        fs::write(&marker, "").with_context(|| format!("cannot write {}", marker.display()))?;
    }
    step.done();

    let step = Step::begin(&format!("unpack {}", set.title));
    let new = partial.join("new");
    fresh_folder(&new)?;
    let mut pip = python.pip("install", &temporary);
    pip.args(["--no-index", "--no-compile", "--find-links"]).arg(&wheels);
    pip.arg("--target").arg(&new).arg("-r").arg(&requirements_file);
    let ended = step.run(&mut pip, |step, _| {
        step.message(&HumanBytes(size(&temporary) + size(&new)).to_string());
    })?;
    if let Err(error) = check_pip(&ended, &python, set.title) {
        // What was downloaded is no longer what it was: the next run fetches it again.
        let _ = fs::remove_dir_all(&partial);
        return Err(error);
    }
    if !new.join("torch").join(set.library).exists() {
        bail!("pip unpacked torch without {}: is {} changed?", set.library, requirements_file.display());
    }
    fs::write(new.join(STAMP), &hash).context("cannot write libtorch's stamp")?;
    replace(&new, &target, &root.join(".libtorch.old"))?;
    let _ = fs::remove_dir_all(&partial);
    step.done();
    Ok(())
}

/// Two setups at once would unpack into each other; the second one waits.
fn lock(root: &Path) -> Result<fs::File> {
    let folder = root.join(".cache");
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let path = folder.join("setup.lock");
    let file = fs::File::create(&path).with_context(|| format!("cannot make {}", path.display()))?;
    if file.try_lock().is_err() {
        eprintln!("another process is fetching libtorch; waiting for it …");
        file.lock().with_context(|| format!("cannot lock {}", path.display()))?;
    }
    Ok(file)
}

/// Puts `new` where `target` is.
fn replace(new: &Path, target: &Path, old: &Path) -> Result<()> {
    let moved = || -> std::io::Result<()> {
        if old.exists() {
            fs::remove_dir_all(old)?;
        }
        if target.exists() {
            fs::rename(target, old)?;
        }
        fs::rename(new, target)?;
        if old.exists() { fs::remove_dir_all(old) } else { Ok(()) }
    };
    moved().with_context(|| format!("cannot put the new libtorch into {}", target.display()))
}

fn fresh_folder(folder: &Path) -> Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder).with_context(|| format!("cannot empty {}", folder.display()))?;
    }
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))
}

/// The requirements one by one, each with its hashes: `(name==version, text)`.
fn split(requirements: &str) -> Vec<(String, String)> {
    let mut pieces: Vec<(String, String)> = Vec::new();
    for line in requirements.lines().filter(|line| !line.starts_with('#') && !line.trim().is_empty()) {
        match pieces.last_mut() {
            Some((_, piece)) if line.starts_with(char::is_whitespace) => {
                piece.push_str(line);
                piece.push('\n');
            }
            _ => {
                let name = line.trim_end_matches('\\').trim().to_owned();
                pieces.push((name, format!("{line}\n")));
            }
        }
    }
    pieces
}

fn sha256_prefix(text: &str) -> String {
    Sha256::digest(text).iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// Bytes below a folder; what vanishes meanwhile does not count.
fn size(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => size(&entry.path()),
            Ok(metadata) => metadata.len(),
            Err(_) => 0,
        })
        .sum()
}

fn check_space(folder: &Path, set: &Set) -> Result<()> {
    let stats = rustix::fs::statvfs(folder).with_context(|| format!("cannot look at {}", folder.display()))?;
    let free = stats.f_bavail * stats.f_frsize + size(folder);
    if free < set.space {
        bail!(
            "{} needs {} of disk in {}, and {} are free: make room, then run this again",
            set.title,
            HumanBytes(set.space),
            folder.display(),
            HumanBytes(free)
        );
    }
    Ok(())
}

/// python3 with pip.
struct Python {
    /// For messages: `3.11`.
    version: String,
    /// What pip must be told where this python3 is none that the files have wheels for.
    other: Vec<String>,
}

impl Python {
    fn find(set: &Set) -> Result<Self> {
        let install = if cfg!(target_os = "macos") {
            "xcode-select --install, or brew install python"
        } else {
            "apt-get install python3 python3-pip, or your system's way"
        };
        let script = "import sys; print(sys.implementation.name, *sys.version_info[:2])";
        let output = secrets::command("python3").args(["-c", script]).output().map_err(|error| {
            anyhow!("python3 cannot be started ({error}): install it ({install}), then run this again")
        })?;
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        let mut words = printed.split_whitespace();
        let (name, major, minor) = (words.next(), words.next(), words.next());
        let (Some(name), Some(major), Some(minor)) = (name, major, minor) else {
            bail!("python3 does not work ({}): install it ({install})", String::from_utf8_lossy(&output.stderr).trim());
        };
        let pip = secrets::command("python3").args(["-m", "pip", "--version"]).output();
        if !pip.is_ok_and(|pip| pip.status.success()) {
            bail!("python3 has no pip: install it ({install}; or python3 -m ensurepip), then run this again");
        }
        let has_wheels =
            name == "cpython" && major == "3" && minor.parse().is_ok_and(|minor| PYTHON_MINORS.contains(&minor));
        let mut other = Vec::new();
        if !has_wheels {
            other.extend(["--python-version", PYTHON_OTHERWISE, "--implementation", "cp"].map(str::to_owned));
            for platform in &set.platforms {
                other.extend(["--platform".to_owned(), platform.clone()]);
            }
        }
        Ok(Self { version: format!("{major}.{minor}"), other })
    }

    /// A pip command that takes wheels only, checks every hash and ignores what the user's settings would change.
    fn pip(&self, verb: &str, temporary: &Path) -> Command {
        let mut pip = secrets::command("python3");
        pip.args(["-m", "pip", verb, "--no-deps", "--require-hashes", "--only-binary=:all:"]);
        pip.args(["--no-input", "--disable-pip-version-check", "--progress-bar=off"]);
        pip.args(&self.other);
        pip.env("TMPDIR", temporary).env("PIP_USER", "0").env("PIP_REQUIRE_VIRTUALENV", "0");
        pip
    }
}

/// Turns a failed pip into what happened and what to do.
fn check_pip(ended: &Ended, python: &Python, what: &str) -> Result<()> {
    if ended.status.success() {
        return Ok(());
    }
    let lines: Vec<&str> = ended.output.lines().collect();
    let tail = lines[lines.len().saturating_sub(12)..].join("\n");
    bail!("pip could not get {what}: {}\n\n{tail}", explain(&ended.output, python))
}

fn explain(output: &str, python: &Python) -> String {
    const NETWORK: [&str; 8] = [
        "Max retries exceeded",
        "NewConnectionError",
        "Temporary failure in name resolution",
        "Connection refused",
        "Connection broken",
        "ProxyError",
        "Read timed out",
        "SSLError",
    ];
    let has = |text: &str| output.contains(text);
    if has("DO NOT MATCH THE HASHES") {
        "what came is not what is pinned by hash, so nothing was installed. A proxy or mirror may change files: \
         check pip's index settings (python3 -m pip config list), then run this again"
            .to_owned()
    } else if has("No space left on device") {
        "the disk is full: make room, then run this again; it goes on from here".to_owned()
    } else if NETWORK.iter().any(|text| has(text)) {
        "the package index cannot be reached: check the network and pip's index and proxy settings \
         (python3 -m pip config list), then run this again; it goes on from here"
            .to_owned()
    } else if has("No matching distribution") {
        format!(
            "pip's index has no such wheel for this machine (python {}): update pip (python3 -m pip install --upgrade \
             pip); a C library older than 2.28 is too old",
            python.version
        )
    } else {
        "its own words are below; running this again goes on from here".to_owned()
    }
}

#[cfg(test)]
mod tests;
