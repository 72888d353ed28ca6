//! Schedules: pure functions of a run's progress in `[0, 1]` (elapsed over budget). They know no steps and no clock.

use std::f64::consts::PI;
use std::fmt;
use std::str::FromStr;

/// A word that no schedule has.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{given}` is no {what}: choose one of {known}")]
pub struct UnknownSchedule {
    /// What was read.
    pub given: String,
    /// What it should have been.
    pub what: &'static str,
    /// The words that are known.
    pub known: String,
}

/// How λ rises from 0 to 1; each reaches 1 at the end of the ramp.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Warmup {
    /// t.
    Linear,
    /// (1 − cos πt)/2.
    Cosine,
    /// (e^{kt} − 1)/(e^k − 1): late.
    Exponential,
    /// The logistic curve of slope k about t = ½, stretched to go from 0 to 1.
    Sigmoid,
    /// Jumps: ⌊n·t⌋/n.
    Step,
    /// n times: half a level's time holding, half rising.
    Plateau,
}

impl Warmup {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Linear, Self::Cosine, Self::Exponential, Self::Sigmoid, Self::Step, Self::Plateau];
}

/// λ over a run: 0 before `begin`, the warm-up from `begin` to `end`, 1 from `end` on.
///
/// `begin == end` is a jump; `end = 0` is ternary from the first step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Lambda {
    /// Shape.
    pub warmup: Warmup,
    /// Progress at which λ leaves 0.
    pub begin: f64,
    /// Progress from which λ is 1; at most 1.
    pub end: f64,
    /// n of step and plateau, at least 1.
    pub levels: u32,
    /// k of exponential and sigmoid, positive.
    pub rate: f64,
}

impl Lambda {
    /// A warm-up over the first `end` of the run, with 4 levels and rate 6 where the shape has any.
    pub fn new(warmup: Warmup, end: f64) -> Self {
        Self { warmup, begin: 0.0, end, levels: 4, rate: 6.0 }
    }

    /// λ at `progress`.
    pub fn at(&self, progress: f64) -> f64 {
        let end = self.end.min(1.0);
        if progress >= end {
            return 1.0;
        }
        let t = ((progress - self.begin) / (end - self.begin)).max(0.0);
        let (n, k) = (f64::from(self.levels.max(1)), self.rate);
        let risen = match self.warmup {
            Warmup::Linear => t,
            Warmup::Cosine => (1.0 - (PI * t).cos()) / 2.0,
            Warmup::Exponential => (k * t).exp_m1() / k.exp_m1(),
            Warmup::Sigmoid => {
                let logistic = |t: f64| 1.0 / (1.0 + (-k * (t - 0.5)).exp());
                (logistic(t) - logistic(0.0)) / (logistic(1.0) - logistic(0.0))
            }
            Warmup::Step => (n * t).floor() / n,
            Warmup::Plateau => ((n * t).floor() + (2.0 * (n * t).fract() - 1.0).max(0.0)) / n,
        };
        risen.clamp(0.0, 1.0)
    }
}

/// How the learning rate falls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Decay {
    /// Not at all.
    Constant,
    /// Linearly from the end of the warm-up.
    Linear,
    /// By half a cosine from the end of the warm-up.
    Cosine,
    /// Warm-up, stable, decay: constant, then linearly over the last `cooldown` of the run.
    Wsd,
}

impl Decay {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Constant, Self::Linear, Self::Cosine, Self::Wsd];
}

/// Share of the peak at which the warm-up starts, so that a first step is not wasted.
pub const WARMUP_START: f64 = 0.02;

/// The learning rate over a run, as a factor of its peak.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LearningRate {
    /// Progress at the end of the linear warm-up; 0 for none.
    pub warmup: f64,
    /// Shape of the decay.
    pub decay: Decay,
    /// Share of the run that [`Decay::Wsd`] decays over.
    pub cooldown: f64,
    /// Factor at the end of the run.
    pub last: f64,
}

impl LearningRate {
    /// The factor at `progress`.
    pub fn at(&self, progress: f64) -> f64 {
        let progress = progress.clamp(0.0, 1.0);
        if progress < self.warmup {
            return WARMUP_START + (1.0 - WARMUP_START) * progress / self.warmup;
        }
        let begin = match self.decay {
            Decay::Wsd => (1.0 - self.cooldown).max(self.warmup),
            Decay::Constant | Decay::Linear | Decay::Cosine => self.warmup,
        };
        let t = if begin < 1.0 { ((progress - begin) / (1.0 - begin)).max(0.0) } else { 0.0 };
        let fallen = match self.decay {
            Decay::Constant => 0.0,
            Decay::Linear | Decay::Wsd => t,
            Decay::Cosine => (1.0 - (PI * t).cos()) / 2.0,
        };
        1.0 - (1.0 - self.last) * fallen
    }
}

/// Temperature of the soft quantizer: a half cosine from `first` to `last`, then none (hard codes).
///
/// Hestia (arXiv 2601.20745) holds `first` while λ rises over a fifth of the run: give [`Temperature::at`] the progress
/// since then, negative before. Its matrices have temperatures of their own, times exp(−a·sensitivity).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Temperature {
    /// At the start.
    pub first: f64,
    /// The floor, reached at `hard_from`. The gradient spikes below about 0.1.
    pub last: f64,
    /// Progress from which the codes are hard; below 1, so that a run ends with what is exported.
    pub hard_from: f64,
}

impl Temperature {
    /// The temperature at `progress`, none from `hard_from` on.
    pub fn at(&self, progress: f64) -> Option<f64> {
        (progress < self.hard_from).then(|| {
            let t = (progress / self.hard_from).max(0.0);
            self.last + (self.first - self.last) * (1.0 + (PI * t).cos()) / 2.0
        })
    }
}

/// ε of Sherry's Arenas (arXiv 2601.07892), the share of the full-precision weight beside the ternary one: linearly
/// from 0 to 1 over the first `rise` of a run, then by half a cosine to 0, and 0 from `end` on.
///
/// The source has `rise` = 0.1 and `end` = 1; with `end` below 1 the last steps see what is exported.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Residual {
    /// Progress at which ε is 1.
    pub rise: f64,
    /// Progress from which ε is 0.
    pub end: f64,
}

impl Residual {
    /// ε at `progress`.
    pub fn at(&self, progress: f64) -> f64 {
        if progress >= self.end {
            0.0
        } else if progress < self.rise {
            (progress / self.rise).max(0.0)
        } else {
            (1.0 + (PI * (progress - self.rise) / (self.end - self.rise)).cos()) / 2.0
        }
    }
}

macro_rules! words {
    ($type:ty, $what:literal, $($variant:ident => $word:literal),+) => {
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(match self { $(Self::$variant => $word),+ })
            }
        }

        impl FromStr for $type {
            type Err = UnknownSchedule;

            fn from_str(word: &str) -> Result<Self, UnknownSchedule> {
                Self::ALL.into_iter().find(|known| known.to_string() == word).ok_or_else(|| UnknownSchedule {
                    given: word.into(),
                    what: $what,
                    known: Self::ALL.map(|known| known.to_string()).join(", "),
                })
            }
        }
    };
}

words!(Warmup, "warm-up of lambda", Linear => "linear", Cosine => "cosine", Exponential => "exponential",
    Sigmoid => "sigmoid", Step => "step", Plateau => "plateau");
words!(Decay, "decay of the learning rate", Constant => "constant", Linear => "linear", Cosine => "cosine",
    Wsd => "wsd");

#[cfg(test)]
mod tests {
    use super::*;

    const POINTS: u32 = 1000;

    fn curve(f: impl Fn(f64) -> f64) -> Vec<f64> {
        (0..=POINTS).map(|i| f(f64::from(i) / f64::from(POINTS))).collect()
    }

    #[test]
    fn every_warm_up_rises_to_one_and_stays() {
        for warmup in Warmup::ALL {
            for (begin, end) in [(0.0, 0.5), (0.1, 0.8), (0.0, 1.0), (0.3, 1.7)] {
                let lambda = Lambda { begin, ..Lambda::new(warmup, end) };
                let curve = curve(|progress| lambda.at(progress));
                assert_eq!(curve[0], 0.0, "{warmup} starts at 0");
                assert_eq!(lambda.at(begin), 0.0, "{warmup} leaves 0 at its begin");
                assert!(curve.windows(2).all(|pair| pair[0] <= pair[1]), "{warmup} falls");
                let end = (end.min(1.0) * f64::from(POINTS)) as usize;
                assert!(curve[end..].iter().all(|&value| value == 1.0), "{warmup} does not stay at 1");
                assert!(curve[end - 2] < 1.0, "{warmup} is there too early");
            }
        }
    }

    #[test]
    fn ternary_from_the_first_step() {
        for warmup in Warmup::ALL {
            assert!(curve(|progress| Lambda::new(warmup, 0.0).at(progress)).iter().all(|&value| value == 1.0));
        }
    }

    #[test]
    fn shapes_are_their_formulas() {
        let at = |warmup, t| Lambda::new(warmup, 1.0).at(t);
        let near = |a: f64, b: f64| assert!((a - b).abs() < 1e-12, "{a} is not {b}");
        near(at(Warmup::Linear, 0.3), 0.3);
        near(at(Warmup::Cosine, 0.5), 0.5);
        near(at(Warmup::Exponential, 0.5), (3f64.exp() - 1.0) / (6f64.exp() - 1.0));
        near(at(Warmup::Sigmoid, 0.5), 0.5);
        assert_eq!([0.2, 0.25, 0.49, 0.5, 0.99].map(|t| at(Warmup::Step, t)), [0.0, 0.25, 0.25, 0.5, 0.75]);
        assert_eq!([0.125, 0.1875, 0.25, 0.375].map(|t| at(Warmup::Plateau, t)), [0.0, 0.125, 0.25, 0.25]);
    }

    #[test]
    fn learning_rates_rise_and_fall() {
        for decay in Decay::ALL {
            for warmup in [0.0, 0.1, 1.0] {
                let rate = LearningRate { warmup, decay, cooldown: 0.3, last: 0.1 };
                let curve = curve(|progress| rate.at(progress));
                assert_eq!(curve[0], if warmup > 0.0 { WARMUP_START } else { 1.0 }, "{decay}");
                let peak = (warmup * f64::from(POINTS)) as usize;
                assert!((curve[peak] - 1.0).abs() < 1e-12, "{decay} peaks at the end of the warm-up");
                assert!(curve[..=peak].windows(2).all(|pair| pair[0] < pair[1]));
                assert!(curve[peak..].windows(2).all(|pair| pair[0] >= pair[1]));
                let last = if decay == Decay::Constant || warmup == 1.0 { 1.0 } else { 0.1 };
                assert!((curve[POINTS as usize] - last).abs() < 1e-12, "{decay} ends at {last}");
            }
        }
        let wsd = LearningRate { warmup: 0.1, decay: Decay::Wsd, cooldown: 0.3, last: 0.0 };
        assert_eq!(wsd.at(0.69), 1.0);
        assert!((wsd.at(0.85) - 0.5).abs() < 1e-12);
    }

    #[test]
    fn temperatures_end_hard() {
        let temperature = Temperature { first: 1.0, last: 0.1, hard_from: 0.8 };
        assert_eq!(temperature.at(0.0), Some(1.0));
        assert!((temperature.at(0.4).expect("soft") - 0.55).abs() < 1e-12);
        assert!(temperature.at(0.799).expect("soft") >= 0.1);
        assert_eq!(temperature.at(0.8), None);
        assert_eq!(temperature.at(1.0), None);
    }

    #[test]
    fn residuals_rise_and_are_gone_at_the_end() {
        let residual = Residual { rise: 0.1, end: 0.9 };
        for (progress, wanted) in [(0.0, 0.0), (0.05, 0.5), (0.1, 1.0), (0.5, 0.5), (0.9, 0.0), (1.0, 0.0)] {
            assert!((residual.at(progress) - wanted).abs() < 1e-12, "at {progress}");
        }
        let always = Residual { rise: 0.0, end: 1.0 };
        assert_eq!((always.at(0.0), always.at(1.0)), (1.0, 0.0));
    }

    #[test]
    fn words_are_read_back_and_unknown_ones_name_the_known() {
        for warmup in Warmup::ALL {
            assert_eq!(warmup.to_string().parse(), Ok(warmup));
        }
        for decay in Decay::ALL {
            assert_eq!(decay.to_string().parse(), Ok(decay));
        }
        let error = "plateu".parse::<Warmup>().expect_err("misspelt").to_string();
        assert_eq!(
            error,
            "`plateu` is no warm-up of lambda: choose one of linear, cosine, exponential, sigmoid, step, plateau"
        );
    }
}
