//! Asks a language model: for the next recipe, for a better one when that fails before it trains, and for what a result
//! teaches.

use std::fs;

use anyhow::Result;
use campaign::AnswerFormat;
use git2::Oid;
use language_model::edit::{Edit, Format};
use language_model::quote;

use super::oid;
use super::train::REHEARSAL_LOG;
use crate::agent::model::Thought;
use crate::agent::prompt::{self, Knowledge};
use crate::agent::{self, Cost};
use crate::error::Failure;
use crate::knobs;
use crate::layout::Run;
use crate::ledger::{Abandoned, Event, Proposed, Row, Status};
use crate::search::Search;

/// Lines of the incumbent's training log in a prompt.
const LOG_LINES: usize = 12;
/// Most bytes of a compiler's or trainer's output in a prompt.
const OUTPUT_BYTES: usize = 6000;

/// A recipe that may be tried.
struct Accepted {
    edit: Edit,
    hash: String,
}

/// What came of asking for a recipe.
pub(super) enum Asked {
    /// It is in flight.
    InFlight,
    /// There is none; the built-in agent goes on.
    Nothing,
    /// The user ended it.
    Interrupted,
}

impl Search<'_> {
    /// Asks the language model, where there is one, for the next recipe.
    pub(super) fn think(&mut self, incumbent: &Row) -> Result<Asked, Failure> {
        let number = self.state.next();
        let every = self.campaign.agent.search_every;
        if every > 0 && number.is_multiple_of(every) {
            return Ok(Asked::Nothing);
        }
        let Some(mut model) = self.model.take() else { return Ok(Asked::Nothing) };
        let parent = oid(&incumbent.commit)?;
        let source = self.workspace.recipe(parent)?;
        let knowledge = self.question(incumbent, &source, model.rules(), &model.spent().dollars);
        let bar = self.printer.spinner(format!("#{number} thinking"));
        let thought = model.propose(knowledge?, &source, |edit| self.accept(edit));
        drop(bar);
        let cost = model.take_cost();
        let name = model.name().to_owned();
        self.model = Some(model);
        self.take_in(thought, parent, &name, cost)
    }

    /// Tells the model that its recipe does not build or fails at once, and takes another in its place. False where none comes.
    pub(super) fn repaired(&mut self, reason: &str) -> Result<bool, Failure> {
        let Some(flight) = self.state.flight.clone().filter(|flight| flight.built.is_none()) else { return Ok(false) };
        let Some(parent) = flight.proposed.parent.as_deref() else { return Ok(false) };
        let Some(mut model) = self.model.take() else { return Ok(false) };
        let (number, parent) = (flight.proposed.experiment, oid(parent)?);
        let source = self.workspace.recipe(parent)?;
        let folder = self.layout.folder(Run::Experiment(number));
        let (what, log) = match fs::read(folder.join(REHEARSAL_LOG)) {
            Ok(log) => ("fails in its first steps", log),
            Err(_) => ("does not build", fs::read(folder.join("build.log")).unwrap_or_default()),
        };
        let complaint = format!(
            "With your change the trainer {what}. Give the whole change again, corrected, against the file as it was \
             shown.\n{}",
            quote("Its output", &log, OUTPUT_BYTES)
        );
        let bar = self.printer.spinner(format!("#{number} thinking again"));
        let thought = model.repair(&complaint, &source, |edit| self.accept(edit));
        drop(bar);
        let mut cost = model.take_cost();
        let name = model.name().to_owned();
        self.model = Some(model);
        let Some(thought @ Thought::Edit(_)) = thought else { return Ok(false) };
        if let Some(before) = flight.proposed.cost {
            cost.add(&before);
        }
        let abandoned = Abandoned { experiment: number, reason: format!("repaired: {reason}"), again: false };
        self.write(Event::Abandoned(abandoned))?;
        Ok(matches!(self.take_in(thought, parent, &name, cost)?, Asked::InFlight))
    }

    /// Asks what the last experiment teaches, when a language model proposed it.
    pub(super) fn learn(&mut self) -> Result<(), Failure> {
        let Some(row) = self.state.rows.last().cloned() else { return Ok(()) };
        let Some(mut model) = self.model.take() else { return Ok(()) };
        let lesson = (row.agent == model.name()).then(|| {
            let _bar = self.printer.spinner(format!("#{} learning", row.experiment));
            model.learn(&prompt::result(&row, self.state.noise()))
        });
        self.model = Some(model);
        if let Some(answer) = lesson.flatten()
            && let Some(lesson) = agent::lesson(&self.state.lessons, row.experiment, &answer)
        {
            self.write(Event::Learnt { experiment: row.experiment, lesson })?;
        }
        Ok(())
    }

    /// Refuses what need not be built to be refused.
    fn accept(&self, edit: &Edit) -> Result<Accepted, String> {
        let hash = knobs::token_hash(&edit.source).map_err(|e| format!("The file is no valid Rust any more: {e}"))?;
        if let Some((number, _)) = self.state.proposals.iter().find(|(_, proposed)| proposed.recipe == hash) {
            return Err(format!("This recipe was tried before, as experiment {number}. Propose another one."));
        }
        Ok(Accepted { edit: edit.clone(), hash })
    }

    fn take_in(&mut self, thought: Thought<Accepted>, parent: Oid, name: &str, cost: Cost) -> Result<Asked, Failure> {
        let Accepted { edit, hash } = match thought {
            Thought::Edit(accepted) => accepted,
            Thought::Interrupted => return Ok(Asked::Interrupted),
            Thought::None(why) => {
                self.printer.line(&format!("     no proposal of {name}: {why}; the search goes on without it"));
                return Ok(Asked::Nothing);
            }
        };
        let number = self.state.next();
        let message = format!("experiment {number}: {}\n\nExpected: {}\n", edit.hypothesis, edit.expected);
        let commit = self.workspace.commit(parent, &edit.source, name, &message)?;
        self.put_in_flight(Proposed {
            experiment: number,
            commit: commit.to_string(),
            parent: Some(parent.to_string()),
            agent: name.into(),
            description: edit.hypothesis,
            // Without readable knobs the optimizer learns nothing of it, and that is all.
            knobs: knobs::parse(&edit.source, self.knobs_constant()).map(|space| space.values()).unwrap_or_default(),
            recipe: hash,
            seed: self.seed,
            expected: Some(edit.expected).filter(|expected| !expected.is_empty()),
            cost: Some(cost),
        })?;
        Ok(Asked::InFlight)
    }

    /// What would be asked next.
    pub fn next_question(&self) -> Result<String, Failure> {
        let Some(incumbent) = self.state.incumbent() else {
            let hint = "`orchestrator run --experiments 1` measures it".into();
            return Err(Failure::Recipe { message: "this search has no baseline yet".into(), hint });
        };
        let recipe = self.workspace.recipe(oid(&incumbent.commit)?)?;
        let format = match self.campaign.agent.format {
            AnswerFormat::Blocks => Format::Blocks,
            AnswerFormat::WholeFile => Format::WholeFile,
        };
        Ok(self.question(incumbent, &recipe, agent::model::rules(format), &0.0)?.text())
    }

    fn question(
        &self,
        incumbent: &Row,
        recipe: &str,
        rules: language_model::edit::Rules,
        dollars: &f64,
    ) -> Result<language_model::Prompt> {
        let folder = self.worktree.folder();
        self.worktree.show(oid(&incumbent.commit)?)?;
        let program = fs::read_to_string(folder.join("program.md")).unwrap_or_default();
        let outline = agent::outline(folder).unwrap_or_else(|e| {
            tracing::warn!(error = %format!("{e:#}"), "the prompt has no outline of what a recipe may call");
            String::new()
        });
        let log = fs::read_to_string(self.layout.out(Run::Experiment(incumbent.experiment)).join("train.tsv"));
        let diff = |row: &Row| {
            let ends = (row.parent.as_deref().map(oid), oid(&row.commit));
            match ends {
                (Some(Ok(from)), Ok(to)) => self.workspace.diff(from, to).unwrap_or_default(),
                _ => String::new(),
            }
        };
        let kept = self.state.rows.iter().filter(|row| row.status == Status::Keep).count();
        let left = format!(
            "This is experiment {}; {kept} were kept so far. ${dollars:.2} were spent on language models.",
            self.state.next()
        );
        Ok(prompt::prompt(
            &self.state,
            &Knowledge {
                program: &program,
                outline: &outline,
                rules,
                campaign: &toml::to_string(&self.campaign)?,
                history_tokens: self.campaign.agent.history_tokens,
                diffs: &diff,
                log: &prompt::thinned(&log.unwrap_or_default(), LOG_LINES),
                left: &left,
                recipe,
            },
        ))
    }
}
