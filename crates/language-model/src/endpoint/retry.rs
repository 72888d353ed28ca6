//! How long to wait before a question is asked again.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};

use super::{EndpointError, Limits};

/// The waits of one question.
#[derive(Debug)]
pub(super) struct Waits(ExponentialBackoff);

impl Waits {
    pub fn new(limits: &Limits) -> Self {
        let builder = ExponentialBuilder::new()
            .with_jitter()
            .with_min_delay(limits.first_wait)
            .with_max_delay(limits.longest_wait)
            .with_max_times(limits.retries);
        Self(builder.build())
    }

    /// The wait before the next attempt; `None` when there is to be none: the error does not pass by itself, all attempts
    /// are used, or the wait would outlast the time that is left.
    pub fn next(&mut self, error: &EndpointError, left: Duration) -> Option<Duration> {
        if !error.is_transient() {
            return None;
        }
        let wait = self.0.next()?.max(error.retry_after().unwrap_or_default());
        (wait < left).then_some(wait)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEFT: Duration = Duration::from_secs(1000);

    fn waits(error: &EndpointError) -> Vec<Duration> {
        let mut waits = Waits::new(&Limits { retries: 4, ..Limits::default() });
        std::iter::from_fn(|| waits.next(error, LEFT)).collect()
    }

    #[test]
    fn waits_double_with_some_chance_added() {
        let waits = waits(&EndpointError::Broken { reason: String::new() });
        assert_eq!(waits.len(), 4);
        for (index, wait) in waits.iter().enumerate() {
            let least = Duration::from_secs(1 << index);
            assert!((least..=2 * least).contains(wait), "wait {index} is {wait:?}");
        }
    }

    #[test]
    fn the_server_may_ask_for_more_and_not_for_less() {
        let limited = |seconds| EndpointError::RateLimited {
            retry_after: Some(Duration::from_secs(seconds)),
            message: String::new(),
        };
        assert_eq!(waits(&limited(100)), vec![Duration::from_secs(100); 4]);
        assert!(waits(&limited(0)).iter().all(|wait| *wait >= Duration::from_secs(1)));
        assert_eq!(waits(&limited(1001)), vec![], "longer than the time that is left");
    }

    #[test]
    fn what_does_not_pass_is_not_asked_again() {
        assert_eq!(waits(&EndpointError::Empty { cut_off: false }), vec![]);
    }
}
