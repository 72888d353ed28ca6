//! `[model.pretrain]`: the full-precision parent of a scratch shape, which `prepare` trains once and keeps.

use crate::artifact::ModelConfig;
use serde::{Deserialize, Serialize};

/// `[model.pretrain]`: how `prepare` trains the full-precision parent of `[model.scratch]`. AdamW; the learning rate
/// rises over the first fiftieth and falls linearly to zero. The same settings and text give the same weights on the
/// same processor with the same number of threads.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pretrain {
    /// Training tokens; rounded up to whole steps.
    pub tokens: u64,
    /// Seed of the initial weights and of the order of the text.
    #[serde(default)]
    pub seed: u64,
    /// Peak learning rate of the matrices.
    #[serde(default = "default_learning_rate")]
    pub learning_rate: f64,
    /// Peak learning rate of embedding, head and norms.
    #[serde(default = "default_dense_learning_rate")]
    pub dense_learning_rate: f64,
    /// Decoupled weight decay of the matrices, embedding included.
    #[serde(default = "default_weight_decay")]
    pub weight_decay: f64,
    /// Windows a step.
    #[serde(default = "default_batch")]
    pub batch: usize,
    /// Tokens a window.
    #[serde(default = "default_window")]
    pub window: usize,
}

impl Pretrain {
    /// Optimizer steps.
    pub fn steps(&self) -> u64 {
        self.tokens.div_ceil((self.batch * self.window) as u64)
    }

    pub(crate) fn check(&self, config: &ModelConfig) -> Result<(), String> {
        for (key, value) in [("tokens", self.tokens), ("batch", self.batch as u64), ("window", self.window as u64)] {
            if value == 0 {
                return Err(format!("model.pretrain.{key} is 0; take 1 or more"));
            }
        }
        let longest = config.max_position_embeddings;
        if self.window > longest {
            let window = self.window;
            return Err(format!(
                "model.pretrain.window is {window}, longer than the model's context of {longest}; shorten it"
            ));
        }
        crate::campaign::check::positive("model.pretrain.learning_rate", self.learning_rate)?;
        crate::campaign::check::positive("model.pretrain.dense_learning_rate", self.dense_learning_rate)?;
        if !(self.weight_decay.is_finite() && self.weight_decay >= 0.0) {
            return Err(format!("model.pretrain.weight_decay is {}; it must be 0 or more", self.weight_decay));
        }
        Ok(())
    }
}

fn default_learning_rate() -> f64 {
    1e-3
}
fn default_dense_learning_rate() -> f64 {
    8e-3
}
fn default_weight_decay() -> f64 {
    0.01
}
fn default_batch() -> usize {
    8
}
fn default_window() -> usize {
    128
}
