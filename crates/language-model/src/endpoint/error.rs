//! Why there is no answer, and what to do about it.
//!
//! Errors are recorded and replayed, so they hold plain data. What they quote of a server is short, printable and
//! without the key.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Why a question has no answer. The message says what to do next.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EndpointError {
    /// The caller's [`Cancel`](crate::Cancel).
    #[error("the request was cancelled")]
    Cancelled,
    /// The prompt holds the endpoint's own key.
    #[error(
        "the prompt holds the key from {origin}, so it was not sent; find out how the key came into a log or a file"
    )]
    KeyInPrompt {
        /// Where the key is kept.
        origin: String,
    },
    /// No connection.
    #[error("{address} cannot be reached ({reason}); is the server up, and base_url right?")]
    Unreachable {
        /// Where to.
        address: String,
        /// The network's reason.
        reason: String,
    },
    /// Nothing came for too long.
    #[error("the endpoint sent nothing for {:.1} s; raise the idle limit if the model thinks that long", .limit.as_secs_f64())]
    Idle {
        /// The limit that was reached.
        limit: Duration,
    },
    /// It took too long in all.
    #[error("no answer within {:.1} s, {attempts} attempts included; raise the total limit, or ask for less", .limit.as_secs_f64())]
    TotalTime {
        /// The limit that was reached.
        limit: Duration,
        /// Requests that were made.
        attempts: u32,
    },
    /// The key is wrong, or there is none.
    #[error(
        "the endpoint refuses {key} (status {status}: {message}); check that it is this endpoint's and still valid"
    )]
    Unauthorized {
        /// HTTP status.
        status: u16,
        /// `a request without a key`, or which key.
        key: String,
        /// The server's reason.
        message: String,
    },
    /// The account is empty.
    #[error("the account has no credit left ({message}); top it up, or name another endpoint")]
    OutOfCredit {
        /// The server's reason.
        message: String,
    },
    /// Too many requests.
    #[error("the endpoint limits the rate of requests ({message}); ask again {}", after(.retry_after))]
    RateLimited {
        /// When to ask again, from the answer's arrival on.
        retry_after: Option<Duration>,
        /// The server's reason.
        message: String,
    },
    /// The server's own fault.
    #[error("the endpoint fails (status {status}: {message}); ask again {}", after(.retry_after))]
    Server {
        /// HTTP status, or what stands for it in the middle of a stream.
        status: u16,
        /// When to ask again, from the answer's arrival on.
        retry_after: Option<Duration>,
        /// The server's reason.
        message: String,
    },
    /// The request is not what this endpoint takes.
    #[error("the endpoint refuses the request (status {status}: {message}); check base_url, model and parameters")]
    Rejected {
        /// HTTP status.
        status: u16,
        /// The server's reason.
        message: String,
    },
    /// Success, but no stream of events.
    #[error(
        "the endpoint answers with {content_type} instead of a stream of events (`{excerpt}`); is base_url the API's address?"
    )]
    NotAStream {
        /// What it sent.
        content_type: String,
        /// How it begins.
        excerpt: String,
    },
    /// The stream ended early or holds what cannot be read.
    #[error("the answer broke off: {reason}; ask again")]
    Broken {
        /// What was wrong with it.
        reason: String,
    },
    /// More than an answer may be.
    #[error("the answer has more than {limit} bytes, so it was cut off; ask for less, or raise the limit")]
    TooLong {
        /// The limit that was passed.
        limit: usize,
    },
    /// No text.
    #[error("the answer is empty{}", if *.cut_off { ": the model used up its tokens before it said anything; raise max_output_tokens" } else { "; ask again, or name another model" })]
    Empty {
        /// Whether the most tokens were reached.
        cut_off: bool,
    },
    /// The model or its filter declines.
    #[error("the model declines to answer ({reason}); look at what the prompt asks and quotes")]
    Refused {
        /// The reason given.
        reason: String,
    },
    /// The exchange could not be written down.
    #[error("the exchange could not be recorded in {folder}: {reason}; make room there")]
    NotRecorded {
        /// Where recordings go.
        folder: String,
        /// The system's reason.
        reason: String,
    },
    /// A program that is asked gave no answer.
    #[error("{program} gave no answer: {reason}; run it by hand to see why")]
    Command {
        /// Its name.
        program: String,
        /// What it said last, or why it was stopped.
        reason: String,
    },
    /// Another question than the one that was recorded.
    #[error(
        "the prompt differs from the one of recording {number} (sha256 {found:.12} instead of {recorded:.12}); replay against the code and campaign that were recorded, or allow it"
    )]
    ReplayDiffers {
        /// Number of the recording.
        number: u64,
        /// Hash of its prompt.
        recorded: String,
        /// Hash of this prompt.
        found: String,
    },
    /// Every recording was used, or the next one cannot be read.
    #[error("the replay cannot go on: {reason}")]
    ReplayOver {
        /// Why.
        reason: String,
    },
}

impl EndpointError {
    /// Whether the same request may succeed a little later, by itself.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable { .. }
            | Self::Idle { .. }
            | Self::TotalTime { .. }
            | Self::RateLimited { .. }
            | Self::Server { .. }
            | Self::Broken { .. }
            | Self::Command { .. } => true,
            Self::Cancelled
            | Self::KeyInPrompt { .. }
            | Self::Unauthorized { .. }
            | Self::OutOfCredit { .. }
            | Self::Rejected { .. }
            | Self::NotAStream { .. }
            | Self::TooLong { .. }
            | Self::Empty { .. }
            | Self::Refused { .. }
            | Self::NotRecorded { .. }
            | Self::ReplayDiffers { .. }
            | Self::ReplayOver { .. } => false,
        }
    }

    /// How long the endpoint asks to be left alone.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::RateLimited { retry_after, .. } | Self::Server { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
}

fn after(time: &Option<Duration>) -> String {
    time.map_or_else(|| "later".to_owned(), |time| format!("in {} s", time.as_secs()))
}
