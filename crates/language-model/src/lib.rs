//! Talks to language models and reads what they answer.
//!
//! A caller builds a [`Prompt`], asks an [`Endpoint`] (over HTTP, or a replay of what was recorded), pays from a
//! [`Budget`], and turns the answer into an edited file ([`edit`]). Every text that comes from elsewhere is data: it is
//! limited in size, made printable where it is shown, and quoted where it is sent on ([`quote`]).
//!
//! What this crate does not do: it builds and runs nothing, knows no campaign and no git, writes no file but recordings,
//! and starts no coding program.

#![forbid(unsafe_code)]

mod cancel;
mod cost;
pub mod edit;
mod endpoint;
pub mod history;
mod key;
mod lessons;
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
pub use prompt::{Prompt, Section, Turn, estimated_tokens};
pub use quote::{QUOTING_NOTE, printable, quote};
pub use record::{Mismatch, RecordError, Recorder, Recording, Replay, recordings};
