//! Records in every order that can happen, and some that cannot.

use formats::corpus::Part;
use proptest::prelude::*;

use super::*;

fn record(event: Event) -> Record {
    Record { time: "2026-01-01T00:00:00Z".into(), event }
}

fn proposed(experiment: u64) -> Event {
    Event::Proposed(Proposed {
        experiment,
        commit: format!("{experiment:040}"),
        parent: None,
        agent: "search".into(),
        description: String::new(),
        knobs: BTreeMap::new(),
        recipe: format!("recipe {experiment}"),
        seed: 0,
        expected: None,
        cost: None,
        waited: None,
    })
}

fn built(experiment: u64) -> Event {
    Event::Built(Built {
        experiment,
        seconds: 1.0,
        processor_s: 0.5,
        memory: 6,
        disk: 7,
        ahead: false,
        rehearsed: 0.0,
        trainer_sha256: String::new(),
        sandbox: None,
    })
}

fn trained(experiment: u64) -> Event {
    Event::Trained(Trained {
        experiment,
        train_s: 1.0,
        wall_s: 2.0,
        steps: 3,
        tokens: 4,
        memory: 5,
        sandbox: None,
        processor: None,
    })
}

fn evaluation(eval_loss: f64) -> Evaluation {
    Evaluation {
        part: Part::Select,
        eval_loss,
        eval_ppl: eval_loss.exp(),
        eval_bpb: 1.0,
        tokens: 10,
        bits_per_weight: 1.7,
        shares: [0.3, 0.4, 0.3],
        seconds: 1.0,
        windows: vec![eval_loss as f32; 2],
    }
}

fn measured() -> Event {
    Event::Measured(evaluation(3.0))
}

fn replicated(number: u64, experiment: u64, loss: f64) -> Event {
    let Event::Trained(trained) = trained(number) else { unreachable!() };
    let (commit, evaluation) = (format!("{experiment:040}"), evaluation(loss));
    Event::Replicated(Replicate { number, experiment, commit, seed: number, trained, evaluation })
}

fn ended(experiment: u64, status: Status) -> Event {
    Event::Ended(Box::new(Row {
        experiment,
        commit: format!("{experiment:040}"),
        parent: None,
        status,
        reason: None,
        description: String::new(),
        agent: "search".into(),
        seed: 0,
        gain: None,
        comparison: None,
        evaluation: None,
        trained: None,
        finished_at: String::new(),
    }))
}

fn abandoned(experiment: u64, again: bool) -> Event {
    Event::Abandoned(Abandoned { experiment, reason: String::new(), again })
}

fn state(events: &[Event]) -> Result<State, String> {
    State::rebuild(&events.iter().cloned().map(record).collect::<Vec<_>>())
}

#[test]
fn an_experiment_goes_through_its_stages_to_one_row() {
    let events = [proposed(1), built(1), trained(1), measured(), ended(1, Status::Keep)];
    let stages: Vec<&str> =
        (1..5).map(|n| state(&events[..n]).unwrap().in_flight.as_ref().map(InFlight::stage).unwrap()).collect();
    assert_eq!(stages, ["building", "training", "evaluating", "deciding"]);
    let over = state(&events).unwrap();
    assert_eq!((over.in_flight.as_ref(), over.rows.len(), over.next()), (None, 1, 2));
    assert_eq!(over.incumbent().unwrap().experiment, 1);
}

#[test]
fn an_abandoned_experiment_keeps_its_number() {
    let again = state(&[proposed(1), built(1), abandoned(1, true)]).unwrap();
    assert_eq!(again.in_flight.as_ref().map(InFlight::stage), Some("building"));
    assert_eq!(again.next(), 1);
    let anew = state(&[proposed(1), built(1), abandoned(1, false)]).unwrap();
    assert_eq!((anew.in_flight.as_ref(), anew.next(), anew.tried().len()), (None, 1, 0));
    state(&[proposed(1), abandoned(1, false), proposed(1), ended(1, Status::Crash)]).unwrap();
}

#[test]
fn the_incumbent_is_the_last_keep() {
    let mut events = Vec::new();
    for (number, status) in [(1, Status::Keep), (2, Status::Discard), (3, Status::Keep), (4, Status::Crash)] {
        events.extend([proposed(number), ended(number, status)]);
    }
    let state = state(&events).unwrap();
    assert_eq!(state.incumbent().unwrap().experiment, 3);
    assert_eq!((state.baseline().unwrap().experiment, state.kept(), state.tried().len()), (1, 2, 4));
}

#[test]
fn what_cannot_happen_is_refused() {
    for impossible in [
        vec![proposed(2)],
        vec![built(1)],
        vec![proposed(1), proposed(2)],
        vec![proposed(1), ended(2, Status::Keep)],
        vec![proposed(1), ended(1, Status::Keep), ended(1, Status::Keep)],
        vec![measured()],
        vec![abandoned(1, true)],
    ] {
        assert!(state(&impossible).is_err(), "{impossible:?}");
    }
}

proptest! {
    /// Whatever the order, numbers are used once and in order, or the journal is refused.
    #[test]
    fn every_number_has_one_row(picks in prop::collection::vec((0..6_usize, 1..4_u64), 0..40)) {
        let events: Vec<Event> = picks
            .into_iter()
            .map(|(kind, n)| match kind {
                0 => proposed(n),
                1 => built(n),
                2 => trained(n),
                3 => ended(n, Status::Discard),
                4 => abandoned(n, n % 2 == 0),
                _ => measured(),
            })
            .collect();
        let mut state = State::default();
        for event in events {
            let before = state.clone();
            // A refused record changes nothing that counts.
            if state.apply(&record(event)).is_err() {
                state = before;
            }
            let numbers: Vec<u64> = state.rows.iter().map(|row| row.experiment).collect();
            prop_assert_eq!(&numbers, &(1..state.next()).collect::<Vec<_>>());
            if let Some(flight) = &state.in_flight {
                prop_assert_eq!(flight.proposed.experiment, state.next());
            }
        }
    }

    /// A record is the same after a round trip through its line.
    #[test]
    fn records_round_trip(loss in 0.0..100.0_f64, text in ".*") {
        let Event::Measured(mut evaluation) = measured() else { unreachable!() };
        evaluation.eval_loss = loss;
        for event in [Event::FullPrecision(evaluation.clone()), Event::Stopped { reason: text.clone() }] {
            let line = serde_json::to_string(&record(event.clone())).unwrap();
            prop_assert!(!line.contains('\n'));
            prop_assert_eq!(serde_json::from_str::<Record>(&line).unwrap().event, event);
        }
    }
}

/// A row that was kept or discarded after `runs` runs, with this loss in the first.
fn with_loss(experiment: u64, status: Status, loss: f64, runs: usize) -> Event {
    let Event::Ended(row) = ended(experiment, status) else { unreachable!() };
    let comparison = Comparison {
        gain: 0.1,
        error: 0.1,
        freedom: None,
        p: 0.1,
        runs,
        incumbent_runs: 2,
        floor: 0.0,
        repeats: false,
        incumbent_repeats: false,
    };
    let changed = experiment > 1;
    Event::Ended(Box::new(Row {
        parent: changed.then(|| format!("{:040}", 1)),
        comparison: changed.then_some(comparison),
        evaluation: Some(evaluation(loss)),
        ..*row
    }))
}

#[test]
fn noise_is_pooled_and_a_first_run_that_chose_itself_is_no_part_of_it() {
    let mut events = vec![proposed(1), with_loss(1, Status::Keep, 3.0, 1)];
    assert_eq!(state(&events).unwrap().noise(), None);
    events.push(replicated(1, 1, 3.2));
    let noise = state(&events).unwrap().noise().unwrap();
    // Two losses 0.2 apart: the standard deviation is 0.2/√2, with one degree of freedom.
    assert!((noise.sd - 0.2 / 2f64.sqrt()).abs() < 1e-12 && noise.freedom == 1);
    assert!((noise.error - noise.sd / 2f64.sqrt()).abs() < 1e-12);
    // The first run of the second, 1.0, was so good that it was run again.
    events.extend([proposed(2), replicated(2, 2, 4.0), replicated(3, 2, 4.2), with_loss(2, Status::Discard, 1.0, 3)]);
    let noise = state(&events).unwrap().noise().unwrap();
    assert!((noise.sd - 0.2 / 2f64.sqrt()).abs() < 1e-12 && noise.freedom == 2, "{noise:?}");
    events.push(replicated(5, 2, 4.0));
    assert!(state(&events).is_err(), "the fourth comes next");
}

#[test]
fn what_an_experiment_is_worth_is_the_mean_of_its_runs() {
    let mut events = vec![proposed(1), with_loss(1, Status::Keep, 3.0, 1), replicated(1, 1, 3.2)];
    events.extend([proposed(2), replicated(2, 2, 2.9), with_loss(2, Status::Discard, 2.7, 2)]);
    events.extend([proposed(3), replicated(3, 3, 2.4), with_loss(3, Status::Keep, 2.0, 2), replicated(4, 3, 2.6)]);
    let state = state(&events).unwrap();
    let means: Vec<f64> = state.rows.iter().filter_map(|row| state.mean_loss(row)).collect();
    // Of the last, only the run behind its keep counts: the others chose it.
    for (mean, expected) in means.iter().zip([3.1, 2.8, 2.6]) {
        assert!((mean - expected).abs() < 1e-12, "{means:?}");
    }
}

#[test]
fn the_bar_is_without_the_first_run_and_the_estimate_without_all_that_selected() {
    let bar = |events: &[Event]| {
        let state = state(events).unwrap();
        state.bar(state.incumbent().unwrap()).iter().map(|run| run.eval_loss).collect::<Vec<_>>()
    };
    let mut events = vec![proposed(1), with_loss(1, Status::Keep, 3.0, 1)];
    assert_eq!(bar(&events), [3.0]);
    events.push(replicated(1, 1, 3.2));
    assert_eq!(bar(&events), [3.0, 3.2], "nobody chose the baseline");
    events.extend([proposed(2), replicated(2, 2, 2.0), replicated(3, 2, 2.1), with_loss(2, Status::Keep, 1.9, 3)]);
    assert_eq!(bar(&events), [2.0, 2.1]);
    let unselected = |events: &[Event]| {
        let state = state(events).unwrap();
        state.unselected(state.incumbent().unwrap()).iter().map(|run| run.eval_loss).collect::<Vec<_>>()
    };
    assert_eq!(unselected(&events), [1.9], "nothing fresh yet");
    events.extend([replicated(4, 2, 2.4), replicated(5, 2, 2.5)]);
    assert_eq!(bar(&events), [2.0, 2.1, 2.4, 2.5]);
    assert_eq!(unselected(&events), [2.4, 2.5]);
    let state = state(&events).unwrap();
    assert_eq!((state.next_seed(2), state.next_seed(1), state.next_seed(3)), (5, 2, 1));
}

#[test]
fn recipes_are_compared_window_by_window() {
    let run = |eval_loss: f64, windows: [f32; 2]| Evaluation { windows: windows.to_vec(), ..evaluation(eval_loss) };
    let (one, other) = (run(3.0, [1.0, 5.0]), run(3.2, [1.4, 5.0]));
    let candidate = run(2.9, [1.1, 4.9]);
    let noise = Noise::pooled([&[3.0, 3.2][..]]);
    let found = compare(&[&one, &other], &[&candidate], noise);
    assert!((found.gain - 0.2).abs() < 1e-12 && (found.runs, found.incumbent_runs) == (1, 2));
    // The incumbent's windows are 1.2 and 5.0 on average: both differ by 0.1 from the candidate's.
    assert!((found.error - noise.unwrap().sd * 1.5f64.sqrt()).abs() < 1e-6, "{found:?}");
}

#[test]
fn a_measured_experiment_is_found_by_its_names() {
    let events = [
        proposed(1),
        with_loss(1, Status::Keep, 3.0, 1),
        proposed(2),
        with_loss(2, Status::Keep, 3.0, 1),
        proposed(3),
        ended(3, Status::Crash),
    ];
    let state = state(&events).unwrap();
    let found = |name: &str| state.find(name).map(|row| row.experiment);
    assert_eq!((found("baseline"), found("best"), found("2")), (Some(1), Some(2), Some(2)));
    assert_eq!(found(&format!("{:040}", 2)), Some(2));
    assert_eq!((found("3"), found("4"), found("0")), (None, None, None));
}

#[test]
fn time_is_added_up_while_somebody_works() {
    let at = |time: &str, event| Record { time: format!("2026-01-01T{time}Z"), event };
    let records = [
        at("00:00:00", proposed(1)),
        at("00:00:10", built(1)),
        at("00:01:20", trained(1)),
        // Stopped for an hour.
        at("01:00:00", Event::Resumed(Resumed { version: String::new() })),
        at("01:00:05", measured()),
        at("01:00:05", Event::Stopped { reason: String::new() }),
        at("09:00:00", Event::Stopped { reason: "again".into() }),
    ];
    let time = State::rebuild(&records).unwrap().time;
    assert_eq!((time.worked, time.building, time.training, time.overhead), (85.0, 1.0, 1.0, 1.0));
    assert_eq!((time.evaluating, time.thinking), (1.0, 0.0));
}
