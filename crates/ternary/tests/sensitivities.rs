//! Sensitivities against exact second derivatives, the chooser against every choice, and nearness to a parent against
//! whole logits.

#[path = "../src/draws.rs"]
mod draws;

use draws::normal;
use tch::{Kind, Tensor};
use ternary::metrics::nearness;
use ternary::sensitivity::{Candidate, Fisher, exceptions, traces};

#[test]
fn fisher_is_the_mean_of_squares() {
    draws::seed(51);
    let batches: Vec<[Tensor; 2]> = (0..3).map(|_| [normal([4, 3]), normal([2, 5]).to_kind(Kind::BFloat16)]).collect();
    let mut fisher = Fisher::default();
    batches.iter().for_each(|gradients| fisher.add(gradients));
    for index in 0..2 {
        let squares: Vec<Tensor> = batches.iter().map(|batch| batch[index].to_kind(Kind::Float).square()).collect();
        let wanted = Tensor::stack(&squares, 0).mean_dim(0, false, Kind::Float);
        assert!(fisher.diagonal(index).allclose(&wanted, 1e-5, 1e-7, false));
        let (w, q) = (normal(wanted.size()), normal(wanted.size()));
        let damage = (wanted * (&w - &q) * (&w - &q)).sum(Kind::Double).double_value(&[]) / 2.0;
        assert!((fisher.damage(index, &w, &q) / damage - 1.0).abs() < 1e-5);
    }
}

/// A small network, L = mean of squares of tanh(x·aᵀ)·bᵀ.
fn loss(a: &Tensor, b: &Tensor, x: &Tensor) -> Tensor {
    x.matmul(&a.tr()).tanh().matmul(&b.tr()).square().mean(a.kind())
}

/// Second derivatives along the diagonal, numerically in f64.
fn exact_trace(index: usize, weights: &[Tensor; 2], x: &Tensor) -> f64 {
    let weights = weights.each_ref().map(|w| w.to_kind(Kind::Double));
    let x = x.to_kind(Kind::Double);
    let step = 1e-4;
    (0..weights[index].numel() as i64)
        .map(|i| {
            let at = |by: f64| {
                let moved = weights.each_ref().map(Tensor::copy);
                let _ = moved[index].view([-1]).get(i).g_add_scalar_(by);
                loss(&moved[0], &moved[1], &x).double_value(&[])
            };
            (at(step) - 2.0 * at(0.0) + at(-step)) / (step * step)
        })
        .sum()
}

#[test]
fn traces_are_those_of_the_second_derivative() {
    draws::seed(52);
    let (weights, x) = ([normal([6, 5]), normal([3, 6])], normal([20, 5]));
    let got = traces(&weights, 400, 1e-2, |at| {
        let at: Vec<Tensor> = at.iter().map(|w| w.detach().set_requires_grad(true)).collect();
        loss(&at[0], &at[1], &x).backward();
        at.iter().map(Tensor::grad).collect()
    });
    for (index, got) in got.iter().enumerate() {
        let wanted = exact_trace(index, &weights, &x);
        assert!((got / wanted - 1.0).abs() < 0.1, "weight {index}: {got} is not {wanted}");
    }
}

/// Every choice, one by one.
fn best_gain(candidates: &[Candidate], limit: f64) -> Option<f64> {
    let weights: u64 = candidates.iter().map(|one| one.weights).sum();
    (0u32..1 << candidates.len())
        .filter_map(|chosen| {
            let out = |i: usize| chosen >> i & 1 == 1;
            let (mut bits, mut gain) = (0, 0.0);
            for (i, one) in candidates.iter().enumerate() {
                bits += if out(i) { one.left_out_bits } else { one.quantized_bits };
                gain += if out(i) { one.gain } else { 0.0 };
            }
            (bits as f64 <= limit * weights as f64).then_some(gain)
        })
        .max_by(f64::total_cmp)
}

#[test]
fn exceptions_are_the_best_that_fit() {
    let mut state = 5u64;
    let mut next = |below: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    for case in 0..60 {
        let candidates: Vec<Candidate> = (0..10)
            .map(|_| {
                let weights = 1000 * (1 + next(if case % 2 == 0 { 4 } else { 500 }));
                let gain = next(1000) as f64 - 100.0;
                Candidate { weights, quantized_bits: weights * 2, left_out_bits: weights * 16, gain }
            })
            .collect();
        for limit in [1.9, 2.0, 3.5, 6.0, 17.0] {
            let chosen = exceptions(&candidates, limit);
            let gain = chosen.as_ref().map(|chosen| chosen.iter().map(|&i| candidates[i].gain).sum::<f64>());
            assert_eq!(gain, best_gain(&candidates, limit), "case {case}, {limit} bits");
            if let Some(chosen) = chosen {
                assert!(chosen.windows(2).all(|pair| pair[0] < pair[1]), "in order and once each");
                let weights: u64 = candidates.iter().map(|one| one.weights).sum();
                let extra: u64 = chosen.iter().map(|&i| candidates[i].weights * 14).sum();
                assert!((weights * 2 + extra) as f64 <= limit * weights as f64);
            }
        }
    }
}

#[test]
fn a_model_is_near_to_itself() {
    draws::seed(53);
    let (hidden, head) = (normal([70, 6]), normal([150_000, 6]));
    let (parent_hidden, parent_head) = (normal([70, 4]), normal([150_000, 4]));
    let near = nearness([&hidden, &head], [&parent_hidden, &parent_head]);
    let (logits, parent) = (hidden.matmul(&head.tr()), parent_hidden.matmul(&parent_head.tr()));
    let (p, q) = (logits.softmax(-1, Kind::Double), parent.softmax(-1, Kind::Double));
    let wanted = (&q * (q.log() - p.log())).sum_dim_intlist(1, false, Kind::Double);
    assert!(near.divergence.to_kind(Kind::Double).allclose(&wanted, 1e-4, 1e-5, false));
    assert_eq!(near.agreement, logits.argmax(1, false).eq_tensor(&parent.argmax(1, false)));
    let itself = nearness([&hidden, &head], [&hidden, &head]);
    assert_eq!(itself.divergence.abs().max().double_value(&[]), 0.0);
    assert_eq!(itself.agreement.sum(Kind::Int64).int64_value(&[]), 70);
    // Half of the rows at the parent's own states: those agree.
    let mixed = Tensor::cat(&[hidden.narrow(0, 0, 35), normal([35, 6])], 0);
    let part = nearness([&mixed, &head], [&hidden, &head]);
    assert_eq!(part.agreement.narrow(0, 0, 35).sum(Kind::Int64).int64_value(&[]), 35);
    assert!(part.divergence.narrow(0, 35, 35).min().double_value(&[]) > 0.0);
}
