//! Points in time as they are written: UTC, to the second, RFC 3339. They sort as text.

use jiff::{Timestamp, Unit};

/// Now, as `2026-01-31T12:00:00Z`.
pub fn now() -> String {
    let now = Timestamp::now();
    now.round(Unit::Second).unwrap_or(now).to_string()
}

/// Seconds between a written time and now; zero when the text is no time or lies ahead.
pub fn seconds_since(written: &str) -> f64 {
    written.parse::<Timestamp>().map_or(0.0, |then| Timestamp::now().duration_since(then).as_secs_f64().max(0.0))
}

/// Seconds from one written time to another; zero when one of them is no time, or the clock jumped back.
pub fn seconds_between(from: &str, to: &str) -> f64 {
    let parsed = from.parse::<Timestamp>().ok().zip(to.parse::<Timestamp>().ok());
    parsed.map_or(0.0, |(from, to)| to.duration_since(from).as_secs_f64().max(0.0))
}

/// Today in UTC, as `jan31`: what a tag ends with.
pub fn day() -> String {
    Timestamp::now().strftime("%b%d").to_string().to_lowercase()
}
