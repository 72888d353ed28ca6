//! What a question says of the incumbent's run: the figures that were measured, and its loss curve.
//!
//! Figures come from the journal. The curve is the trainer's own log, which the recipe could have written: it is read
//! within limits, thinned out and quoted as data.

use std::fmt::Write;
use std::io::Read;
use std::path::Path;

use language_model::quote;

use crate::files;
use crate::ledger::State;

/// Most bytes of the log that are shown.
const LOG_BYTES: usize = 2400;
/// Most bytes of a log that are read: a million steps have some hundred megabytes.
const LONGEST_LOG: u64 = 128 << 20;
/// The column that is filled where dev was scored.
const DEV: &str = "eval_ppl";

/// The log of a run; empty where there is none, or what lies there is no log.
pub fn log(path: &Path) -> String {
    let mut bytes = Vec::new();
    let read = files::open_untrusted(path).and_then(|file| file.take(LONGEST_LOG).read_to_end(&mut bytes));
    match read {
        Ok(_) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(_) => String::new(),
    }
}

/// The section's text, with at most `lines` of the log.
pub(super) fn section(state: &State, log: &str, lines: usize) -> String {
    let mut text = String::new();
    if let Some(row) = state.incumbent() {
        let losses: Vec<f64> = state.bar(row).iter().map(|evaluation| evaluation.eval_loss).collect();
        let mean = losses.iter().sum::<f64>() / losses.len().max(1) as f64;
        let _ = writeln!(
            text,
            "Experiment {}; what a candidate has to beat is {mean:.4} nats per token, the mean of {} of its runs.",
            row.experiment,
            losses.len()
        );
        if let Some(measured) = &row.evaluation {
            let [minus, zero, plus] = measured.shares.map(|share| 100.0 * share);
            let _ = writeln!(
                text,
                "Its first run's artifact: loss {:.4}, perplexity {:.3}, {:.4} bits per byte; {:.4} bits a weight; shares \
                 of −1, 0, +1: {minus:.1} %, {zero:.1} %, {plus:.1} %.",
                measured.eval_loss, measured.eval_ppl, measured.eval_bpb, measured.bits_per_weight
            );
        }
        if let Some(run) = &row.trained {
            let _ = writeln!(
                text,
                "That run: {:.1} s of training, {} steps, {} tokens, {:.0} tokens/s; {:.1} s from start to end; at most {} \
                 MB of memory.",
                run.train_s,
                run.steps,
                run.tokens,
                run.tokens as f64 / run.train_s.max(f64::MIN_POSITIVE),
                run.wall_s,
                run.memory / 1_000_000
            );
        }
        text.push('\n');
    }
    text + &quote("Its train.tsv, thinned out", thinned(log, lines).as_bytes(), LOG_BYTES)
}

/// Lines of a training log, spread over its length, with its header. Of each stretch the last line on which dev was
/// scored is taken, or else its last; of the whole, the last.
fn thinned(log: &str, lines: usize) -> String {
    let all: Vec<&str> = log.lines().collect();
    let Some((header, rest)) = all.split_first() else { return String::new() };
    let dev = header.split('\t').position(|column| column == DEV);
    let scored = |line: &&&str| dev.and_then(|dev| line.split('\t').nth(dev)).is_some_and(|cell| cell != "-");
    let count = rest.len().min(lines);
    let mut text = format!("{header}\n");
    for i in 0..count {
        let stretch = &rest[i * rest.len() / count..(i + 1) * rest.len() / count];
        let chosen = if i + 1 == count { None } else { stretch.iter().rev().find(scored) };
        text.push_str(chosen.or(stretch.last()).copied().unwrap_or_default());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_thinned_evenly_and_ends_with_its_end() {
        let line = |i: u32| if i.is_multiple_of(30) { format!("{i}\t3\t20.5") } else { format!("{i}\t3\t-") };
        let log = format!("step\tloss\teval_ppl\n{}\n", (1..=100).map(line).collect::<Vec<_>>().join("\n"));
        let expected = "step\tloss\teval_ppl\n25\t3\t-\n30\t3\t20.5\n60\t3\t20.5\n100\t3\t-\n";
        assert_eq!(thinned(&log, 4), expected);
        assert_eq!(thinned("step\n1", 4), "step\n1\n");
        assert_eq!(thinned("", 4), "");
    }

    #[cfg(unix)]
    #[test]
    fn what_is_no_plain_file_is_not_read() {
        let folder = tempfile::tempdir().expect("a folder");
        let (secret, link) = (folder.path().join("secret"), folder.path().join("train.tsv"));
        std::fs::write(&secret, "step\nsecret\n").expect("a file");
        std::os::unix::fs::symlink(&secret, &link).expect("a link");
        assert_eq!(log(&link), "");
        assert_eq!(log(&secret), "step\nsecret\n");
        assert_eq!(log(&folder.path().join("absent")), "");
    }
}
