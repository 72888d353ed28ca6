//! How the orchestrator is called: commands, their arguments and examples.

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Args, Parser, Subcommand};
use formats::campaign::AgentKind;

use crate::error::{EXIT_CODES, Failure};
use crate::layout::Layout;
use crate::search::{self, HUMAN, Machine, Options};
use crate::status;

/// Searches for better training recipes of ternary language models, unattended.
///
/// One command does it all: `run` fetches libtorch, builds, prepares model and text, measures the baseline and then
/// proposes, trains and measures experiments until it is stopped.
#[derive(Debug, Parser)]
#[command(name = "orchestrator", version, max_term_width = 110, after_help = format!("{EXAMPLES}\n\n{EXIT_CODES}"))]
pub(super) struct Cli {
    #[command(subcommand)]
    pub(super) command: Option<Command>,
}

const EXAMPLES: &str = "\
Examples:
  cargo run --release -- run                        the whole main job, until Ctrl-C
  cargo run --release -- status                     what it is doing, from another terminal
  cargo run --release -- results                    what it found";

#[derive(Debug, Subcommand)]
pub(super) enum Command {
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
pub(super) struct Run {
    /// A folder of experiments/; `nano` without a GPU and `smollm2-135m` with one when left out.
    pub(super) campaign: Option<String>,
    /// The search to go on with or to begin; the campaign's last one when left out, else a new one named by the day.
    #[arg(long)]
    pub(super) tag: Option<String>,
    /// Who proposes: `search` (an optimizer over the annotated knobs) or `random` (the control).
    #[arg(long, value_parser = search::parse_agent)]
    pub(super) agent: Option<AgentKind>,
    /// Seed of a new search: of its proposals, and of every training run, so that runs differ by the recipe alone.
    #[arg(long, value_name = "N")]
    pub(super) seed: Option<u64>,
    /// Stop when the search has this many rows.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(super) experiments: Option<u64>,
    /// Begin no experiment after this many hours, counted from now.
    #[arg(long, value_name = "H", value_parser = hours)]
    pub(super) hours: Option<f64>,
    #[command(flatten)]
    pub(super) machine: MachineArgs,
    /// Print each row as a line of JSON.
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Args)]
pub(super) struct MachineArgs {
    /// CPU threads of trainer and evaluator; all cores (those of --cores) when left out.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub(super) threads: Option<u16>,
    /// Confine everything to these cores, such as `0,1` or `4-7`, so that searches can run side by side (Linux).
    #[arg(long, value_name = "LIST", value_parser = cores)]
    pub(super) cores: Option<Cores>,
    /// Where to train and evaluate; `auto` takes CUDA, else MPS, else the CPU.
    #[arg(long, value_parser = ["auto", "cpu", "cuda", "mps"])]
    pub(super) device: Option<String>,
    /// Where compiled dependencies are kept, instead of target/search; nobody but searches may build there.
    #[arg(long, value_name = "DIR")]
    pub(super) build_dir: Option<PathBuf>,
}

/// A list of cores; a type of its own, so that clap takes it as one value.
#[derive(Debug, Clone)]
pub(super) struct Cores(Vec<usize>);

impl MachineArgs {
    pub(super) fn machine(self) -> anyhow::Result<Machine> {
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
pub(super) struct SearchArgs {
    /// The campaign; the search that was written to last when left out.
    #[arg(long)]
    pub(super) campaign: Option<String>,
    /// The search.
    #[arg(long)]
    pub(super) tag: Option<String>,
    #[command(flatten)]
    pub(super) machine: MachineArgs,
}

impl SearchArgs {
    pub(super) fn find(self, root: &Path, json: bool) -> Result<(Layout, Options), Failure> {
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
pub(super) struct Try {
    /// The recipe.
    pub(super) file: PathBuf,
    /// What it tries, in one line, for the table.
    #[arg(long, value_name = "TEXT", default_value = "a recipe by hand")]
    pub(super) description: String,
    /// Who wrote it, for the table. Code that no person wrote runs in the complete sandbox only, unless the campaign says
    /// sandbox = "best-effort".
    #[arg(long, value_name = "NAME", default_value = HUMAN, value_parser = author)]
    pub(super) author: String,
    #[command(flatten)]
    pub(super) search: SearchArgs,
    /// Print the row as a line of JSON.
    #[arg(long)]
    pub(super) json: bool,
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
pub(super) struct Replicate {
    /// `baseline`, `best`, the number of an experiment, or the begin of its commit.
    #[arg(default_value = "baseline")]
    pub(super) commit: String,
    /// How many times.
    #[arg(short = 'n', value_name = "K", default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..))]
    pub(super) runs: u64,
    #[command(flatten)]
    pub(super) search: SearchArgs,
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
pub(super) struct Compare {
    /// Names of files in experiments/methods, or paths; the others are compared with the first.
    #[arg(required = true, value_name = "ARM")]
    pub(super) arms: Vec<String>,
    /// Runs an arm, each with a seed of its own.
    #[arg(long, value_name = "K", default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..))]
    pub(super) seeds: u64,
    /// Run them on this campaign instead of the arms' own.
    #[arg(long)]
    pub(super) campaign: Option<String>,
    /// The comparison to go on with or to begin; compare-CAMPAIGN when left out.
    #[arg(long)]
    pub(super) tag: Option<String>,
    /// Run again what failed.
    #[arg(long)]
    pub(super) retry_failed: bool,
    /// Show the table of what was run, and run nothing; works while another runs it.
    #[arg(long)]
    pub(super) show: bool,
    #[command(flatten)]
    pub(super) machine: MachineArgs,
    /// Print the table as JSON.
    #[arg(long, conflicts_with = "markdown")]
    pub(super) json: bool,
    /// Print the table as Markdown.
    #[arg(long)]
    pub(super) markdown: bool,
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
pub(super) struct Which {
    /// The campaign; the search that was written to last when left out.
    pub(super) campaign: Option<String>,
    /// The search.
    #[arg(long)]
    pub(super) tag: Option<String>,
    /// Print JSON.
    #[arg(long)]
    pub(super) json: bool,
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
pub(super) struct Results {
    #[command(flatten)]
    pub(super) which: Which,
    /// Measure baseline and incumbent on the report part first, where that is not done; the search must not run.
    #[arg(long)]
    pub(super) report: bool,
    /// Draw the search as SVG into this file, and print no table.
    #[arg(long, value_name = "FILE")]
    pub(super) plot: Option<PathBuf>,
    #[command(flatten)]
    pub(super) machine: MachineArgs,
}

/// Look at the language model that a campaign asks.
#[derive(Debug, Subcommand)]
pub(super) enum AgentCommand {
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
pub(super) struct AgentCheck {
    /// The campaign; the machine's default when left out.
    pub(super) campaign: Option<String>,
    /// The search whose next question is shown; the campaign's last one when left out.
    #[arg(long)]
    pub(super) tag: Option<String>,
    /// Show the next question, and send nothing.
    #[arg(long)]
    pub(super) prompt: bool,
    /// Print JSON.
    #[arg(long)]
    pub(super) json: bool,
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
pub(super) struct Repair {
    #[command(flatten)]
    pub(super) which: Which,
}

/// Make libtorch, the programs and the data ready, as `run` does first.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  orchestrator setup                                for the machine's default campaign
  orchestrator setup --libtorch-only

Exit codes: see `orchestrator --help`.")]
pub(super) struct Setup {
    /// The campaign whose model and text are prepared.
    pub(super) campaign: Option<String>,
    /// Fetch libtorch and stop.
    #[arg(long)]
    pub(super) libtorch_only: bool,
}

/// Check what this machine has: programs, libtorch, disk, and how much of the sandbox it can enforce.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  orchestrator doctor

Exit codes: 0 all is well, 1 something is missing.")]
pub(super) struct Doctor {
    /// Print JSON.
    #[arg(long)]
    pub(super) json: bool,
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
    use clap::CommandFactory;

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
