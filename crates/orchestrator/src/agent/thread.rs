//! A language model that thinks on a thread of its own while the device trains: first about what the last results teach,
//! then about the next recipe, or how to repair one.
//!
//! It has one assignment at a time, owns all that the assignment needs, and hands it back with the answer. When that is
//! asked for, and what becomes of the answer, is the search's.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use language_model::edit::{Edit, Rules};
use language_model::{Prompt, Spent};
use serde::{Deserialize, Serialize};

use super::Cost;
use super::model::{AskOutcome, Conversation, Model};
use crate::failpoints;
use crate::knobs;
use crate::ledger::Built;
use crate::parsing;

/// A language model, here or at work.
pub struct AgentThread {
    name: String,
    rules: Rules<'static>,
    spent: Spent,
    state: AgentState,
}

enum AgentState {
    Idle(Box<Model>),
    Working {
        thread: JoinHandle<(Box<Model>, Answer)>,
        compiles: Arc<AtomicBool>,
    },
    /// Its thread is gone.
    Lost,
}

/// What to think about.
pub struct Assignment {
    /// Results to learn from.
    pub lessons: Vec<Lesson>,
    /// What is wanted besides.
    pub task: Task,
    /// The recipe that is shown, and that edits are applied to.
    pub recipe: String,
    /// Its commit.
    pub commit: String,
    /// Recipes that were tried, with their experiments.
    pub tried: BTreeMap<String, u64>,
    /// Compiles what was proposed, where that disturbs nothing.
    pub compile: Option<Compile>,
}

/// From an edit to a trainer, in the folder of [`Run::Ahead`](crate::layout::Run::Ahead).
pub type Compile = Box<dyn FnMut(&Edit) -> Compiled + Send>;
/// The first question, once it is known what was learnt; or why there is none.
pub type Question = Box<dyn FnOnce(&[(u64, String)]) -> Result<Prompt, String> + Send>;

/// What came of compiling.
pub enum Compiled {
    /// A trainer.
    Built(Built),
    /// The compiler complains, in words for the model.
    Fails(String),
    /// It could not be tried; it will be when its turn comes.
    NotNow,
}

/// An experiment that is over.
pub struct Lesson {
    /// Its number.
    pub experiment: u64,
    /// How it came about.
    pub conversation: Conversation,
    /// What came of it, in words.
    pub result: String,
}

/// What is wanted of a model.
pub enum Task {
    /// No recipe.
    Nothing,
    /// A new recipe.
    Propose(Question),
    /// Another one in place of one that failed before it trained.
    Repair(Box<Repair>),
}

/// A recipe that failed before it trained.
pub struct Repair {
    /// How it came about.
    pub conversation: Conversation,
    /// What went wrong, in words.
    pub complaint: String,
    /// Commit whose recipe was shown.
    pub shown: String,
    /// What it took so far.
    pub cost: Cost,
}

/// What a model comes back with.
pub struct Answer {
    /// What it says that results teach, by experiment.
    pub lessons: Vec<(u64, String)>,
    /// Of the task.
    pub outcome: Outcome,
    /// What all of it took.
    pub cost: Cost,
}

/// What came of a task.
pub enum Outcome {
    /// Nothing was wanted, or the user ended it.
    Nothing,
    /// A recipe.
    Draft(Box<Draft>),
    /// None, and why.
    None(String),
}

/// A recipe that waits for its turn.
#[derive(Debug, Serialize, Deserialize)]
pub struct Draft {
    /// Commit whose recipe the model was shown.
    pub shown: String,
    /// Commit that the recipe changes: the incumbent, when it is tried.
    pub parent: String,
    /// The recipe.
    pub source: String,
    /// Hash of its tokens.
    pub hash: String,
    /// What the model thinks.
    pub hypothesis: String,
    /// What it expects to see.
    pub expected: String,
    /// What it took.
    pub cost: Cost,
    /// How it came about; not after a restart.
    #[serde(skip)]
    pub conversation: Option<Conversation>,
    /// Set where it is compiled.
    #[serde(skip)]
    pub built: Option<Built>,
}

impl AgentThread {
    /// A model that has nothing to do yet.
    pub fn new(model: Model) -> Self {
        Self {
            name: model.name().to_owned(),
            rules: model.rules(),
            spent: *model.spent(),
            state: AgentState::Idle(Box::new(model)),
        }
    }

    /// The model's name, as it stands in rows.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What its edits may be.
    pub fn rules(&self) -> Rules<'static> {
        self.rules
    }

    /// What was spent until it last came back.
    pub fn spent(&self) -> &Spent {
        &self.spent
    }

    /// Whether it can be given something.
    pub fn is_idle(&self) -> bool {
        matches!(self.state, AgentState::Idle(_))
    }

    /// Whether it can never be given anything again.
    pub fn is_lost(&self) -> bool {
        matches!(self.state, AgentState::Lost)
    }

    /// Whether it has something to do.
    pub fn works(&self) -> bool {
        matches!(self.state, AgentState::Working { .. })
    }

    /// Whether a compiler works for it.
    pub fn compiles(&self) -> bool {
        matches!(&self.state, AgentState::Working { compiles, .. } if compiles.load(Ordering::Relaxed))
    }

    /// Sets an idle one to work; one that is not stays with what it does.
    pub fn assign(&mut self, assignment: Assignment) {
        match std::mem::replace(&mut self.state, AgentState::Lost) {
            AgentState::Idle(mut model) => {
                let compiles = Arc::new(AtomicBool::new(false));
                let flag = Arc::clone(&compiles);
                let thread = thread::spawn(move || {
                    let answer = survived(&mut model, assignment, &flag);
                    (model, answer)
                });
                self.state = AgentState::Working { thread, compiles };
            }
            other => self.state = other,
        }
    }

    /// What it came back with, if it did since this was asked last.
    pub fn answer(&mut self) -> Option<Answer> {
        match &self.state {
            AgentState::Working { thread, .. } if thread.is_finished() => {}
            _ => return None,
        }
        let AgentState::Working { thread, .. } = std::mem::replace(&mut self.state, AgentState::Lost) else {
            return None;
        };
        let Ok((model, answer)) = thread.join() else {
            let outcome = Outcome::None("its thread is gone, and it is given up".into());
            return Some(Answer { lessons: Vec::new(), outcome, cost: Cost::default() });
        };
        self.spent = *model.spent();
        self.state = AgentState::Idle(model);
        Some(answer)
    }
}

/// Does the work; a panic is an answer without a proposal, with the cost so far, and the model stays.
fn survived(model: &mut Model, assignment: Assignment, compiles: &AtomicBool) -> Answer {
    let before = match &assignment.task {
        Task::Repair(repair) => repair.cost,
        Task::Nothing | Task::Propose(_) => Cost::default(),
    };
    let mut lessons = Vec::new();
    let worked = parsing::contained(|| work(model, assignment, compiles, &mut lessons));
    let (outcome, cost) = worked.unwrap_or_else(|message| {
        compiles.store(false, Ordering::Relaxed);
        let mut cost = model.take_cost();
        cost.add(&before);
        let outcome = Outcome::None(format!("a fault of ours, please report it: {message}"));
        (outcome, cost)
    });
    Answer { lessons, outcome, cost }
}

/// What came of it, and the cost; what was learnt first goes to `learnt`.
fn work(
    model: &mut Model,
    assignment: Assignment,
    compiles: &AtomicBool,
    learnt: &mut Vec<(u64, String)>,
) -> (Outcome, Cost) {
    let Assignment { lessons, task, recipe, commit, tried, mut compile } = assignment;
    for lesson in lessons {
        let text = model.learn(lesson.conversation, &lesson.result);
        learnt.extend(text.map(|text| (lesson.experiment, text)));
    }
    let accept = |edit: &Edit| accept(edit, &tried);
    failpoints::may_panic("thinking");
    let mut before = Cost::default();
    let (mut thought, shown) = match task {
        Task::Nothing => return (Outcome::Nothing, model.take_cost()),
        Task::Propose(question) => match question(learnt) {
            Ok(question) => (model.propose(question, &recipe, accept), commit),
            Err(why) => (AskOutcome::None(why), commit),
        },
        Task::Repair(repair) => {
            before = repair.cost;
            (model.repair(repair.conversation, &repair.complaint, &recipe, accept), repair.shown)
        }
    };
    let outcome = loop {
        let (edit, hash, conversation) = match thought {
            AskOutcome::Edit((edit, hash), conversation) => (edit, hash, conversation),
            AskOutcome::None(why) => break Outcome::None(why),
            AskOutcome::Interrupted => break Outcome::Nothing,
        };
        compiles.store(compile.is_some(), Ordering::Relaxed);
        let compiled = compile.as_mut().map_or(Compiled::NotNow, |compile| compile(&edit));
        compiles.store(false, Ordering::Relaxed);
        let built = match compiled {
            Compiled::Built(built) => Some(built),
            Compiled::NotNow => None,
            Compiled::Fails(complaint) => {
                thought = model.repair(conversation, &complaint, &recipe, accept);
                continue;
            }
        };
        break Outcome::Draft(Box::new(Draft {
            parent: shown.clone(),
            shown,
            source: edit.source,
            hash,
            hypothesis: edit.hypothesis,
            expected: edit.expected,
            cost: Cost::default(),
            conversation: Some(conversation),
            built,
        }));
    };
    let mut cost = model.take_cost();
    cost.add(&before);
    (outcome, cost)
}

/// Refuses what need not be built to be refused; otherwise the hash of its tokens.
fn accept(edit: &Edit, tried: &BTreeMap<String, u64>) -> Result<(Edit, String), String> {
    let hash = knobs::token_hash(&edit.source)
        .map_err(|e| format!("The file is no valid Rust any more, or cannot be read: {e}"))?;
    if let Some(number) = tried.get(&hash) {
        return Err(format!("This recipe was tried before, as experiment {number}. Propose another one."));
    }
    Ok((edit.clone(), hash))
}
