//! `prepare`: one campaign's model and data, made or found finished.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use prepare::{Options, Stage};

/// Fetch a campaign's model and text, convert the weights, and write token shards
///
/// What is finished and unchanged is skipped; after an interruption, run it again. Hub sources honour HF_HOME, HF_TOKEN
/// and HF_ENDPOINT.
#[derive(Parser)]
#[command(
    version,
    after_help = "Example:\n  prepare --campaign experiments/nano/campaign.toml --data experiments/nano/data"
)]
struct Arguments {
    /// The campaign file
    #[arg(long)]
    campaign: PathBuf,
    /// Folder for what is made: base/, tokenizer.json, text/ and prepared.json
    #[arg(long)]
    data: PathBuf,
    /// Folder of fetched packages [default: .cache in the repository]
    #[arg(long)]
    cache: Option<PathBuf>,
    /// The program that trains the parent of [model.pretrain] [default: pretrain beside this program]
    #[arg(long)]
    pretrainer: Option<PathBuf>,
    /// Make only this stage, and the tokenizer where text needs it
    #[arg(long)]
    only: Option<Stage>,
    /// Print the outcome as one JSON object, and no progress
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let options = Options {
        campaign: arguments.campaign,
        data: arguments.data,
        cache: arguments.cache,
        pretrainer: arguments.pretrainer,
        only: arguments.only,
        quiet: arguments.json,
    };
    let outcome = match prepare::prepare(&options) {
        Ok(outcome) => outcome,
        Err(error) => {
            eprintln!("error: {error:#}");
            return ExitCode::FAILURE;
        }
    };
    if arguments.json {
        println!("{}", serde_json::json!(outcome));
        return ExitCode::SUCCESS;
    }
    for (stage, made) in &outcome.made {
        println!("{stage:?}: {}", if *made { "made" } else { "up to date" });
    }
    for (part, info) in outcome.text.iter().flat_map(|text| &text.parts) {
        println!("{part:8} {:9} documents {:12} tokens {:12} bytes", info.documents, info.tokens, info.bytes);
    }
    for source in outcome.text.iter().flat_map(|text| &text.sources) {
        let path = source.path.as_deref().unwrap_or_default();
        println!(
            "{} {path}: {} documents read, {} left out because they share text with another part",
            source.from, source.documents, source.contaminated
        );
    }
    for note in &outcome.notes {
        println!("note: {note}");
    }
    ExitCode::SUCCESS
}
