//! What the rule of `verdict` buys: simulated campaigns under the noise that was measured in `nano`, with the rule, with
//! "keep anything lower", and with "three seeds each". Counted are false keeps (the candidate's true loss was not lower)
//! and the incumbent's true loss after the same hours of the device.
//!
//! `--campaigns N` simulates fewer. `--choose` tries the rule's settings instead and prints the best; the campaign's defaults come from there.

#![allow(clippy::unwrap_used, reason = "a benchmark that cannot run has nothing to say")]

use formats::campaign::Noise as Settings;
use orchestrator::verdict::{Evidence, Next, Noise, Windows, compare, decide};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// Campaigns that are simulated for each line of the table.
const CAMPAIGNS: u64 = 4000;
/// As many for each of the settings that are tried; their seeds are others than the table's.
const CHOOSING: u64 = 500;
/// Run-to-run standard deviation in nats per token: of `nano` by work (two evenings, four runs each), and of `nano` by wall time
/// on a machine that others use.
const NOISE: f64 = 0.008;
const MUCH_NOISE: f64 = 0.038;
/// Share of the proposals that store fewer bits than the incumbent.
const SMALLER: f64 = 0.1;
/// Hours of each.
const HOURS: f64 = 8.0;
/// Windows of `nano`'s select part.
const WINDOWS: usize = 193;
/// Standard error over windows of a difference between two recipes there (median of 78 experiments), nats per token.
const WINDOW_ERROR: f64 = 0.005;
/// Nats between the baseline and a recipe that nothing improves any more; gains shrink with the distance to it.
const HEADROOM: f64 = 0.4;

/// What proposals do to the true loss, nats per token, and how long a run takes.
struct World {
    name: &'static str,
    /// Share of the proposals that help, and their mean gain.
    helps: (f64, f64),
    /// Share of those that hurt, and their mean loss; the others change nothing.
    hurts: (f64, f64),
    /// Run-to-run standard deviation.
    noise: f64,
    /// Seconds from one run's begin to the next one's.
    seconds: f64,
}

/// Effects of the first two after the 39 proposals of the search in `nano` (4 of 39 measured lower than the incumbent,
/// gains of up to 0.04, two thirds more than 0.05 worse); the others for what an agent that turns no knobs may do.
const WORLDS: [World; 5] = [
    World { name: "optimizer, 60 s", helps: (0.12, 0.03), hurts: (0.7, 0.15), noise: NOISE, seconds: 95.0 },
    World { name: "optimizer, 300 s", helps: (0.12, 0.03), hurts: (0.7, 0.15), noise: NOISE, seconds: 400.0 },
    World { name: "small edits, 60 s", helps: (0.08, 0.02), hurts: (0.5, 0.06), noise: NOISE, seconds: 95.0 },
    World { name: "rare gains, 60 s", helps: (0.03, 0.04), hurts: (0.5, 0.15), noise: NOISE, seconds: 95.0 },
    World { name: "much noise, 60 s", helps: (0.12, 0.03), hurts: (0.7, 0.15), noise: MUCH_NOISE, seconds: 95.0 },
];

/// How a candidate is judged.
#[derive(Clone, Copy)]
enum Rule {
    Lower,
    ThreeSeeds,
    Gate(Settings),
}

/// What came of campaigns.
#[derive(Default)]
struct Outcome {
    candidates: f64,
    keeps: f64,
    false_keeps: f64,
    /// Candidates that are smaller.
    smaller: f64,
    /// Those kept for it, and those of them that are worse by the margin or more.
    smaller_keeps: f64,
    wrong_smaller_keeps: f64,
    /// True loss at the end against the baseline's, and its square, for the standard error.
    change: f64,
    squares: f64,
    campaigns: f64,
}

impl Outcome {
    fn per_hundred(&self) -> f64 {
        100.0 * self.false_keeps / self.candidates
    }

    fn wrong_per_hundred(&self) -> f64 {
        100.0 * self.wrong_smaller_keeps / self.smaller
    }

    fn loss(&self) -> f64 {
        self.change / self.campaigns
    }

    fn error(&self) -> f64 {
        ((self.squares / self.campaigns - self.loss().powi(2)) / self.campaigns).sqrt()
    }
}

fn main() {
    if std::env::args().any(|argument| argument == "--choose") {
        return choose();
    }
    let campaigns = std::env::args().skip_while(|argument| argument != "--campaigns").nth(1);
    let campaigns = campaigns.map_or(CAMPAIGNS, |number| number.parse().unwrap());
    println!("{campaigns} campaigns of {HOURS} h a line; loss in nats against the baseline's, true, ± standard error");
    let settings = Settings::default();
    println!("{settings:?}");
    println!(
        "{:<20} {:<16} {:>11} {:>6} {:>16} {:>9} {:>19} {:>14} {:>22}",
        "world",
        "rule",
        "experiments",
        "keeps",
        "false per 100",
        "ratio",
        "true loss",
        "smaller keeps",
        "wrong per 100 smaller"
    );
    for world in &WORLDS {
        let rules = [("lower", Rule::Lower), ("three seeds", Rule::ThreeSeeds), ("gate", Rule::Gate(settings))];
        let mut first = None;
        for (name, rule) in rules {
            let outcome = simulate(world, rule, 0, campaigns);
            let base = *first.get_or_insert(outcome.per_hundred());
            println!(
                "{:<20} {:<16} {:>11.0} {:>6.1} {:>16.3} {:>9.3} {:>+10.4} ± {:.4} {:>14.2} {:>22.3}",
                world.name,
                name,
                outcome.candidates / outcome.campaigns,
                outcome.keeps / outcome.campaigns,
                outcome.per_hundred(),
                outcome.per_hundred() / base,
                outcome.loss(),
                outcome.error(),
                outcome.smaller_keeps / outcome.campaigns,
                outcome.wrong_per_hundred(),
            );
        }
    }
}

/// Among settings with at most a tenth of the false keeps of "keep anything lower" in every world, the lowest true loss
/// on average.
fn choose() {
    let lower: Vec<Outcome> = WORLDS.iter().map(|world| simulate(world, Rule::Lower, CAMPAIGNS, CHOOSING)).collect();
    let mut tried = Vec::new();
    for replicates in [3, 5] {
        for fresh_runs in [2, 4] {
            for max_runs in [8, 12] {
                for level in [0.02, 0.03, 0.04, 0.05] {
                    for borderline in [0.15, 0.2, 0.25, 0.3] {
                        let settings =
                            Settings { replicates, fresh_runs, level, borderline, max_runs, ..Settings::default() };
                        let worlds = WORLDS.iter().zip(&lower);
                        let (mut loss, mut worst) = (0.0, 0.0_f64);
                        for (world, lower) in worlds {
                            let outcome = simulate(world, Rule::Gate(settings), CAMPAIGNS, CHOOSING);
                            loss += outcome.loss() / WORLDS.len() as f64;
                            worst = worst.max(outcome.per_hundred() / lower.per_hundred());
                        }
                        tried.push((loss, worst, settings));
                    }
                }
            }
        }
    }
    tried.sort_by(|a, b| a.0.total_cmp(&b.0));
    println!("{:>10} {:>22}", "true loss", "false keeps, ratio");
    for (loss, worst, settings) in tried.iter().filter(|(_, worst, _)| *worst <= 0.1).take(20) {
        println!("{loss:>+10.4} {worst:>22.3}  {settings:?}");
    }
}

fn simulate(world: &World, rule: Rule, first: u64, campaigns: u64) -> Outcome {
    let mut outcome = Outcome::default();
    for seed in first..first + campaigns {
        campaign(world, rule, seed, &mut outcome);
    }
    outcome
}

/// One campaign; the proposals of a seed are the same whatever the rule.
fn campaign(world: &World, rule: Rule, seed: u64, outcome: &mut Outcome) {
    let mut proposals = StdRng::seed_from_u64(seed);
    let mut device = Device { rng: StdRng::seed_from_u64(!seed), noise: world.noise, left: 0 };
    device.left = (HOURS * 3600.0 / world.seconds) as u64;
    let mut loss = 0.0;
    let mut groups: Vec<Vec<f64>> = vec![vec![]];
    let first = match rule {
        Rule::Lower => 1,
        Rule::ThreeSeeds => 3,
        Rule::Gate(settings) => 1 + settings.replicates,
    };
    let mut incumbent: Vec<f64> = (0..first).map(|_| device.run(loss)).collect();
    groups[0].clone_from(&incumbent);
    while device.left > 0 {
        let effect = proposals.random_range(0.0..1.0);
        let size = -f64::ln(1.0 - proposals.random_range(0.0..1.0));
        let text = WINDOW_ERROR * normal(&mut proposals);
        let gain = match effect {
            x if x < world.helps.0 => world.helps.1 * size * ((HEADROOM + loss) / HEADROOM).max(0.0),
            x if x < world.helps.0 + world.hurts.0 => -world.hurts.1 * size,
            _ => 0.0,
        };
        // What `select` shows of the gain; the text that it consists of favours some recipes.
        let seen = loss - gain - text;
        let smaller = proposals.random_range(0.0..1.0) < SMALLER;
        let (next, runs) = match rule {
            Rule::Lower | Rule::ThreeSeeds => {
                let runs: Vec<f64> = (0..first).map(|_| device.run(seen)).collect();
                (if mean(&runs) < mean(&incumbent) { Next::Keep } else { Next::Discard }, runs)
            }
            Rule::Gate(settings) => gate(&settings, &mut device, (seen, loss), smaller, &mut incumbent, &mut groups),
        };
        outcome.candidates += 1.0;
        outcome.smaller += f64::from(smaller);
        if next != Next::Discard && device.left > 0 {
            outcome.keeps += 1.0;
            // What is kept for its size need not gain.
            outcome.false_keeps += f64::from(next == Next::Keep && gain <= 0.0);
            if next == Next::KeepSmaller {
                outcome.smaller_keeps += 1.0;
                let margin = if let Rule::Gate(settings) = rule { settings.margin } else { 0.0 };
                outcome.wrong_smaller_keeps += f64::from(gain <= -margin);
            }
            loss -= gain;
            incumbent = match rule {
                Rule::Lower | Rule::ThreeSeeds => runs,
                Rule::Gate(settings) => {
                    let fresh = (0..settings.fresh_runs).map(|_| device.run(loss));
                    runs[1..].iter().copied().chain(fresh).collect()
                }
            };
            groups.push(incumbent.clone());
        }
    }
    outcome.change += loss;
    outcome.squares += loss * loss;
    outcome.campaigns += 1.0;
}

/// As the search does it: runs until the verdict. The losses are the candidate's, as `select` shows it, and the
/// incumbent's.
fn gate(
    settings: &Settings,
    device: &mut Device,
    (seen, loss): (f64, f64),
    smaller: bool,
    incumbent: &mut Vec<f64>,
    groups: &mut Vec<Vec<f64>>,
) -> (Next, Vec<f64>) {
    let mut runs = vec![device.run(seen)];
    let next = loop {
        let last = groups.len() - 1;
        groups[last].clone_from(incumbent);
        // The first run decided whether there would be others.
        let noise = Noise::pooled(groups.iter().map(Vec::as_slice).chain([&runs[1..]]));
        let windows = Some(Windows { error: WINDOW_ERROR, count: WINDOWS });
        let evidence = Evidence { candidate: &runs, incumbent, windows, noise };
        match decide(&compare(&evidence), smaller, settings) {
            end @ (Next::Keep | Next::KeepSmaller | Next::Discard) => break end,
            _ if device.left == 0 => break Next::Discard,
            Next::RunCandidate => runs.push(device.run(seen)),
            Next::RunIncumbent => incumbent.push(device.run(loss)),
        }
    };
    // Those of a new incumbent come with its other runs.
    if runs.len() > 2 && next == Next::Discard {
        // Before the incumbent's, which is the last.
        groups.insert(0, runs[1..].to_vec());
    }
    (next, runs)
}

/// Gives measured losses until its time is over.
struct Device {
    rng: StdRng,
    noise: f64,
    left: u64,
}

impl Device {
    fn run(&mut self, loss: f64) -> f64 {
        self.left = self.left.saturating_sub(1);
        loss + self.noise * normal(&mut self.rng)
    }
}

/// Box and Muller.
fn normal(rng: &mut StdRng) -> f64 {
    let radius = (-2.0 * f64::ln(1.0 - rng.random_range(0.0..1.0))).sqrt();
    radius * f64::cos(std::f64::consts::TAU * rng.random_range(0.0..1.0))
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}
