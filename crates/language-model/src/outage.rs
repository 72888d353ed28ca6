//! When an endpoint that failed is worth asking again, so that a loop can go on without it meanwhile.
//!
//! The caller passes the time, so that tests can choose it. No failure is permanent: during a night, keys are replaced and
//! accounts refilled.

use std::time::{Duration, Instant};

use crate::{EndpointError, Exchange};

/// Pause after a first failure that passes by itself; it doubles with each further one.
const FIRST_PAUSE: Duration = Duration::from_secs(30);
/// Longest such pause, and the pause after a failure that a person has to fix.
const LONGEST_PAUSE: Duration = Duration::from_secs(15 * 60);

/// Whether an endpoint is left alone, and until when.
#[derive(Debug, Clone, Default)]
pub struct Outage {
    failures: u32,
    until: Option<Instant>,
}

impl Outage {
    /// How long the endpoint is still to be left alone; `None` when it may be asked.
    pub fn left(&self, now: Instant) -> Option<Duration> {
        self.until.map(|until| until.saturating_duration_since(now)).filter(|left| !left.is_zero())
    }

    /// Takes in what came of a question that ended `now`. An endpoint that answers is up, whatever it says.
    pub fn note(&mut self, exchange: &Exchange, now: Instant) {
        use EndpointError::{Cancelled, Empty, KeyInPrompt, NotRecorded, Refused, ReplayDiffers, TooLong};
        let pause = match &exchange.outcome {
            // Nothing was learnt of the endpoint.
            Err(Cancelled | KeyInPrompt { .. } | NotRecorded { .. } | ReplayDiffers { .. }) => return,
            Ok(_) | Err(Empty { .. } | Refused { .. } | TooLong { .. }) => {
                *self = Self::default();
                return;
            }
            Err(error) if error.is_transient() => {
                let grown = FIRST_PAUSE.saturating_mul(2u32.saturating_pow(self.failures)).min(LONGEST_PAUSE);
                grown.max(error.retry_after().unwrap_or_default())
            }
            Err(_) => LONGEST_PAUSE,
        };
        self.failures = self.failures.saturating_add(1);
        // A server may ask for longer than a clock can say; what was before stands then.
        self.until = now.checked_add(pause).or(self.until);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Answer, Usage};

    fn exchange(outcome: Result<(), EndpointError>) -> Exchange {
        let outcome = outcome.map(|()| Answer { text: "x".into(), model: "m".into(), cut_off: false });
        Exchange { outcome, usage: Usage::default(), attempts: 1, latency: Duration::ZERO }
    }

    fn failed() -> Exchange {
        exchange(Err(EndpointError::Broken { reason: String::new() }))
    }

    #[test]
    fn pauses_grow_and_end_with_an_answer() {
        let now = Instant::now();
        let mut outage = Outage::default();
        assert_eq!(outage.left(now), None);
        let mut pauses = Vec::new();
        for _ in 0..40 {
            outage.note(&failed(), now);
            pauses.push(outage.left(now).expect("a pause").as_secs());
        }
        assert_eq!(pauses[..7], [30, 60, 120, 240, 480, 900, 900]);
        assert_eq!(pauses.last(), Some(&900));
        assert_eq!(outage.left(now + LONGEST_PAUSE), None);
        outage.note(&exchange(Ok(())), now);
        assert_eq!(outage.left(now), None);
        outage.note(&failed(), now);
        outage.note(&exchange(Err(EndpointError::Empty { cut_off: false })), now);
        assert_eq!(outage.left(now), None, "a silent model is no outage");
    }

    #[test]
    fn the_server_may_ask_for_longer() {
        let now = Instant::now();
        let mut outage = Outage::default();
        let limited = |seconds| {
            let retry_after = Some(Duration::from_secs(seconds));
            exchange(Err(EndpointError::RateLimited { retry_after, message: String::new() }))
        };
        outage.note(&limited(7200), now);
        assert_eq!(outage.left(now), Some(Duration::from_secs(7200)));
        outage.note(&limited(u64::MAX), now);
        assert_eq!(outage.left(now), Some(Duration::from_secs(7200)));
    }

    #[test]
    fn what_somebody_has_to_mend_is_asked_again_too() {
        let now = Instant::now();
        let mut outage = Outage::default();
        outage.note(&exchange(Err(EndpointError::OutOfCredit { message: String::new() })), now);
        assert_eq!(outage.left(now), Some(LONGEST_PAUSE));
        assert_eq!(outage.left(now + LONGEST_PAUSE), None);
        let mut outage = Outage::default();
        outage.note(&exchange(Err(EndpointError::Cancelled)), now);
        assert_eq!(outage.left(now), None);
    }
}
