//! Which projections suffer most from being quantized, and which to leave out of it within a limit of bits.

use tch::{Kind, Tensor};

/// The Fisher information's diagonal of some weights: F_i = mean over batches of g_i², g the gradient of the mean loss.
#[derive(Debug, Default)]
pub struct Fisher {
    sums: Vec<Tensor>,
    batches: u64,
}

impl Fisher {
    /// Adds a batch: the gradients of all weights, always in the same order.
    pub fn add(&mut self, gradients: &[Tensor]) {
        tch::no_grad(|| {
            let squares = gradients.iter().map(|gradient| gradient.to_kind(Kind::Float).square());
            if self.batches == 0 {
                self.sums = squares.collect();
            } else {
                assert_eq!(self.sums.len(), gradients.len(), "every batch has the gradients of the same weights");
                for (sum, square) in self.sums.iter_mut().zip(squares) {
                    let _ = sum.g_add_(&square);
                }
            }
        });
        self.batches += 1;
    }

    /// F of weight `index`, f32 in its shape.
    pub fn diagonal(&self, index: usize) -> Tensor {
        &self.sums[index] / self.batches as f64
    }

    /// ½·Σ F_i·(w_i − q_i)²: about what the loss gains, in nats, when weight `index` becomes `quantized`.
    pub fn damage(&self, index: usize, w: &Tensor, quantized: &Tensor) -> f64 {
        let off = tch::no_grad(|| (self.diagonal(index) * (w - quantized).square()).sum(Kind::Float));
        off.double_value(&[]) / 2.0
    }
}

/// Hutchinson's estimate of the trace of the loss's second derivative, for each of `weights` (f32) by itself: the mean
/// over `probes` random v of ±1 of vᵀ·H·v, with H·v = (∇L(w + εv) − ∇L(w − εv))/2ε. `gradient` gives ∇L at the weights
/// it is given, in their order; `step` is ε in units of each weight's root mean square (1e-2 is usual in f32).
///
/// No second backward pass is needed, which the decoder's operators do not have. The probes come from libtorch's
/// generator.
pub fn traces(
    weights: &[Tensor],
    probes: u32,
    step: f64,
    mut gradient: impl FnMut(&[Tensor]) -> Vec<Tensor>,
) -> Vec<f64> {
    let steps: Vec<f64> = (weights.iter())
        .map(|w| step * w.to_kind(Kind::Float).square().mean(Kind::Float).sqrt().double_value(&[]).max(1e-8))
        .collect();
    let mut traces = vec![0.0; weights.len()];
    for _ in 0..probes {
        let signs: Vec<Tensor> =
            tch::no_grad(|| weights.iter().map(|w| w.rand_like().ge(0.5).to_kind(w.kind()) * 2.0 - 1.0).collect());
        let mut at = |direction: f64| {
            let moved: Vec<Tensor> = tch::no_grad(|| {
                let moved = weights.iter().zip(&signs).zip(&steps);
                moved.map(|((w, v), step)| w.detach() + v * (step * direction)).collect()
            });
            gradient(&moved)
        };
        let (above, below) = (at(1.0), at(-1.0));
        for (i, trace) in traces.iter_mut().enumerate() {
            let slope = tch::no_grad(|| ((&above[i] - &below[i]) * &signs[i]).sum(Kind::Float));
            *trace += slope.double_value(&[]) / (2.0 * steps[i] * f64::from(probes));
        }
    }
    traces
}

/// A projection that may be left out of quantization.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Candidate {
    /// How many weights it has.
    pub weights: u64,
    /// Bits that it takes quantized, scales included.
    pub quantized_bits: u64,
    /// Bits that it takes left out; more than quantized.
    pub left_out_bits: u64,
    /// What leaving it out gains, such as [`Fisher::damage`]; negative gains are never taken.
    pub gain: f64,
}

/// The candidates to leave out, by index, with the largest sum of gains such that all together take at most `limit`
/// bits a weight. None when even all quantized take more.
///
/// Exact: it goes through the sums of bits that no other sum beats, of which models with a few shapes of projections
/// have few.
pub fn exceptions(candidates: &[Candidate], limit: f64) -> Option<Vec<usize>> {
    let weights: u64 = candidates.iter().map(|one| one.weights).sum();
    let quantized: u64 = candidates.iter().map(|one| one.quantized_bits).sum();
    let budget = (limit * weights as f64).floor();
    if quantized as f64 > budget {
        return None;
    }
    let budget = budget as u64 - quantized;
    /// A choice that no other with as few bits beats; `last` and `before` spell it out.
    struct Choice {
        bits: u64,
        gain: f64,
        last: usize,
        before: usize,
    }
    // All choices ever made, and the unbeaten ones among them, by rising bits and gain.
    let mut choices = vec![Choice { bits: 0, gain: 0.0, last: usize::MAX, before: 0 }];
    let mut unbeaten = vec![0];
    for (index, candidate) in candidates.iter().enumerate().filter(|(_, candidate)| candidate.gain > 0.0) {
        let extra = candidate.left_out_bits.saturating_sub(candidate.quantized_bits);
        let mut merged: Vec<usize> = unbeaten.clone();
        for &before in &unbeaten {
            let Choice { bits, gain, .. } = choices[before];
            if bits + extra <= budget {
                merged.push(choices.len());
                choices.push(Choice { bits: bits + extra, gain: gain + candidate.gain, last: index, before });
            }
        }
        merged.sort_by(|&a, &b| {
            let (a, b) = (&choices[a], &choices[b]);
            a.bits.cmp(&b.bits).then(b.gain.total_cmp(&a.gain))
        });
        let mut best = f64::NEG_INFINITY;
        merged.retain(|&choice| {
            let better = choices[choice].gain > best;
            best = best.max(choices[choice].gain);
            better
        });
        unbeaten = merged;
    }
    let mut at = unbeaten.last().copied().unwrap_or(0);
    let mut chosen = Vec::new();
    while at != 0 {
        chosen.push(choices[at].last);
        at = choices[at].before;
    }
    chosen.reverse();
    Some(chosen)
}
