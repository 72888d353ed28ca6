//! When a language model is asked, and what becomes of its answers.
//!
//! It is asked while the device trains: what the last result teaches, then for the recipe that comes next, in the belief
//! that the one in training is not kept. If it is, the recipe is merged into it, or thrown away. What fails before it
//! trains goes back to the model. Where no recipe is ready in time, the built-in search proposes.

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use formats::campaign::AgentKind;
use formats::contract;
use language_model::edit::{Edit, Rules};
use language_model::{Spent, quote};

use super::build::BuildContext;
use super::train::REHEARSAL_LOG;
use super::{StepError, oid};
use crate::agent::model::Conversation;
use crate::agent::outline::Outline;
use crate::agent::prompt::{self, Knowledge, Left};
use crate::agent::thread::{AgentThread, Answer, Assignment, Compile, Compiled, Draft, Lesson, Outcome, Repair, Task};
use crate::agent::{self, Cost};
use crate::error::Failure;
use crate::files;
use crate::knobs;
use crate::layout::Run;
use crate::ledger::{Abandoned, Built, Event, Proposed, Row, Status, WastedRequest};
use crate::search::Search;
use crate::workspace::Workspace;

/// Most bytes of a compiler's or trainer's output in a prompt.
const OUTPUT_BYTES: usize = 6000;
/// How often a waiting search looks for an answer.
const LOOK: Duration = Duration::from_millis(20);

/// A language model, and what lies between it and the search.
pub struct Thinking {
    thread: AgentThread,
    /// The recipe that comes next.
    draft: Option<Draft>,
    /// How the experiment in flight came about.
    talk: Option<Talk>,
    /// Results that it has not seen.
    lessons: Vec<Lesson>,
    /// What goes back to it.
    repair: Option<Repair>,
}

struct Talk {
    experiment: u64,
    conversation: Conversation,
    shown: String,
}

impl Thinking {
    /// With the recipe that an earlier process left waiting.
    pub fn new(thread: AgentThread, left: Option<Draft>) -> Self {
        Self { thread, draft: left, talk: None, lessons: Vec::new(), repair: None }
    }
}

/// What came of asking for a recipe.
pub(super) enum Asked {
    /// It is in flight.
    InFlight,
    /// There is none after so many seconds of waiting; the built-in agent goes on.
    Nothing(f64),
    /// The user ended it.
    Interrupted,
}

impl Search<'_> {
    /// Has the language model think while something else takes its time.
    pub(super) fn think_ahead(&mut self) -> Result<(), Failure> {
        if self.thinking.is_some() {
            self.hear()?;
            self.renew_draft()?;
            self.ask(self.limits.experiments.is_none_or(|last| self.next_proposal() <= last))?;
        }
        Ok(())
    }

    /// Number of the experiment that the next proposal is for.
    fn next_proposal(&self) -> u64 {
        // The experiment that is in flight has the next number.
        self.state.next() + u64::from(self.state.in_flight.is_some())
    }

    /// The next recipe of the language model, if there is one in time.
    pub(super) fn think(&mut self) -> Result<Asked, Failure> {
        let (begun, every) = (Instant::now(), self.campaign.agent.search_every);
        if self.thinking.is_none() || (every > 0 && self.state.next().is_multiple_of(every)) {
            return Ok(Asked::Nothing(0.0));
        }
        // What was recorded is there at once, and always the same.
        let patience = match self.agent {
            AgentKind::Replay => Duration::MAX,
            _ => Duration::try_from_secs_f64(self.campaign.agent.wait_seconds).context("agent.wait_seconds")?,
        };
        let mut bar = None;
        let mut heard = false;
        loop {
            heard |= self.hear()?;
            self.renew_draft()?;
            let Some(thinking) = &self.thinking else { return Ok(Asked::Nothing(0.0)) };
            let waited = begun.elapsed();
            if self.runner.interrupted() {
                return Ok(Asked::Interrupted);
            }
            if thinking.draft.is_some() {
                return self.try_draft(waited.as_secs_f64());
            }
            // A compiler would be in the way of the next one's.
            let late = waited >= patience && !thinking.thread.compiles();
            if late && thinking.thread.works() {
                let name = thinking.thread.name().to_owned();
                self.printer.line(&format!("     {name} still thinks; the search goes on without it meanwhile"));
            }
            if late || thinking.thread.is_lost() || (thinking.thread.is_idle() && heard) {
                return Ok(Asked::Nothing(waited.as_secs_f64()));
            }
            if thinking.thread.is_idle() {
                heard = true;
                self.ask(true)?;
                continue;
            }
            bar.get_or_insert_with(|| self.printer.spinner(format!("#{} thinking", self.state.next()))).tick(waited);
            std::thread::sleep(LOOK);
        }
    }

    /// Puts the waiting recipe in flight.
    fn try_draft(&mut self, waited: f64) -> Result<Asked, Failure> {
        let number = self.state.next();
        let Some(thinking) = &mut self.thinking else { return Ok(Asked::Nothing(waited)) };
        let name = thinking.thread.name().to_owned();
        let Some(draft) = thinking.draft.take() else { return Ok(Asked::Nothing(waited)) };
        if self.state.tried().contains(&draft.hash) {
            self.waste(&name, "it was tried meanwhile", true, draft.cost)?;
            self.forget_draft();
            return Ok(Asked::Nothing(waited));
        }
        let message = format!("experiment {number}: {}\n\nExpected: {}\n", draft.hypothesis, draft.expected);
        let commit = self.workspace.commit(oid(&draft.parent)?, &draft.source, &name, &message)?;
        self.put_in_flight(Proposed {
            experiment: number,
            commit: commit.to_string(),
            parent: Some(draft.parent),
            agent: name,
            description: draft.hypothesis,
            // Without readable knobs the optimizer learns nothing of it, and that is all.
            knobs: knobs::parse(&draft.source, self.knobs_constant()).map(|space| space.values()).unwrap_or_default(),
            recipe: draft.hash,
            seed: self.seed,
            expected: Some(draft.expected).filter(|expected| !expected.is_empty()),
            cost: Some(draft.cost),
            waited: Some(waited),
        })?;
        self.built_ahead = draft.built.map(|built| Built { experiment: number, ..built });
        if let Some(thinking) = &mut self.thinking {
            let shown = draft.shown;
            thinking.talk = draft.conversation.map(|conversation| Talk { experiment: number, conversation, shown });
        }
        self.forget_draft();
        Ok(Asked::InFlight)
    }

    /// Puts a recipe that does not build or fails at once back to the model that wrote it, if it may be told once more.
    pub(super) fn hand_back(&mut self, reason: &str) -> Result<bool, Failure> {
        let Some(flight) = self.state.in_flight.clone().filter(|flight| flight.built.is_none()) else {
            return Ok(false);
        };
        let Proposed { experiment, cost, .. } = flight.proposed;
        let Some(thinking) = &mut self.thinking else { return Ok(false) };
        let Some(talk) = thinking.talk.take_if(|talk| talk.experiment == experiment) else { return Ok(false) };
        if !talk.conversation.can_be_repaired() {
            thinking.talk = Some(talk);
            return Ok(false);
        }
        let folder = self.layout.folder(Run::Experiment(experiment));
        let complaint = match fs::read(folder.join(REHEARSAL_LOG)) {
            Ok(log) => complaint("fails in its first steps", &log),
            Err(_) => complaint("does not build", &fs::read(folder.join("build.log")).unwrap_or_default()),
        };
        let Talk { conversation, shown, .. } = talk;
        thinking.repair = Some(Repair { conversation, complaint, shown, cost: cost.unwrap_or_default() });
        let name = thinking.thread.name().to_owned();
        self.printer.line(&format!("     {name} is told: {reason}"));
        self.write(Event::Abandoned(Abandoned { experiment, reason: format!("handed back: {reason}"), again: false }))?;
        Ok(true)
    }

    /// Notes that the last experiment has something to teach to the model that proposed it.
    pub(super) fn note_lesson(&mut self) {
        let Some(row) = self.state.rows.last() else { return };
        let result = prompt::result(row, self.state.noise());
        if let Some(thinking) = &mut self.thinking
            && let Some(talk) = thinking.talk.take_if(|talk| talk.experiment == row.experiment)
        {
            let (experiment, conversation) = (talk.experiment, talk.conversation);
            thinking.lessons.push(Lesson { experiment, conversation, result });
        }
    }

    /// Waits for the model's last answer, which Ctrl-C ends at once, and has it learn what is left to learn.
    ///
    /// # Errors
    /// When the journal cannot be written.
    pub fn stop_thinking(&mut self) -> Result<(), Failure> {
        let mut bar = None;
        for _ in 0..2 {
            self.hear()?;
            self.ask(false)?;
            while self.thinking.as_ref().is_some_and(|thinking| thinking.thread.works()) {
                bar.get_or_insert_with(|| self.printer.spinner("its last answer".into())).tick(LOOK);
                std::thread::sleep(LOOK);
                self.hear()?;
            }
        }
        if let Some(thinking) = &mut self.thinking
            && let Some(repair) = thinking.repair.take()
        {
            let name = thinking.thread.name().to_owned();
            self.waste(&name, "the search ended before it was repaired", false, repair.cost)?;
        }
        Ok(())
    }

    /// Takes in what the model came back with. True when it did.
    fn hear(&mut self) -> Result<bool, Failure> {
        let Some(thinking) = &mut self.thinking else { return Ok(false) };
        let name = thinking.thread.name().to_owned();
        let Some(Answer { lessons, outcome, cost }) = thinking.thread.answer() else { return Ok(false) };
        for (experiment, answer) in lessons {
            if let Some(lesson) = agent::lesson(&self.state.lessons, experiment, &answer) {
                self.write(Event::Learnt { experiment, lesson })?;
            }
        }
        match outcome {
            Outcome::Draft(draft) => self.keep_draft(Draft { cost, ..*draft })?,
            Outcome::None(why) => {
                self.printer.line(&format!("     no proposal of {name}: {why}; the search goes on without it"));
                self.waste(&name, &why, false, cost)?;
            }
            Outcome::Nothing if cost.calls > 0 => self.waste(&name, "lessons, or broken off", false, cost)?,
            Outcome::Nothing => {}
        }
        Ok(true)
    }

    /// Gives the model something to do, if it has nothing: what is to be learnt, and a recipe where one is wanted and none
    /// waits.
    fn ask(&mut self, wanted: bool) -> Result<(), Failure> {
        let Some(incumbent) = self.state.incumbent().cloned() else { return Ok(()) };
        let Some(mut thinking) = self.thinking.take() else { return Ok(()) };
        let asked = self.assignment(&mut thinking, wanted, &incumbent);
        if let Ok(Some(assignment)) = asked {
            thinking.thread.assign(assignment);
            self.thinking = Some(thinking);
            return Ok(());
        }
        self.thinking = Some(thinking);
        Ok(asked.map(|_| ())?)
    }

    fn assignment(&self, thinking: &mut Thinking, wanted: bool, incumbent: &Row) -> Result<Option<Assignment>> {
        let wanted = wanted && thinking.draft.is_none();
        if !thinking.thread.is_idle() || (!wanted && thinking.lessons.is_empty()) {
            return Ok(None);
        }
        let repair = thinking.repair.take_if(|_| wanted);
        let commit = repair.as_ref().map_or_else(|| incumbent.commit.clone(), |repair| repair.shown.clone());
        let recipe = self.workspace.recipe(oid(&commit)?)?;
        let task = match repair {
            Some(repair) => Task::Repair(Box::new(repair)),
            None if wanted => {
                let knowledge = self.knowledge(incumbent, &recipe, thinking.thread.rules(), thinking.thread.spent())?;
                let mut state = self.state.clone();
                Task::Propose(Box::new(move |lessons| {
                    for (experiment, answer) in lessons {
                        let lesson = agent::lesson(&state.lessons, *experiment, answer);
                        state.lessons.extend(lesson.map(|lesson| (*experiment, lesson)));
                    }
                    prompt::prompt(&state, &knowledge).map_err(|too_long| too_long.to_string())
                }))
            }
            None => Task::Nothing,
        };
        let tried = self.state.proposals.iter().map(|(number, proposed)| (proposed.recipe.clone(), *number)).collect();
        let lessons = std::mem::take(&mut thinking.lessons);
        let compile = self.builds_ahead().then(|| self.compile(commit.clone()));
        Ok(Some(Assignment { lessons, task, recipe, commit, tried, compile }))
    }

    /// What compiles a recipe in place of a commit's on the thread that calls it.
    fn compile(&self, commit: String) -> Compile {
        let (workshop, root, runner) = (self.workshop(), self.workspace.root().to_owned(), self.runner.another());
        let attempt = move |edit: &Edit| -> Result<Built, StepError> {
            let runner = runner.as_ref().map_err(|e| anyhow::anyhow!("{e:#}"))?;
            let workspace = Workspace::open(&root)?;
            let worktree = workspace.worktree(&workshop.layout.worktree())?;
            let folder = workshop.layout.folder(Run::Ahead);
            fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
            let parent = oid(&commit)?;
            let candidate = workspace.commit(parent, &edit.source, "ahead", "the next candidate\n")?;
            let tools = BuildContext { workspace: &workspace, worktree: &worktree, runner };
            workshop.build(&tools, Run::Ahead, candidate, Some(parent), |_| {})
        };
        let log = self.layout.folder(Run::Ahead).join("build.log");
        Box::new(move |edit| match attempt(edit) {
            Ok(built) => Compiled::Built(built),
            Err(StepError::Failed(Status::Crash, _)) => {
                Compiled::Fails(complaint("does not build", &fs::read(&log).unwrap_or_default()))
            }
            // When its turn comes the search finds out, and says it.
            Err(StepError::Failed(..) | StepError::Interrupted(_) | StepError::Cannot(_)) => Compiled::NotNow,
        })
    }

    /// Whether candidates are compiled while another one trains: where that takes nothing away from it.
    fn builds_ahead(&self) -> bool {
        let cpu = self.started.accelerator == "none" || self.on_processor();
        self.campaign.agent.build_ahead.unwrap_or(!cpu)
    }

    /// Puts the waiting recipe onto the incumbent, where that has changed; throws it away where both change the same lines.
    fn renew_draft(&mut self) -> Result<(), Failure> {
        let Some(incumbent) = self.state.incumbent().map(|row| row.commit.clone()) else { return Ok(()) };
        let Some(thinking) = &mut self.thinking else { return Ok(()) };
        let Some(mut draft) = thinking.draft.take_if(|draft| draft.parent != incumbent) else { return Ok(()) };
        let name = thinking.thread.name().to_owned();
        let onto = oid(&incumbent)?;
        let merged = self.workspace.reapply(&draft.source, oid(&draft.parent)?, onto)?;
        let hash = merged.as_deref().and_then(|source| knobs::token_hash(source).ok());
        match (merged, hash) {
            (Some(source), Some(hash)) if source != self.workspace.recipe(onto)? => {
                (draft.source, draft.hash, draft.parent, draft.built) = (source, hash, incumbent, None);
                self.keep_draft(draft)
            }
            _ => {
                self.forget_draft();
                let reason = "it does not fit the new incumbent";
                self.printer.line(&format!("     a proposal of {name} is thrown away: {reason}"));
                self.waste(&name, reason, true, draft.cost)
            }
        }
    }

    /// The recipe waits, in a file too: it may have been expensive.
    fn keep_draft(&mut self, draft: Draft) -> Result<(), Failure> {
        let path = self.layout.draft();
        let json = serde_json::to_vec(&draft).context("a draft as JSON")?;
        files::replace(&path, &json).with_context(|| format!("cannot write {}", path.display()))?;
        if let Some(thinking) = &mut self.thinking {
            thinking.draft = Some(draft);
        }
        Ok(())
    }

    fn forget_draft(&self) {
        super::remove(&self.layout.draft());
    }

    fn waste(&mut self, agent: &str, reason: &str, drafted: bool, cost: Cost) -> Result<(), Failure> {
        self.write(Event::WastedRequest(WastedRequest { agent: agent.into(), reason: reason.into(), drafted, cost }))
    }

    /// What would be asked next.
    pub fn next_question(&self) -> Result<String, Failure> {
        let Some(incumbent) = self.state.incumbent() else {
            let hint = "`orchestrator run --experiments 1` measures it".into();
            return Err(Failure::Recipe { message: "this search has no baseline yet".into(), hint });
        };
        let recipe = self.workspace.recipe(oid(&incumbent.commit)?)?;
        let rules = agent::model::rules(agent::model::format(&self.campaign.agent));
        let knowledge = self.knowledge(incumbent, &recipe, rules, &Spent::default())?;
        prompt::prompt(&self.state, &knowledge).map(|question| question.text()).map_err(|too_long| Failure::Campaign {
            message: too_long.to_string(),
            hint: "the search continues with the built-in agent; fix [agent] and start another search with --tag"
                .into(),
        })
    }

    fn knowledge(&self, incumbent: &Row, recipe: &str, rules: Rules<'static>, spent: &Spent) -> Result<Knowledge> {
        // All but the recipe is in every commit what it is in the worktree.
        let folder = self.worktree.folder();
        let program = files::read_text(&folder.join("program.md")).unwrap_or_default();
        let outline = agent::outline(folder).unwrap_or_else(|e| {
            tracing::warn!(error = %format!("{e:#}"), "the prompt has no outline of what a recipe may call");
            Outline::default()
        });
        let diff = |parent: Option<&str>, commit: &str| match (parent.map(oid), oid(commit)) {
            (Some(Ok(from)), Ok(to)) => self.workspace.diff(from, to).unwrap_or_default(),
            _ => String::new(),
        };
        let kept = self.state.rows.iter().filter(|row| row.status == Status::Keep);
        let diffs: BTreeMap<u64, String> =
            kept.map(|row| (row.experiment, diff(row.parent.as_deref(), &row.commit))).collect();
        let in_flight = self.state.in_flight.as_ref().map(|flight| {
            let Proposed { experiment, parent, commit, description, .. } = &flight.proposed;
            (*experiment, description.clone(), diff(parent.as_deref(), commit))
        });
        let agent = &self.campaign.agent;
        let left = Left {
            experiment: self.next_proposal(),
            kept: diffs.len(),
            experiments: self.limits.experiments,
            hours: self.limits.hours_left(),
            spent,
            caps: &agent.caps,
        };
        Ok(Knowledge {
            program,
            outline,
            rules,
            campaign: prompt::campaign(&self.campaign)?,
            prompt_tokens: agent.prompt_tokens,
            history_tokens: agent.history_tokens,
            diffs,
            log: prompt::log(&self.layout.out(Run::Experiment(incumbent.experiment)).join(contract::LOG)),
            left: left.to_string(),
            in_flight,
            recipe: recipe.to_owned(),
        })
    }
}

/// What is said to a model whose recipe fails before it trains.
fn complaint(what: &str, log: &[u8]) -> String {
    format!(
        "With your change the trainer {what}. Give the whole change again, corrected, against the file as it was shown.\n{}",
        quote("Its output", log, OUTPUT_BYTES)
    )
}
