//! Anthropic's Messages API.
//!
//! The stable sections are blocks of the system prompt. The last few of them end a cached beginning each, so that a change
//! of one leaves those before it in the cache.

use serde_json::{Value, json};

use super::partial::{Finish, Partial};
use super::status::{self, MESSAGE};
use super::{EndpointError, Settings};
use crate::Prompt;
use crate::prompt::{estimated_tokens, render};
use crate::text::one_line;

/// The API's version, a header.
pub(super) const VERSION: &str = "2023-06-01";
/// Most cached beginnings of a request; the API refuses more.
const CACHE_POINTS: usize = 4;

/// The request.
pub(super) fn body(settings: &Settings, prompt: &Prompt) -> Value {
    let first_cached = prompt.stable.len().saturating_sub(CACHE_POINTS);
    let system: Vec<Value> = prompt
        .stable
        .iter()
        .enumerate()
        .map(|(index, section)| {
            let mut block = json!({ "type": "text", "text": section.render() });
            if index >= first_cached {
                block["cache_control"] = json!({ "type": "ephemeral" });
            }
            block
        })
        .collect();
    let mut messages = vec![json!({ "role": "user", "content": render(&prompt.changing) })];
    for turn in &prompt.turns {
        messages.push(json!({ "role": "assistant", "content": turn.answer }));
        messages.push(json!({ "role": "user", "content": turn.reply }));
    }
    let mut body = settings.parameters.clone();
    body.retain(|_, value| !value.is_null());
    body.insert("model".into(), settings.model.clone().into());
    body.insert("max_tokens".into(), settings.max_output_tokens.into());
    body.insert("stream".into(), true.into());
    if !system.is_empty() {
        body.insert("system".into(), system.into());
    }
    body.insert("messages".into(), messages.into());
    body.into()
}

/// Takes in one event. Kinds that are not known are passed over, as the API asks of its clients.
///
/// # Errors
/// When it is no JSON, or says that the server failed.
pub(super) fn event(partial: &mut Partial, data: &str) -> Result<(), EndpointError> {
    let value: Value = serde_json::from_str(data)
        .map_err(|error| EndpointError::Broken { reason: format!("an event is no JSON ({error})") })?;
    let text = |pointer: &str| value.pointer(pointer).and_then(Value::as_str);
    match text("/type").unwrap_or_default() {
        "message_start" => {
            partial.model = text("/message/model").map(|model| one_line(model, MESSAGE));
            count_input(partial, value.pointer("/message/usage"));
        }
        "content_block_start" => partial.text.push_str(text("/content_block/text").unwrap_or_default()),
        "content_block_delta" => {
            partial.text.push_str(text("/delta/text").unwrap_or_default());
            partial.thinking += estimated_tokens(text("/delta/thinking").unwrap_or_default());
        }
        "message_delta" => {
            if let Some(reason) = text("/delta/stop_reason") {
                partial.finish = Some(match reason {
                    "max_tokens" | "model_context_window_exceeded" => Finish::Length,
                    "refusal" => Finish::Refused,
                    _ => Finish::End,
                });
            }
            // Later counts are totals, not additions.
            count_input(partial, value.get("usage"));
            partial.output = value.pointer("/usage/output_tokens").and_then(Value::as_u64).or(partial.output);
        }
        "message_stop" => partial.over = true,
        "error" => return Err(status::error(code(text("/error/type")), None, data, "the request")),
        _ => {}
    }
    Ok(())
}

fn count_input(partial: &mut Partial, usage: Option<&Value>) {
    let count = |name: &str| usage.and_then(|usage| usage.get(name)).and_then(Value::as_u64);
    partial.input = count("input_tokens").or(partial.input);
    partial.cached_input = count("cache_read_input_tokens").unwrap_or(partial.cached_input);
    partial.cache_write = count("cache_creation_input_tokens").unwrap_or(partial.cache_write);
}

/// The HTTP status that an error would have had, had it come before the stream began.
fn code(kind: Option<&str>) -> u16 {
    match kind {
        Some("invalid_request_error") => 400,
        Some("authentication_error") => 401,
        Some("billing_error") => 402,
        Some("permission_error") => 403,
        Some("not_found_error") => 404,
        Some("request_too_large") => 413,
        Some("rate_limit_error") => 429,
        Some("timeout_error") => 504,
        Some("overloaded_error") => 529,
        _ => status::IN_STREAM,
    }
}
