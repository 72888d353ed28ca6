//! What a second of the processor is worth at the moment, for a budget in seconds of [`formats::campaign::Clock::Work`].

use std::collections::VecDeque;
use std::time::Duration;

use formats::campaign::LARGEST_CORRECTION;
use ternary::probe::Probe;

/// Counted seconds from one probe to the next: a probe takes 8 ms, so this is 3 % of a run.
const EVERY: f64 = 0.25;
/// The latest probes, whose mean is the speed of the moment: four seconds of them. Fewer would make it noisy.
const RECENT: usize = 16;

/// Times the [`Probe`] now and then, outside of the clock.
#[derive(Debug)]
pub struct Speed {
    probe: Probe,
    probes: Probes,
    /// Counted seconds at which the next probe is due.
    due: f64,
}

impl Speed {
    /// Of a run whose search began with probes of so many seconds; `None` for the run that it begins with.
    pub fn new(reference: Option<f64>) -> Self {
        let mut speed = Self { probe: Probe::new(), probes: Probes::new(reference), due: EVERY };
        for _ in 0..RECENT {
            speed.take();
        }
        // Those of the start are among the recent ones, not among those of the run.
        speed.probes.forget_total();
        speed
    }

    /// Probes where it is due. Returns the new rate for [`crate::clock::Clock::set_rate`]; the time until then is not
    /// training.
    pub fn after(&mut self, counted: f64) -> Option<f64> {
        if counted < self.due {
            return None;
        }
        self.due = counted + EVERY;
        self.take();
        Some(self.rate())
    }

    /// Counted seconds in a second of the processor.
    pub fn rate(&self) -> f64 {
        self.probes.rate()
    }

    /// Seconds of the processor, all threads together, that a probe of this run took on average.
    pub fn mean(&self) -> f64 {
        self.probes.mean()
    }

    fn take(&mut self) {
        self.probes.add(self.probe.time());
    }
}

#[derive(Debug)]
struct Probes {
    reference: Option<f64>,
    recent: VecDeque<f64>,
    total: f64,
    count: u32,
}

impl Probes {
    fn new(reference: Option<f64>) -> Self {
        Self { reference, recent: VecDeque::with_capacity(RECENT), total: 0.0, count: 0 }
    }

    fn add(&mut self, took: Duration) {
        if self.recent.len() == RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back(took.as_secs_f64());
        self.total += took.as_secs_f64();
        self.count += 1;
    }

    fn forget_total(&mut self) {
        (self.total, self.count) = (0.0, 0);
    }

    fn rate(&self) -> f64 {
        let recent = self.recent.iter().sum::<f64>() / self.recent.len().max(1) as f64;
        match self.reference {
            Some(reference) if recent > 0.0 => (reference / recent).clamp(1.0 / LARGEST_CORRECTION, LARGEST_CORRECTION),
            _ => 1.0,
        }
    }

    fn mean(&self) -> f64 {
        match self.count {
            0 => self.recent.iter().sum::<f64>() / self.recent.len().max(1) as f64,
            count => self.total / f64::from(count),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn probes(reference: Option<f64>, milliseconds: &[u64]) -> Probes {
        let mut probes = Probes::new(reference);
        for &took in milliseconds {
            probes.add(Duration::from_millis(took));
        }
        probes
    }

    #[test]
    fn a_slower_machine_makes_seconds_count_for_less() {
        assert!((probes(Some(0.010), &[10, 15, 12, 13]).rate() - 0.8).abs() < 1e-9);
        assert!((probes(Some(0.010), &[8]).rate() - 1.25).abs() < 1e-9);
        assert_eq!(probes(None, &[15]).rate(), 1.0, "the first run is the measure");
    }

    #[test]
    fn only_the_recent_probes_count_and_only_up_to_a_limit() {
        let mut many = probes(Some(0.010), &[500; 40]);
        assert_eq!(many.rate(), 1.0 / LARGEST_CORRECTION);
        for _ in 0..RECENT {
            many.add(Duration::from_millis(10));
        }
        assert!((many.rate() - 1.0).abs() < 1e-9);
        assert!((many.mean() - (40.0 * 0.5 + 16.0 * 0.01) / 56.0).abs() < 1e-12);
    }

    #[test]
    fn a_probe_is_taken_when_it_is_due() {
        let mut speed = Speed::new(Some(1.0));
        assert_eq!(speed.after(EVERY / 2.0), None);
        assert_eq!(speed.after(EVERY), Some(LARGEST_CORRECTION), "the work takes far less than a second");
        assert_eq!(speed.after(EVERY * 1.5), None);
        assert!(speed.mean() > 0.0);
    }
}
