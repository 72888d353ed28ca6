//! The command line and what it names: device and threads.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::{Args as ClapArgs, Parser, ValueEnum};
use tch::Device;

/// Trains one experiment of a campaign and hands over its quantized model.
///
/// Writes OUT/train.tsv (one line a step), OUT/artifact.ternary (the model: ternary codes and scales) and
/// OUT/summary.json, and prints a summary block. SIGTERM or Ctrl-C ends training early; the artifact is still written.
///
/// Exit codes: 0 trained; 1 error; 3 diverged (the loss is not a number or above 100).
#[derive(Debug, Clone, Parser)]
#[command(
    name = "trainer",
    version,
    after_help = "\
Example:
  trainer --campaign experiments/nano/campaign.toml --data experiments/nano/data --out /tmp/run --seed 1

The folder of --data is made by `prepare`; the recipe is crates/trainer/src/train.rs."
)]
pub struct Args {
    /// The campaign file: model, budget, evaluation window, constraints.
    #[arg(long, value_name = "FILE")]
    pub campaign: PathBuf,
    /// The folder that `prepare` made for this campaign.
    #[arg(long, value_name = "DIR")]
    pub data: PathBuf,
    /// Where the results go; made when missing.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Seed of the initial weights and of the order of the text.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// Where to train; `auto` takes CUDA, else MPS, else the CPU.
    #[arg(long, value_enum, default_value_t = DeviceName::Auto)]
    pub device: DeviceName,
    /// CPU threads; all cores when absent.
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
    /// Seconds of the processor that a probe took when the search began, for `clock = "work"`; without it this run is the
    /// measure. The summary of that run has it as `probe_seconds`.
    #[arg(long, value_name = "S")]
    pub probe_seconds: Option<f64>,
    /// Instead of the campaign's budget.
    #[command(flatten)]
    pub budget: BudgetOverride,
}

/// At most one of these replaces the campaign's budget.
#[derive(Debug, Clone, Default, ClapArgs)]
#[group(multiple = false)]
pub struct BudgetOverride {
    /// Train for this many seconds instead of the campaign's budget.
    #[arg(long, value_name = "S")]
    pub max_seconds: Option<f64>,
    /// Train on this many tokens instead of the campaign's budget.
    #[arg(long, value_name = "N")]
    pub max_tokens: Option<u64>,
    /// Train for this many steps instead of the campaign's budget; repeats exactly on a CPU.
    #[arg(long, value_name = "N")]
    pub max_steps: Option<u64>,
}

/// Names of `--device`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DeviceName {
    /// CUDA, else MPS, else the CPU.
    Auto,
    /// The processor.
    Cpu,
    /// The first NVIDIA GPU.
    Cuda,
    /// Apple's GPU.
    Mps,
}

impl DeviceName {
    /// The device, checked to exist.
    ///
    /// # Errors
    /// When the named device is not usable here.
    pub fn resolve(self) -> Result<Device> {
        let (cuda, mps) = (tch::Cuda::is_available(), tch::utils::has_mps());
        match self {
            Self::Auto if cuda => Ok(Device::Cuda(0)),
            Self::Auto if mps => Ok(Device::Mps),
            Self::Auto | Self::Cpu => Ok(Device::Cpu),
            Self::Cuda if cuda => Ok(Device::Cuda(0)),
            Self::Mps if mps => Ok(Device::Mps),
            Self::Cuda => {
                bail!("--device cuda: libtorch finds no CUDA device; use --device auto, or `orchestrator setup`")
            }
            Self::Mps => bail!("--device mps: libtorch finds no Metal device; use --device auto"),
        }
    }
}

/// CPU threads to use: `asked`, else all cores.
pub fn threads(asked: Option<usize>) -> usize {
    asked.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, |n| n.get())).max(1)
}
