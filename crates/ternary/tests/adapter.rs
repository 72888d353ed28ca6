//! Low-rank adapters: their gradients are those of the formula, and what is exported is what was trained, merged.

#[path = "../src/draws.rs"]
mod draws;

use formats::artifact::Grouping;
use tch::{Kind, Tensor};
use ternary::adapter::LoraWeight;
use ternary::optim::{AdamW, Group, Options};
use ternary::quantize::{Scale, quantize};
use ternary::weight::{Blend, Estimator, Method, TernaryWeight};

const OUT: i64 = 24;
const IN: i64 = 128;
const RANK: i64 = 6;
const ALPHA: f64 = 9.0;

/// Numbers in [−1, 1), the same for the same seed.
fn draw(seed: u64, shape: [i64; 2]) -> Tensor {
    draws::seed(seed);
    draws::uniform(shape) * 2.0 - 1.0
}

fn parent() -> Tensor {
    draw(1, [OUT, IN]) * 0.05
}

fn method(grouping: Grouping, scale: Scale, estimator: Estimator) -> Method {
    Method { grouping, scale, deadzone: scale.default_deadzone(), estimator }
}

/// With an update that is not 0.
fn adapted(method: Method, compute: Kind) -> LoraWeight {
    let weight = LoraWeight::new(TernaryWeight::new(parent(), method, compute), RANK, ALPHA);
    tch::no_grad(|| weight.b().shallow_clone().copy_(&(draw(2, [OUT, RANK]) * 0.03)));
    weight
}

#[track_caller]
fn close(a: &Tensor, b: &Tensor, tolerance: f64) {
    let error = ((a - b).abs().max() / b.abs().max().clamp_min(1e-9)).double_value(&[]);
    assert!(error <= tolerance, "differs by {error} of the largest");
}

/// A and B that autograd follows, and W of them.
fn merged(weight: &LoraWeight) -> [Tensor; 3] {
    let (a, b) = (weight.a().copy().set_requires_grad(true), weight.b().copy().set_requires_grad(true));
    let w = parent() + b.matmul(&a) * (ALPHA / RANK as f64);
    [a, b, w]
}

/// Mean of min_c (W/s − c)², for scales in groups of 32.
fn penalty(w: &Tensor, scales: &Tensor) -> Tensor {
    let x = w.reshape([OUT, -1, 32]) / scales.detach().unsqueeze(-1);
    let squares: Vec<Tensor> = [-1.0, 0.0, 1.0].map(|c| (&x - c).square()).into();
    Tensor::stack(&squares, 0).amin(0, false).mean(Kind::Float)
}

#[test]
fn an_update_starts_as_nothing() {
    let method = method(Grouping::Row, Scale::Twn, Estimator::Plain);
    let plain = TernaryWeight::new(parent(), method, Kind::Float);
    let mut weight = LoraWeight::new(TernaryWeight::new(parent(), method, Kind::Float), RANK, ALPHA);
    assert_eq!(weight.export().codes, plain.export().codes);
    assert!(weight.gradients(0.0).a.is_none(), "nothing was sent yet");
    weight.refresh(Blend { lambda: 0.0, temperature: None });
    assert_eq!(*weight.leaf(), parent());
    let spread = weight.a().std(true).double_value(&[]) * (IN as f64).sqrt();
    assert!((spread - 1.0).abs() < 0.2, "A has {spread} of the spread it should");
}

#[test]
fn gradients_are_autograds() {
    let sent = draw(3, [OUT, IN]);
    for scale in [Scale::AbsMean, Scale::Twn, Scale::ThreeOfFour] {
        let method = method(Grouping::Group(32), scale, Estimator::Plain);
        for (lambda, strength) in [(1.0, 0.0), (0.3, 0.0), (0.3, 500.0), (1.0, 500.0)] {
            let mut weight = adapted(method, Kind::Float);
            weight.refresh(Blend { lambda, temperature: None });
            (weight.leaf() * &sent).sum(Kind::Float).backward();
            let got = weight.gradients(strength);

            let [a, b, w] = merged(&weight);
            let hard = quantize(&w.detach(), method.grouping, scale, method.deadzone);
            let through = &w + ((hard.dequantize() - &w) * lambda).detach();
            close(&weight.leaf().detach(), &through.detach(), 1e-6);
            let penalty = penalty(&w, &hard.scales);
            close(&weight.penalty(), &penalty.detach(), 1e-5);
            ((through * &sent).sum(Kind::Float) + penalty * strength).backward();
            close(&got.a.expect("used"), &a.grad(), 1e-5);
            close(&got.b.expect("used"), &b.grad(), 1e-5);
            assert!(got.scales.is_none());
        }
    }
}

/// What an estimator does with the gradient is tested with [`TernaryWeight`].
#[test]
fn estimators_are_those_of_weights() {
    let sent = draw(4, [OUT, IN]);
    let blend = Blend { lambda: 0.6, temperature: Some(0.5) };
    for estimator in
        [Estimator::Clipped { bound: 1.2 }, Estimator::LearnedScale, Estimator::EfficientQat, Estimator::Soft]
    {
        let method = method(Grouping::Group(32), Scale::AbsMean, estimator);
        let mut weight = adapted(method, Kind::Float);
        weight.refresh(blend);
        (weight.leaf() * &sent).sum(Kind::Float).backward();
        let got = weight.gradients(0.0);

        let [a, b, w] = merged(&weight);
        let mut plain = TernaryWeight::new(w.detach(), method, Kind::Float);
        if let (Some(ours), Some(scales)) = (weight.scales(), plain.scales()) {
            tch::no_grad(|| scales.shallow_clone().copy_(ours));
        }
        plain.refresh(blend);
        (plain.leaf() * &sent).sum(Kind::Float).backward();
        let wanted = plain.gradients();
        (w * wanted.master.expect("used")).sum(Kind::Float).backward();
        close(&got.a.expect("used"), &a.grad(), 1e-4);
        close(&got.b.expect("used"), &b.grad(), 1e-4);
        assert_eq!(got.scales.is_some(), estimator.learned().is_some());
        if let (Some(got), Some(wanted)) = (got.scales, wanted.scales) {
            close(&got, &wanted, 1e-4);
        }
    }
}

#[test]
fn what_training_used_is_what_is_exported() {
    for compute in [Kind::Float, Kind::BFloat16] {
        for grouping in [Grouping::Tensor, Grouping::Row, Grouping::Group(32)] {
            for estimator in [Estimator::Plain, Estimator::Stretched] {
                let mut weight = adapted(method(grouping, Scale::Twn, estimator), compute);
                // Without a refresh since the update moved: an export merges.
                let exported = weight.export().dequantize().to_kind(compute);
                assert_ne!(*weight.leaf(), exported);
                weight.refresh(Blend { lambda: 0.4, temperature: None });
                assert_ne!(*weight.leaf(), exported);
                weight.refresh(Blend::HARD);
                assert_eq!(*weight.leaf(), exported, "{grouping:?} {estimator:?} {compute:?}");
            }
        }
    }
}

#[test]
fn the_penalty_draws_weights_to_the_grid() {
    let mut weight = adapted(method(Grouping::Group(32), Scale::Mse, Estimator::Plain), Kind::Float);
    weight.refresh(Blend::HARD);
    let before = weight.penalty().double_value(&[]);
    let mut optimizer = AdamW::new(Options { clip: None, ..Options::default() });
    let group = optimizer.group(Group { learning_rate: 3e-3, weight_decay: 0.0 });
    optimizer.add(group, weight.a());
    optimizer.add(group, weight.b());
    for _ in 0..100 {
        weight.refresh(Blend::HARD);
        // The model did not use it.
        let gradients = weight.gradients(1.0);
        let _ = optimizer.step(&[gradients.a, gradients.b], 1.0).expect("a step");
    }
    weight.refresh(Blend::HARD);
    let after = weight.penalty().double_value(&[]);
    assert!(after < 0.9 * before, "{after}, at the start {before}");
}
