//! Which endpoint is asked, for what model, within which limits.

use std::net::IpAddr;
use std::time::Duration;

use reqwest::Url;
use serde_json::{Map, Value};

use crate::Secret;

/// Fields of a request's body that are set here, and by nobody else.
const RESERVED: [&str; 6] = ["model", "messages", "system", "stream", "max_tokens", "max_completion_tokens"];

/// How an endpoint is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// Chat completions as OpenAI defined them: OpenRouter, vLLM, llama.cpp, Ollama, LM Studio and others.
    OpenAi,
    /// Anthropic's Messages API.
    Anthropic,
}

impl Protocol {
    /// Its name in campaigns and recordings.
    pub fn name(self) -> &'static str {
        match self {
            Self::OpenAi => "openai",
            Self::Anthropic => "anthropic",
        }
    }

    /// `base_url` where none is given.
    pub fn default_base_url(self) -> &'static str {
        match self {
            Self::OpenAi => "https://api.openai.com/v1",
            Self::Anthropic => "https://api.anthropic.com/v1",
        }
    }

    /// The variable that holds the key where none is named.
    pub fn default_variable(self) -> &'static str {
        match self {
            Self::OpenAi => "OPENAI_API_KEY",
            Self::Anthropic => "ANTHROPIC_API_KEY",
        }
    }

    /// What follows `base_url`.
    fn path(self) -> &'static str {
        match self {
            Self::OpenAi => "chat/completions",
            Self::Anthropic => "messages",
        }
    }
}

/// Time and size limits of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Longest wait for a connection.
    pub connect: Duration,
    /// Longest wait for the next byte; the first one comes when a local server has read the prompt.
    pub idle: Duration,
    /// Longest time of a question in all, with every attempt and the waits between them.
    pub total: Duration,
    /// Most bytes of an answer's text.
    pub answer_bytes: usize,
    /// Most bytes of a stream; each token comes in an envelope of a few hundred, and thinking is no part of the text.
    pub stream_bytes: usize,
    /// Most attempts after the first.
    pub retries: usize,
    /// Wait before the first retry; it doubles with each, and up to as much again is added by chance.
    pub first_wait: Duration,
    /// Longest such wait.
    pub longest_wait: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(30),
            idle: Duration::from_secs(300),
            total: Duration::from_secs(900),
            answer_bytes: 1 << 20,
            stream_bytes: 64 << 20,
            retries: 5,
            first_wait: Duration::from_secs(1),
            longest_wait: Duration::from_secs(60),
        }
    }
}

/// An endpoint over HTTP.
#[derive(Debug, Clone)]
pub struct Settings {
    /// How it is spoken to.
    pub protocol: Protocol,
    /// Address of the API with its version: `http://127.0.0.1:8080/v1`.
    pub base_url: String,
    /// The model's name there.
    pub model: String,
    /// The key, where one is wanted.
    pub key: Option<Secret>,
    /// Most tokens of an answer, thinking included.
    pub max_output_tokens: u32,
    /// Further fields of the request's body: `temperature`, `reasoning_effort`. A null leaves a field out, for servers
    /// that refuse what they do not know (`stream_options`).
    pub parameters: Map<String, Value>,
    /// Time and size limits.
    pub limits: Limits,
}

/// Settings that cannot work.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// `base_url` is no address of an API.
    #[error("base_url {url:?}: {reason}")]
    Url {
        /// As given.
        url: String,
        /// What is wrong and what is right.
        reason: String,
    },
    /// A parameter that is set elsewhere.
    #[error("the parameter {0:?} cannot be set: it has a setting of its own or belongs to the protocol")]
    Parameter(String),
    /// The HTTP client could not be set up.
    #[error(
        "the HTTP client cannot be set up: {0}; https needs the system's root certificates (package ca-certificates)"
    )]
    Client(String),
}

impl Settings {
    /// Where requests go.
    ///
    /// # Errors
    /// When `base_url` is malformed, or a key would travel where others can read it.
    pub(super) fn address(&self) -> Result<Url, SettingsError> {
        let fail = |reason: &str| Err(SettingsError::Url { url: self.base_url.clone(), reason: reason.to_owned() });
        let url = match Url::parse(&self.base_url) {
            Ok(url) if url.username().is_empty() && url.password().is_none() && url.query().is_none() => url,
            // The address is written down, so it is not even shown.
            Ok(_) => {
                let reason = "it holds a name, a password or a query; keys belong into a variable or a file".to_owned();
                return Err(SettingsError::Url { url: "…".to_owned(), reason });
            }
            Err(error) => return fail(&format!("{error}; it looks like {}", self.protocol.default_base_url())),
        };
        match url.scheme() {
            "https" => {}
            "http" if self.key.is_none() || is_loopback(&url) => {}
            "http" => return fail("a key would travel unencrypted; use https, or a tunnel to 127.0.0.1"),
            _ => return fail("it must begin with https:// or http://"),
        }
        let joined = format!("{}/{}", url.as_str().trim_end_matches('/'), self.protocol.path());
        Url::parse(&joined).or_else(|error| fail(&error.to_string()))
    }

    /// Refuses parameters that are set here.
    pub(super) fn check_parameters(&self) -> Result<(), SettingsError> {
        match self.parameters.keys().find(|name| RESERVED.contains(&name.as_str())) {
            Some(name) => Err(SettingsError::Parameter(name.clone())),
            None => Ok(()),
        }
    }
}

/// Whether an address never leaves this machine.
pub(super) fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || bare.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(base_url: &str, key: bool) -> Settings {
        let key = key.then(|| Secret::of("sk-0123456789"));
        Settings {
            protocol: Protocol::OpenAi,
            base_url: base_url.into(),
            model: "m".into(),
            key,
            max_output_tokens: 1,
            parameters: Map::new(),
            limits: Limits::default(),
        }
    }

    #[test]
    fn the_path_follows_the_base() {
        for base in ["https://api.openai.com/v1", "https://api.openai.com/v1/"] {
            let address = settings(base, true).address().expect("an address");
            assert_eq!(address.as_str(), "https://api.openai.com/v1/chat/completions");
        }
        let anthropic = Settings { protocol: Protocol::Anthropic, ..settings("https://api.anthropic.com/v1", true) };
        assert_eq!(anthropic.address().expect("an address").as_str(), "https://api.anthropic.com/v1/messages");
    }

    #[test]
    fn a_key_goes_over_http_only_within_this_machine() {
        for base in ["http://127.0.0.1:8080/v1", "http://localhost/v1", "http://[::1]:1/v1"] {
            assert!(settings(base, true).address().is_ok(), "{base}");
        }
        for base in ["http://example.org/v1", "http://10.0.0.5:8000/v1", "http://127.0.0.1.example.org/v1"] {
            assert!(settings(base, true).address().is_err_and(|e| e.to_string().contains("unencrypted")), "{base}");
            assert!(settings(base, false).address().is_ok(), "{base}");
        }
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for base in ["", "api.openai.com/v1", "ftp://example.org", "https://"] {
            assert!(matches!(settings(base, false).address(), Err(SettingsError::Url { .. })), "{base}");
        }
        for base in ["https://user:sk-secret@example.org/v1", "https://example.org/v1?key=sk-secret"] {
            assert!(settings(base, false).address().is_err_and(|e| !e.to_string().contains("sk-secret")), "{base}");
        }
    }

    #[test]
    fn parameters_cannot_replace_the_protocol() {
        let mut settings = settings("http://localhost", false);
        settings.parameters.insert("temperature".into(), 0.7.into());
        assert!(settings.check_parameters().is_ok());
        settings.parameters.insert("stream".into(), false.into());
        assert!(matches!(settings.check_parameters(), Err(SettingsError::Parameter(name)) if name == "stream"));
    }
}
