//! Chat completions, as OpenAI defined them and many servers speak them.
//!
//! Only the fields that all of them know are sent. Caching of the prompt's beginning is the server's own doing.

use reqwest::Url;
use serde_json::{Map, Value, json};

use super::partial::{Finish, Partial};
use super::status::{self, MESSAGE};
use super::{EndpointError, Settings};
use crate::Prompt;
use crate::prompt::{estimated_tokens, render};
use crate::text::one_line;

/// What ends a stream.
const DONE: &str = "[DONE]";
/// The one server that refuses the older name of the limit.
const RENAMED_LIMIT: &str = "api.openai.com";

/// The request.
pub(super) fn body(settings: &Settings, address: &Url, prompt: &Prompt) -> Value {
    let mut messages = Vec::new();
    if !prompt.stable.is_empty() {
        messages.push(json!({ "role": "system", "content": render(&prompt.stable) }));
    }
    messages.push(json!({ "role": "user", "content": render(&prompt.changing) }));
    for turn in &prompt.turns {
        messages.push(json!({ "role": "assistant", "content": turn.answer }));
        messages.push(json!({ "role": "user", "content": turn.reply }));
    }
    let limit = if address.host_str() == Some(RENAMED_LIMIT) { "max_completion_tokens" } else { "max_tokens" };
    let mut body = Map::from_iter([("stream_options".to_owned(), json!({ "include_usage": true }))]);
    body.extend(settings.parameters.clone());
    body.retain(|_, value| !value.is_null());
    body.insert("model".into(), settings.model.clone().into());
    body.insert("messages".into(), messages.into());
    body.insert("stream".into(), true.into());
    body.insert(limit.into(), settings.max_output_tokens.into());
    body.into()
}

/// Takes in one event.
///
/// # Errors
/// When it is no JSON, or says that the server failed.
pub(super) fn event(partial: &mut Partial, data: &str) -> Result<(), EndpointError> {
    if data.trim() == DONE {
        partial.over = true;
        return Ok(());
    }
    let value: Value = serde_json::from_str(data)
        .map_err(|error| EndpointError::Broken { reason: format!("an event is no JSON ({error})") })?;
    if let Some(error) = value.get("error").filter(|error| !error.is_null()) {
        let code = error.get("code").and_then(Value::as_u64).and_then(|code| u16::try_from(code).ok());
        return Err(status::error(code.unwrap_or(status::IN_STREAM), None, &value.to_string(), "the request"));
    }
    if partial.model.is_none() {
        partial.model = value.get("model").and_then(Value::as_str).map(|model| one_line(model, MESSAGE));
    }
    let part = |name: &str| value.pointer(&format!("/choices/0/delta/{name}")).and_then(Value::as_str);
    partial.text.push_str(part("content").unwrap_or_default());
    partial.refusal.push_str(part("refusal").unwrap_or_default());
    // Two names for one thing; a server sends one of them.
    let thinking = part("reasoning_content").or_else(|| part("reasoning"));
    partial.thinking += estimated_tokens(thinking.unwrap_or_default());
    if let Some(reason) = value.pointer("/choices/0/finish_reason").and_then(Value::as_str) {
        partial.finish = Some(match reason {
            "length" => Finish::Length,
            "content_filter" => Finish::Refused,
            _ => Finish::End,
        });
    }
    if let Some(usage) = value.get("usage") {
        let count = |pointer: &str| usage.pointer(pointer).and_then(Value::as_u64);
        if let (Some(input), Some(output)) = (count("/prompt_tokens"), count("/completion_tokens")) {
            // The count of the prompt includes what was cached.
            partial.cached_input = count("/prompt_tokens_details/cached_tokens").unwrap_or_default().min(input);
            partial.input = Some(input - partial.cached_input);
            partial.output = Some(output);
        }
    }
    Ok(())
}
