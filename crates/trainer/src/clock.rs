//! The budget's clock: it counts training and nothing else.
//!
//! Start-up, the campaign's `warmup_steps`, dev evaluation and the writing of the artifact are outside of it. It reads
//! `Instant`, which is CLOCK_MONOTONIC on Linux and CLOCK_UPTIME_RAW on macOS: neither moves while the machine sleeps.

use std::time::{Duration, Instant};

/// What ends a run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Budget {
    /// Seconds of counted training.
    Seconds(f64),
    /// Training tokens, all steps counted.
    Tokens(u64),
    /// Optimizer steps, all counted.
    Steps(u64),
}

/// Most of a budget in seconds that the uncounted first steps may take besides; what they take beyond it counts.
const WARMUP_SHARE: f64 = 0.25;

/// Measures training against a [`Budget`].
#[derive(Debug)]
pub struct Clock {
    budget: Budget,
    uncounted_steps: u64,
    uncounted_left: Duration,
    counted: Duration,
    /// Counted and uncounted training time.
    trained: Duration,
    step_started: Instant,
    steps: u64,
    tokens: u64,
}

impl Clock {
    /// A clock whose first step starts at [`Clock::resume`]; the first `uncounted_steps` steps are free of time.
    pub fn new(budget: Budget, uncounted_steps: u64) -> Self {
        let uncounted_left = match budget {
            Budget::Seconds(seconds) => Duration::from_secs_f64(seconds * WARMUP_SHARE),
            Budget::Tokens(_) | Budget::Steps(_) => Duration::MAX,
        };
        Self {
            budget,
            uncounted_steps,
            uncounted_left,
            counted: Duration::ZERO,
            trained: Duration::ZERO,
            step_started: Instant::now(),
            steps: 0,
            tokens: 0,
        }
    }

    /// Starts timing a step: call before the first and after anything that is not training.
    pub fn resume(&mut self) {
        self.step_started = Instant::now();
    }

    /// Ends a step of `tokens` tokens and starts timing the next one; returns the step's duration.
    pub fn step_done(&mut self, tokens: u64) -> Duration {
        let now = Instant::now();
        let took = now - self.step_started;
        self.step_started = now;
        self.record(took, tokens);
        took
    }

    /// Counts the time since the last step's end as training of that step: a wait for the device.
    pub fn waited(&mut self) {
        let now = Instant::now();
        let waited = now - self.step_started;
        self.step_started = now;
        self.add(waited);
    }

    fn record(&mut self, took: Duration, tokens: u64) {
        self.steps += 1;
        self.tokens += tokens;
        self.add(took);
    }

    fn add(&mut self, took: Duration) {
        self.trained += took;
        if self.steps <= self.uncounted_steps {
            let free = took.min(self.uncounted_left);
            self.uncounted_left -= free;
            self.counted += took - free;
        } else {
            self.counted += took;
        }
    }

    /// Share of the budget that is spent, in [0, 1].
    pub fn progress(&self) -> f64 {
        let spent = match self.budget {
            Budget::Seconds(seconds) => self.counted.as_secs_f64() / seconds,
            Budget::Tokens(tokens) => self.tokens as f64 / tokens as f64,
            Budget::Steps(steps) => self.steps as f64 / steps as f64,
        };
        // A budget of nothing is spent at once (0/0).
        if spent.is_nan() { 1.0 } else { spent.min(1.0) }
    }

    /// Seconds of training that count against the budget.
    pub fn counted_seconds(&self) -> f64 {
        self.counted.as_secs_f64()
    }

    /// Seconds of training, the uncounted first steps included.
    pub fn trained_seconds(&self) -> f64 {
        self.trained.as_secs_f64()
    }

    /// Steps done.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// Tokens trained on.
    pub fn tokens(&self) -> u64 {
        self.tokens
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn second() -> Duration {
        Duration::from_secs(1)
    }

    #[test]
    fn first_steps_are_free() {
        let mut clock = Clock::new(Budget::Seconds(10.0), 2);
        clock.record(second(), 5);
        clock.record(second(), 5);
        assert_eq!(clock.progress(), 0.0);
        clock.record(second(), 5);
        assert_eq!(clock.progress(), 0.1);
        assert_eq!((clock.trained_seconds(), clock.counted_seconds()), (3.0, 1.0));
    }

    #[test]
    fn an_endless_first_step_counts() {
        let mut clock = Clock::new(Budget::Seconds(4.0), 2);
        clock.record(3 * second(), 5);
        assert_eq!(clock.counted_seconds(), 2.0);
        clock.record(9 * second(), 5);
        assert_eq!(clock.progress(), 1.0);
    }

    #[test]
    fn tokens_and_steps_count_from_the_first() {
        let mut clock = Clock::new(Budget::Tokens(20), 2);
        clock.record(second(), 5);
        assert_eq!(clock.progress(), 0.25);
        let mut clock = Clock::new(Budget::Steps(2), 2);
        clock.record(second(), 5);
        assert_eq!(clock.progress(), 0.5);
        clock.record(second(), 5);
        assert_eq!(clock.progress(), 1.0);
        assert_eq!(Clock::new(Budget::Steps(0), 2).progress(), 1.0);
    }
}
