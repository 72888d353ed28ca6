//! Records in every order that can happen, and some that cannot.

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
    })
}

fn built(experiment: u64) -> Event {
    Event::Built(Built { experiment, seconds: 1.0, trainer_sha256: String::new(), sandbox: None })
}

fn trained(experiment: u64) -> Event {
    Event::Trained(Trained { experiment, train_s: 1.0, wall_s: 2.0, steps: 3, tokens: 4, memory: 5, sandbox: None })
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
    Event::Ended(Row {
        experiment,
        commit: format!("{experiment:040}"),
        parent: None,
        status,
        reason: None,
        description: String::new(),
        agent: "search".into(),
        seed: 0,
        gain: None,
        evaluation: None,
        trained: None,
        finished_at: String::new(),
    })
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
        (1..5).map(|n| state(&events[..n]).unwrap().flight.as_ref().map(Flight::stage).unwrap()).collect();
    assert_eq!(stages, ["building", "training", "evaluating", "deciding"]);
    let over = state(&events).unwrap();
    assert_eq!((over.flight.as_ref(), over.rows.len(), over.next()), (None, 1, 2));
    assert_eq!(over.incumbent().unwrap().experiment, 1);
}

#[test]
fn an_abandoned_experiment_keeps_its_number() {
    let again = state(&[proposed(1), built(1), abandoned(1, true)]).unwrap();
    assert_eq!(again.flight.as_ref().map(Flight::stage), Some("building"));
    assert_eq!(again.next(), 1);
    let anew = state(&[proposed(1), built(1), abandoned(1, false)]).unwrap();
    assert_eq!((anew.flight.as_ref(), anew.next(), anew.tried().len()), (None, 1, 0));
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
            if let Some(flight) = &state.flight {
                prop_assert_eq!(flight.proposed.experiment, state.next());
            }
        }
    }

    /// A record is the same after a round trip through its line.
    #[test]
    fn records_round_trip(loss in 0.0..100.0_f64, text in ".*") {
        let Event::Measured(mut evaluation) = measured() else { unreachable!() };
        evaluation.eval_loss = loss;
        for event in [Event::Floor(evaluation.clone()), Event::Stopped { reason: text.clone() }] {
            let line = serde_json::to_string(&record(event.clone())).unwrap();
            prop_assert!(!line.contains('\n'));
            prop_assert_eq!(serde_json::from_str::<Record>(&line).unwrap().event, event);
        }
    }
}

#[test]
fn noise_is_pooled_over_the_commits_that_were_replicated() {
    let with_loss = |experiment, status, loss| match ended(experiment, status) {
        Event::Ended(row) => Event::Ended(Row { evaluation: Some(evaluation(loss)), ..row }),
        other => other,
    };
    let mut events = vec![
        proposed(1),
        with_loss(1, Status::Keep, 3.0),
        proposed(2),
        with_loss(2, Status::Discard, 4.0),
        replicated(1, 1, 3.2),
    ];
    assert_eq!(state(&events[..4]).unwrap().noise(), None);
    let noise = state(&events).unwrap().noise().unwrap();
    // Two losses 0.2 apart: the standard deviation is 0.2/√2, with one degree of freedom.
    assert!((noise.sd - 0.2 / 2f64.sqrt()).abs() < 1e-12 && noise.runs == 2);
    assert!((noise.error - noise.sd / 2f64.sqrt()).abs() < 1e-12);
    events.push(replicated(2, 2, 4.0));
    let noise = state(&events).unwrap().noise().unwrap();
    assert!((noise.sd - 0.1).abs() < 1e-12 && noise.runs == 4, "{noise:?}");
    events.push(replicated(4, 2, 4.0));
    assert!(state(&events).is_err());
}

#[test]
fn a_measured_experiment_is_found_by_its_names() {
    let with_loss = |experiment, status| match ended(experiment, status) {
        Event::Ended(row) => Event::Ended(Row { evaluation: Some(evaluation(3.0)), ..row }),
        other => other,
    };
    let events = [
        proposed(1),
        with_loss(1, Status::Keep),
        proposed(2),
        with_loss(2, Status::Keep),
        proposed(3),
        ended(3, Status::Crash),
    ];
    let state = state(&events).unwrap();
    let found = |name: &str| state.find(name).map(|row| row.experiment);
    assert_eq!((found("baseline"), found("best"), found("2")), (Some(1), Some(2), Some(2)));
    assert_eq!(found(&format!("{:040}", 2)), Some(2));
    assert_eq!((found("3"), found("4"), found("0")), (None, None, None));
}
