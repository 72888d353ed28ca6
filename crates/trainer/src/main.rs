//! `trainer`: one experiment. The frame is this package's library; the recipe is `train.rs`.

mod train;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use formats::contract::DIVERGED;
use trainer::args::Args;
use trainer::frame::{Diverged, Run};

fn main() -> ExitCode {
    let started = Instant::now();
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(message) => {
            let _ = message.print();
            return ExitCode::from(u8::from(message.use_stderr()));
        }
    };
    // libtorch's failures, out of memory included, come as panics that have printed their message.
    let Ok(outcome) = catch_unwind(AssertUnwindSafe(|| run(&args, started))) else {
        return ExitCode::FAILURE;
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("trainer: {error:#}");
            if error.is::<Diverged>() { ExitCode::from(DIVERGED) } else { ExitCode::FAILURE }
        }
    }
}

fn run(args: &Args, started: Instant) -> anyhow::Result<()> {
    let mut run = Run::start(args, started)?;
    let trained = train::train(&mut run)?;
    let summary = run.finish(&trained)?;
    print!("{}", trainer::summary::block(&summary));
    Ok(())
}
