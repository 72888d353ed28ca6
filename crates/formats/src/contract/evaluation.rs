//! What the evaluator leaves.

use serde::{Deserialize, Deserializer, Serialize};

use crate::corpus::Part;

/// The figures of one measurement.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// The part that was measured.
    pub part: Part,
    /// Mean cross entropy, nats a token.
    #[serde(deserialize_with = "number")]
    pub eval_loss: f64,
    /// Perplexity a token.
    #[serde(deserialize_with = "number")]
    pub eval_ppl: f64,
    /// Bits a byte of the scored text.
    #[serde(deserialize_with = "number")]
    pub eval_bpb: f64,
    /// Positions scored.
    #[serde(default)]
    pub tokens: u64,
    /// UTF-8 bytes of their text.
    #[serde(default)]
    pub bytes: u64,
    /// Window length, tokens.
    #[serde(default)]
    pub window: usize,
    /// Bits stored for the projections, per weight; of the base's own type when it was measured.
    #[serde(deserialize_with = "number")]
    pub bits_per_weight: f64,
    /// Share of −1 among the codes.
    #[serde(default)]
    pub q_neg1: f64,
    /// Share of 0.
    #[serde(default)]
    pub q_zero: f64,
    /// Share of +1.
    #[serde(default)]
    pub q_pos1: f64,
    /// sha256 of the artifact (of the base model's weights with `--base`).
    #[serde(default)]
    pub artifact_sha256: String,
    /// Mean loss of every window, nats a token, in the text's order.
    #[serde(default)]
    pub window_losses: Vec<f64>,
    /// Seconds the decoder took.
    #[serde(default)]
    pub seconds: f64,
}

/// Why an artifact was not measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Refused {
    /// The reason.
    pub invalid: String,
}

/// What timing the machine found.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Probed {
    /// Seconds of the processor, all threads together, that the fixed piece of work took on average.
    pub probe_seconds: f64,
}

/// JSON has no NaN and no infinity: what is null there was no number.
fn number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or(f64::NAN))
}
