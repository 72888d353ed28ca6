//! `run`: from the command line to a search that is open, through it, and out again.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use anyhow::{Context, anyhow};
use formats::campaign::{AgentKind, Campaign, Sandbox};
use language_model::Cancel;

use super::question::check_question;
use super::{Options, Search, Stop, lock, resumed};
use crate::agent::model::{self, Model};
use crate::agent::thread::AgentThread;
use crate::child::Interrupts;
use crate::doctor;
use crate::error::Failure;
use crate::experiment::{StepError, Thinking, Turn};
use crate::failpoints;
use crate::files;
use crate::journal::{self, Journal};
use crate::layout::{self, Kind, Layout};
use crate::ledger::{Event, Started, State};
use crate::printer::Printer;
use crate::results;
use crate::secrets;
use crate::setup::{self, Accelerator, Ready};
use crate::status;
use crate::workspace::Workspace;

/// The whole main job.
///
/// # Errors
/// Every [`Failure`]; whatever it is, running again goes on.
pub fn run(root: &Path, options: &Options) -> Result<(), Failure> {
    let name = campaign_name(options.campaign.as_deref());
    let file = campaign_file(root, Some(name))?;
    let campaign = Campaign::load(&file).map_err(|e| Failure::Campaign {
        message: e.to_string(),
        hint: "experiments/nano/campaign.toml shows every key".into(),
    })?;
    secrets::hide(model::key_variables(&campaign.agent));
    let workspace = Workspace::open(root)?;
    let layout = choose(root, name, options.tag.as_deref(), &workspace)?;
    let printer = Printer::new(options.json);
    let begun = has_begun(&layout)?;
    if !begun && options.agent.unwrap_or(campaign.agent.kind).writes_code() {
        check_question(root, &campaign)?;
    }
    printer.line(&format!("campaign {name}, search {} ({})", layout.tag, if begun { "going on" } else { "new" }));
    let (lock, ready) = enter(&layout, &file, &workspace, options)?;

    let notices = printer.clone();
    let cancel = Cancel::default();
    let cancelled = cancel.clone();
    let interrupts = Interrupts::listen(move |count| {
        cancelled.cancel();
        notices.notice(match count {
            1 => "stopping gently; nothing will be lost (once more to kill what runs)",
            _ => "killing what runs",
        });
    })?;
    if let Some(ready) = &ready {
        begin(&layout, &file, &workspace, ready, options)?;
    }
    let mut search = Search::open(layout, lock, &workspace, interrupts.clone(), printer, options.machine.clone())?;
    search.agent = options.agent.unwrap_or(search.campaign.agent.kind);
    if search.agent.writes_code() {
        check_sandbox(search.campaign.sandbox)?;
        let folder = search.layout.exchanges();
        let model = Model::open(&search.campaign.agent, root, &folder, search.start, cancel);
        let model = model.map_err(|e| Failure::Campaign {
            message: format!("the language model cannot be asked: {e:#}"),
            hint: "fix [agent] of the campaign file or the key, or run with --agent tpe".into(),
        })?;
        let draft = files::read_regular(&search.layout.draft(), files::LARGEST_TEXT)
            .ok()
            .and_then(|json| serde_json::from_slice(&json).ok());
        search.thinking = Some(Thinking::new(AgentThread::new(model), draft));
    }
    if begun {
        search.write(resumed())?;
    }
    search.printer.line(&format!(
        "agent {}, seed {}, baseline {}, in {}",
        search.agent.name(),
        search.seed,
        &search.started.start[..7],
        search.layout.run().display()
    ));
    search.printer.line(&results::header());
    let stop = search.search(options.experiments, options.hours);
    search.reset_worktree();
    let reason = match stop? {
        Stop::Interrupted => "interrupted".to_owned(),
        Stop::Limit(why) => {
            search.limits.experiments = Some(search.state.rows.len() as u64);
            // The last keep is no lucky number either.
            if search.replicate_incumbent()? && search.measure_report()? { why } else { format!("{why}; interrupted") }
        }
    };
    search.stop_thinking()?;
    search.write(Event::Stopped { reason: reason.clone() })?;
    failpoints::at("stop-written");
    search.printer.line(&format!("stopped: {reason}"));
    let state = &search.state;
    for line in results::summary(state) {
        search.printer.line(&line);
    }
    if interrupts.count() > 0 {
        search.printer.line("`run` again goes on from here; `results --report` measures the final figures");
    }
    if interrupts.count() > 1 {
        return Err(Failure::Interrupted);
    }
    Ok(())
}

fn has_begun(layout: &Layout) -> Result<bool, Failure> {
    Ok(layout.journal().is_file() && !journal::read(&layout.journal())?.is_empty())
}

/// Takes the lock of a search or comparison that can begin or go on, and makes ready what a new one needs; one that has
/// begun needs only what it is pinned to, and its data, whose stamp is checked.
///
/// # Errors
/// When campaign, checkout or machine are not in order.
pub(crate) fn enter(
    layout: &Layout,
    file: &Path,
    workspace: &Workspace,
    options: &Options,
) -> Result<(File, Option<Ready>), Failure> {
    let begun = has_begun(layout)?;
    if begun {
        check_same(layout, file, options)?;
    } else {
        workspace.head()?;
        workspace.check_committed()?;
        if workspace.branch(&layout.tag)?.is_some() {
            return Err(Failure::Checkout {
                message: format!(
                    "branch autoresearch/{} exists, and its journal {} does not: it ran elsewhere, or its folder was removed",
                    layout.tag,
                    layout.journal().display()
                ),
                hint: "start another search with --tag, or put the folder back".into(),
            });
        }
    }
    pin(options.machine.cores.as_deref())?;
    let lock = lock(layout)?;
    log_to(&layout.run().join("orchestrator.log"))?;
    if begun {
        setup::libtorch(&layout.root).map_err(Failure::Setup)?;
        return Ok((lock, None));
    }
    Ok((lock, Some(setup::ensure(&layout.root, file).map_err(Failure::Setup)?)))
}

/// Measures the final figures of a search that does not run.
///
/// # Errors
/// As [`run`]; nothing is prepared, so libtorch and data must be there.
pub fn report(root: &Path, layout: &Layout, options: &Options) -> Result<(), Failure> {
    with(root, layout, options, |search| match search.measure_report()? {
        true => Ok(()),
        false => Err(Failure::Interrupted),
    })
}

/// A recipe from elsewhere.
#[derive(Debug, Clone)]
pub struct Attempt {
    /// Its text.
    pub source: String,
    /// Who wrote it: [`HUMAN`], or the name of an agent.
    pub author: String,
    /// What it tries, in one line.
    pub description: String,
}

/// The author of what a person wrote.
pub const HUMAN: &str = "human";

/// Makes one experiment of a recipe from elsewhere, in a search that does not run.
///
/// # Errors
/// As [`report`], and [`Failure::Recipe`].
pub fn attempt(root: &Path, layout: &Layout, options: &Options, attempt: &Attempt) -> Result<(), Failure> {
    with(root, layout, options, |search| {
        if attempt.author != HUMAN {
            check_sandbox(search.campaign.sandbox)?;
        }
        search.propose_recipe(&attempt.source, &attempt.author, &attempt.description)?;
        search.printer.line(&results::header());
        match search.run_one()? {
            Turn::Interrupted => Err(Failure::Interrupted),
            Turn::Done | Turn::Exhausted(_) => Ok(()),
        }
    })
}

/// Refuses code that no person wrote where the sandbox is not complete, unless the campaign accepts that.
pub(super) fn check_sandbox(wanted: Sandbox) -> Result<(), Failure> {
    let why = match wanted {
        Sandbox::BestEffort => return Ok(()),
        Sandbox::Off => "this campaign switches it off".to_owned(),
        Sandbox::On => match doctor::probe() {
            Ok(enforced) if enforced.is_complete() => return Ok(()),
            Ok(enforced) => enforced.summary(),
            Err(e) => format!("{e:#}"),
        },
    };
    Err(Failure::Recipe {
        message: format!("code that no person wrote runs in the complete sandbox only: {why}"),
        hint:
            "`orchestrator doctor` says what is missing; a search whose campaign.toml says sandbox = \"best-effort\" \
               runs it in what there is"
                .into(),
    })
}

/// Trains and measures a commit of a search that does not run `runs` times more, each with a seed of its own.
///
/// # Errors
/// As [`report`].
pub fn replicate(root: &Path, layout: &Layout, options: &Options, name: &str, runs: u64) -> Result<(), Failure> {
    with(root, layout, options, |search| {
        let row = search.state.find(name).cloned().ok_or_else(|| Failure::Recipe {
            message: format!("no measured experiment {name:?} in search {}", search.layout.tag),
            hint: "`orchestrator results` lists them by number and commit".into(),
        })?;
        for _ in 0..runs {
            if search.runner.interrupted() {
                return Err(Failure::Interrupted);
            }
            let log = search.layout.run().join("replicates");
            search.rerun(row.experiment).map_err(|broken| match broken {
                StepError::Cannot(failure) => failure,
                StepError::Interrupted(_) => Failure::Interrupted,
                StepError::Failed(_, reason) => {
                    Failure::Other(anyhow!("it failed with another seed: {reason} (logs are in {})", log.display()))
                }
            })?;
        }
        if let Some(noise) = search.state.noise() {
            search.printer.line(&results::noise(&noise, &row));
        }
        Ok(())
    })
}

/// Opens a search that does not run, and leaves its worktree at the incumbent.
pub(super) fn with(
    root: &Path,
    layout: &Layout,
    options: &Options,
    work: impl FnOnce(&mut Search) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let workspace = Workspace::open(root)?;
    pin(options.machine.cores.as_deref())?;
    let lock = lock(layout)?;
    log_to(&layout.run().join("orchestrator.log"))?;
    let interrupts = Interrupts::listen(|_| {})?;
    let printer = Printer::new(options.json);
    let machine = options.machine.clone();
    let mut search = Search::open(layout.clone(), lock, &workspace, interrupts, printer, machine)?;
    let done = work(&mut search);
    search.reset_worktree();
    done
}

fn campaign_name(given: Option<&str>) -> &str {
    match given {
        Some(name) => name,
        None if setup::accelerator() == Accelerator::None => "nano",
        None => "smollm2-135m",
    }
}

/// The campaign file of a name, or of the machine's default campaign.
///
/// # Errors
/// With the names there are.
pub fn campaign_file(root: &Path, name: Option<&str>) -> Result<PathBuf, Failure> {
    let name = campaign_name(name);
    let known = layout::campaigns(root);
    if known.iter().any(|n| n == name) {
        return Ok(root.join("experiments").join(name).join("campaign.toml"));
    }
    Err(Failure::Campaign {
        message: format!("there is no campaign {name:?}: experiments/{name}/campaign.toml is missing"),
        hint: format!("campaigns here: {}", known.join(", ")),
    })
}

/// The search that `run` means: the one of that tag, else the campaign's last one, else a new one.
fn choose(root: &Path, name: &str, tag: Option<&str>, workspace: &Workspace) -> Result<Layout, Failure> {
    let of = |tag: &str| Layout { root: root.to_owned(), kind: Kind::Search, name: name.into(), tag: tag.into() };
    if let Some(tag) = tag {
        layout::check_tag(tag)?;
        let elsewhere = layout::searches(root, None).into_iter().find(|s| s.tag == tag && s.name != name);
        if let Some(other) = elsewhere {
            return Err(Failure::Campaign {
                message: format!("tag {tag} belongs to campaign {}", other.name),
                hint: format!("go on with it by `run {} --tag {tag}`, or choose another tag", other.name),
            });
        }
        if !of(tag).journal().exists() && results::has_tag(root, tag)? {
            return Err(Failure::Campaign {
                message: format!("results.tsv has rows of {tag}, and that search is not on this machine"),
                hint: "choose another tag, so that its rows stay".into(),
            });
        }
        return Ok(of(tag));
    }
    if let Some(last) = layout::searches(root, Some(name)).into_iter().next() {
        return Ok(last);
    }
    let tag = layout::new_tag(name, |tag| {
        results::has_tag(root, tag).unwrap_or(true) || workspace.branch(tag).is_ok_and(|branch| branch.is_some())
    });
    Ok(of(&tag))
}

/// Refuses to go on with another campaign file or another seed than the search began with.
fn check_same(layout: &Layout, file: &Path, options: &Options) -> Result<(), Failure> {
    let records = journal::read(&layout.journal())?;
    let state = State::rebuild(&records).map_err(|message| Failure::Journal { path: layout.journal(), message })?;
    let Some(started) = state.started else { return Ok(()) };
    let now = files::sha256(file).with_context(|| format!("cannot read {}", file.display()))?;
    if now != started.campaign_sha256 {
        return Err(Failure::Campaign {
            message: format!("{} is not what search {} began with", file.display(), layout.tag),
            hint: format!(
                "its figures would not compare: start another search with --tag, or put the file back ({} is the copy)",
                layout.campaign_copy().display()
            ),
        });
    }
    if let Some(seed) = options.seed.filter(|&seed| seed != started.seed) {
        return Err(Failure::Campaign {
            message: format!("search {} began with seed {}, not {seed}", layout.tag, started.seed),
            hint: "leave --seed out to go on, or start another search with --tag".into(),
        });
    }
    Ok(())
}

/// Pins a new search: copies of evaluator, campaign and data, and the record of what it is.
pub(crate) fn begin(
    layout: &Layout,
    file: &Path,
    workspace: &Workspace,
    ready: &Ready,
    options: &Options,
) -> Result<(), Failure> {
    // Once more: setting up took a while, and the evaluator was built from these files.
    workspace.check_committed()?;
    let start = workspace.head()?;
    let evaluator = layout.evaluator();
    let bin = evaluator.parent().context("the evaluator has no folder")?;
    fs::create_dir_all(bin).with_context(|| format!("cannot make {}", bin.display()))?;
    let evaluator_sha256 = files::copy(&ready.evaluator, &evaluator)
        .with_context(|| format!("cannot copy {} to {}", ready.evaluator.display(), evaluator.display()))?;
    let campaign_sha256 =
        files::copy(file, &layout.campaign_copy()).with_context(|| format!("cannot copy {}", file.display()))?;
    let data_sha256 = setup::keep(&ready.data, &layout.data())?;
    let started = Started {
        campaign: layout.name.clone(),
        tag: layout.tag.clone(),
        start: start.to_string(),
        seed: options.seed.unwrap_or(ready.campaign.agent.seed),
        campaign_sha256,
        data_sha256,
        evaluator_sha256,
        version: env!("CARGO_PKG_VERSION").into(),
        platform: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
        accelerator: match ready.accelerator {
            Accelerator::None => "none",
            Accelerator::Cuda => "cuda",
            Accelerator::Mps => "mps",
        }
        .into(),
        compiler: status::compiler(&layout.root),
    };
    failpoints::at("search-pinned");
    let (mut journal, records) = Journal::open(&layout.journal())?;
    if records.is_empty() {
        journal.append(Event::Started(started))?;
    }
    failpoints::at("search-started");
    Ok(())
}

/// Confines this process, and with it everything that it starts, to some cores.
#[cfg(target_os = "linux")]
fn pin(cores: Option<&[usize]>) -> Result<(), Failure> {
    use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
    let Some(cores) = cores else { return Ok(()) };
    let allowed = sched_getaffinity(None).context("cannot ask for the allowed cores")?;
    let mut wanted = CpuSet::new();
    for &core in cores {
        if core >= CpuSet::MAX_CPU || !allowed.is_set(core) {
            return Err(Failure::Other(anyhow!(
                "--cores: core {core} is not available here; there are {}",
                (0..CpuSet::MAX_CPU)
                    .filter(|&c| allowed.is_set(c))
                    .map(|c| c.to_string())
                    .collect::<Vec<_>>()
                    .join(",")
            )));
        }
        wanted.set(core);
    }
    sched_setaffinity(None, &wanted).context("cannot confine the search to --cores")?;
    Ok(())
}

#[cfg(not(target_os = "linux"))]
fn pin(cores: Option<&[usize]>) -> Result<(), Failure> {
    match cores {
        None => Ok(()),
        Some(_) => Err(Failure::Other(anyhow!("--cores works on Linux only; use --threads here"))),
    }
}

/// Details of what happens, for when something went wrong.
fn log_to(path: &Path) -> Result<(), Failure> {
    let file = fs::File::options()
        .create(true)
        .append(true)
        .open(path)
        .with_context(|| format!("cannot write {}", path.display()))?;
    let filter = tracing_subscriber::EnvFilter::new("warn,orchestrator=debug");
    // A second initialization, in tests, keeps the first.
    let _ = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).with_writer(Mutex::new(file)).try_init();
    Ok(())
}

/// Parses the name of an agent; clap's own derive would need the campaign crate to know clap.
///
/// # Errors
/// With the names there are.
pub fn parse_agent(name: &str) -> Result<AgentKind, String> {
    match name {
        "tpe" | "search" => Ok(AgentKind::Tpe),
        "random" => Ok(AgentKind::Random),
        _ => Err("agents: search, random".into()),
    }
}
