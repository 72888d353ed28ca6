//! What is in results.tsv, to the letter.

use std::fs;

use formats::corpus::Part;

use super::*;
use crate::ledger::{Evaluation, Replicate, State, Trained};
use crate::verdict::Comparison;

fn row(experiment: u64, status: Status) -> Row {
    let measured = matches!(status, Status::Keep | Status::Discard);
    Row {
        experiment,
        commit: format!("{experiment:040x}"),
        parent: (experiment > 1).then(|| "abcdef0123".into()),
        status,
        reason: (!measured).then(|| "diverged:\tloss NaN".into()),
        description: "learning_rate = 0.001".into(),
        agent: "search".into(),
        seed: 7,
        gain: measured.then_some(0.0125),
        comparison: (measured && experiment > 1).then_some(Comparison {
            gain: 0.0125,
            error: 0.004,
            freedom: Some(9.0),
            p: 0.003,
            runs: 3,
            incumbent_runs: 5,
            floor: 0.0,
            repeats: false,
            incumbent_repeats: false,
        }),
        evaluation: measured.then_some(Evaluation {
            part: Part::Select,
            eval_loss: 3.0,
            eval_ppl: 20.085_536_92,
            eval_bpb: 1.234_567_8,
            tokens: 1000,
            bits_per_weight: 1.85,
            shares: [0.3, 0.4, 0.3],
            seconds: 1.0,
            windows: vec![3.0; 4],
        }),
        trained: measured.then_some(Trained {
            experiment,
            train_s: 60.04,
            wall_s: 66.0,
            steps: 500,
            tokens: 1_000_000,
            memory: 1_288_490_189,
            sandbox: None,
            processor: None,
        }),
        finished_at: format!("2026-01-01T00:00:{experiment:02}Z"),
    }
}

#[test]
fn columns_and_formats() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("results.tsv");
    write(&path, "t", &[row(1, Status::Keep), row(2, Status::Crash), row(3, Status::Discard)], dir.path()).unwrap();
    let text = fs::read_to_string(&path).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(
        lines,
        [
            "commit\teval_ppl\tmemory_gb\tstatus\tdescription\texperiment\tcampaign\tparent\tagent\tgain\teval_bpb\t\
             bits_per_weight\ttrain_s\tsteps\ttokens\tq_neg1\tq_zero\tq_pos1\tseed\tfinished_at\tgain_se\truns",
            "0000000\t20.085537\t1.2\tkeep\tlearning_rate = 0.001\t1\tt\t\tsearch\t0.012500\t1.234568\t1.8500\t60.0\t\
             500\t1000000\t0.300000\t0.400000\t0.300000\t7\t2026-01-01T00:00:01Z\t\t1",
            "0000000\t0.000000\t0.0\tcrash\tlearning_rate = 0.001 (diverged: loss NaN)\t2\tt\tabcdef0\tsearch\t\t\t\t\t\
             \t\t\t\t\t7\t2026-01-01T00:00:02Z\t\t",
            "0000000\t20.085537\t1.2\tdiscard\tlearning_rate = 0.001\t3\tt\tabcdef0\tsearch\t0.012500\t1.234568\t1.8500\t\
             60.0\t500\t1000000\t0.300000\t0.400000\t0.300000\t7\t2026-01-01T00:00:03Z\t0.004000\t3",
        ]
    );
}

#[test]
fn rows_of_a_search_are_rebuilt_and_others_stay() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("results.tsv");
    write(&path, "a", &[row(2, Status::Keep)], dir.path()).unwrap();
    write(&path, "b", &[row(1, Status::Keep), row(3, Status::Discard)], dir.path()).unwrap();
    let tags = |path: &Path| -> Vec<(String, String)> {
        let records = read(path).unwrap();
        records.iter().map(|r| (r[CAMPAIGN].to_owned(), r[5].to_owned())).collect()
    };
    let pair = |tag: &str, n: &str| (tag.to_owned(), n.to_owned());
    assert_eq!(tags(&path), [pair("b", "1"), pair("a", "2"), pair("b", "3")]);
    write(&path, "b", &[row(1, Status::Keep)], dir.path()).unwrap();
    assert_eq!(tags(&path), [pair("b", "1"), pair("a", "2")]);
    assert!(has_tag(dir.path(), "a").unwrap() && !has_tag(dir.path(), "c").unwrap());
    assert!(!dir.path().join("results.tsv.new").exists(), "no temporary file is left");
}

#[test]
fn rows_from_before_the_last_columns_stay() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("results.tsv");
    write(&path, "a", &[row(1, Status::Keep)], dir.path()).unwrap();
    let shortened = |line: &str| line.split('\t').take(OLDEST_COLUMNS).collect::<Vec<_>>().join("\t") + "\n";
    let old: String = fs::read_to_string(&path).unwrap().lines().map(shortened).collect();
    fs::write(&path, old).unwrap();
    write(&path, "b", &[row(3, Status::Discard)], dir.path()).unwrap();
    let records = read(&path).unwrap();
    assert_eq!((&records[0][CAMPAIGN], &records[0][20], &records[0][21]), ("a", "", ""));
    assert_eq!((&records[1][CAMPAIGN], &records[1][21]), ("b", "3"));
}

#[test]
fn another_table_is_not_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("results.tsv");
    let mine = "commit\tval_bpb\tmemory_gb\tstatus\tdescription\nabc\t1\t1\tkeep\tx\n";
    fs::write(&path, mine).unwrap();
    let error = write(&path, "a", &[row(1, Status::Keep)], dir.path()).unwrap_err().to_string();
    assert!(error.contains("other columns"), "{error}");
    assert_eq!(fs::read_to_string(&path).unwrap(), mine);
}

#[test]
fn what_a_candidate_printed_stays_one_plain_line() {
    assert_eq!(plain("a\u{1b}[2J\r\n b\u{202e}c\t"), "a [2J bc");
    assert_eq!(plain(&"é".repeat(LONGEST_TEXT + 1)), "é".repeat(LONGEST_TEXT - 1) + "…");
}

#[test]
fn a_clock_that_jumped_back_does_not_reorder_a_search() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("results.tsv");
    let at = |experiment, time: &str| Row { finished_at: time.into(), ..row(experiment, Status::Keep) };
    let rows = [at(1, "2026-01-01T05:00:00Z"), at(2, "2025-12-31T00:00:00Z"), at(3, "2026-01-01T06:00:00Z")];
    write(&path, "b", &[at(1, "2026-01-01T05:30:00Z")], dir.path()).unwrap();
    write(&path, "a", &rows, dir.path()).unwrap();
    let order: Vec<String> = read(&path).unwrap().iter().map(|r| format!("{}{}", &r[CAMPAIGN], &r[5])).collect();
    assert_eq!(order, ["a1", "a2", "b1", "a3"]);
}

#[test]
fn what_a_person_edited_is_told_and_kept() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("results.tsv");
    let rows = [row(1, Status::Keep), row(2, Status::Discard)];
    assert_eq!(write(&path, "a", &rows[..1], dir.path()).unwrap().missing, [1]);
    let edited = fs::read_to_string(&path).unwrap().replace("0.001", "0.001, my favourite");
    fs::write(&path, &edited).unwrap();
    let differences = write(&path, "a", &rows, dir.path()).unwrap();
    assert_eq!(differences, Differences { missing: vec![2], edited: vec!["1".into()] });
    assert_eq!(differences.summary().unwrap(), "#2 had no row; #1 had a row that somebody edited");
    assert_eq!(fs::read_to_string(dir.path().join("results-edited-1.tsv")).unwrap(), edited);
    assert!(!fs::read_to_string(&path).unwrap().contains("favourite"));
    assert_eq!(write(&path, "a", &rows, dir.path()).unwrap(), Differences::default());
}

/// A run of an experiment with a loss.
fn run_of(loss: f64) -> Evaluation {
    Evaluation {
        eval_loss: loss,
        eval_ppl: loss.exp(),
        windows: vec![loss as f32; 4],
        ..row(1, Status::Keep).evaluation.unwrap()
    }
}

fn replicate(number: u64, experiment: u64, loss: f64) -> Replicate {
    let first = row(experiment, Status::Keep);
    let (commit, trained) = (first.commit, first.trained.unwrap());
    Replicate { number, experiment, commit, seed: number, trained, evaluation: run_of(loss) }
}

#[test]
fn status_compares_means_and_not_first_runs() {
    // The first run of the baseline was lucky and that of the best was not: first runs say +0.4 nats, which is +49 %.
    let first = Row { parent: None, comparison: None, evaluation: Some(run_of(2.8)), ..row(1, Status::Keep) };
    let comparison = row(2, Status::Keep).comparison.map(|c| Comparison { runs: 1, ..c });
    let best = Row { parent: Some("a".repeat(40)), comparison, evaluation: Some(run_of(3.2)), ..row(2, Status::Keep) };
    let replicates = [(1, 3.0), (1, 3.1), (1, 3.1), (2, 2.9), (2, 3.0), (2, 2.8)];
    let replicates =
        replicates.iter().zip(1..).map(|(&(experiment, loss), number)| replicate(number, experiment, loss));
    let state = State { rows: vec![first, best], replicates: replicates.collect(), ..State::default() };
    let found = figures(&state, Part::Select).unwrap();
    assert_eq!((found.baseline.runs, found.best.runs), (4, 3));
    assert!((found.baseline.loss - 3.0).abs() < 1e-12 && (found.best.loss - 2.9).abs() < 1e-12);
    let gain = found.gain.unwrap();
    assert!((gain.nats - 0.1).abs() < 1e-12 && gain.half_interval.is_some());
    let lines = summary(&state).join("\n");
    assert!(lines.contains("select: baseline ppl 20.085537 ± ") && lines.contains("-9.52 %"), "{lines}");
    assert!(!lines.contains("first runs"), "{lines}");
    assert!(figures(&state, Part::Report).is_none());
}

#[test]
fn a_baseline_that_ignores_its_seed_is_told() {
    let first = Row { parent: None, comparison: None, evaluation: Some(run_of(3.0)), ..row(1, Status::Keep) };
    let state = State { rows: vec![first], replicates: vec![replicate(1, 1, 3.0)], ..State::default() };
    let lines = summary(&state).join("\n");
    assert!(lines.contains("luck cannot be measured"), "{lines}");
}
