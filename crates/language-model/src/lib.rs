//! Talks to language models and reads what they answer.
//!
//! A caller builds a [`Prompt`], asks an [`Endpoint`] (over HTTP, or a replay of what was recorded), pays from a
//! [`Budget`], and turns the answer into an edited file ([`edit`]). Every text that comes from elsewhere is data: it is
//! limited in size, made printable where it is shown, and quoted where it is sent on ([`quote()`]). Parts of a prompt that
//! need nothing but their input are here too: the table of past experiments ([`history`]), and the lessons.
//!
//! ```no_run
//! use language_model::{
//!     Budget, Cancel, Caps, Endpoint, HttpEndpoint, KeySource, Limits, Prompt, Protocol, Recorder, Secret, Section,
//!     Settings, Spent, Turn, Usage, edit,
//! };
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let protocol = Protocol::Anthropic;
//! let endpoint = HttpEndpoint::new(Settings {
//!     protocol,
//!     base_url: protocol.default_base_url().into(),
//!     model: "a-model".into(),
//!     key: Some(Secret::read(&KeySource::Environment(protocol.default_variable().into()))?),
//!     max_output_tokens: 8192,
//!     parameters: Default::default(),
//!     limits: Limits::default(),
//! })?;
//! let mut endpoint = Recorder::new(endpoint, "exchanges".as_ref())?;
//! let mut budget = Budget::new(Caps { calls: Some(100), ..Caps::default() }, None, Spent::default())?;
//!
//! let (path, current) = ("src/train.rs", std::fs::read_to_string("src/train.rs")?);
//! let rules = edit::Rules { path, most_bytes: 65_536, format: edit::Format::Blocks };
//! let mut prompt = Prompt {
//!     stable: vec![Section::new("How to answer", edit::instructions(&rules))],
//!     changing: vec![Section::new("The file", current.as_str())],
//!     turns: Vec::new(),
//! };
//! budget.admit(&Usage { input: prompt.tokens(), output: 8192, ..Usage::default() })?;
//! // Cancel it from another thread; here nobody does.
//! let exchange = endpoint.ask(&prompt, &Cancel::default());
//! budget.charge(&exchange.usage, exchange.attempts);
//! let answer = exchange.outcome?;
//! match edit::read(&answer.text, answer.cut_off, &current, &rules) {
//!     Ok(edit) => std::fs::write(path, edit.source)?,
//!     // Asked again, the model sees what was wrong.
//!     Err(refusal) => prompt.turns.push(Turn { answer: answer.text, reply: refusal.to_string() }),
//! }
//! # Ok(())
//! # }
//! ```
//!
//! What this crate does not do: it builds and runs nothing, knows of a campaign only prices and caps, and no git, writes no file but recordings,
//! and starts no coding program.

#![forbid(unsafe_code)]

mod cancel;
mod cost;
pub mod edit;
mod endpoint;
pub mod history;
mod key;
mod lessons;
mod outage;
mod prompt;
mod quote;
mod record;
mod text;

pub use cancel::Cancel;
pub use cost::{Budget, BudgetError, CapReached, Caps, Prices, Spent, Usage};
pub use endpoint::{
    Answer, Endpoint, EndpointError, Exchange, HttpEndpoint, Identity, Limits, Protocol, Settings, SettingsError,
};
pub use key::{KeyError, KeySource, Secret};
pub use lessons::{LESSON_REQUEST, Lesson, Lessons};
pub use outage::Outage;
pub use prompt::{Prompt, Section, Turn, estimated_tokens};
pub use quote::{QUOTING_NOTE, printable, quote};
pub use record::{Mismatch, RecordError, Recorder, Recording, Replay, recordings};
pub use text::{cell, is_deceptive, one_line};
