//! Whether a measured candidate replaces the incumbent, is thrown away, or must be run again: the one rule of the
//! search, in one place. It reads no file and knows no ledger.
//!
//! # The rule
//!
//! A run's loss is the recipe's plus noise: another seed gives another loss. What is compared are means over runs, on
//! the same windows of text. With d the incumbent's mean loss minus the candidate's, s the run-to-run standard deviation,
//! and e the standard error over windows of the paired differences,
//!
//! ```text
//! t = d / √(s²·(1/runs of the candidate + 1/runs of the incumbent) + e²)
//! p = P(T > t),  T of Student's distribution, its degrees of freedom by Welch and Satterthwaite
//! ```
//!
//! The candidate is kept when p is within its share of the level, dropped when p > borderline, and otherwise run once more
//! with a new seed, or the incumbent is where that has fewer runs. After `max_runs` runs the means decide.
//!
//! # Many looks, many candidates
//!
//! A candidate is looked at after each of its runs. Half of the level is for the last look, the other half is shared by
//! those before it: by Bonferroni's inequality a candidate that is no better is kept with a probability of at most
//! `level`, whenever it is stopped. The number of candidates is accounted for by what `level` is: a per-comparison rate,
//! so that the per-family error rate, the expected number of false keeps in a search, is at most `level` times the number
//! of its candidates (Spjøtvoll 1972, "On the optimality of some multiple comparison procedures", Annals of Mathematical
//! Statistics 43). Expectations add whatever the dependence, so it does not matter that all of them are compared with the
//! same runs of one incumbent. To hold instead the chance of a single false keep in a night would throw most gains away;
//! `cargo xtask bench noise` simulates what the rule costs and gains.
//!
//! The first run of a kept candidate is biased by its selection, so it never counts as the bar for the next; and before the
//! next is compared, the new incumbent is run on fresh seeds.

use campaign::Noise as Settings;
use serde::{Deserialize, Serialize};
use statrs::distribution::{ContinuousCDF, StudentsT};

/// The run-to-run spread of the loss.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Noise {
    /// Standard deviation, nats per token; pooled over the recipes that were run more than once.
    pub sd: f64,
    /// Its own standard error, taking the losses as normal: sd/√(2·degrees of freedom).
    pub error: f64,
    /// Degrees of freedom.
    pub freedom: usize,
}

impl Noise {
    /// Pools the spreads within groups of runs of one recipe; `None` while no group has two.
    pub fn pooled<'a>(groups: impl IntoIterator<Item = &'a [f64]>) -> Option<Self> {
        let (mut squares, mut freedom) = (0.0, 0);
        for losses in groups {
            let center = mean(losses);
            squares += losses.iter().map(|loss| (loss - center).powi(2)).sum::<f64>();
            freedom += losses.len().saturating_sub(1);
        }
        let sd = (squares / freedom as f64).sqrt();
        (freedom > 0).then(|| Self { sd, error: sd / (2.0 * freedom as f64).sqrt(), freedom })
    }
}

/// The standard error over windows of a paired difference of means.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Windows {
    /// Nats per token.
    pub error: f64,
    /// How many windows.
    pub count: usize,
}

impl Windows {
    /// Of two models' losses on the same windows, nats per token each; `None` where they do not pair.
    pub fn paired(incumbent: &[f64], candidate: &[f64]) -> Option<Self> {
        if incumbent.len() != candidate.len() || incumbent.len() < 2 {
            return None;
        }
        let differences: Vec<f64> = incumbent.iter().zip(candidate).map(|(i, c)| i - c).collect();
        let center = mean(&differences);
        let count = differences.len();
        let variance = differences.iter().map(|d| (d - center).powi(2)).sum::<f64>() / (count - 1) as f64;
        Some(Self { error: (variance / count as f64).sqrt(), count })
    }
}

/// All that a verdict depends on. Losses are nats per token on `select`, a run each.
#[derive(Debug, Clone, Copy)]
pub struct Evidence<'a> {
    /// Of the candidate.
    pub candidate: &'a [f64],
    /// Of the incumbent, without the one that selected it.
    pub incumbent: &'a [f64],
    /// How the two differ from window to window; `None` where that was not measured.
    pub windows: Option<Windows>,
    /// `None` while no recipe was run twice.
    pub noise: Option<Noise>,
}

/// The figures that a verdict is made from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// Mean loss of the incumbent minus that of the candidate, nats per token; positive is better.
    pub gain: f64,
    /// Its standard error.
    pub error: f64,
    /// Degrees of freedom of that; `None` where the noise was not measured, or is none.
    pub freedom: Option<f64>,
    /// Probability of such a gain, or more, for a candidate that is as good as the incumbent.
    pub p: f64,
    /// Runs of the candidate.
    pub runs: usize,
    /// Runs of the incumbent.
    pub incumbent_runs: usize,
}

/// What to do with a candidate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// It is the new incumbent.
    Keep,
    /// It is as good, and smaller.
    KeepSmaller,
    /// It is thrown away.
    Discard,
    /// Run the candidate with another seed.
    RunCandidate,
    /// Run the incumbent with another seed.
    RunIncumbent,
}

/// Compares the means.
///
/// # Panics
/// When there is no run of one of them.
pub fn compare(evidence: &Evidence) -> Comparison {
    let (runs, incumbent_runs) = (evidence.candidate.len(), evidence.incumbent.len());
    assert!(runs > 0 && incumbent_runs > 0, "what was not run cannot be compared");
    let gain = mean(evidence.incumbent) - mean(evidence.candidate);
    let mut parts = Vec::new();
    if let Some(noise) = &evidence.noise {
        let share = 1.0 / runs as f64 + 1.0 / incumbent_runs as f64;
        parts.push((noise.sd.powi(2) * share, noise.freedom as f64));
    }
    if let Some(windows) = &evidence.windows {
        parts.push((windows.error.powi(2), (windows.count - 1) as f64));
    }
    let variance: f64 = parts.iter().map(|part| part.0).sum();
    let error = variance.sqrt();
    // Welch and Satterthwaite.
    let freedom = variance.powi(2) / parts.iter().map(|(part, freedom)| part.powi(2) / freedom).sum::<f64>();
    let freedom = Some(freedom).filter(|_| evidence.noise.is_some() && error > 0.0 && gain.is_finite());
    let p = match freedom.and_then(students_t) {
        Some(t) => t.sf(gain / error),
        // Runs that do not differ at all: any gain is one.
        None if gain > 0.0 => 0.0,
        None => 1.0,
    };
    Comparison { gain, error, freedom, p, runs, incumbent_runs }
}

impl Comparison {
    /// Half of the gain's 95 % confidence interval; `None` where the noise was not measured.
    pub fn half_interval(&self) -> Option<f64> {
        self.freedom.and_then(students_t).map(|t| t.inverse_cdf(0.975) * self.error)
    }
}

fn students_t(freedom: f64) -> Option<StudentsT> {
    StudentsT::new(0.0, 1.0, freedom).ok()
}

/// What comes of a comparison; `smaller` says whether the candidate's artifact is smaller than the incumbent's.
pub fn decide(comparison: &Comparison, smaller: bool, settings: &Settings) -> Next {
    if settings.replicates == 0 {
        return if comparison.gain > 0.0 { Next::Keep } else { Next::Discard };
    }
    let last = comparison.runs >= settings.max_runs;
    let share = if last { 1.0 } else { 1.0 / (settings.max_runs - 1) as f64 };
    if comparison.p <= settings.level / 2.0 * share {
        return Next::Keep;
    }
    // What is smaller need not be better, only not worse.
    let hopeful = comparison.p <= settings.borderline || (smaller && comparison.p <= 1.0 - settings.borderline);
    if last && smaller && comparison.gain >= 0.0 {
        Next::KeepSmaller
    } else if last || !hopeful {
        Next::Discard
    } else if comparison.incumbent_runs < comparison.runs {
        Next::RunIncumbent
    } else {
        Next::RunCandidate
    }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SETTINGS: Settings = Settings { replicates: 4, fresh_runs: 2, level: 0.04, borderline: 0.2, max_runs: 5 };

    fn evidence<'a>(candidate: &'a [f64], incumbent: &'a [f64], sd: f64) -> Evidence<'a> {
        let noise = Some(Noise { sd, error: sd / 4.0, freedom: 8 });
        Evidence { candidate, incumbent, windows: None, noise }
    }

    #[test]
    fn noise_is_pooled_within_recipes() {
        // Spreads of 2 around 1 and of 2 around 11: (1 + 1 + 1 + 1) / (1 + 1).
        let noise = Noise::pooled([&[0.0, 2.0][..], &[10.0, 12.0], &[5.0]]).unwrap();
        assert_eq!((noise.sd, noise.freedom), (2.0_f64.sqrt(), 2));
        assert_eq!(noise.error, 2.0_f64.sqrt() / 2.0);
        assert_eq!(Noise::pooled([&[1.0][..], &[2.0]]), None);
    }

    #[test]
    fn a_comparison_is_students() {
        // t = 0.1/√(0.04·(1/1 + 1/4)) = 0.447; one-sided p with 8 degrees of freedom from a table of Student's.
        let comparison = compare(&evidence(&[3.0], &[3.1, 3.1, 3.1, 3.1], 0.2));
        assert!((comparison.gain - 0.1).abs() < 1e-12 && (comparison.error - 0.05_f64.sqrt()).abs() < 1e-12);
        assert!((comparison.p - 0.3333).abs() < 2e-3, "{comparison:?}");
        // 2.306 is the table's 97.5 % point.
        assert!((comparison.half_interval().unwrap() - 2.306 * comparison.error).abs() < 1e-4);
    }

    #[test]
    fn windows_add_to_the_error_and_only_differences_count() {
        let (one, other) = ([1.0, 5.0, 9.0], [0.9, 4.9, 8.9]);
        let equal = Windows::paired(&one, &other).unwrap();
        assert!(equal.error < 1e-9, "the same shift in every window is no uncertainty");
        let windows = Windows::paired(&[1.0, 2.0, 3.0], &[1.0, 1.0, 1.0]).unwrap();
        assert!((windows.error - (1.0_f64 / 3.0).sqrt()).abs() < 1e-12);
        assert_eq!(Windows::paired(&[1.0, 2.0], &[1.0]), None);
        let with = compare(&Evidence { windows: Some(windows), ..evidence(&[3.0], &[3.1], 0.2) });
        let without = compare(&evidence(&[3.0], &[3.1], 0.2));
        assert!(with.error > without.error && with.p > without.p);
    }

    #[test]
    fn luck_is_run_again_and_decided_on_the_means() {
        let next = |candidate: &[f64], incumbent: &[f64]| {
            decide(&compare(&evidence(candidate, incumbent, 0.05)), false, &SETTINGS)
        };
        assert_eq!(next(&[2.0], &[3.0; 5]), Next::Keep, "twenty times the noise needs no second run");
        assert_eq!(next(&[3.1], &[3.0; 5]), Next::Discard);
        assert_eq!(next(&[2.9], &[3.0; 5]), Next::RunCandidate, "a lucky number");
        assert_eq!(next(&[2.93, 2.93], &[3.0]), Next::RunIncumbent);
        assert_eq!(next(&[2.9, 3.05], &[3.0; 5]), Next::Discard, "it was luck");
        assert_eq!(next(&[2.9, 2.9, 2.89, 2.91, 2.9], &[3.0; 5]), Next::Keep);
        assert_eq!(next(&[2.98; 5], &[3.0; 5]), Next::Discard, "not more than the noise, with all its runs");
        assert_eq!(next(&[f64::NAN], &[3.0; 5]), Next::Discard);
    }

    #[test]
    fn what_is_smaller_need_not_be_better() {
        let next =
            |candidate: &[f64], smaller| decide(&compare(&evidence(candidate, &[3.0; 5], 0.05)), smaller, &SETTINGS);
        assert_eq!(next(&[2.995; 5], true), Next::KeepSmaller);
        assert_eq!(next(&[2.995; 5], false), Next::Discard);
        assert_eq!(next(&[3.005; 5], true), Next::Discard);
        assert_eq!(next(&[3.0], true), Next::RunCandidate);
        assert_eq!(next(&[3.5], true), Next::Discard);
    }

    #[test]
    fn without_replicates_a_lower_loss_is_kept() {
        let settings = Settings { replicates: 0, ..SETTINGS };
        let next = |candidate: f64| {
            let evidence = Evidence { candidate: &[candidate], incumbent: &[3.0], windows: None, noise: None };
            decide(&compare(&evidence), false, &settings)
        };
        assert_eq!(next(2.999), Next::Keep);
        assert_eq!(next(3.0), Next::Discard);
        assert_eq!(next(f64::NAN), Next::Discard);
    }

    proptest! {
        /// Whatever the losses, a verdict is reached within the cap of runs.
        #[test]
        fn it_ends(
            incumbent in prop::collection::vec(2.9..3.1_f64, 1..4),
            runs in prop::collection::vec(2.8..3.2_f64, 64),
            smaller: bool,
        ) {
            let (mut candidate, mut incumbent) = (vec![runs[0]], incumbent);
            let mut more = runs[1..].iter();
            loop {
                match decide(&compare(&evidence(&candidate, &incumbent, 0.05)), smaller, &SETTINGS) {
                    Next::RunCandidate => candidate.push(*more.next().unwrap()),
                    Next::RunIncumbent => incumbent.push(*more.next().unwrap()),
                    Next::Keep | Next::KeepSmaller | Next::Discard => break,
                }
                prop_assert!(candidate.len() <= SETTINGS.max_runs);
                prop_assert!(incumbent.len() <= SETTINGS.max_runs);
            }
        }
    }
}
