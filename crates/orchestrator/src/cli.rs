//! The command line: what there is, how it is called, and how an error is shown. The work is done elsewhere.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, anyhow};
use campaign::AgentKind;
use clap::{Args, CommandFactory, Parser, Subcommand};

use crate::compare::{self, Form};
use crate::doctor;
use crate::error::{EXIT_CODES, Failure};
use crate::layout::{self, Layout};
use crate::plot;
use crate::repair;
use crate::results;
use crate::search::{self, Attempt, HUMAN, Machine, Options};
use crate::setup;
use crate::status::{self, Status};

/// Searches for better training recipes of ternary language models, unattended.
///
/// One command does it all: `run` fetches libtorch, builds, prepares model and text, measures the baseline and then
/// proposes, trains and measures experiments until it is stopped.
#[derive(Debug, Parser)]
#[command(name = "orchestrator", version, max_term_width = 110, after_help = format!("{EXAMPLES}\n\n{EXIT_CODES}"))]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
}

const EXAMPLES: &str = "\
Examples:
  cargo run --release -- run                        the whole main job, until Ctrl-C
  cargo run --release -- status                     what it is doing, from another terminal
  cargo run --release -- results                    what it found";

#[derive(Debug, Subcommand)]
enum Command {
    Run(Run),
    Try(Try),
    Replicate(Replicate),
    Compare(Compare),
    Status(Which),
    Results(Results),
    Repair(Repair),
    #[command(subcommand)]
    Agent(AgentCommand),
    Setup(Setup),
    Doctor(Doctor),
}

/// Run the whole main job, or go on with it.
///
/// Everything that is already done is skipped. Ctrl-C stops it gently: nothing is lost, and `run` again goes on where
/// it was. Each search has a tag: its branch is autoresearch/TAG, and its files are experiments/CAMPAIGN/runs/TAG.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  orchestrator run                                  the machine's default campaign, until Ctrl-C
  orchestrator run nano --experiments 40            stop at 40 rows
  orchestrator run nano --tag control --agent random --cores 1
                                                    a second search beside it, on a core of its own

Exit codes: see `orchestrator --help`.")]
struct Run {
    /// A folder of experiments/; `nano` without a GPU and `smollm2-135m` with one when left out.
    campaign: Option<String>,
    /// The search to go on with or to begin; the campaign's last one when left out, else a new one named by the day.
    #[arg(long)]
    tag: Option<String>,
    /// Who proposes: `search` (an optimizer over the annotated knobs) or `random` (the control).
    #[arg(long, value_parser = search::parse_agent)]
    agent: Option<AgentKind>,
    /// Seed of a new search: of its proposals, and of every training run, so that runs differ by the recipe alone.
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Stop when the search has this many rows.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    experiments: Option<u64>,
    /// Begin no experiment after this many hours, counted from now.
    #[arg(long, value_name = "H", value_parser = hours)]
    hours: Option<f64>,
    #[command(flatten)]
    machine: MachineArgs,
    /// Print each row as a line of JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct MachineArgs {
    /// CPU threads of trainer and evaluator; all cores (those of --cores) when left out.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    threads: Option<u16>,
    /// Confine everything to these cores, such as `0,1` or `4-7`, so that searches can run side by side (Linux).
    #[arg(long, value_name = "LIST", value_parser = cores)]
    cores: Option<Cores>,
    /// Where to train and evaluate; `auto` takes CUDA, else MPS, else the CPU.
    #[arg(long, value_parser = ["auto", "cpu", "cuda", "mps"])]
    device: Option<String>,
    /// Where compiled dependencies are kept, instead of target/search; nobody but searches may build there.
    #[arg(long, value_name = "DIR")]
    build_dir: Option<PathBuf>,
}

/// A list of cores; a type of its own, so that clap takes it as one value.
#[derive(Debug, Clone)]
struct Cores(Vec<usize>);

impl MachineArgs {
    fn machine(self) -> anyhow::Result<Machine> {
        Ok(Machine {
            threads: self.threads.map(usize::from),
            cores: self.cores.map(|cores| cores.0),
            device: self.device,
            build_dir: self.build_dir.map(std::path::absolute).transpose().context("--build-dir")?,
        })
    }
}

/// A search to work on, and how.
#[derive(Debug, Args)]
struct SearchArgs {
    /// The campaign; the search that was written to last when left out.
    #[arg(long)]
    campaign: Option<String>,
    /// The search.
    #[arg(long)]
    tag: Option<String>,
    #[command(flatten)]
    machine: MachineArgs,
}

impl SearchArgs {
    fn find(self, root: &Path, json: bool) -> Result<(Layout, Options), Failure> {
        let (layout, _) = status::find(root, self.campaign.as_deref(), self.tag.as_deref())?;
        Ok((layout, Options { machine: self.machine.machine()?, json, ..Options::default() }))
    }
}

/// Make one experiment of a recipe that you, or a program of yours, wrote.
///
/// The file takes the place of crates/trainer/src/train.rs in a copy of the best commit; it is built, trained, measured
/// and kept or discarded like any other. The search must have its baseline, and must not run.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  orchestrator try my_train.rs --description \"cosine warm-up\"
  orchestrator try my_train.rs --tag nano-nov21 --json
  orchestrator try candidate.rs --author my-agent    what a program of yours wrote

Exit codes: see `orchestrator --help`.")]
struct Try {
    /// The recipe.
    file: PathBuf,
    /// What it tries, in one line, for the table.
    #[arg(long, value_name = "TEXT", default_value = "a recipe by hand")]
    description: String,
    /// Who wrote it, for the table. Code that no person wrote runs in the complete sandbox only, unless the campaign says
    /// sandbox = "best-effort".
    #[arg(long, value_name = "NAME", default_value = HUMAN, value_parser = author)]
    author: String,
    #[command(flatten)]
    search: SearchArgs,
    /// Print the row as a line of JSON.
    #[arg(long)]
    json: bool,
}

/// Train and measure a commit again with other seeds: how much does the loss differ from run to run?
///
/// The search must not run. Runs of the incumbent also make the bar for later candidates surer.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  orchestrator replicate                            the baseline, 4 times
  orchestrator replicate best -n 2 --tag nano-nov21

Exit codes: see `orchestrator --help`.")]
struct Replicate {
    /// `baseline`, `best`, the number of an experiment, or the begin of its commit.
    #[arg(default_value = "baseline")]
    commit: String,
    /// How many times.
    #[arg(short = 'n', value_name = "K", default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..))]
    runs: u64,
    #[command(flatten)]
    search: SearchArgs,
}

/// Compare quantization methods: train and measure arms on the same seeds, text and budget.
///
/// An arm is a file of experiments/methods: a recipe with knobs set. The table has the mean of each arm on the report
/// part with its 95 % interval, the paired difference to the first arm, and the share that it recovers of what rounding
/// to nearest loses. What was run and is unchanged is not run again; Ctrl-C loses the run in progress. An arm that fails
/// has its reason in the table and stops no other. Figures compare within one tag: it keeps the code that it began with.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  orchestrator compare straight-through absmean twn mse --seeds 3
  orchestrator compare straight-through twn --seeds 5 --show --markdown
  orchestrator compare straight-through twn --campaign smollm2-135m --seeds 3 --cores 0,1

Exit codes: see `orchestrator --help`.")]
struct Compare {
    /// Names of files in experiments/methods, or paths; the others are compared with the first.
    #[arg(required = true, value_name = "ARM")]
    arms: Vec<String>,
    /// Runs an arm, each with a seed of its own.
    #[arg(long, value_name = "K", default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..))]
    seeds: u64,
    /// Run them on this campaign instead of the arms' own.
    #[arg(long)]
    campaign: Option<String>,
    /// The comparison to go on with or to begin; compare-CAMPAIGN when left out.
    #[arg(long)]
    tag: Option<String>,
    /// Run again what failed.
    #[arg(long)]
    retry_failed: bool,
    /// Show the table of what was run, and run nothing; works while another runs it.
    #[arg(long)]
    show: bool,
    #[command(flatten)]
    machine: MachineArgs,
    /// Print the table as JSON.
    #[arg(long, conflicts_with = "markdown")]
    json: bool,
    /// Print the table as Markdown.
    #[arg(long)]
    markdown: bool,
}

/// Show what a search is doing and what it has found.
///
/// Reads the journal alone: works while the search runs, and after.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  orchestrator status
  orchestrator status nano --json

Exit codes: see `orchestrator --help`.")]
struct Which {
    /// The campaign; the search that was written to last when left out.
    campaign: Option<String>,
    /// The search.
    #[arg(long)]
    tag: Option<String>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Print the table of a search.
///
/// Works while the search runs, and after. results.tsv at the repository's root has the same rows of every search.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  orchestrator results
  orchestrator results --tag nano-nov21 --json
  orchestrator results --report                     measure baseline and best on the report part first
  orchestrator results --plot progress.svg

Exit codes: see `orchestrator --help`.")]
struct Results {
    #[command(flatten)]
    which: Which,
    /// Measure baseline and incumbent on the report part first, where that is not done; the search must not run.
    #[arg(long)]
    report: bool,
    /// Draw the search as SVG into this file, and print no table.
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
    #[command(flatten)]
    machine: MachineArgs,
}

/// Look at the language model that a campaign asks.
#[derive(Debug, Subcommand)]
enum AgentCommand {
    Check(AgentCheck),
}

/// Send one small request, and say how long it took and what it cost.
///
/// With --prompt nothing is sent: the next question of a search that does not run is printed as it would be.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  orchestrator agent check nano
  orchestrator agent check nano --prompt > prompt.md

Exit codes: see `orchestrator --help`.")]
struct AgentCheck {
    /// The campaign; the machine's default when left out.
    campaign: Option<String>,
    /// The search whose next question is shown; the campaign's last one when left out.
    #[arg(long)]
    tag: Option<String>,
    /// Show the next question, and send nothing.
    #[arg(long)]
    prompt: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Make results.tsv, branches and refs agree with the journals again, and say what differed.
///
/// A search's journal is the truth; the rest is made from it. What somebody edited in results.tsv is kept as a copy. The
/// searches must not run.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  orchestrator repair                               every search on this machine
  orchestrator repair --tag nano-nov21 --json

Exit codes: see `orchestrator --help`.")]
struct Repair {
    #[command(flatten)]
    which: Which,
}

/// Make libtorch, the programs and the data ready, as `run` does first.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  orchestrator setup                                for the machine's default campaign
  orchestrator setup --libtorch-only

Exit codes: see `orchestrator --help`.")]
struct Setup {
    /// The campaign whose model and text are prepared.
    campaign: Option<String>,
    /// Fetch libtorch and stop.
    #[arg(long)]
    libtorch_only: bool,
}

/// Check what this machine has: programs, libtorch, disk, and how much of the sandbox it can enforce.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  orchestrator doctor

Exit codes: 0 all is well, 1 something is missing.")]
struct Doctor {
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Parses the command line, does what it says, and returns its exit code.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    match dispatch(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            let mut stderr = std::io::stderr();
            let _ = writeln!(stderr, "error: {failure}");
            if let Some(hint) = failure.hint() {
                let _ = writeln!(stderr, "hint: {hint}");
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
            let source = std::fs::read_to_string(&args.file).map_err(|e| Failure::Recipe {
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
        Command::Repair(args) => mend(&root, args.which),
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

fn mend(root: &Path, which: Which) -> Result<(), Failure> {
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
                eval_ppl: row.evaluation.as_ref().map(|e| e.eval_ppl),
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
    print(&(text + "\n"))
}

fn print(text: &str) -> Result<(), Failure> {
    match std::io::stdout().write_all(text.as_bytes()) {
        // The reader has seen enough.
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => Ok(other.context("cannot print")?),
    }
}

/// The name of an author: one word, as it stands in a table and in a commit.
fn author(text: &str) -> Result<String, String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let fine = (1..=32).contains(&text.len()) && text.chars().all(plain);
    if fine { Ok(text.to_owned()) } else { Err("up to 32 letters, digits, '-', '_' and '.'".into()) }
}

fn hours(text: &str) -> Result<f64, String> {
    let hours: f64 = text.parse().map_err(|_| "a number of hours, such as 8 or 0.5".to_owned())?;
    if hours.is_finite() && hours > 0.0 { Ok(hours) } else { Err("hours must be above zero".into()) }
}

/// `0,1`, `4-7`, or both.
fn cores(text: &str) -> Result<Cores, String> {
    let number =
        |t: &str| t.trim().parse::<u16>().map(usize::from).map_err(|_| format!("{t:?} is no core; write 0,1 or 4-7"));
    let mut cores = Vec::new();
    for part in text.split(',') {
        match part.split_once('-') {
            Some((first, last)) => cores.extend(number(first)?..=number(last)?),
            None => cores.push(number(part)?),
        }
    }
    cores.sort_unstable();
    cores.dedup();
    if cores.is_empty() { Err("name at least one core".into()) } else { Ok(Cores(cores)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn cores_are_lists_and_ranges() {
        assert_eq!(cores("0,1").unwrap().0, [0, 1]);
        assert_eq!(cores("4-6,1,5").unwrap().0, [1, 4, 5, 6]);
        assert!(cores("a").is_err() && cores("").is_err() && cores("3-1").is_err());
        assert!(hours("0").is_err() && hours("x").is_err() && hours("nan").is_err());
        assert_eq!(hours("0.5").unwrap(), 0.5);
    }

    #[test]
    fn options_reach_the_search() {
        let cli = Cli::try_parse_from([
            "orchestrator",
            "run",
            "nano",
            "--tag",
            "t",
            "--agent",
            "random",
            "--seed",
            "3",
            "--experiments",
            "40",
            "--hours",
            "1.5",
            "--cores",
            "0-1",
            "--threads",
            "2",
        ]);
        let Ok(Cli { command: Some(Command::Run(run)) }) = cli else { panic!("{cli:?}") };
        assert_eq!((run.agent, run.seed, run.experiments), (Some(AgentKind::Random), Some(3), Some(40)));
        let machine = run.machine.machine().unwrap();
        assert_eq!((machine.cores, machine.threads), (Some(vec![0, 1]), Some(2)));
        assert!(Cli::try_parse_from(["orchestrator", "run", "--experiments", "0"]).is_err());
        assert!(Cli::try_parse_from(["orchestrator", "run", "--agent", "llm"]).is_err());
    }
}
