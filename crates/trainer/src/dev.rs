//! The dev part, scored during training the way the evaluator scores the artifact: hard codes times stored scales,
//! disjoint windows, every position but a window's first, the campaign's window length and precision.
//!
//! It is for the log only; nothing is selected by it.

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, ensure};
use formats::artifact::{ModelConfig, ProjectionKind};
use formats::campaign::{Evaluation, Part, Precision};
use formats::corpus::Corpus;
use tch::{Device, Kind, Tensor};
use ternary::model::{Decoder, Dense, Linears, Score, Weights};

use crate::log::DevColumns;
use crate::trained::Trained;

/// Tokens between two looks at the stop signal.
const BATCH_TOKENS: usize = 4096;

/// The scored windows of the dev part.
pub struct Dev {
    ids: Vec<i64>,
    token_bytes: Vec<u16>,
    window: usize,
    compute: Kind,
    device: Device,
}

impl Dev {
    /// The first `evaluation.dev_tokens` tokens of dev, in whole windows.
    ///
    /// # Errors
    /// When the part cannot be read or is shorter than a window.
    pub fn open(corpus: &Corpus, evaluation: &Evaluation, device: Device) -> Result<Self> {
        let tokens = corpus.part(Part::Dev).context("cannot open the dev part; run `prepare` again")?;
        let token_bytes = corpus.token_bytes().context("cannot read the table of token lengths")?;
        let window = evaluation.window;
        ensure!(window >= 2, "evaluation.window is {window}; a window scores all but its first token: use at least 2");
        let available = usize::try_from(tokens.len()).unwrap_or(usize::MAX);
        let count = evaluation.dev_tokens.min(available) / window;
        ensure!(
            count > 0,
            "dev has {available} tokens and evaluation.dev_tokens is {}: both must be at least evaluation.window = \
             {window}",
            evaluation.dev_tokens
        );
        let mut ids = vec![0i64; count * window];
        tokens.copy(0, &mut ids);
        let compute = match evaluation.precision {
            Precision::F32 => Kind::Float,
            Precision::Bf16 => Kind::BFloat16,
        };
        Ok(Self { ids, token_bytes, window, compute, device })
    }

    /// Scores a model; `None` when `stop` was raised meanwhile. `untrained` are the tensors it takes from its base.
    ///
    /// # Errors
    /// When tensors are missing or misshapen.
    pub fn score(
        &self,
        config: &ModelConfig,
        trained: &Trained,
        untrained: &Weights,
        stop: &AtomicBool,
    ) -> Result<Option<DevColumns>> {
        let _no_grad = tch::no_grad_guard();
        let mut weights = Weights::default();
        for (name, tensor) in untrained.iter() {
            weights.insert(name, tensor.shallow_clone());
        }
        for (name, tensor) in &trained.dense {
            weights.insert(name.clone(), tensor.shallow_clone());
        }
        let mut counts = [0.0; 3];
        for matrix in &trained.ternary {
            let shares = matrix.quantized.shares();
            let numel = matrix.quantized.codes.numel() as f64;
            for (count, share) in counts.iter_mut().zip(shares) {
                *count += share * numel;
            }
            let weight = matrix.quantized.dequantize().to_device(self.device).to_kind(self.compute);
            weights.insert(matrix.name.clone(), weight);
        }
        let total = counts.iter().sum::<f64>().max(1.0);
        let dense = Dense::new(config, &weights, self.compute).context("dev evaluation")?;
        let linears = RoundedInputs { dense, bits: trained.activation_bits };
        let decoder = Decoder::new(config, &weights, self.compute).context("dev evaluation")?;
        let mut score = Score::default();
        for ids in self.ids.chunks((BATCH_TOKENS / self.window).max(1) * self.window) {
            if stop.load(Ordering::Relaxed) {
                return Ok(None);
            }
            let part = ternary::model::score(&decoder, &linears, ids, &self.token_bytes, self.window, |_| {});
            score.nats += part.nats;
            score.tokens += part.tokens;
            score.bytes += part.bytes;
        }
        Ok(Some(DevColumns {
            ppl: score.perplexity(),
            bpb: score.bits_per_byte(),
            shares: counts.map(|count| count / total),
        }))
    }
}

/// Plain weights behind the artifact's rounding of the inputs.
struct RoundedInputs {
    dense: Dense,
    bits: u32,
}

impl Linears for RoundedInputs {
    fn project(&self, layer: usize, kinds: &[ProjectionKind], x: &Tensor) -> Vec<Tensor> {
        self.dense.project(layer, kinds, &ternary::activation::quantize(x, self.bits))
    }
}
