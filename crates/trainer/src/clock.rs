//! The budget's clock: it counts training and nothing else.
//!
//! Start-up, the campaign's `warmup_steps`, dev evaluation and the writing of the artifact are outside of it. What its
//! seconds are is the [`Meter`]'s. It counts for honest recipes: one that moves it has the orchestrator to fear, which
//! asks the kernel what the process used.

use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};
use rustix::time::{ClockId, clock_gettime};

/// What the seconds of a clock are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meter {
    /// `Instant`: CLOCK_MONOTONIC on Linux and CLOCK_UPTIME_RAW on macOS; neither moves while the machine sleeps.
    Wall,
    /// Processor time of all threads of this process over so many threads; where the calling thread alone had more, that.
    Processor {
        /// Threads that training may use.
        threads: u32,
    },
    /// Time of all threads outside of the kernel over so many threads; [`ALONE`] of the calling thread's processor time where
    /// that is more. What the kernel does for a run, such as waking a core, depends on what else the machine does.
    Work {
        /// Threads that training may use.
        threads: u32,
    },
}

/// [`Meter::Work`] counts at least this share of the calling thread's processor time, so a recipe cannot save time by leaving
/// the other threads idle. The limit never applies where the threads share the work: each then has about its part.
const ALONE: f64 = 0.8;

/// A moment by every clock there is.
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    wall: Instant,
    process: Duration,
    thread: Duration,
    user: Duration,
}

impl Moment {
    /// This moment, on this thread.
    pub fn now() -> Self {
        Self {
            wall: Instant::now(),
            process: processor_time(ClockId::ProcessCPUTime),
            thread: processor_time(ClockId::ThreadCPUTime),
            user: user_time(),
        }
    }

    /// What passed since an earlier moment.
    pub fn since(self, earlier: Self) -> Span {
        Span {
            wall: self.wall.saturating_duration_since(earlier.wall),
            process: self.process.saturating_sub(earlier.process),
            thread: self.thread.saturating_sub(earlier.thread),
            user: self.user.saturating_sub(earlier.user),
        }
    }
}

/// What passed between two moments.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Span {
    /// By the wall clock.
    pub wall: Duration,
    /// Processor time of all threads.
    pub process: Duration,
    /// Processor time of the thread that asked.
    pub thread: Duration,
    /// Of `process`, what was spent outside of the kernel.
    pub user: Duration,
}

impl Span {
    /// Its length as a budget counts it.
    pub fn by(self, meter: Meter) -> Duration {
        match meter {
            Meter::Wall => self.wall,
            Meter::Processor { threads } => (self.process / threads.max(1)).max(self.thread),
            Meter::Work { threads } => (self.user / threads.max(1)).max(self.thread.mul_f64(ALONE)),
        }
    }
}

fn processor_time(id: ClockId) -> Duration {
    let time = clock_gettime(id);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or_default())
}

/// That of all threads; zero where the system does not say.
fn user_time() -> Duration {
    let usage = getrusage(UsageWho::RUSAGE_SELF).map(|usage| usage.user_time());
    usage.map_or(Duration::ZERO, |time| {
        let microseconds = u64::try_from(time.tv_usec()).unwrap_or_default();
        Duration::from_secs(time.tv_sec().unsigned_abs()) + Duration::from_micros(microseconds)
    })
}

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
    meter: Meter,
    /// What a metered second counts.
    rate: f64,
    uncounted_steps: u64,
    uncounted_left: Duration,
    counted: Duration,
    /// Counted and uncounted training time.
    trained: Duration,
    /// Processor time of what is counted, all threads; outside of the kernel for [`Meter::Work`].
    processor: Duration,
    step_started: Moment,
    steps: u64,
    tokens: u64,
}

impl Clock {
    /// A clock whose first step starts at [`Clock::resume`]; the first `uncounted_steps` steps are free of time.
    pub fn new(budget: Budget, meter: Meter, uncounted_steps: u64) -> Self {
        let uncounted_left = match budget {
            Budget::Seconds(seconds) => Duration::from_secs_f64(seconds * WARMUP_SHARE),
            Budget::Tokens(_) | Budget::Steps(_) => Duration::MAX,
        };
        Self {
            budget,
            meter,
            rate: 1.0,
            uncounted_steps,
            uncounted_left,
            counted: Duration::ZERO,
            trained: Duration::ZERO,
            processor: Duration::ZERO,
            step_started: Moment::now(),
            steps: 0,
            tokens: 0,
        }
    }

    /// Starts timing a step: call before the first and after anything that is not training.
    pub fn resume(&mut self) {
        self.step_started = Moment::now();
    }

    /// Ends a step of `tokens` tokens and starts timing the next one; returns what the step took.
    pub fn step_done(&mut self, tokens: u64) -> Span {
        let span = self.lap();
        self.record(span, tokens);
        span
    }

    /// Counts the time since the last step's end as training of that step: a wait for the device.
    pub fn waited(&mut self) {
        let span = self.lap();
        self.add(span);
    }

    /// From now on a metered second counts for so many.
    pub fn set_rate(&mut self, rate: f64) {
        self.rate = rate;
    }

    fn lap(&mut self) -> Span {
        let now = Moment::now();
        let span = now.since(self.step_started);
        self.step_started = now;
        span
    }

    fn record(&mut self, span: Span, tokens: u64) {
        self.steps += 1;
        self.tokens += tokens;
        self.add(span);
    }

    fn add(&mut self, span: Span) {
        let took = span.by(self.meter).mul_f64(self.rate);
        self.trained += took;
        let free = if self.steps <= self.uncounted_steps { took.min(self.uncounted_left) } else { Duration::ZERO };
        self.uncounted_left -= free;
        self.counted += took - free;
        if free.is_zero() {
            self.processor += match self.meter {
                Meter::Wall | Meter::Processor { .. } => span.process,
                Meter::Work { .. } => span.user,
            };
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

    /// Seconds of the processor, all threads together, that the steps which count took; outside of the kernel for
    /// [`Meter::Work`].
    pub fn processor_seconds(&self) -> f64 {
        self.processor.as_secs_f64()
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

    /// A second in which two threads computed for 1.5.
    const SECOND: Span = Span {
        wall: Duration::from_secs(1),
        process: Duration::from_millis(1500),
        thread: Duration::from_millis(800),
        user: Duration::from_millis(1400),
    };

    fn clock(budget: Budget) -> Clock {
        Clock::new(budget, Meter::Wall, 2)
    }

    #[test]
    fn first_steps_are_free() {
        let mut clock = clock(Budget::Seconds(10.0));
        clock.record(SECOND, 5);
        clock.record(SECOND, 5);
        assert_eq!((clock.progress(), clock.processor_seconds()), (0.0, 0.0));
        clock.record(SECOND, 5);
        assert_eq!(clock.progress(), 0.1);
        assert_eq!((clock.trained_seconds(), clock.counted_seconds(), clock.processor_seconds()), (3.0, 1.0, 1.5));
    }

    #[test]
    fn an_endless_first_step_counts() {
        let mut clock = clock(Budget::Seconds(4.0));
        clock.record(Span { wall: 3 * SECOND.wall, ..SECOND }, 5);
        assert_eq!(clock.counted_seconds(), 2.0);
        clock.record(Span { wall: 9 * SECOND.wall, ..SECOND }, 5);
        assert_eq!(clock.progress(), 1.0);
    }

    #[test]
    fn tokens_and_steps_count_from_the_first() {
        let mut tokens = clock(Budget::Tokens(20));
        tokens.record(SECOND, 5);
        assert_eq!(tokens.progress(), 0.25);
        let mut steps = clock(Budget::Steps(2));
        steps.record(SECOND, 5);
        assert_eq!(steps.progress(), 0.5);
        steps.record(SECOND, 5);
        assert_eq!(steps.progress(), 1.0);
        assert_eq!(clock(Budget::Steps(0)).progress(), 1.0);
    }

    #[test]
    fn processor_time_is_shared_by_the_threads_but_never_less_than_the_own() {
        let two = Meter::Processor { threads: 2 };
        // Beside other programs the same work takes longer by the wall clock alone.
        let slowed = Span { wall: Duration::from_secs(4), ..SECOND };
        assert_eq!((slowed.by(two), slowed.by(Meter::Wall)), (Duration::from_millis(800), Duration::from_secs(4)));
        assert_eq!(Span { process: Duration::from_secs(2), ..SECOND }.by(two), Duration::from_secs(1));
        // One thread of two in use is no half price.
        let alone = Span { process: Duration::from_secs(1), thread: Duration::from_secs(1), ..SECOND };
        assert_eq!(alone.by(two), Duration::from_secs(1));
    }

    #[test]
    fn a_second_counts_for_what_it_is_worth() {
        let mut clock = clock(Budget::Seconds(10.0));
        clock.set_rate(0.5);
        for _ in 0..4 {
            clock.record(SECOND, 5);
        }
        assert_eq!((clock.counted_seconds(), clock.processor_seconds()), (1.0, 3.0), "the first two are free");
    }

    #[test]
    fn who_steps_moves_nothing_where_work_is_shared() {
        let two = Meter::Work { threads: 2 };
        let shared = Span { thread: Duration::from_millis(820), ..SECOND };
        assert_eq!((SECOND.by(two), shared.by(two)), (Duration::from_millis(700), Duration::from_millis(700)));
        // Waking cores is work of the kernel.
        let woken = Span { process: Duration::from_millis(1700), ..SECOND };
        assert_eq!(woken.by(two), Duration::from_millis(700));
        let second = Duration::from_secs(1);
        let alone = Span { process: second, thread: second, user: second, ..SECOND };
        assert_eq!(alone.by(two), Duration::from_millis(800));
    }

    #[test]
    fn work_takes_processor_time_of_its_thread_and_of_the_process() {
        let start = Moment::now();
        let mut sum = 0.0_f64;
        while Moment::now().since(start).process < Duration::from_millis(20) {
            sum = (sum + 1.0).sqrt();
        }
        let span = Moment::now().since(start);
        assert!(sum > 1.0 && span.thread > Duration::ZERO && span.process >= span.thread, "{span:?}");
        assert!(user_time() > Duration::ZERO);
    }
}
