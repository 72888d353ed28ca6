//! A coding program as an endpoint: it is started anew for each question, in a throw-away checkout, confined, with the same
//! clock and the same kill as a candidate. Of what it leaves only the mutable file is taken back.
//!
//! Its answer is put into the words of [`edit::in_place`], so whatever holds for a model's answers (repairs, recordings, replay,
//! caps, outages) holds for a program's. It owns all that it needs and may be asked on any thread.

mod output;
mod place;
mod presets;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use formats::campaign::Agent;
use formats::campaign::command::{MUTABLE_FILE, PROMPT_FILE, PromptBy};
use git2::Oid;
use language_model::edit::{self, Format};
use language_model::{
    Answer, Cancel, Endpoint, EndpointError, Exchange, Identity, KeySource, LESSON_REQUEST, Prompt, Secret, Usage,
    estimated_tokens, printable,
};

use crate::agent::model::rules;
use crate::agent::prompt;
use crate::child::{Confined, End, Interrupts, Runner, Task};
use crate::experiment::confine;
use crate::files;
use crate::layout::RECIPE;
use place::{Place, Taken};
use presets::Program;

/// Seconds between SIGTERM and SIGKILL.
const GRACE: Duration = Duration::from_secs(5);
/// Most that it may leave on disk while it works.
const DISK_BYTES: u64 = 2 << 30;
/// Most bytes of its last message.
const MESSAGE_BYTES: usize = 64 << 10;
/// Most characters of a reason.
const REASON: usize = 400;
/// Most names of other changed files that are told.
const TOLD: usize = 8;
/// Variables that every program finds: no colours, nobody at a terminal.
const ENVIRONMENT: [(&str, &str); 3] = [("CI", "1"), ("NO_COLOR", "1"), ("TERM", "dumb")];

/// A coding program.
pub struct Command {
    program: Program,
    identity: Identity,
    root: PathBuf,
    start: Oid,
    folder: PathBuf,
    report: PathBuf,
    secrets: Vec<Secret>,
}

/// How a program ended.
enum Ended {
    Well,
    /// By itself, and not well.
    Failed(String),
    /// By us, and why.
    Stopped(String),
    /// Before it was confined.
    Unconfined,
    /// By the user.
    Cancelled,
}

/// The variables of this process that a program gets, and no other.
pub fn variables(settings: &Agent) -> Vec<String> {
    settings.command.as_ref().map(presets::variables).unwrap_or_default()
}

impl Command {
    /// Makes ready what the campaign names. It works in `run`/agent, with the files of commit `start` of the repository at
    /// `root`; candidates differ from it in the mutable file alone, and that is the one shown in the prompt.
    ///
    /// # Errors
    /// When the campaign names no program, or what a crash left cannot be removed.
    pub fn open(settings: &Agent, root: &Path, run: &Path, start: Oid) -> Result<Self> {
        let command = settings.command.as_ref().context("agent.command is missing")?;
        let program = Program::of(command, settings.model.as_deref())?;
        let argv = serde_json::to_value(&program.argv)?;
        let identity = Identity {
            protocol: "command".into(),
            address: program.argv[0].clone(),
            model: settings.model.clone().unwrap_or_else(|| program.name.clone()),
            parameters: serde_json::Map::from_iter([("argv".into(), argv)]),
        };
        let folder = run.join("agent");
        files::remove_tree(&folder).with_context(|| format!("cannot remove {}", folder.display()))?;
        let reports = run.join("sandbox");
        fs::create_dir_all(&reports).with_context(|| format!("cannot make {}", reports.display()))?;
        let report = reports.join("agent.json");
        let secrets = secrets(&program);
        Ok(Self { program, identity, root: root.to_owned(), start, folder, report, secrets })
    }

    /// Asks, and adds what that took to `usage` as soon as it is known.
    fn answer(&self, prompt: &Prompt, cancel: &Cancel, usage: &mut Usage) -> Result<Answer, EndpointError> {
        let broken = |error: anyhow::Error| self.failed(&format!("{error:#}"));
        let text = prompt.text();
        if let Some(secret) = self.secrets.iter().find(|secret| secret.occurs_in(&text)) {
            return Err(EndpointError::KeyInPrompt { origin: secret.origin().to_owned() });
        }
        let shown = prompt::shown_file(prompt, RECIPE);
        let at = (self.root.as_path(), self.start);
        let place = Place::make(&self.folder, at, shown.as_deref(), &text, &self.program.home).map_err(broken)?;
        let ended = self.run(&place, cancel).map_err(broken)?;
        let [stdout, stderr] = place.printed().map(|path| fs::read(path).unwrap_or_default());
        let said = output::read(self.program.output, &stdout);
        *usage = said.usage.unwrap_or_else(|| Usage {
            // What it read and said beside these, it does not tell.
            input: prompt.tokens(),
            output: estimated_tokens(&said.text),
            estimated: true,
            ..Usage::default()
        });
        let last = last_words(if stderr.trim_ascii().is_empty() { &stdout } else { &stderr });
        let failure = match ended {
            Ended::Cancelled => return Err(EndpointError::Cancelled),
            Ended::Stopped(reason) => return Err(self.failed(&reason)),
            Ended::Unconfined => return Err(self.failed(&format!("it could not be confined: {last}"))),
            Ended::Failed(how) => Some(said.failure.unwrap_or_else(|| format!("{how}: {last}"))),
            Ended::Well => said.failure,
        };
        let message = &said.text[said.text.ceil_char_boundary(said.text.len().saturating_sub(MESSAGE_BYTES))..];
        // Only where a file is shown, and something else than a lesson is wanted, is there one to change.
        let lesson = prompt.turns.last().is_some_and(|turn| turn.reply.ends_with(LESSON_REQUEST));
        let taken = if shown.is_some() && !lesson { place.take_back() } else { Taken::Unchanged };
        let mut text = match (taken, failure) {
            (Taken::Changed(source), _) => edit::in_place(message, &source, &rules(Format::InPlace)),
            (_, Some(reason)) => return Err(self.failed(&reason)),
            (Taken::Unchanged, None) => message.to_owned(),
            (Taken::Unusable(why), None) => format!("{message}\n\n{RECIPE} cannot be taken back: {why}\n"),
        };
        if !lesson {
            text.push_str(&not_taken(&place.others()));
        }
        if text.trim().is_empty() {
            return Err(EndpointError::Empty { cut_off: false });
        }
        Ok(Answer { text: self.redact(text), model: self.identity.model.clone(), cut_off: false })
    }

    /// Runs the program to its end.
    fn run(&self, place: &Place, cancel: &Cancel) -> Result<Ended> {
        let (task, confined) = self.task(place)?;
        // A runner of its own: another one may be busy with a training run.
        let interrupts = Interrupts::default();
        let runner = Runner::new(interrupts.clone())?;
        let finished = runner.run(&task, |_| {
            if cancel.is_cancelled() && interrupts.count() == 0 {
                interrupts.raise();
            }
        })?;
        tracing::debug!(?finished, enforced = ?confine::enforced(&confined), "a coding program ended");
        Ok(match finished.end {
            End::Interrupted => Ended::Cancelled,
            End::TimedOut => {
                let seconds = self.program.limit.as_secs_f64();
                Ended::Stopped(format!("stopped after {seconds} s (agent.command.seconds)"))
            }
            End::Overflowed => Ended::Stopped(format!("it wrote more than {} GiB", DISK_BYTES >> 30)),
            End::Exited(code) if confine::unconfined(code, Some(&confined)) => Ended::Unconfined,
            End::Exited(0) => Ended::Well,
            End::Exited(code) => Ended::Failed(format!("exit code {code}")),
            End::Killed(signal) => Ended::Failed(format!("killed by signal {signal}")),
        })
    }

    fn task(&self, place: &Place) -> Result<(Task, Confined)> {
        let path = find(&self.program.argv[0], &self.root)?;
        let prompt = place.prompt();
        let mut read = installed(&path);
        read.push(prompt.clone());
        read.extend(self.program.read.iter().cloned());
        let mut write = vec![place.work(), place.home(), place.temporary()];
        write.extend(self.program.write.iter().cloned());
        let watched = (place.folder().to_owned(), DISK_BYTES);
        let confined = confine::command(read, write, self.program.network, watched, self.report.clone())?;
        let [stdout, stderr] = place.printed();
        let mut task = Task::new(&path, &place.work(), stdout, self.program.limit, GRACE)
            .confined(Some(confined.clone()))
            .env("HOME", place.home())
            .env("TMPDIR", place.temporary());
        task.errors = Some(stderr);
        task.input = (self.program.prompt == PromptBy::Stdin).then(|| prompt.clone());
        for word in &self.program.argv[1..] {
            let word = word.replace(PROMPT_FILE, &prompt.to_string_lossy()).replace(MUTABLE_FILE, RECIPE);
            task = task.arg(word);
        }
        for (name, value) in ENVIRONMENT.iter().chain(self.program.set) {
            task = task.env(name, value);
        }
        for name in &self.program.variables {
            if let Some(value) = std::env::var_os(name) {
                task = task.env(name, value);
            }
        }
        Ok((task, confined))
    }

    fn failed(&self, reason: &str) -> EndpointError {
        EndpointError::Command { program: self.program.name.clone(), reason: self.redact(reason.to_owned()) }
    }
}

impl Endpoint for Command {
    fn ask(&mut self, prompt: &Prompt, cancel: &Cancel) -> Exchange {
        let begun = Instant::now();
        // Programs renew theirs.
        self.secrets = secrets(&self.program);
        let mut usage = Usage::default();
        let outcome = match cancel.is_cancelled() {
            true => Err(EndpointError::Cancelled),
            false => self.answer(prompt, cancel, &mut usage),
        };
        let attempts = u32::from(!matches!(outcome, Err(EndpointError::KeyInPrompt { .. })));
        Exchange { outcome, usage, attempts, latency: begun.elapsed() }
    }

    fn identity(&self) -> &Identity {
        &self.identity
    }

    fn redact(&self, text: String) -> String {
        self.secrets.iter().fold(text, |text, secret| secret.redact(text))
    }
}

/// The keys that a program gets: variables that are set, and what its files of credentials name so. What has spaces is no key.
fn secrets(program: &Program) -> Vec<Secret> {
    let variables = program.variables.iter().map(|name| Secret::read(&KeySource::Environment(name.clone())));
    let home = std::env::home_dir();
    let files = program.home.iter().flat_map(|path| home.as_ref().map(|home| Secret::in_json(&home.join(path))));
    variables.filter_map(Result::ok).chain(files.flatten()).collect()
}

/// The last line that says something, and what is before it, as one short line.
fn last_words(printed: &[u8]) -> String {
    let text = printable(printed);
    let words: Vec<&str> = text.split_whitespace().collect();
    let line = words.join(" ");
    line[line.ceil_char_boundary(line.len().saturating_sub(REASON))..].to_owned()
}

/// What is said of other files that were changed.
fn not_taken(others: &[PathBuf]) -> String {
    if others.is_empty() {
        return String::new();
    }
    let mut names: Vec<String> = others.iter().take(TOLD).map(|path| format!("{path:?}")).collect();
    if others.len() > TOLD {
        names.push(format!("{} more", others.len() - TOLD));
    }
    let names = names.join(", ");
    tracing::info!(%names, "a coding program changed other files, which are not taken back");
    format!("\n\nOther files that were changed are not taken back: {names}\n")
}

/// A program by its path, relative to the repository, or by its name in `PATH`.
fn find(program: &str, root: &Path) -> Result<PathBuf> {
    if program.contains('/') {
        let path = root.join(program);
        anyhow::ensure!(path.is_file(), "the program {} is missing", path.display());
        return Ok(path);
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut found = std::env::split_paths(&path).map(|folder| folder.join(program)).filter(|path| path.is_file());
    found.next().with_context(|| format!("there is no {program} in PATH; install it, or name it by its path"))
}

/// What a program needs to start: itself, where a link leads, the folder of programs that it is in (its interpreter is often
/// beside it), and the packages of npm and of a Python environment around it.
fn installed(program: &Path) -> Vec<PathBuf> {
    let target = program.canonicalize().unwrap_or_else(|_| program.to_owned());
    let mut read = vec![program.to_owned(), target.clone()];
    for path in [program, target.as_path()] {
        let folder = path.parent().filter(|folder| folder.ends_with("bin"));
        read.extend(folder.map(Path::to_owned));
        read.extend(
            folder.and_then(Path::parent).filter(|folder| folder.join("pyvenv.cfg").is_file()).map(Path::to_owned),
        );
        let packages = path.ancestors().filter(|folder| folder.ends_with("node_modules"));
        read.extend(packages.last().map(Path::to_owned));
    }
    read
}
