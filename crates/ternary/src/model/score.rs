//! Cross entropy of a text in disjoint windows: every position but a window's first is scored.
//!
//! Used by the evaluator on the artifact, and by the trainer's frame on its own weights to follow `dev`.

use tch::{Tensor, no_grad};

use crate::model::decoder::Decoder;
use crate::model::linears::Linears;

/// Tokens that go through the decoder together; several windows when they are short.
const BATCH_TOKENS: usize = 4096;

/// What a text scored.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Score {
    /// Sum of the cross entropies, nats.
    pub nats: f64,
    /// Positions scored.
    pub tokens: u64,
    /// UTF-8 bytes of the scored positions' text.
    pub bytes: u64,
    /// Mean cross entropy of every window, nats a token, in the order of the text.
    pub window_losses: Vec<f64>,
}

impl Score {
    /// Mean cross entropy, nats a token.
    pub fn loss(&self) -> f64 {
        self.nats / self.tokens.max(1) as f64
    }

    /// Perplexity a token.
    pub fn perplexity(&self) -> f64 {
        self.loss().exp()
    }

    /// Bits a byte of text.
    pub fn bits_per_byte(&self) -> f64 {
        self.nats / (self.bytes.max(1) as f64 * std::f64::consts::LN_2)
    }
}

/// Scores `ids`, cut into windows of `window` tokens (the last may be shorter; one token alone has nothing to score).
/// `token_bytes` is the UTF-8 length of each id's text; `progress` is told the tokens done so far.
///
/// # Panics
/// When libtorch fails, out of memory included; when an id lies outside the vocabulary or `window` is less than 2.
pub fn score(
    decoder: &Decoder,
    linears: &dyn Linears,
    ids: &[i64],
    token_bytes: &[u16],
    window: usize,
    mut progress: impl FnMut(usize),
) -> Score {
    assert!(window >= 2, "a window of {window} tokens has no position to score");
    let mut score = Score::default();
    let whole = ids.len() / window * window;
    let batch = (BATCH_TOKENS / window).max(1) * window;
    let (full, rest) = ids.split_at(whole);
    let mut done = 0;
    for (tokens, length) in full.chunks(batch).map(|c| (c, window)).chain([(rest, rest.len())]).filter(|c| c.1 >= 2) {
        let losses = batch_losses(decoder, linears, tokens, length);
        for (window, losses) in tokens.chunks(length).zip(losses.chunks(length - 1)) {
            let nats: f64 = losses.iter().map(|&loss| f64::from(loss)).sum();
            score.nats += nats;
            score.tokens += losses.len() as u64;
            score.bytes += window[1..].iter().map(|&id| u64::from(token_bytes[id as usize])).sum::<u64>();
            score.window_losses.push(nats / losses.len() as f64);
        }
        done += tokens.len();
        progress(done);
    }
    score
}

/// Losses of positions 1.. of each row of `length` tokens, row after row.
fn batch_losses(decoder: &Decoder, linears: &dyn Linears, tokens: &[i64], length: usize) -> Vec<f32> {
    no_grad(|| {
        let rows = (tokens.len() / length) as i64;
        let length = length as i64;
        let ids = Tensor::from_slice(tokens).view([rows, length]).to_device(decoder.head().device());
        let width = decoder.head().size()[1];
        let hidden =
            decoder.hidden(linears, &ids).view([rows, length, width]).narrow(1, 0, length - 1).reshape([-1, width]);
        let targets = ids.narrow(1, 1, length - 1).reshape([-1]);
        let head = decoder.head().to_kind(hidden.kind());
        let losses = crate::loss::cross_entropy(&hidden, &head, &targets).to_device(tch::Device::Cpu);
        let mut out = vec![0.0; losses.numel()];
        let count = out.len();
        losses.copy_data(&mut out, count);
        out
    })
}
