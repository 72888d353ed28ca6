//! `[agent]`: who proposes.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::campaign::Command;

/// `[agent]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Agent {
    /// Which agent proposes.
    pub kind: AgentKind,
    /// Who proposes in turn with `tpe` (mixed); a parsed campaign has it in `kind`.
    #[serde(default)]
    pub with: Option<AgentKind>,
    /// Seed of the proposals.
    #[serde(default)]
    pub seed: u64,
    /// Random proposals before the optimizer models the results (search only).
    #[serde(default = "default_startup")]
    pub startup: usize,
    /// The model's name at its endpoint (openai, anthropic).
    #[serde(default)]
    pub model: Option<String>,
    /// Address of the endpoint with its version, `http://127.0.0.1:8080/v1`; the protocol's own when absent.
    #[serde(default)]
    pub base_url: Option<String>,
    /// Environment variable that holds the endpoint's key; the protocol's usual one when absent, `""` for no key.
    #[serde(default)]
    pub key_variable: Option<String>,
    /// File that holds the key instead; nobody but its owner may touch it.
    #[serde(default)]
    pub key_file: Option<PathBuf>,
    /// How the model is asked to answer; [`Agent::answer_format`] when absent.
    #[serde(default)]
    pub format: Option<AnswerFormat>,
    /// Most tokens of an answer, thinking included.
    #[serde(default = "default_output_tokens")]
    pub output_tokens: u32,
    /// Tokens of the prompt that the table of past experiments may take.
    #[serde(default = "default_history_tokens")]
    pub history_tokens: u64,
    /// Most tokens of a question about an experiment, by a rough count. Over them, less is shown of what a recipe may call,
    /// of past experiments, and at last of program.md.
    #[serde(default = "default_prompt_tokens")]
    pub prompt_tokens: u64,
    /// Times that a model is told what was wrong with an answer before the experiment goes on without it.
    #[serde(default = "default_repairs")]
    pub repairs: u32,
    /// Seconds that the device may wait for an answer before `search` proposes instead.
    #[serde(default)]
    pub wait_seconds: f64,
    /// Whether a proposal is compiled while another one trains; when absent, where the device is not the processor.
    #[serde(default)]
    pub build_ahead: Option<bool>,
    /// Of so many experiments, one is proposed by `search` instead; 0 is none, or [`MIXED_EVERY`] with `kind = "mixed"`.
    #[serde(default)]
    pub search_every: u64,
    /// Further fields of the request, such as `temperature`.
    #[serde(default)]
    pub parameters: toml::Table,
    /// Dollars per million tokens.
    #[serde(default)]
    pub prices: Option<Prices>,
    /// Spending limits of a search. Once one is reached, `tpe` proposes.
    #[serde(default)]
    pub caps: Caps,
    /// Folder of recorded exchanges (replay).
    #[serde(default)]
    pub replay: Option<PathBuf>,
    /// The program that is asked (command): `[agent.command]`.
    #[serde(default)]
    pub command: Option<Command>,
}

/// Every second experiment is the optimizer's where a mixed campaign does not say how many.
const MIXED_EVERY: u64 = 2;

impl Agent {
    /// Turns `kind = "mixed"` into the kind that it mixes with `tpe`, and a rule.
    pub(crate) fn unmix(&mut self) -> Result<(), String> {
        match (self.kind, self.with.take()) {
            (AgentKind::Mixed, Some(with)) if with.writes_code() && with != AgentKind::Mixed => {
                self.kind = with;
                if self.search_every == 0 {
                    self.search_every = MIXED_EVERY;
                }
                Ok(())
            }
            (AgentKind::Mixed, _) => Err("agent.kind is \"mixed\"; say with whom \"tpe\" takes turns: with = \
                                          \"openai\", \"anthropic\", \"command\" or \"replay\""
                .into()),
            (_, Some(_)) => Err("agent.with is of kind = \"mixed\" only; remove it".into()),
            (_, None) => Ok(()),
        }
    }

    /// How the model is asked to answer: programs change the file in place, endpoints give blocks, unless `format` says
    /// otherwise.
    pub fn answer_format(&self) -> AnswerFormat {
        self.format.unwrap_or(match self.kind {
            AgentKind::Command => AnswerFormat::InPlace,
            _ => AnswerFormat::Blocks,
        })
    }
}

/// How a language model is asked to answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AnswerFormat {
    /// SEARCH/REPLACE blocks.
    Blocks,
    /// The whole file, for models that cannot quote exactly.
    WholeFile,
    /// By a change of the file itself: programs, and replays of what they did.
    InPlace,
}

/// `[agent.prices]`: dollars per million tokens.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Prices {
    /// Of the prompt.
    pub input: f64,
    /// Of the prompt's cached part; as `input` when absent.
    #[serde(default)]
    pub cached_input: Option<f64>,
    /// Of what is put into the cache; as `input` when absent.
    #[serde(default)]
    pub cache_write: Option<f64>,
    /// Of the answer.
    pub output: f64,
}

/// `[agent.caps]`: what a search may spend on language models; no limit where absent.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Caps {
    /// Dollars; needs prices.
    #[serde(default)]
    pub dollars: Option<f64>,
    /// Tokens of prompts and answers together.
    #[serde(default)]
    pub tokens: Option<u64>,
    /// Requests, repeated ones included.
    #[serde(default)]
    pub calls: Option<u64>,
}

/// The agents that exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AgentKind {
    /// Tree-structured Parzen estimator over the annotated knobs.
    #[serde(alias = "search")]
    Tpe,
    /// Uniform samples of the annotated knobs: the control.
    Random,
    /// A language model behind an OpenAI-compatible chat endpoint.
    OpenAi,
    /// A language model behind Anthropic's Messages API.
    Anthropic,
    /// A coding program, started anew for each question.
    Command,
    /// The recorded exchanges of an earlier search.
    Replay,
    /// [`Agent::with`] and [`AgentKind::Tpe`] in turn.
    Mixed,
}

impl AgentKind {
    /// Its name in campaigns and rows.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tpe => "tpe",
            Self::Random => "random",
            Self::OpenAi => "openai",
            Self::Anthropic => "anthropic",
            Self::Command => "command",
            Self::Replay => "replay",
            Self::Mixed => "mixed",
        }
    }

    /// Whether it writes code, rather than turning knobs.
    pub fn writes_code(self) -> bool {
        !matches!(self, Self::Tpe | Self::Random)
    }
}

impl Default for Agent {
    fn default() -> Self {
        Self {
            kind: AgentKind::Tpe,
            with: None,
            seed: 0,
            startup: default_startup(),
            model: None,
            base_url: None,
            key_variable: None,
            key_file: None,
            format: None,
            output_tokens: default_output_tokens(),
            history_tokens: default_history_tokens(),
            prompt_tokens: default_prompt_tokens(),
            repairs: default_repairs(),
            wait_seconds: 0.0,
            build_ahead: None,
            search_every: 0,
            parameters: toml::Table::new(),
            prices: None,
            caps: Caps::default(),
            replay: None,
            command: None,
        }
    }
}

fn default_startup() -> usize {
    5
}

fn default_output_tokens() -> u32 {
    16_384
}

fn default_history_tokens() -> u64 {
    12_000
}

fn default_prompt_tokens() -> u64 {
    120_000
}

fn default_repairs() -> u32 {
    3
}
