//! What passes between the orchestrator and the programs that it runs: files, their fields, and exit codes.
//!
//! A run's folder gets `train.tsv` and `summary.json` from the trainer, and an evaluation's JSON from the evaluator. The
//! recipe runs in the trainer's process, so its files are data from a stranger: their reader believes no figure. Fields that a
//! reader can do without may be missing.

mod evaluation;
mod summary;

pub use evaluation::{Evaluation, Probed, Refused};
pub use summary::{Ended, Summary};

/// Exit code of the trainer when the loss is not a number or above its limit.
pub const DIVERGED: u8 = 3;
/// Exit code of the evaluator for an artifact that breaks a limit of the campaign or is malformed.
pub const INVALID: u8 = 4;
/// Exit code of the evaluator when nothing could be measured, whatever the artifact is.
pub const FAILED: u8 = 1;

/// Name of the trainer's log.
pub const LOG: &str = "train.tsv";
/// Name of the trainer's summary.
pub const SUMMARY: &str = "summary.json";
/// Name of the quantized model that the trainer leaves.
pub const ARTIFACT: &str = "artifact.ternary";

/// Columns of the trainer's log, in order; what was not measured is `-`.
pub const LOG_COLUMNS: [&str; 14] = [
    "step",
    "lambda",
    TRAIN_LOSS,
    "train_ppl",
    "eval_ppl",
    "eval_bpb",
    "lr",
    TIME_S,
    "best_ppl",
    "q_neg1",
    "q_zero",
    "q_pos1",
    TOKENS_PER_S,
    "grad_norm",
];
/// Mean loss of the batch, nats a token.
pub const TRAIN_LOSS: &str = "train_loss";
/// Training seconds at the end of the step, as the budget counts them.
pub const TIME_S: &str = "time_s";
/// Tokens of the step over its duration by the wall clock.
pub const TOKENS_PER_S: &str = "tokens_per_s";
