//! Endpoints: something that answers a prompt.
//!
//! The interface blocks; a request is ended from another thread by its [`Cancel`]. Whether a request may be afforded is
//! asked of a [`Budget`](crate::Budget) by the caller, before.

mod anthropic;
mod error;
mod http;
mod openai;
mod partial;
mod retry;
mod settings;
mod status;

use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use error::EndpointError;
pub use http::HttpEndpoint;
pub use settings::{Limits, Protocol, Settings, SettingsError};

use crate::{Cancel, Prompt, Usage};

/// Something that answers prompts.
pub trait Endpoint: Send {
    /// Asks once, and waits for the end. Failures that pass by themselves have been retried when this returns.
    fn ask(&mut self, prompt: &Prompt, cancel: &Cancel) -> Exchange;

    /// Which model this is.
    fn identity(&self) -> &Identity;

    /// A text without the endpoint's key. What is written down goes through this.
    fn redact(&self, text: String) -> String {
        text
    }
}

impl<E: Endpoint + ?Sized> Endpoint for Box<E> {
    fn ask(&mut self, prompt: &Prompt, cancel: &Cancel) -> Exchange {
        (**self).ask(prompt, cancel)
    }

    fn identity(&self) -> &Identity {
        (**self).identity()
    }

    fn redact(&self, text: String) -> String {
        (**self).redact(text)
    }
}

/// What is asked, as far as it is no secret.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Identity {
    /// `openai`, `anthropic`, `command` or `replay`.
    pub protocol: String,
    /// Address that requests go to; a program for a command, a folder for a replay.
    pub address: String,
    /// The model's name, as asked for.
    pub model: String,
    /// Everything else that the request's body sets.
    #[serde(default)]
    pub parameters: serde_json::Map<String, serde_json::Value>,
}

/// One question and what came of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Exchange {
    /// The answer, or why there is none.
    pub outcome: Result<Answer, EndpointError>,
    /// Tokens of all attempts, of those too that gave no answer.
    pub usage: Usage,
    /// Requests that were made.
    pub attempts: u32,
    /// From the question to the end, waiting between attempts included.
    pub latency: Duration,
}

/// What a model said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// Its text, thinking left out where the endpoint keeps it apart; never blank.
    pub text: String,
    /// The model's name by the endpoint's own account.
    pub model: String,
    /// Whether it was cut off at the most tokens that an answer may have.
    pub cut_off: bool,
}
