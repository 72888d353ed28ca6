//! What coding programs print: their last message, the tokens that they counted, and whether they failed.
//!
//! What is not in the form that was asked for is taken for text, so that an error message is not lost.

use formats::campaign::command::Output;
use language_model::{Usage, printable};
use serde_json::Value;

/// What a program said.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Said {
    /// Its last message.
    pub text: String,
    /// Tokens, where it counts them.
    pub usage: Option<Usage>,
    /// The reason, where it says that it failed.
    pub failure: Option<String>,
}

/// Reads what a program printed on its standard output.
pub(super) fn read(form: Output, printed: &[u8]) -> Said {
    let plain = printable(printed);
    let records =
        || String::from_utf8_lossy(printed).lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let whole = || serde_json::from_slice(printed).ok();
    let said = match form {
        Output::Text => None,
        Output::ClaudeJson => claude(whole().map_or_else(records, |value| vec![value])),
        Output::CodexJson => codex(&records()),
        Output::GeminiJson => whole().map(|value| gemini(&value)),
        Output::OpenCodeJson => opencode(&records()),
    };
    said.unwrap_or_else(|| Said { text: plain, ..Said::default() })
}

/// One object of type `result`; an array of all messages when it is told to be verbose.
fn claude(values: Vec<Value>) -> Option<Said> {
    let mut flat = values.into_iter().flat_map(|value| match value {
        Value::Array(values) => values,
        value => vec![value],
    });
    let result = flat.rfind(|value| value["type"] == "result")?;
    let text = text(&result["result"]);
    let usage = &result["usage"];
    Some(Said {
        failure: (result["is_error"] == true)
            .then(|| if text.is_empty() { self::text(&result["subtype"]) } else { text.clone() }),
        text,
        usage: usage.is_object().then(|| Usage {
            input: count(&usage["input_tokens"]),
            cached_input: count(&usage["cache_read_input_tokens"]),
            cache_write: count(&usage["cache_creation_input_tokens"]),
            output: count(&usage["output_tokens"]),
            estimated: false,
        }),
    })
}

/// Events; the last message of the agent counts, and the tokens of every turn.
fn codex(events: &[Value]) -> Option<Said> {
    let mut said = Said::default();
    for event in events {
        match event["type"].as_str() {
            Some("item.completed") if event["item"]["type"] == "agent_message" => {
                said.text = text(&event["item"]["text"])
            }
            Some("turn.completed") => {
                let usage = &event["usage"];
                let cached = count(&usage["cached_input_tokens"]);
                *said.usage.get_or_insert_default() += Usage {
                    // The cached ones are among them.
                    input: count(&usage["input_tokens"]).saturating_sub(cached),
                    cached_input: cached,
                    output: count(&usage["output_tokens"]),
                    ..Usage::default()
                };
            }
            Some("turn.failed") => said.failure = Some(text(&event["error"]["message"])),
            // Also of what it got over; a turn that failed says so itself.
            Some("error") if said.text.is_empty() => said.failure = Some(text(&event["message"])),
            _ => {}
        }
    }
    (!events.is_empty()).then_some(said)
}

/// One object.
fn gemini(value: &Value) -> Said {
    let models = value["stats"]["models"].as_object();
    let usage = models.map(|models| {
        let mut sum = Usage::default();
        for model in models.values() {
            let tokens = &model["tokens"];
            let cached = count(&tokens["cached"]);
            sum += Usage {
                input: count(&tokens["prompt"]).saturating_sub(cached),
                cached_input: cached,
                output: count(&tokens["candidates"]).saturating_add(count(&tokens["thoughts"])),
                ..Usage::default()
            };
        }
        sum
    });
    let failure = value.get("error").filter(|error| !error.is_null()).map(|error| text(&error["message"]));
    Said { text: text(&value["response"]), usage, failure }
}

/// Events; the last text counts, and the tokens of every step.
fn opencode(events: &[Value]) -> Option<Said> {
    let mut said = Said::default();
    for event in events {
        let part = &event["part"];
        match event["type"].as_str() {
            Some("text") => said.text = text(&part["text"]),
            Some("step_finish") => {
                let tokens = &part["tokens"];
                *said.usage.get_or_insert_default() += Usage {
                    input: count(&tokens["input"]),
                    cached_input: count(&tokens["cache"]["read"]),
                    cache_write: count(&tokens["cache"]["write"]),
                    output: count(&tokens["output"]).saturating_add(count(&tokens["reasoning"])),
                    estimated: false,
                };
            }
            Some("error") => {
                let error = &event["error"];
                let message = text(&error["data"]["message"]);
                said.failure = Some(if message.is_empty() { text(&error["name"]) } else { message });
            }
            _ => {}
        }
    }
    (!events.is_empty()).then_some(said)
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn count(value: &Value) -> u64 {
    value.as_u64().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usage(input: u64, cached_input: u64, cache_write: u64, output: u64) -> Option<Usage> {
        Some(Usage { input, cached_input, cache_write, output, estimated: false })
    }

    #[test]
    fn each_form_gives_its_message_and_its_tokens() {
        for (form, printed, wanted) in [
            (
                Output::ClaudeJson,
                r#"{"type":"result","subtype":"success","is_error":false,"result":"done","total_cost_usd":0.01,
                "usage":{"input_tokens":4,"cache_creation_input_tokens":300,"cache_read_input_tokens":20,"output_tokens":7}}"#,
                usage(4, 20, 300, 7),
            ),
            (
                Output::CodexJson,
                "{\"type\":\"item.completed\",\"item\":{\"type\":\"agent_message\",\"text\":\"first\"}}\nnoise\n\
                 {\"type\":\"item.completed\",\"item\":{\"type\":\"agent_message\",\"text\":\"done\"}}\n\
                 {\"type\":\"turn.completed\",\"usage\":{\"input_tokens\":100,\"cached_input_tokens\":90,\"output_tokens\":7}}\n",
                usage(10, 90, 0, 7),
            ),
            (
                Output::GeminiJson,
                r#"{"response":"done","stats":{"models":{"a":{"tokens":{"prompt":9,"candidates":2,"cached":4,"thoughts":5}},
                "b":{"tokens":{"prompt":1,"candidates":0}}}}}"#,
                usage(6, 4, 0, 7),
            ),
            (
                Output::OpenCodeJson,
                "{\"type\":\"text\",\"part\":{\"text\":\"first\"}}\n{\"type\":\"step_finish\",\"part\":{\"tokens\":{\"input\":3,\
                 \"output\":1,\"reasoning\":2,\"cache\":{\"read\":5,\"write\":6}}}}\n{\"type\":\"text\",\"part\":{\"text\":\"done\"}}\n\
                 {\"type\":\"step_finish\",\"part\":{\"tokens\":{\"input\":1,\"output\":1}}}\n",
                usage(4, 5, 6, 4),
            ),
        ] {
            let said = read(form, printed.as_bytes());
            assert_eq!(said, Said { text: "done".into(), usage: wanted, failure: None }, "{form:?}");
        }
    }

    #[test]
    fn failures_are_told_and_what_is_in_no_form_is_text() {
        let failed = |form, printed: &str| read(form, printed.as_bytes()).failure.unwrap();
        let claude = r#"[{"type":"system"},{"type":"result","is_error":true,"subtype":"error_max_turns"}]"#;
        assert_eq!(failed(Output::ClaudeJson, claude), "error_max_turns");
        let codex = r#"{"type":"turn.failed","error":{"message":"limit"}}"#;
        assert_eq!(failed(Output::CodexJson, codex), "limit");
        assert_eq!(failed(Output::GeminiJson, r#"{"error":{"message":"no key"}}"#), "no key");
        assert_eq!(failed(Output::OpenCodeJson, r#"{"type":"error","error":{"name":"AuthError"}}"#), "AuthError");
        for form in [Output::Text, Output::ClaudeJson, Output::CodexJson, Output::GeminiJson, Output::OpenCodeJson] {
            let said = read(form, b"\x1b[1mplain\x1b[0m words");
            assert_eq!(said, Said { text: "plain words".into(), ..Said::default() }, "{form:?}");
        }
    }
}
