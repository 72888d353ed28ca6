//! Everything between a fresh clone and the first experiment: libtorch, the programs, the data.
//!
//! Each step looks first whether it was done and then costs next to nothing; a step that failed or was interrupted goes
//! on from there when it is run again. Nothing here is downloaded without a hash that stands in the repository.

mod data;
mod libtorch;
mod programs;
mod step;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use formats::campaign::Campaign;

pub use data::keep;
pub use libtorch::{folder as libtorch_folder, libtorch};

/// What a campaign runs with.
#[derive(Debug, Clone)]
pub struct Ready {
    /// The repository.
    pub root: PathBuf,
    /// The campaign, checked.
    pub campaign: Campaign,
    /// The file it was read from.
    pub campaign_file: PathBuf,
    /// Model, tokenizer and text that were prepared for it.
    pub data: PathBuf,
    /// The trainer built from the checkout.
    pub trainer: PathBuf,
    /// The evaluator built from the checkout.
    pub evaluator: PathBuf,
    /// The program that prepared `data`.
    pub prepare: PathBuf,
    /// Trains the full-precision parents of campaigns with `[model.pretrain]`; `prepare` runs it.
    pub pretrain: PathBuf,
    /// What this machine computes on.
    pub accelerator: Accelerator,
}

/// What a machine computes on beside its processor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accelerator {
    /// Nothing.
    None,
    /// An NVIDIA GPU.
    Cuda,
    /// The GPU of a Mac with an arm64 processor.
    Mps,
}

/// What this machine has, found without any of the vendors' tools.
pub fn accelerator() -> Accelerator {
    if cfg!(all(target_os = "macos", target_arch = "aarch64")) {
        return Accelerator::Mps;
    }
    let nodes = std::fs::read_dir("/dev").into_iter().flatten().flatten();
    let names: Vec<String> = nodes.filter_map(|node| node.file_name().into_string().ok()).collect();
    if names.iter().any(|name| is_nvidia_gpu(name)) { Accelerator::Cuda } else { Accelerator::None }
}

/// `nvidia0`, `nvidia1` … are GPUs; `nvidiactl` alone is a driver without one.
fn is_nvidia_gpu(node: &str) -> bool {
    node.strip_prefix("nvidia").is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
}

/// The checkout that `start` lies in: the nearest folder above with `Cargo.toml`, `experiments/` and `crates/trainer`.
///
/// # Errors
/// When there is none.
pub fn repository_root(start: &Path) -> Result<PathBuf> {
    start
        .ancestors()
        .find(|folder| {
            folder.join("Cargo.toml").is_file()
                && folder.join("experiments").is_dir()
                && folder.join("crates/trainer").is_dir()
        })
        .map(Path::to_owned)
        .with_context(|| {
            format!("{} is not inside a checkout of ternary-autoresearch: change into one", start.display())
        })
}

/// Does whatever is still missing before `campaign_file` can run.
///
/// # Errors
/// With what failed and what to do about it; running again goes on from there.
pub fn ensure(root: &Path, campaign_file: &Path) -> Result<Ready> {
    let campaign = Campaign::load(campaign_file)?;
    let folder = campaign_file.parent().context("the campaign file has no folder")?;
    programs::check_compiler()?;
    libtorch(root)?;
    programs::build(root)?;
    let ready = Ready {
        root: root.to_owned(),
        campaign,
        campaign_file: campaign_file.to_owned(),
        data: folder.join("data"),
        trainer: programs::path(root, "trainer"),
        evaluator: programs::path(root, "evaluator"),
        prepare: programs::path(root, "prepare"),
        pretrain: programs::path(root, "pretrain"),
        accelerator: accelerator(),
    };
    for program in [&ready.trainer, &ready.evaluator, &ready.prepare] {
        if !program.is_file() {
            bail!(
                "{} was not built; run `cargo build --release --workspace` and look at its messages",
                program.display()
            );
        }
    }
    data::prepare(&ready)?;
    Ok(ready)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gpu_is_a_numbered_device_node() {
        for node in ["nvidia0", "nvidia12"] {
            assert!(is_nvidia_gpu(node), "{node}");
        }
        for node in ["nvidia", "nvidiactl", "nvidia-uvm", "nvidia-modeset", "tty0"] {
            assert!(!is_nvidia_gpu(node), "{node}");
        }
    }

    #[test]
    fn the_root_is_found_from_below_and_missed_outside() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let root = folder.path();
        std::fs::create_dir_all(root.join("crates/trainer/src")).expect("folders");
        assert!(repository_root(root).is_err());
        std::fs::create_dir(root.join("experiments")).expect("a folder");
        std::fs::write(root.join("Cargo.toml"), "").expect("a file");
        assert_eq!(repository_root(&root.join("crates/trainer/src")).ok(), Some(root.to_owned()));
    }
}
