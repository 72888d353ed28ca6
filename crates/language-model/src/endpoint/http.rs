//! One question over HTTP: the attempts, the stream of events, the limits.
//!
//! Each question has a runtime and a connection of its own: they are cheap beside an answer, and nothing runs or ages
//! between questions.

use std::pin::pin;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use jiff::Timestamp;
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, LOCATION};
use reqwest::redirect::Policy;
use reqwest::{Client, Response, Url};
use sse_stream::SseByteStream;
use tokio::time::timeout;

use super::partial::{Finish, Partial};
use super::retry::Waits;
use super::status::{self, MESSAGE};
use super::{Answer, Endpoint, EndpointError, Exchange, Identity, Protocol, Settings, SettingsError};
use super::{anthropic, openai, settings};
use crate::text::one_line;
use crate::{Cancel, Prompt, Usage};

/// What this program calls itself.
const USER_AGENT: &str = concat!("ternary-autoresearch/", env!("CARGO_PKG_VERSION"));
/// Most bytes that are read of a refusal's body.
const REFUSAL_BYTES: usize = 16 << 10;
/// The media type of a stream of events.
const EVENTS: &str = "text/event-stream";

/// An endpoint over HTTP. It keeps nothing open between questions.
#[derive(Debug)]
pub struct HttpEndpoint {
    settings: Settings,
    address: Url,
    client: Client,
    identity: Identity,
}

/// What a question has used up so far. It outlives an attempt that is broken off.
#[derive(Debug)]
struct Progress {
    prompt_tokens: u64,
    attempts: u32,
    usage: Usage,
    /// The attempt under way, once the server may have begun to work on it.
    partial: Option<Partial>,
}

impl Progress {
    /// Counts the attempt under way.
    fn settle(&mut self) {
        if let Some(partial) = self.partial.take() {
            self.usage += partial.usage(self.prompt_tokens);
        }
    }
}

impl HttpEndpoint {
    /// Sets up an endpoint; nothing is sent.
    ///
    /// # Errors
    /// When the settings cannot work.
    pub fn new(settings: Settings) -> Result<Self, SettingsError> {
        let address = settings.address()?;
        settings.check_parameters()?;
        let failed = |error: reqwest::Error| SettingsError::Client(reason(&error));
        // reqwest takes the process's cryptography; one that was chosen before stays.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut client = Client::builder()
            .user_agent(USER_AGENT)
            .default_headers(headers(&settings)?)
            .connect_timeout(settings.limits.connect)
            .pool_max_idle_per_host(0)
            // A redirect could carry the key elsewhere.
            .redirect(Policy::none());
        if address.scheme() == "http" {
            // A machine without root certificates can still ask a local server.
            client = client.tls_certs_only([]);
        }
        if settings::is_loopback(&address) {
            client = client.no_proxy();
        }
        let mut parameters = settings.parameters.clone();
        parameters.insert("max_output_tokens".into(), settings.max_output_tokens.into());
        let identity = Identity {
            protocol: settings.protocol.name().to_owned(),
            address: address.to_string(),
            model: settings.model.clone(),
            parameters,
        };
        Ok(Self { address, client: client.build().map_err(failed)?, identity, settings })
    }

    /// The request's body, as it would be sent.
    pub fn body(&self, prompt: &Prompt) -> serde_json::Value {
        match self.settings.protocol {
            Protocol::OpenAi => openai::body(&self.settings, &self.address, prompt),
            Protocol::Anthropic => anthropic::body(&self.settings, prompt),
        }
    }

    /// Attempts until there is an answer or nothing more to hope for.
    async fn attempts(&self, body: Bytes, started: Instant, progress: &mut Progress) -> Result<Answer, EndpointError> {
        let mut waits = Waits::new(&self.settings.limits);
        loop {
            progress.attempts += 1;
            let outcome = self.attempt(body.clone(), progress).await;
            progress.settle();
            let Err(error) = outcome else { return outcome };
            let left = self.settings.limits.total.saturating_sub(started.elapsed());
            let Some(wait) = waits.next(&error, left) else { return Err(error) };
            tracing::info!(attempt = progress.attempts, ?wait, %error, "the endpoint is asked again");
            tokio::time::sleep(wait).await;
        }
    }

    async fn attempt(&self, body: Bytes, progress: &mut Progress) -> Result<Answer, EndpointError> {
        let idle = self.settings.limits.idle;
        let request = self.client.post(self.address.clone()).body(body).send();
        progress.partial = Some(Partial::default());
        let response = match timeout(idle, request).await {
            Err(_) => return Err(EndpointError::Idle { limit: idle }),
            Ok(Err(error)) if !error.is_connect() => {
                return Err(EndpointError::Broken { reason: self.clean(&reason(&error)) });
            }
            Ok(Err(error)) => {
                // Nobody has worked on what did not arrive.
                progress.partial = None;
                let address = self.address.origin().ascii_serialization();
                return Err(EndpointError::Unreachable { address, reason: self.clean(&reason(&error)) });
            }
            Ok(Ok(response)) => response,
        };
        if !response.status().is_success() {
            progress.partial = None;
            return Err(self.refusal(response).await);
        }
        let media = response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("no type");
        if !media.trim_start().to_ascii_lowercase().starts_with(EVENTS) {
            let content_type = self.clean(media);
            let excerpt = self.clean(&beginning(response, idle).await);
            return Err(EndpointError::NotAStream { content_type, excerpt });
        }
        let partial = progress.partial.get_or_insert_default();
        match self.read(response, partial).await {
            // What follows the end is bookkeeping, and the answer is worth more.
            Err(error) if partial.finish.is_none() => Err(error),
            Err(error @ EndpointError::TooLong { .. }) => Err(error),
            _ => self.answer(partial),
        }
    }

    /// Reads events until the answer is over.
    async fn read(&self, response: Response, partial: &mut Partial) -> Result<(), EndpointError> {
        let limits = &self.settings.limits;
        let mut events = pin!(SseByteStream::new(chunks(response, limits.idle, limits.stream_bytes)));
        while let Some(event) = events.next().await {
            let event = event.map_err(|error| match error {
                sse_stream::Error::Body(error) => match error.downcast::<EndpointError>() {
                    Ok(error) => *error,
                    Err(error) => EndpointError::Broken { reason: self.clean(&error.to_string()) },
                },
                error => EndpointError::Broken { reason: self.clean(&error.to_string()) },
            })?;
            // An event without data is a comment or a field that concerns browsers.
            let Some(data) = event.data else { continue };
            // Before anything of it is cut: half a key is one too.
            let data = self.redact(data);
            match self.settings.protocol {
                Protocol::OpenAi => openai::event(partial, &data)?,
                Protocol::Anthropic => anthropic::event(partial, &data)?,
            }
            if partial.text.len() > limits.answer_bytes {
                return Err(EndpointError::TooLong { limit: limits.answer_bytes });
            }
            if partial.over {
                return Ok(());
            }
        }
        Err(EndpointError::Broken { reason: "the stream ended before the answer did".to_owned() })
    }

    /// What a complete stream amounts to.
    fn answer(&self, partial: &mut Partial) -> Result<Answer, EndpointError> {
        if partial.finish == Some(Finish::Refused) || !partial.refusal.is_empty() {
            let said = if partial.refusal.is_empty() { &partial.text } else { &partial.refusal };
            let reason = match self.clean(said) {
                blank if blank.is_empty() => "it gives no reason".to_owned(),
                said => said,
            };
            return Err(EndpointError::Refused { reason });
        }
        let cut_off = partial.finish == Some(Finish::Length);
        if partial.text.trim().is_empty() {
            return Err(EndpointError::Empty { cut_off });
        }
        let model = partial.model.clone().unwrap_or_else(|| self.settings.model.clone());
        // The text is no longer needed for an estimate once the endpoint has counted.
        let text = if partial.output.is_some() { std::mem::take(&mut partial.text) } else { partial.text.clone() };
        Ok(Answer { text: self.redact(text), model: self.redact(model), cut_off })
    }

    /// The error that a status stands for.
    async fn refusal(&self, response: Response) -> EndpointError {
        let status = response.status();
        let retry_after = status::retry_after(response.headers(), Timestamp::now());
        let target = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
        let body = match target.filter(|_| status.is_redirection()) {
            Some(target) => format!("it redirects to {target}"),
            None => beginning(response, self.settings.limits.idle).await,
        };
        let key = self.settings.key.as_ref().map_or("a request without a key", |key| key.origin());
        status::error(status.as_u16(), retry_after, &self.redact(body), key)
    }

    /// A text of the server's as one short line without the key.
    fn clean(&self, text: &str) -> String {
        one_line(&self.redact(text.to_owned()), MESSAGE)
    }
}

impl Endpoint for HttpEndpoint {
    /// # Panics
    /// Inside of a tokio runtime: it blocks.
    fn ask(&mut self, prompt: &Prompt, cancel: &Cancel) -> Exchange {
        let started = Instant::now();
        let limit = self.settings.limits.total;
        let mut progress =
            Progress { prompt_tokens: prompt.tokens(), attempts: 0, usage: Usage::default(), partial: None };
        let outcome = self.ask_within(prompt, cancel, started, &mut progress);
        progress.settle();
        let outcome = outcome.unwrap_or(Err(EndpointError::TotalTime { limit, attempts: progress.attempts }));
        Exchange { outcome, usage: progress.usage, attempts: progress.attempts, latency: started.elapsed() }
    }

    fn identity(&self) -> &Identity {
        &self.identity
    }

    fn redact(&self, text: String) -> String {
        match &self.settings.key {
            Some(key) => key.redact(text),
            None => text,
        }
    }
}

impl HttpEndpoint {
    /// `None` when the time is up.
    fn ask_within(
        &self,
        prompt: &Prompt,
        cancel: &Cancel,
        started: Instant,
        progress: &mut Progress,
    ) -> Option<Result<Answer, EndpointError>> {
        if let Some(key) = &self.settings.key {
            let mut leaks = false;
            prompt.texts(|text| leaks |= key.occurs_in(text));
            if leaks {
                return Some(Err(EndpointError::KeyInPrompt { origin: key.origin().to_owned() }));
            }
        }
        let body = Bytes::from(self.body(prompt).to_string());
        let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => {
                let address = self.address.origin().ascii_serialization();
                return Some(Err(EndpointError::Unreachable { address, reason: error.to_string() }));
            }
        };
        let outcome = runtime.block_on(async {
            tokio::select! {
                biased;
                () = cancel.cancelled() => Some(Err(EndpointError::Cancelled)),
                outcome = timeout(self.settings.limits.total, self.attempts(body, started, progress)) => outcome.ok(),
            }
        });
        // A name that is still being looked up is not waited for.
        runtime.shutdown_background();
        outcome
    }
}

/// The headers of every request; the key is marked, so that no log of the client's shows it.
fn headers(settings: &Settings) -> Result<HeaderMap, SettingsError> {
    let mut headers = HeaderMap::from_iter([
        (CONTENT_TYPE, HeaderValue::from_static("application/json")),
        (ACCEPT, HeaderValue::from_static(EVENTS)),
    ]);
    if settings.protocol == Protocol::Anthropic {
        headers.insert(HeaderName::from_static("anthropic-version"), HeaderValue::from_static(anthropic::VERSION));
    }
    if let Some(key) = &settings.key {
        let (name, value) = match settings.protocol {
            Protocol::OpenAi => (AUTHORIZATION, format!("Bearer {}", key.expose())),
            Protocol::Anthropic => (HeaderName::from_static("x-api-key"), key.expose().to_owned()),
        };
        let mut value = HeaderValue::try_from(value)
            .map_err(|_| SettingsError::Client(format!("what is in {} cannot be a header", key.origin())))?;
        value.set_sensitive(true);
        headers.insert(name, value);
    }
    Ok(headers)
}

/// The bytes of a response, within the limits.
fn chunks(response: Response, idle: Duration, most: usize) -> impl Stream<Item = Result<Bytes, EndpointError>> {
    stream::try_unfold((response, 0), move |(mut response, before)| async move {
        match timeout(idle, response.chunk()).await {
            Err(_) => Err(EndpointError::Idle { limit: idle }),
            Ok(Err(error)) => Err(EndpointError::Broken { reason: reason(&error) }),
            Ok(Ok(None)) => Ok(None),
            Ok(Ok(Some(chunk))) if before + chunk.len() > most => Err(EndpointError::TooLong { limit: most }),
            Ok(Ok(Some(chunk))) => {
                let read = before + chunk.len();
                Ok(Some((chunk, (response, read))))
            }
        }
    })
}

/// As much of a body as a message needs; what is wrong with it does not matter.
async fn beginning(response: Response, idle: Duration) -> String {
    let mut bytes = Vec::new();
    let mut chunks = pin!(chunks(response, idle, usize::MAX));
    while let Some(Ok(chunk)) = chunks.next().await {
        bytes.extend_from_slice(&chunk);
        if bytes.len() >= REFUSAL_BYTES {
            bytes.truncate(REFUSAL_BYTES);
            break;
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The innermost reason of a client's error: the outer ones say only that there was one.
fn reason(error: &reqwest::Error) -> String {
    let mut innermost: &dyn std::error::Error = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    one_line(&innermost.to_string(), MESSAGE)
}
