//! `compare`: arms, each a recipe with knobs set, are trained and measured on the same seeds, text and budget.
//!
//! A comparison is pinned to commit, campaign, data and evaluator as a search is, and its journal is the truth: what was
//! run and is unchanged is not run again, and a run that is broken off leaves nothing but its folder. Seeds come first in
//! the order of the runs, so that a comparison that is stopped early has compared all arms on fewer seeds.

mod arm;
mod table;

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, anyhow};
use formats::campaign::Campaign;
use git2::Oid;
use indicatif::HumanDuration;

use crate::child::Interrupts;
use crate::error::Failure;
use crate::experiment::oid;
use crate::files;
use crate::journal;
use crate::knobs;
use crate::layout::{self, Kind, Layout};
use crate::ledger::{Arm, Event, Outcome, State};
use crate::printer::Printer;
use crate::search::{self, Machine, Search};
use crate::workspace::Workspace;
use arm::{ArmFile, ROUND_TO_NEAREST};
use table::{Asked, Table};

/// What the command line says about a comparison.
#[derive(Debug, Clone)]
pub struct Options {
    /// Names or files of the arms; the first is what the others are compared with.
    pub arms: Vec<String>,
    /// The campaign, instead of the arms' own.
    pub campaign: Option<String>,
    /// Tag; `compare-<campaign>` when absent.
    pub tag: Option<String>,
    /// Seeds an arm.
    pub seeds: u64,
    /// Runs again what failed.
    pub retry: bool,
    /// Runs nothing.
    pub show: bool,
    /// How the table is printed.
    pub form: Form,
    /// How the programs use the machine.
    pub machine: Machine,
}

/// Forms of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// For a terminal.
    Text,
    /// For programs.
    Json,
    /// For documents.
    Markdown,
}

/// An arm, and the recipe that it is.
struct Recipe {
    file: ArmFile,
    source: String,
    hash: String,
}

/// Runs what is missing and returns the table, printed.
///
/// # Errors
/// Every [`Failure`]; running again goes on.
pub fn run(root: &Path, options: &Options) -> Result<String, Failure> {
    let mut files = read_arms(root, &options.arms)?;
    let campaign = campaign(&files, options.campaign.as_deref())?;
    let tag = options.tag.clone().unwrap_or_else(|| format!("compare-{campaign}"));
    layout::check_tag(&tag)?;
    let layout = Layout { root: root.to_owned(), kind: Kind::Comparison, name: campaign, tag };
    let workspace = Workspace::open(root)?;
    let file = search::campaign_file(root, Some(&layout.name))?;
    let state = begun(&layout)?;
    // Before anything is set up: a knob that is not there is told at once.
    let start = match state.started.as_ref() {
        Some(started) => oid(&started.start)?,
        None if options.show => {
            return Err(Failure::NothingYet(format!("comparison {} was not begun", layout.tag)));
        }
        None => workspace.head()?,
    };
    let campaign = Campaign::load(&file).map_err(|e| Failure::Campaign {
        message: e.to_string(),
        hint: "experiments/nano/campaign.toml shows every key".into(),
    })?;
    if campaign.model.has_parent() {
        add_rounded(root, &mut files)?;
    }
    let recipes = recipes(&workspace, start, search::knobs_constant(&campaign), files)?;
    if options.show {
        return print(&state, &layout, &recipes, options);
    }
    let options_of_search =
        search::Options { campaign: Some(layout.name.clone()), machine: options.machine.clone(), ..Default::default() };
    let printer = Printer::new(true);
    let (lock, ready) = search::enter(&layout, &file, &workspace, &options_of_search)?;
    let notices = printer.clone();
    let interrupts = Interrupts::listen(move |count| {
        notices.notice(match count {
            1 => "stopping: the run in progress is lost, nothing else (once more to kill it)",
            _ => "killing what runs",
        });
    })?;
    if let Some(ready) = &ready {
        search::begin(&layout, &file, &workspace, ready, &options_of_search)?;
    }
    let machine = options.machine.clone();
    let mut search = Search::open(layout.clone(), lock, &workspace, interrupts, printer, machine)?;
    let done = run_missing(&mut search, &recipes, options);
    search.reset_worktree();
    done?;
    print(&search.state, &layout, &recipes, options)
}

fn read_arms(root: &Path, given: &[String]) -> Result<Vec<ArmFile>, Failure> {
    let files = given.iter().map(|name| ArmFile::read(root, name)).collect::<Result<Vec<_>, _>>()?;
    for (index, arm) in files.iter().enumerate() {
        if files[..index].iter().any(|other| other.name == arm.name) {
            return Err(Failure::Campaign {
                message: format!("arm {:?} is named twice", arm.name),
                hint: "name each arm once; --seeds runs it more often".into(),
            });
        }
    }
    Ok(files)
}

/// The lower end of what can be recovered of a parent is an arm of every comparison that has one.
fn add_rounded(root: &Path, files: &mut Vec<ArmFile>) -> Result<(), Failure> {
    let path = root.join(arm::FOLDER).join(format!("{ROUND_TO_NEAREST}.toml"));
    if path.is_file() && !files.iter().any(|arm| arm.name == ROUND_TO_NEAREST) {
        files.push(ArmFile::read(root, ROUND_TO_NEAREST)?);
    }
    Ok(())
}

/// The one campaign that all arms are run on.
fn campaign(files: &[ArmFile], given: Option<&str>) -> Result<String, Failure> {
    if let Some(given) = given {
        return Ok(given.to_owned());
    }
    let first = files.first().context("no arm is named")?;
    match files.iter().find(|arm| arm.campaign != first.campaign) {
        None => Ok(first.campaign.clone()),
        Some(other) => Err(Failure::Campaign {
            message: format!(
                "arm {} is of campaign {}, and {} of {}",
                first.name, first.campaign, other.name, other.campaign
            ),
            hint: "arms are compared on one campaign: name it with --campaign".into(),
        }),
    }
}

/// What the journal of a comparison says; nothing before it is begun.
fn begun(layout: &Layout) -> Result<State, Failure> {
    if !layout.journal().is_file() {
        return Ok(State::default());
    }
    let records = journal::read(&layout.journal())?;
    State::rebuild(&records).map_err(|message| Failure::Journal { path: layout.journal(), message })
}

fn recipes(workspace: &Workspace, start: Oid, constant: &str, files: Vec<ArmFile>) -> Result<Vec<Recipe>, Failure> {
    let recipe = |file: ArmFile| {
        let refused = |message: String| Failure::Recipe {
            message: format!("arm {}: {message}", file.name),
            hint: format!("fix {}/{}.toml or the recipe that it names", arm::FOLDER, file.name),
        };
        let source = match &file.recipe {
            None => workspace.recipe(start)?,
            Some(path) => files::read_text(&workspace.root().join(path))
                .map_err(|e| refused(format!("cannot read {}: {e}", path.display())))?,
        };
        let source = knobs::set(&source, constant, &file.knobs()).map_err(|e| refused(e.to_string()))?;
        let hash = knobs::token_hash(&source).map_err(|e| refused(e.to_string()))?;
        Ok(Recipe { file, source, hash })
    };
    files.into_iter().map(recipe).collect()
}

/// The arm of the journal that a recipe is, if it was committed.
fn committed<'a>(state: &'a State, recipe: &Recipe) -> Option<&'a Arm> {
    let file = &recipe.file;
    state.arms.iter().find(|arm| arm.name == file.name && arm.recipe == recipe.hash && arm.max_steps == file.max_steps)
}

/// Seeds of the comparison.
fn seeds(state: &State, options: &Options) -> std::ops::Range<u64> {
    let first = state.started.as_ref().map_or(0, |started| started.seed);
    first..first.saturating_add(options.seeds)
}

/// Everything that has no record yet.
fn run_missing(search: &mut Search, recipes: &[Recipe], options: &Options) -> Result<(), Failure> {
    if !search.measure_full_precisions()? {
        return Ok(());
    }
    let mut arms = Vec::with_capacity(recipes.len());
    for recipe in recipes {
        arms.push(match committed(&search.state, recipe) {
            Some(arm) => arm.clone(),
            None => commit(search, recipe)?,
        });
    }
    let runs_before = search.state.arm_runs.len();
    let is_done = |state: &State, arm: &Arm, seed: u64| {
        state.arm_runs.iter().enumerate().any(|(index, run)| {
            let counts = run.measured().is_some() || !options.retry || index >= runs_before;
            // What does not build does so with no seed.
            let unbuildable = !state.trainers.contains_key(&arm.number) && counts;
            run.arm == arm.number && counts && (run.seed == seed || unbuildable)
        })
    };
    let seeds = seeds(&search.state, options);
    let mut wanted = Vec::new();
    for seed in seeds.clone() {
        for arm in &arms {
            // Without training nothing depends on the seed.
            if arm.max_steps != Some(0) || seed == seeds.start {
                wanted.push((arm, seed));
            }
        }
    }
    let total = wanted.len();
    for (index, (arm, seed)) in wanted.iter().enumerate() {
        if is_done(&search.state, arm, *seed) {
            continue;
        }
        search.check_space()?;
        let left = wanted[index..].iter().filter(|(arm, seed)| !is_done(&search.state, arm, *seed)).count();
        let name = &arm.name;
        let remaining = remaining(&search.state, left);
        search.printer.notice(&format!("[{}/{total}] {name}, seed {seed}{remaining}", index + 1));
        if search.runner.interrupted() || !search.run_arm(arm, *seed)? {
            search.printer.notice("interrupted; the same command again goes on from here");
            return Ok(());
        }
        if let Some(run) = search.state.arm_runs.last() {
            search.printer.notice(&match &run.outcome {
                Outcome::Measured(measured) => {
                    format!("    ppl {:.4} on select, {:.1} s", measured.select.eval_ppl, measured.trained.wall_s)
                }
                Outcome::Failed { status, reason } => format!("    {}: {reason}", status.name()),
            });
        }
    }
    Ok(())
}

/// How long what is left will take, from what was run.
fn remaining(state: &State, left: usize) -> String {
    let taken: Vec<f64> = state
        .arm_runs
        .iter()
        .filter_map(|run| run.measured())
        .filter(|measured| measured.trained.steps > 0)
        .map(|measured| measured.trained.wall_s + measured.select.seconds + measured.report.seconds)
        .collect();
    if taken.is_empty() {
        return String::new();
    }
    let seconds = taken.iter().sum::<f64>() / taken.len() as f64 * left as f64;
    format!(" (about {} left)", HumanDuration(Duration::from_secs_f64(seconds)))
}

/// Commits an arm's recipe on the comparison's start, under a ref of its own.
fn commit(search: &mut Search, recipe: &Recipe) -> Result<Arm, Failure> {
    let start = search.start;
    let number = search.state.arms.len() as u64 + 1;
    let commit = if search.workspace.recipe(start)? == recipe.source {
        start
    } else {
        let message = format!("arm {}: {}\n", recipe.file.name, recipe.file.description);
        search.workspace.commit(start, &recipe.source, "comparison", &message)?
    };
    let arm = Arm {
        number,
        name: recipe.file.name.clone(),
        commit: commit.to_string(),
        recipe: recipe.hash.clone(),
        max_steps: recipe.file.max_steps,
        knobs: recipe.file.knobs(),
    };
    search.write(Event::Arm(arm.clone()))?;
    search.workspace.record(&search.layout.tag, number, commit)?;
    Ok(arm)
}

fn print(state: &State, layout: &Layout, recipes: &[Recipe], options: &Options) -> Result<String, Failure> {
    let asked: Vec<Asked> = recipes
        .iter()
        .map(|recipe| Asked {
            name: recipe.file.name.clone(),
            description: recipe.file.description.clone(),
            arm: committed(state, recipe).cloned(),
        })
        .collect();
    let table = Table::of(state, &layout.name, &layout.tag, &asked, seeds(state, options));
    Ok(match options.form {
        Form::Text => table.text(),
        Form::Markdown => table.markdown(),
        Form::Json => {
            let json = serde_json::to_string_pretty(&table);
            json.map_err(|e| anyhow!(e).context("cannot write JSON"))? + "\n"
        }
    })
}
