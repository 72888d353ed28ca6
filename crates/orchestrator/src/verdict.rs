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
//! The candidate is kept when p is within its share of the level and d is at least `min_gain`, dropped when p > borderline,
//! and otherwise run once more with a new seed, or the incumbent is where that has fewer runs. After `max_runs` runs it is
//! kept or dropped.
//!
//! # No worse, and smaller
//!
//! A candidate with a smaller file need not gain, but it must be shown not to be worse by the campaign's `margin` m or
//! more: a test of non-inferiority (Schuirmann 1987, Journal of Pharmacokinetics and Biopharmaceutics 15, one of his two
//! one-sided tests). It is kept when
//!
//! ```text
//! P(T > (d + m)/√(…)) ≤ its share of the level,
//! ```
//!
//! which says the same as: the upper confidence bound of the candidate's loss minus the incumbent's lies below m. Whatever
//! shows a gain shows this too, so both tests together keep a recipe that is worse by m or more with a probability of at
//! most `level`. It is run again while it can still be shown: while an optimistic gain, the upper bound of d at the level
//! `borderline`, would pass at the last look, with the error that both have then. That only stops earlier, so it costs power
//! and no level (non-binding futility). A margin below t·√(2·s²/max_runs + e²) is out of reach for equals.
//!
//! # Recipes that ignore their seed
//!
//! Runs that are equal to the bit are one draw: the recipe takes nothing from its seed. They count as one run in the error,
//! and their spread of 0 is not pooled, since a change of the recipe draws anew. Where no recipe shows a spread, luck
//! cannot be measured, and what is left are e, the evaluator's [`RESOLUTION`] and `min_gain`.
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

use formats::campaign::Noise as Settings;
use serde::{Deserialize, Serialize};
use statrs::distribution::{ContinuousCDF, StudentsT};

/// Error of an evaluator that computes in f32, nats per token: half a unit in the last place of a loss of 16, 16·2⁻²⁴.
pub const RESOLUTION: f64 = 16.0 / (1 << 24) as f64;
/// Degrees of freedom from which on Student's distribution is taken as that of so many.
const MOST_FREEDOM: f64 = 1e6;

/// The run-to-run spread of the loss.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Noise {
    /// Standard deviation, nats per token; pooled over the recipes that were run more than once. 0 where each gave the same
    /// with every seed: then luck is not measured.
    pub sd: f64,
    /// Its own standard error, taking the losses as normal: sd/√(2·degrees of freedom).
    pub error: f64,
    /// Degrees of freedom.
    pub freedom: usize,
}

impl Noise {
    /// Pools the spreads within groups of runs of one recipe, without those that are equal to the bit; `None` while no
    /// group has two.
    pub fn pooled<'a>(groups: impl IntoIterator<Item = &'a [f64]>) -> Option<Self> {
        let (mut squares, mut freedom, mut same) = (0.0, 0, 0);
        for losses in groups {
            if repeats(losses) {
                same += losses.len() - 1;
                continue;
            }
            let center = mean(losses);
            squares += losses.iter().map(|loss| (loss - center).powi(2)).sum::<f64>();
            freedom += losses.len().saturating_sub(1);
        }
        if freedom == 0 {
            return (same > 0).then_some(Self { sd: 0.0, error: 0.0, freedom: same });
        }
        let sd = (squares / freedom as f64).sqrt();
        Some(Self { sd, error: sd / (2.0 * freedom as f64).sqrt(), freedom })
    }

    /// Whether no recipe takes anything from its seed, so that luck cannot be measured.
    pub fn is_blind(&self) -> bool {
        self.sd == 0.0
    }

    /// Half of the 95 % confidence interval of a mean of `runs`; `None` where luck is not measured.
    pub fn half_interval(&self, runs: usize) -> Option<f64> {
        (!self.is_blind()).then(|| critical(self.freedom as f64, 0.025) * self.sd / (runs as f64).sqrt())
    }

    /// The least margin that equals can be shown to keep at the last look, without the windows' part of the error.
    pub fn least_margin(&self, settings: &Settings) -> f64 {
        let error = (2.0 / settings.max_runs as f64).sqrt() * self.sd;
        critical(self.freedom as f64, settings.level / 2.0) * error
    }
}

/// Whether runs with several seeds gave the same loss to the bit.
fn repeats(losses: &[f64]) -> bool {
    losses.len() > 1 && losses.iter().all(|loss| loss.to_bits() == losses[0].to_bits())
}

/// Runs that are draws of their own.
fn draws(losses: &[f64]) -> usize {
    if repeats(losses) { 1 } else { losses.len() }
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
    /// The part of the error that more runs do not lower: that over windows, and the evaluator's resolution.
    #[serde(default)]
    pub floor: f64,
    /// Whether several runs of the candidate gave the same loss to the bit.
    #[serde(default)]
    pub repeats: bool,
    /// The same of the incumbent.
    #[serde(default)]
    pub incumbent_repeats: bool,
}

/// What to do with a candidate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// It is the new incumbent.
    Keep,
    /// It is smaller, and shown to be worse by less than the margin.
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
    let mut parts = vec![(RESOLUTION.powi(2), MOST_FREEDOM)];
    if let Some(noise) = &evidence.noise {
        let share = 1.0 / draws(evidence.candidate) as f64 + 1.0 / draws(evidence.incumbent) as f64;
        parts.push((noise.sd.powi(2) * share, noise.freedom as f64));
    }
    if let Some(windows) = &evidence.windows {
        parts.push((windows.error.powi(2), (windows.count - 1) as f64));
    }
    let variance: f64 = parts.iter().map(|part| part.0).sum();
    let error = variance.sqrt();
    // Welch and Satterthwaite.
    let freedom = variance.powi(2) / parts.iter().map(|(part, freedom)| part.powi(2) / freedom).sum::<f64>();
    let freedom = Some(freedom.min(MOST_FREEDOM)).filter(|_| evidence.noise.is_some() && gain.is_finite());
    let windows = evidence.windows.map_or(0.0, |windows| windows.error);
    let comparison = Comparison {
        gain,
        error,
        freedom,
        p: 1.0,
        runs,
        incumbent_runs,
        floor: windows.hypot(RESOLUTION),
        repeats: repeats(evidence.candidate),
        incumbent_repeats: repeats(evidence.incumbent),
    };
    Comparison { p: comparison.beyond(0.0), ..comparison }
}

impl Comparison {
    /// Probability of such a gain, or more, for a candidate whose true gain is `effect`.
    fn beyond(&self, effect: f64) -> f64 {
        match self.freedom.and_then(students_t) {
            Some(t) => t.sf((self.gain - effect) / self.error),
            // The noise was not measured.
            None if self.gain > effect => 0.0,
            None => 1.0,
        }
    }

    /// Whether a smaller candidate may yet be shown to be within the margin.
    fn can_show(&self, settings: &Settings) -> bool {
        let Some(freedom) = self.freedom else { return false };
        let of_incumbent = |runs: usize| if self.incumbent_repeats { 1.0 } else { 1.0 / runs as f64 };
        let share = 1.0 / self.runs as f64 + of_incumbent(self.incumbent_runs);
        let variance = (self.error.powi(2) - self.floor.powi(2)).max(0.0) / share;
        let at_last = 1.0 / settings.max_runs as f64 + of_incumbent(self.incumbent_runs.max(settings.max_runs));
        let error = (variance * at_last + self.floor.powi(2)).sqrt();
        let optimistic = self.gain + critical(freedom, settings.borderline) * self.error;
        optimistic + settings.margin >= critical(freedom, settings.level / 2.0) * error
    }

    /// Half of the gain's 95 % confidence interval; `None` where the noise was not measured.
    pub fn half_interval(&self) -> Option<f64> {
        self.freedom.and_then(students_t).map(|t| t.inverse_cdf(0.975) * self.error)
    }
}

/// The point that Student's T exceeds with a probability of `level`.
fn critical(freedom: f64, level: f64) -> f64 {
    students_t(freedom).map_or(f64::NAN, |t| t.inverse_cdf(1.0 - level))
}

fn students_t(freedom: f64) -> Option<StudentsT> {
    StudentsT::new(0.0, 1.0, freedom).ok()
}

/// What comes of a comparison; `smaller` says whether the candidate's artifact is smaller than the incumbent's.
pub fn decide(comparison: &Comparison, smaller: bool, settings: &Settings) -> Next {
    if settings.replicates == 0 {
        return if comparison.gain > 0.0 { Next::Keep } else { Next::Discard };
    }
    // Another run of a recipe that ignores its seed says nothing new.
    let last = comparison.runs >= settings.max_runs || comparison.repeats;
    let share = if last { 1.0 } else { 1.0 / (settings.max_runs - 1) as f64 };
    let level = settings.level / 2.0 * share;
    if comparison.p <= level && comparison.gain >= settings.min_gain {
        return Next::Keep;
    }
    if smaller && comparison.beyond(-settings.margin) <= level {
        return Next::KeepSmaller;
    }
    let hopeful = comparison.p <= settings.borderline || (smaller && comparison.can_show(settings));
    if last || !hopeful {
        Next::Discard
    } else if comparison.incumbent_runs < comparison.runs && !comparison.incumbent_repeats {
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

    const SETTINGS: Settings = Settings {
        replicates: 4,
        fresh_runs: 2,
        level: 0.04,
        borderline: 0.2,
        max_runs: 5,
        min_gain: 0.001,
        margin: 0.1,
    };

    /// Five runs of the incumbent.
    const FIVE: [f64; 5] = [2.99, 3.0, 3.0, 3.0, 3.01];

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
        let comparison = compare(&evidence(&[3.0], &[3.0, 3.1, 3.1, 3.2], 0.2));
        assert!((comparison.gain - 0.1).abs() < 1e-12 && (comparison.error - 0.05_f64.sqrt()).abs() < 1e-9);
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
        assert_eq!(next(&[2.0], &FIVE), Next::Keep, "twenty times the noise needs no second run");
        assert_eq!(next(&[3.1], &FIVE), Next::Discard);
        assert_eq!(next(&[2.9], &FIVE), Next::RunCandidate, "a lucky number");
        assert_eq!(next(&[2.92, 2.94], &[3.0]), Next::RunIncumbent);
        assert_eq!(next(&[2.9, 3.05], &FIVE), Next::Discard, "it was luck");
        assert_eq!(next(&[2.9, 2.9, 2.89, 2.91, 2.9], &FIVE), Next::Keep);
        assert_eq!(
            next(&[2.97, 2.98, 2.98, 2.98, 2.99], &FIVE),
            Next::Discard,
            "not more than the noise, with all its runs"
        );
        assert_eq!(next(&[f64::NAN], &FIVE), Next::Discard);
    }

    #[test]
    fn what_is_smaller_must_be_shown_to_be_no_worse() {
        let next = |candidate: &[f64], smaller, margin| {
            let settings = Settings { margin, ..SETTINGS };
            decide(&compare(&evidence(candidate, &FIVE, 0.05)), smaller, &settings)
        };
        // The error of five runs against five is 0.032, and t of 2 % with 8 degrees of freedom 2.449: d + m > 0.077.
        let five = |center: f64| [center - 0.01, center, center, center, center + 0.01];
        assert_eq!(next(&five(2.995), true, 0.1), Next::KeepSmaller);
        assert_eq!(
            next(&five(3.005), true, 0.1),
            Next::KeepSmaller,
            "a hundredth worse, shown to be within the margin"
        );
        assert_eq!(next(&five(2.995), false, 0.1), Next::Discard);
        assert_eq!(next(&five(2.995), true, 0.05), Next::Discard, "lower, but not shown to be within the margin");
        assert_eq!(next(&five(3.05), true, 0.1), Next::Discard);
        assert_eq!(next(&[3.0], true, 0.1), Next::RunCandidate);
        assert_eq!(next(&[3.5], true, 0.1), Next::Discard);
        assert_eq!(next(&[3.0], true, 0.001), Next::Discard, "out of reach, so it is not tried five times");
    }

    #[test]
    fn a_lower_mean_within_large_noise_is_no_reason_to_keep() {
        // The case that was kept: +0.012 ± 0.134 nats at the last look.
        let comparison = compare(&evidence(&[2.9, 3.0, 3.1, 2.94, 3.0], &[3.0, 3.0, 3.0, 2.9, 3.1], 0.092));
        assert!((comparison.gain - 0.012).abs() < 1e-9 && (comparison.half_interval().unwrap() - 0.134).abs() < 1e-3);
        assert_eq!(decide(&comparison, true, &Settings { margin: 0.02, ..SETTINGS }), Next::Discard);
    }

    #[test]
    fn a_recipe_that_ignores_its_seed_is_one_draw() {
        let blind = Noise::pooled([&[3.0, 3.0, 3.0][..]]).unwrap();
        assert!(blind.is_blind());
        let others = Noise::pooled([&[3.0, 3.0, 3.0][..], &[0.0, 2.0]]).unwrap();
        assert_eq!((others.sd, others.freedom), (2.0_f64.sqrt(), 1), "zeros do not lower the spread of the others");
        let next = |candidate: &[f64], noise, windows| {
            let evidence = Evidence { candidate, incumbent: &[3.0; 3], windows, noise: Some(noise) };
            decide(&compare(&evidence), false, &SETTINGS)
        };
        assert_eq!(next(&[3.0 - 1e-9], blind, None), Next::Discard);
        assert_eq!(next(&[3.0 - 1e-4; 2], blind, None), Next::Discard, "certain, but below min_gain");
        assert_eq!(next(&[2.9], blind, None), Next::Keep);
        let windows = Some(Windows { error: 0.05, count: 100 });
        assert_eq!(next(&[2.92], blind, windows), Next::RunCandidate, "the windows differ by as much");
        assert_eq!(next(&[2.92; 2], blind, windows), Next::Discard, "its second run was the same: nothing new comes");
        // Twelve equal runs are as uncertain as one.
        let noise = Noise { sd: 0.05, error: 0.01, freedom: 8 };
        let of =
            |runs: &[f64]| compare(&Evidence { candidate: runs, incumbent: &[3.0], windows: None, noise: Some(noise) });
        assert_eq!(of(&[2.9; 12]).error, of(&[2.9]).error);
    }

    #[test]
    fn the_least_margin_is_that_of_equals_at_the_last_look() {
        // 2.896 is the table's 99 % point for 8 degrees of freedom.
        let noise = Noise { sd: 0.05, error: 0.01, freedom: 8 };
        let least = noise.least_margin(&Settings { level: 0.02, max_runs: 2, ..SETTINGS });
        assert!((least - 2.896 * 0.05).abs() < 1e-4, "{least}");
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
