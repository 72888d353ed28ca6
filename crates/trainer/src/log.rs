//! `train.tsv`: one line a step, flushed as it is written so that the orchestrator can follow a run.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};
use formats::contract::LOG_COLUMNS;

/// One line of the log.
#[derive(Debug, Clone, PartialEq)]
pub struct Line {
    /// Step, from 1.
    pub step: u64,
    /// Share of the quantized weight in the step's forward pass.
    pub lambda: f64,
    /// Mean loss of the batch as the recipe defines it, nats a token.
    pub train_loss: f64,
    /// The dev part at hard ternary, where it was measured.
    pub dev: Option<DevColumns>,
    /// Learning rate of the step.
    pub lr: f64,
    /// Training seconds at the end of the step, as the budget counts them.
    pub time_s: f64,
    /// Lowest dev perplexity so far.
    pub best_ppl: Option<f64>,
    /// Tokens of the step over its duration by the wall clock.
    pub tokens_per_s: f64,
    /// Global norm of the gradient before clipping, where the recipe hands it over.
    pub gradient_norm: Option<f64>,
}

/// What is only known where dev was measured; always of the hard ternary weights.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DevColumns {
    /// Perplexity a token.
    pub ppl: f64,
    /// Bits a byte of the scored text.
    pub bpb: f64,
    /// Shares of the codes -1, 0 and +1.
    pub shares: [f64; 3],
}

/// The open log.
#[derive(Debug)]
pub struct Log {
    file: File,
}

impl Log {
    /// Starts an empty log with its header.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn create(path: &Path) -> Result<Self> {
        let mut file = File::create(path).with_context(|| format!("cannot create the log {}", path.display()))?;
        writeln!(file, "{}", LOG_COLUMNS.join("\t")).context("cannot write the log's header")?;
        Ok(Self { file })
    }

    /// Appends a line.
    ///
    /// # Errors
    /// When the disk is full or the file is gone.
    pub fn write(&mut self, line: &Line) -> Result<()> {
        self.file.write_all(format!("{}\n", row(line)).as_bytes()).context("cannot write train.tsv: is the disk full?")
    }
}

/// A line's text; what was not measured is `-`.
fn row(line: &Line) -> String {
    let number = |value: Option<f64>, digits: usize| value.map_or("-".to_owned(), |v| format!("{v:.digits$}"));
    let dev = line.dev;
    [
        line.step.to_string(),
        format!("{:.4}", line.lambda),
        format!("{:.6}", line.train_loss),
        format!("{:.4}", line.train_loss.exp()),
        number(dev.map(|d| d.ppl), 4),
        number(dev.map(|d| d.bpb), 6),
        format!("{:.4e}", line.lr),
        format!("{:.3}", line.time_s),
        number(line.best_ppl, 4),
        number(dev.map(|d| d.shares[0]), 4),
        number(dev.map(|d| d.shares[1]), 4),
        number(dev.map(|d| d.shares[2]), 4),
        format!("{:.1}", line.tokens_per_s),
        line.gradient_norm.map_or("-".to_owned(), |norm| format!("{norm:.4e}")),
    ]
    .join("\t")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_every_column_and_dashes_where_nothing_was_measured() {
        let mut line = Line {
            step: 3,
            lambda: 1.0,
            train_loss: 0.0,
            dev: None,
            lr: 0.00125,
            time_s: 2.0,
            best_ppl: None,
            tokens_per_s: 1024.0,
            gradient_norm: None,
        };
        assert_eq!(row(&line), "3\t1.0000\t0.000000\t1.0000\t-\t-\t1.2500e-3\t2.000\t-\t-\t-\t-\t1024.0\t-");
        line.dev = Some(DevColumns { ppl: 20.0, bpb: 1.0, shares: [0.25, 0.5, 0.25] });
        line.best_ppl = Some(20.0);
        line.gradient_norm = Some(0.25);
        assert_eq!(row(&line).split('\t').count(), LOG_COLUMNS.len());
        assert!(row(&line).contains("20.0000\t1.000000\t1.2500e-3") && row(&line).ends_with("\t1024.0\t2.5000e-1"));
    }
}
