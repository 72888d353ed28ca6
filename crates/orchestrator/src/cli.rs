//! The command line: what it does and how an error is shown. How it is called is in `arguments`; the work is done
//! elsewhere.

mod arguments;

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, anyhow};
use arguments::{AgentCommand, Cli, Command, Results, Which};
use clap::{CommandFactory, Parser};

use crate::compare::{self, Form};
use crate::doctor;
use crate::error::Failure;
use crate::files;
use crate::layout;
use crate::plot;
use crate::printer::shown;
use crate::repair;
use crate::results;
use crate::search::{self, Attempt, Options};
use crate::setup;
use crate::status::{self, Status};

/// Parses the command line, does what it says, and returns its exit code.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    match dispatch(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            let mut stderr = std::io::stderr();
            let _ = writeln!(stderr, "error: {}", shown(&failure.to_string()));
            if let Some(hint) = failure.hint() {
                let _ = writeln!(stderr, "hint: {}", shown(&hint));
            }
            tracing::error!(%failure, "ended");
            ExitCode::from(failure.code())
        }
    }
}

fn dispatch(cli: Cli) -> Result<(), Failure> {
    let Some(command) = cli.command else {
        Cli::command().print_help().context("cannot print")?;
        return Ok(());
    };
    let here = std::env::current_dir().context("cannot see the current folder")?;
    let root = setup::repository_root(&here).map_err(|e| Failure::Checkout {
        message: format!("{e:#}"),
        hint: "run it inside a clone of the repository".into(),
    })?;
    match command {
        Command::Run(run) => {
            let options = Options {
                campaign: run.campaign,
                tag: run.tag,
                agent: run.agent,
                seed: run.seed,
                experiments: run.experiments,
                hours: run.hours,
                machine: run.machine.machine()?,
                json: run.json,
            };
            search::run(&root, &options)
        }
        Command::Try(args) => {
            let (layout, options) = args.search.find(&root, args.json)?;
            let source = files::read_text(&args.file).map_err(|e| Failure::Recipe {
                message: format!("cannot read {}: {e}", args.file.display()),
                hint: "name a file of Rust source".into(),
            })?;
            let description = args.description.split_whitespace().collect::<Vec<_>>().join(" ");
            search::attempt(&root, &layout, &options, &Attempt { source, author: args.author, description })
        }
        Command::Replicate(args) => {
            let (layout, options) = args.search.find(&root, false)?;
            search::replicate(&root, &layout, &options, &args.commit, args.runs)
        }
        Command::Compare(args) => {
            let form = match (args.json, args.markdown) {
                (true, _) => Form::Json,
                (_, true) => Form::Markdown,
                _ => Form::Text,
            };
            print(&compare::run(
                &root,
                &compare::Options {
                    arms: args.arms,
                    campaign: args.campaign,
                    tag: args.tag,
                    seeds: args.seeds,
                    retry: args.retry_failed,
                    show: args.show,
                    form,
                    machine: args.machine.machine()?,
                },
            )?)
        }
        Command::Status(which) => {
            let (layout, state) = status::find(&root, which.campaign.as_deref(), which.tag.as_deref())?;
            let status = Status::of(&layout, &state);
            if which.json { print_json(&status) } else { print(&(status.lines(&state).join("\n") + "\n")) }
        }
        Command::Results(results) => show_results(&root, results),
        Command::Repair(args) => repair(&root, args.which),
        Command::Agent(AgentCommand::Check(args)) if args.prompt => {
            let (layout, _) = status::find(&root, args.campaign.as_deref(), args.tag.as_deref())?;
            print(&search::next_prompt(&root, &layout)?)
        }
        Command::Agent(AgentCommand::Check(args)) => {
            let answered = search::check_agent(&root, args.campaign.as_deref())?;
            if args.json { print_json(&answered) } else { print(&answered.line()) }
        }
        Command::Doctor(args) => {
            let checks = doctor::examine(&root);
            if args.json {
                print_json(&checks)?;
            } else {
                for check in &checks {
                    let mark = if check.ok { "ok" } else { "MISSING" };
                    print(&format!("{mark:<8} {}: {}\n", check.name, check.found))?;
                    if let Some(advice) = check.advice {
                        print(&format!("{:<8} → {advice}\n", ""))?;
                    }
                }
            }
            match checks.iter().filter(|check| !check.ok).count() {
                0 => Ok(()),
                missing => Err(Failure::Other(anyhow!("{missing} of {} checks found something missing", checks.len()))),
            }
        }
        Command::Setup(args) if args.libtorch_only => setup::libtorch(&root).map_err(Failure::Setup),
        Command::Setup(args) => {
            let file = search::campaign_file(&root, args.campaign.as_deref())?;
            setup::ensure(&root, &file).map(drop).map_err(Failure::Setup)
        }
    }
}

fn repair(root: &Path, which: Which) -> Result<(), Failure> {
    let searches = if which.tag.is_some() || which.campaign.is_some() {
        vec![status::find(root, which.campaign.as_deref(), which.tag.as_deref())?.0]
    } else {
        layout::searches(root, None)
    };
    let repaired = repair::repair(root, &searches)?;
    if which.json {
        return print_json(&repaired);
    }
    for search in &repaired {
        match search.findings.as_slice() {
            [] => print(&format!("{}: all agrees with the journal\n", search.tag))?,
            findings => {
                findings.iter().try_for_each(|finding| print(&format!("{}: {finding}\n", search.tag)))?;
            }
        }
    }
    Ok(())
}

fn show_results(root: &Path, args: Results) -> Result<(), Failure> {
    let which = args.which;
    let find = || status::find(root, which.campaign.as_deref(), which.tag.as_deref());
    let (layout, mut state) = find()?;
    if args.report {
        let options = Options { machine: args.machine.machine()?, json: which.json, ..Options::default() };
        search::report(root, &layout, &options)?;
        (_, state) = find()?;
    }
    if let Some(file) = args.plot {
        let points: Vec<plot::Point> = state
            .rows
            .iter()
            .map(|row| plot::Point {
                experiment: row.experiment,
                eval_ppl: results::drawn(&state, row),
                kept: row.status == crate::ledger::Status::Keep,
                description: row.description.clone(),
            })
            .collect();
        return plot::write(&file, &layout.tag, &points).map_err(|e| Failure::Other(anyhow!(e)));
    }
    if which.json { print_json(&results::Document::of(&layout, &state)) } else { print(&results::print(&state)) }
}

fn print_json<T: serde::Serialize>(value: &T) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value).context("cannot write JSON")?;
    write(&(text + "\n"))
}

fn print(text: &str) -> Result<(), Failure> {
    write(&shown(text))
}

fn write(text: &str) -> Result<(), Failure> {
    match std::io::stdout().write_all(text.as_bytes()) {
        // The reader has seen enough.
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => Ok(other.context("cannot print")?),
    }
}
