//! A language model as an agent: one conversation an experiment, in which it proposes an edit, is told what was wrong with
//! it, and at last what came of it. What it is asked is `prompt`'s; when, is `thread`'s; building and training are the
//! search's.
//!
//! It never stops a search: while its endpoint is away or a cap is reached, it has nothing to say.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
use formats::campaign::{Agent, AgentKind, AnswerFormat};
use git2::Oid;
use language_model::edit::{self, Edit, Format, Rules};
use language_model::{
    Budget, Cancel, Endpoint, EndpointError, HttpEndpoint, KeySource, LESSON_REQUEST, Limits, Mismatch, Prompt,
    Protocol, Recorder, Recording, Replay, Secret, Section, Settings, Spent, Turn, Usage, recordings,
};
use serde::{Deserialize, Serialize};

use super::command::{self, Command};
use crate::knobs::LARGEST_RECIPE;
use crate::layout::RECIPE;

/// Most characters of a model's name in rows.
const LONGEST_NAME: usize = 32;

/// What a proposal took of a language model.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Cost {
    /// Requests, repeated ones included.
    pub calls: u64,
    /// Tokens of prompts and answers.
    pub usage: Usage,
    /// What they cost, where prices are known.
    pub dollars: Option<f64>,
    /// Seconds of waiting for answers.
    pub seconds: f64,
}

impl Cost {
    /// Adds another.
    pub fn add(&mut self, other: &Self) {
        self.calls += other.calls;
        self.usage += other.usage;
        self.seconds += other.seconds;
        if let Some(dollars) = other.dollars {
            *self.dollars.get_or_insert(0.0) += dollars;
        }
    }
}

/// What came of asking.
#[derive(Debug)]
pub enum AskOutcome<T> {
    /// An edit that was accepted, and the conversation that led to it.
    Edit(T, Conversation),
    /// None, and why.
    None(String),
    /// The user ended it.
    Interrupted,
}

/// A language model that is asked for recipes.
pub struct Model {
    endpoint: Box<dyn Endpoint>,
    name: String,
    budget: Budget,
    outage: language_model::Outage,
    cancel: Cancel,
    format: Format,
    output_tokens: u64,
    repairs: u32,
    cost: Cost,
}

/// About one experiment, with the last answer, which has no reply yet.
#[derive(Debug)]
pub struct Conversation {
    prompt: Prompt,
    answer: String,
    repairs_left: u32,
}

impl Conversation {
    /// Whether the model may be told once more what was wrong.
    pub fn can_be_repaired(&self) -> bool {
        self.repairs_left > 0
    }
}

impl Model {
    /// Makes ready what the campaign names. Exchanges are recorded in `folder`, which lies in the search's own; what earlier
    /// ones there cost counts. A program works with the files of commit `start`.
    ///
    /// # Errors
    /// Without a key, with settings that cannot work, or with recordings that cannot be read.
    pub fn open(settings: &Agent, root: &Path, folder: &Path, start: Oid, cancel: Cancel) -> Result<Self> {
        let endpoint: Box<dyn Endpoint> = match settings.kind {
            AgentKind::Replay => {
                let recorded = root.join(settings.replay.as_deref().context("agent.replay is missing")?);
                Box::new(Replay::open(&recorded, Mismatch::Allow)?)
            }
            AgentKind::Command => {
                let run = folder.parent().context("a folder of exchanges lies in another")?;
                Box::new(Recorder::new(Command::open(settings, root, run, start)?, folder)?)
            }
            _ => Box::new(Recorder::new(HttpEndpoint::new(http(settings)?)?, folder)?),
        };
        let mut budget = Budget::new(settings.caps, settings.prices, Spent::default())?;
        for path in recordings(folder)? {
            let exchange = Recording::read(&path)?.exchange;
            budget.charge(&exchange.usage, exchange.attempts);
        }
        let plain = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.') { c } else { '-' };
        let model = settings.model.clone().unwrap_or_else(|| endpoint.identity().model.clone());
        Ok(Self {
            name: model.chars().map(plain).take(LONGEST_NAME).collect(),
            endpoint,
            budget,
            outage: language_model::Outage::default(),
            cancel,
            format: format(settings),
            output_tokens: u64::from(settings.output_tokens),
            repairs: settings.repairs,
            cost: Cost::default(),
        })
    }

    /// The model's name, as it stands in rows.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What its edits may be.
    pub fn rules(&self) -> Rules<'static> {
        rules(self.format)
    }

    /// A small question, to see whether the endpoint answers: what it said, and what that took.
    ///
    /// # Errors
    /// With the endpoint's reason.
    pub fn check(&mut self) -> Result<(String, Cost), String> {
        let stable = vec![Section::new("A test", "Answer with the word ready and nothing else.")];
        match self.ask(&Prompt { stable, ..Prompt::default() }) {
            Ok((text, _)) => Ok((text, self.take_cost())),
            Err(AskError::Interrupted) => Err("interrupted".into()),
            Err(AskError::Because(reason)) => Err(reason),
        }
    }

    /// What was spent so far.
    pub fn spent(&self) -> &Spent {
        self.budget.spent()
    }

    /// What was spent since this was asked last: on the proposal that is being made.
    pub fn take_cost(&mut self) -> Cost {
        std::mem::take(&mut self.cost)
    }

    /// Asks for an edit of `current`. What `accept` refuses, or is no edit, is answered with the reason, as often as the
    /// campaign says.
    pub fn propose<T>(
        &mut self,
        prompt: Prompt,
        current: &str,
        accept: impl FnMut(&Edit) -> Result<T, String>,
    ) -> AskOutcome<T> {
        self.until_accepted(prompt, self.repairs, current, accept)
    }

    /// Tells what became of the last edit and asks for another one.
    pub fn repair<T>(
        &mut self,
        conversation: Conversation,
        complaint: &str,
        current: &str,
        accept: impl FnMut(&Edit) -> Result<T, String>,
    ) -> AskOutcome<T> {
        let Conversation { mut prompt, answer, repairs_left } = conversation;
        let Some(left) = repairs_left.checked_sub(1) else { return AskOutcome::None("no repair is left".into()) };
        prompt.turns.push(Turn { answer, reply: complaint.to_owned() });
        self.until_accepted(prompt, left, current, accept)
    }

    fn until_accepted<T>(
        &mut self,
        mut prompt: Prompt,
        mut repairs_left: u32,
        current: &str,
        mut accept: impl FnMut(&Edit) -> Result<T, String>,
    ) -> AskOutcome<T> {
        loop {
            let (text, cut_off) = match self.ask(&prompt) {
                Ok(answer) => answer,
                Err(AskError::Interrupted) => return AskOutcome::Interrupted,
                Err(AskError::Because(reason)) => return AskOutcome::None(reason),
            };
            let read = edit::read(&text, cut_off, current, &self.rules()).map_err(|refusal| refusal.to_string());
            let reply = match read.and_then(|edit| accept(&edit)) {
                Ok(accepted) => {
                    return AskOutcome::Edit(accepted, Conversation { prompt, answer: text, repairs_left });
                }
                Err(reply) => reply,
            };
            tracing::info!(%reply, "the model's answer is refused");
            let Some(left) = repairs_left.checked_sub(1) else {
                return AskOutcome::None(format!("no answer was an edit; the last was refused: {reply}"));
            };
            repairs_left = left;
            prompt.turns.push(Turn { answer: text, reply });
        }
    }

    /// Tells what came of the experiment, and asks for what it teaches.
    pub fn learn(&mut self, conversation: Conversation, result: &str) -> Option<String> {
        let Conversation { mut prompt, answer, .. } = conversation;
        prompt.turns.push(Turn { answer, reply: format!("{result}\n\n{LESSON_REQUEST}") });
        self.ask(&prompt).ok().map(|(text, _)| text)
    }

    /// One question. What comes back with the text is whether it was cut off.
    fn ask(&mut self, prompt: &Prompt) -> Result<(String, bool), AskError> {
        if let Some(left) = self.outage.left(Instant::now()) {
            let reason = format!("{} does not answer; it is asked again in {} s", self.name, left.as_secs());
            return Err(AskError::Because(reason));
        }
        let next = Usage { input: prompt.tokens(), output: self.output_tokens, ..Usage::default() };
        self.budget.admit(&next).map_err(|cap| AskError::Because(cap.to_string()))?;
        let exchange = self.endpoint.ask(prompt, &self.cancel);
        let dollars = self.budget.charge(&exchange.usage, exchange.attempts);
        self.outage.note(&exchange, Instant::now());
        self.cost.calls += u64::from(exchange.attempts);
        self.cost.usage += exchange.usage;
        self.cost.seconds += exchange.latency.as_secs_f64();
        if let Some(dollars) = dollars {
            *self.cost.dollars.get_or_insert(0.0) += dollars;
        }
        match exchange.outcome {
            Ok(answer) => Ok((answer.text, answer.cut_off)),
            Err(EndpointError::Cancelled) => Err(AskError::Interrupted),
            Err(error) => Err(AskError::Because(error.to_string())),
        }
    }
}

/// Why there is no answer.
enum AskError {
    Interrupted,
    Because(String),
}

/// How a campaign's model is asked to answer.
pub fn format(settings: &Agent) -> Format {
    match settings.answer_format() {
        AnswerFormat::Blocks => Format::Blocks,
        AnswerFormat::WholeFile => Format::WholeFile,
        AnswerFormat::InPlace => Format::InPlace,
    }
}

/// What an edit may be, in a form of answers.
pub fn rules(format: Format) -> Rules<'static> {
    Rules { path: RECIPE, most_bytes: LARGEST_RECIPE, format }
}

fn http(settings: &Agent) -> Result<Settings> {
    let protocol = match settings.kind {
        AgentKind::Anthropic => Protocol::Anthropic,
        _ => Protocol::OpenAi,
    };
    let key = match key_source(settings) {
        Some(source) => Some(Secret::read(&source)?),
        None => None,
    };
    let parameters = serde_json::to_value(&settings.parameters).context("agent.parameters")?;
    Ok(Settings {
        protocol,
        base_url: settings.base_url.clone().unwrap_or_else(|| protocol.default_base_url().into()),
        model: settings.model.clone().context("agent.model is missing")?,
        key,
        max_output_tokens: settings.output_tokens,
        parameters: parameters.as_object().cloned().unwrap_or_default(),
        limits: Limits::default(),
    })
}

fn key_source(settings: &Agent) -> Option<KeySource> {
    match (&settings.key_file, &settings.key_variable) {
        (Some(file), _) => Some(KeySource::File(file.clone())),
        (None, Some(variable)) if variable.is_empty() => None,
        (None, Some(variable)) => Some(KeySource::Environment(variable.clone())),
        (None, None) => Some(KeySource::Environment(default_variable(settings.kind).into())),
    }
}

fn default_variable(kind: AgentKind) -> &'static str {
    match kind {
        AgentKind::Anthropic => Protocol::Anthropic.default_variable(),
        _ => Protocol::OpenAi.default_variable(),
    }
}

/// The variables of this process that hold keys, for those who start other programs.
pub fn key_variables(settings: &Agent) -> Vec<String> {
    match settings.kind {
        AgentKind::OpenAi | AgentKind::Anthropic => match key_source(settings) {
            Some(KeySource::Environment(variable)) => vec![variable],
            _ => Vec::new(),
        },
        AgentKind::Command => command::variables(settings),
        AgentKind::Tpe | AgentKind::Random | AgentKind::Replay | AgentKind::Mixed => Vec::new(),
    }
}
