//! What a server's refusal means: its status, its message, and when it wants to be asked again.

use std::time::Duration;

use jiff::Timestamp;
use jiff::fmt::rfc2822::DateTimeParser;
use reqwest::header::{HeaderMap, RETRY_AFTER};
use serde_json::Value;

use super::EndpointError;
use crate::text::one_line;

/// Most characters that are quoted of a server's message.
pub(super) const MESSAGE: usize = 300;
/// The status that an error in the middle of a stream counts as when it has no number of its own.
pub(super) const IN_STREAM: u16 = 500;

/// The error for a status that is no success; `key` says what was refused, should it be the key.
pub(super) fn error(status: u16, retry_after: Option<Duration>, body: &str, key: &str) -> EndpointError {
    let json: Option<Value> = serde_json::from_str(body).ok();
    let field = |name: &str| json.as_ref().and_then(|json| json.pointer(name)).and_then(Value::as_str);
    let said = field("/error/message").or(field("/message")).or(field("/error")).or(field("/detail")).unwrap_or(body);
    let message = match one_line(said, MESSAGE) {
        blank if blank.is_empty() => "no message".to_owned(),
        message => message,
    };
    let no_credit = status == 402
        || [field("/error/code"), field("/error/type")].contains(&Some("insufficient_quota"))
        || said.contains("credit balance");
    match status {
        400..500 if no_credit => EndpointError::OutOfCredit { message },
        401 | 403 => EndpointError::Unauthorized { status, key: key.to_owned(), message },
        429 => EndpointError::RateLimited { retry_after, message },
        // A request timeout, a conflict with another request, and an early one pass by themselves, as do faults.
        408 | 409 | 425 | 500.. => EndpointError::Server { status, retry_after, message },
        _ => EndpointError::Rejected { status, message },
    }
}

/// The header Retry-After: seconds, or a date.
pub(super) fn retry_after(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    let value = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = value.parse::<f64>() {
        return Duration::try_from_secs_f64(seconds).ok();
    }
    let date = DateTimeParser::new().relaxed_weekday(true).parse_timestamp(value).ok()?;
    Some(Duration::try_from(date.duration_since(now)).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(value: &str) -> Option<Duration> {
        let now: Timestamp = "1994-11-06T08:49:30Z".parse().expect("a time");
        retry_after(&HeaderMap::from_iter([(RETRY_AFTER, value.parse().expect("a header"))]), now)
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        assert_eq!(after("120"), Some(Duration::from_secs(120)));
        assert_eq!(after(" 1.5 "), Some(Duration::from_millis(1500)));
        assert_eq!(after("Sun, 06 Nov 1994 08:49:37 GMT"), Some(Duration::from_secs(7)));
        assert_eq!(after("Sun, 06 Nov 1994 08:00:00 GMT"), Some(Duration::ZERO));
        for nonsense in ["", "soon", "-1", "inf", "NaN", "Sun, 99 Nov 1994 08:49:37 GMT"] {
            assert_eq!(after(nonsense), None, "{nonsense}");
        }
        assert_eq!(retry_after(&HeaderMap::new(), Timestamp::UNIX_EPOCH), None);
    }

    #[test]
    fn a_status_says_whether_to_ask_again() {
        let of = |status, body| error(status, None, body, "the key");
        for status in [408, 429, 500, 502, 503, 529] {
            assert!(of(status, "").is_transient(), "{status}");
        }
        for status in [301, 400, 401, 402, 403, 404, 413, 422] {
            assert!(!of(status, "").is_transient(), "{status}");
        }
        let quota = r#"{"error": {"message": "no quota", "code": "insufficient_quota"}}"#;
        assert_eq!(of(429, quota), EndpointError::OutOfCredit { message: "no quota".into() });
        let balance = r#"{"error": {"type": "invalid_request_error", "message": "Your credit balance is too low"}}"#;
        assert!(matches!(of(400, balance), EndpointError::OutOfCredit { .. }));
    }

    #[test]
    fn messages_are_found_and_made_harmless() {
        for body in [r#"{"error":{"message":"a\u001b[31mb"}}"#, r#"{"message":"a\u0007[31mb"}"#, "a\x1b[31mb"] {
            assert!(error(400, None, body, "").to_string().contains("a [31mb"), "{body}");
        }
        assert!(error(502, None, &"<p>".repeat(9999), "").to_string().len() < 2 * MESSAGE);
        assert!(error(500, None, " ", "").to_string().contains("no message"));
    }
}
