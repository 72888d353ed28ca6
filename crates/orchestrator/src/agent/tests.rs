//! What the built-in agents propose, and that the search is worth having on simulated campaigns.

use rand::RngExt;

use super::*;

const RECIPE: &str = "\
//! A recipe.
const SCRATCH: Knobs = Knobs {
    learning_rate: 1e-3,           // search: log 1e-5..1e-1
    min_lr: 0.1,                   // search: 0.0..1.0
    lr_warmup: 0.1,                // search: 0.0..0.5
    beta2: 0.95,                   // search: 0.9..0.999
    deadzone: 0.7,                 // search: 0.0..1.5
    batch: 16,                     // search: log 4..64
    quantize: Warmup::Exponential, // search: Linear | Cosine | Exponential | Step
    activation_bits: 8,            // search: 4 | 8 | 16
};
";

fn space() -> Space {
    knobs::parse(RECIPE, "SCRATCH").expect("the recipe's knobs")
}

fn request<'a>(history: &'a [Trial], tried: &'a BTreeSet<String>, kind: AgentKind, experiment: u64) -> Request<'a> {
    Request { incumbent: RECIPE, const_name: "SCRATCH", history, tried, kind, seed: 7, startup: 3, experiment }
}

/// A history in which a higher learning rate is better.
fn history(length: u64) -> Vec<Trial> {
    let space = space();
    (0..length)
        .map(|n| {
            let knobs = random::sample(&space, &mut rng(1, n));
            let rate = space.knobs[0].domain.position(&knobs["learning_rate"]);
            Trial { knobs, loss: if n % 5 == 4 { None } else { rate.map(|r| 4.0 - r) } }
        })
        .collect()
}

#[test]
fn a_proposal_repeats_exactly_and_differs_by_experiment() {
    let (history, tried) = (history(20), BTreeSet::new());
    for kind in [AgentKind::Tpe, AgentKind::Random] {
        let first = propose(&request(&history, &tried, kind, 20)).expect("a proposal");
        assert_eq!(first, propose(&request(&history, &tried, kind, 20)).expect("the same again"));
        assert_ne!(first.hash, propose(&request(&history, &tried, kind, 21)).expect("another").hash);
        assert_eq!(first.hash, knobs::token_hash(&first.source).expect("Rust"));
        assert_eq!(first.knobs, knobs::parse(&first.source, "SCRATCH").expect("knobs").values());
    }
}

#[test]
fn both_agents_share_their_random_start() {
    let tried = BTreeSet::new();
    for length in 1..=8 {
        let history = history(length);
        let search = propose(&request(&history, &tried, AgentKind::Tpe, length)).expect("a proposal");
        let random = propose(&request(&history, &tried, AgentKind::Random, length)).expect("a proposal");
        // The baseline and `startup` proposals.
        assert_eq!(search.knobs == random.knobs, length < 1 + 3, "after {length} trials");
        assert_eq!((search.agent, random.agent), ("tpe", "random"));
    }
}

#[test]
fn a_proposal_stays_as_rustfmt_wants_it() {
    let proposal = propose(&request(&history(9), &BTreeSet::new(), AgentKind::Tpe, 9)).expect("a proposal");
    assert_eq!(formatted(proposal.source.clone()), proposal.source);
    assert!(proposal.source.starts_with("//! A recipe.\n"));
    assert_eq!(proposal.source.matches("// search:").count(), 8);
}

#[test]
fn no_recipe_is_proposed_twice_until_the_space_is_used_up() {
    let source = "const K: T = T {\n    a: 1, // search: 1..3\n    b: true, // search: true | false\n};\n";
    let mut tried = BTreeSet::from([knobs::token_hash(source).expect("Rust")]);
    let mut history = vec![Trial { knobs: knobs::parse(source, "K").expect("knobs").values(), loss: Some(1.0) }];
    for experiment in 1..6 {
        let request =
            Request { incumbent: source, const_name: "K", ..request(&history, &tried, AgentKind::Tpe, experiment) };
        let proposal = propose(&request).expect("a new recipe");
        assert!(!proposal.description.is_empty());
        assert!(tried.insert(proposal.hash), "experiment {experiment} was proposed before");
        history.push(Trial { knobs: proposal.knobs, loss: Some(1.0) });
    }
    let request = Request { incumbent: source, const_name: "K", ..request(&history, &tried, AgentKind::Tpe, 6) };
    assert!(matches!(propose(&request), Err(AgentError::UsedUp)));
}

#[test]
fn the_description_names_what_changed() {
    let mut values = space().values();
    assert_eq!(describe(&space(), &values), "the incumbent's knobs");
    values.insert("learning_rate".into(), "2.1e-3".into());
    values.insert("batch".into(), "32".into());
    assert_eq!(describe(&space(), &values), "learning_rate 1e-3 → 2.1e-3, batch 16 → 32");
}

#[test]
fn a_history_of_crashes_alone_still_gives_a_proposal() {
    let crashed: Vec<Trial> = history(8).into_iter().map(|t| Trial { loss: None, ..t }).collect();
    assert!(propose(&request(&crashed, &BTreeSet::new(), AgentKind::Tpe, 8)).is_ok());
    let foreign = vec![Trial { knobs: BTreeMap::from([("other".into(), "1".into())]), loss: Some(f64::NAN) }; 8];
    assert!(propose(&request(&foreign, &BTreeSet::new(), AgentKind::Tpe, 8)).is_ok());
}

#[test]
fn a_recipe_without_knobs_is_an_error_that_names_the_constant() {
    let tried = BTreeSet::new();
    let source = "const K: T = T { a: 1 };";
    let request = Request { incumbent: source, const_name: "K", ..request(&[], &tried, AgentKind::Random, 1) };
    assert!(propose(&request).is_err_and(|e| e.to_string().contains("`const K`")));
}

/// A campaign whose best knobs, and how much each matters, are drawn from a seed: a bowl in every range, a step for
/// every choice, an interaction of learning rate and batch, crashes beyond a learning rate, and noise on what is seen.
struct Simulation {
    best: Vec<f64>,
    weight: Vec<f64>,
}

impl Simulation {
    const NOISE: f64 = 0.05;

    fn new(space: &Space, rng: &mut StdRng) -> Self {
        let best = space.knobs.iter().map(|_| rng.random_range(0.15..0.85)).collect();
        let mut weight: Vec<f64> = space.knobs.iter().map(|_| [0.1, 0.3, 1.0, 2.0][rng.random_range(0..4)]).collect();
        weight[0] = 4.0;
        Self { best, weight }
    }

    /// The loss without noise; `None` for a crash.
    fn loss(&self, space: &Space, knobs: &BTreeMap<String, String>) -> Option<f64> {
        let mut loss = 0.0;
        let mut distance = Vec::new();
        for ((knob, best), weight) in space.knobs.iter().zip(&self.best).zip(&self.weight) {
            let position = knob.domain.position(&knobs[&knob.name])?;
            loss += weight
                * match knob.domain.choices() {
                    None => (position - best).powi(2),
                    Some(n) => 0.1 * ((position as usize + (best * n as f64) as usize) % n) as f64,
                };
            distance.push(position - best);
        }
        (distance[0] <= 0.35).then_some(loss + distance[0] * distance[5])
    }

    /// The true loss of the incumbent after `experiments` proposals and the baseline.
    fn campaign(kind: AgentKind, seed: u64, experiments: u64) -> f64 {
        let mut space = space();
        // The same noise for both agents.
        let mut world = rng(seed, u64::MAX);
        let simulation = Self::new(&space, &mut world);
        let mut history = Vec::new();
        let (mut incumbent, mut truth) = (f64::INFINITY, f64::INFINITY);
        for experiment in 0..=experiments {
            let mut rng = rng(seed, experiment);
            let knobs = match kind {
                _ if experiment == 0 => space.values(),
                AgentKind::Tpe if history.len() > 5 => tpe::sample(&space, &history, &mut rng).expect("a sample"),
                _ => random::sample(&space, &mut rng),
            };
            let noise = Self::NOISE * (0..12).map(|_| world.random::<f64>()).sum::<f64>() - Self::NOISE * 6.0;
            let exact = simulation.loss(&space, &knobs);
            let loss = exact.map(|exact| exact + noise);
            if let (Some(loss), Some(exact)) = (loss, exact)
                && loss < incumbent
            {
                (incumbent, truth) = (loss, exact);
                let kept = space.apply(&knobs).expect("allowed values");
                space = knobs::parse(&kept, "SCRATCH").expect("knobs");
            }
            history.push(Trial { knobs, loss });
        }
        truth
    }
}

#[test]
fn forty_searched_experiments_beat_forty_random_ones() {
    const CAMPAIGNS: u64 = 40;
    let run = |kind| -> Vec<f64> { (0..CAMPAIGNS).map(|seed| Simulation::campaign(kind, seed, 40)).collect() };
    let (search, random) = (run(AgentKind::Tpe), run(AgentKind::Random));
    let mean = |losses: &[f64]| losses.iter().sum::<f64>() / CAMPAIGNS as f64;
    let wins = search.iter().zip(&random).filter(|(search, random)| search < random).count();
    println!("search {:.4}, random {:.4}, {wins} of {CAMPAIGNS} won", mean(&search), mean(&random));
    assert!(mean(&search) < 0.75 * mean(&random), "search {} random {}", mean(&search), mean(&random));
    assert!(wins as u64 * 3 > CAMPAIGNS * 2, "only {wins} of {CAMPAIGNS} campaigns won");
}
