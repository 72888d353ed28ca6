//! Quantizers and straight-through weights: what training sees is what is stored, and gradients follow their rules.

#[path = "../src/draws.rs"]
mod draws;

use draws::normal;
use formats::artifact::Grouping;
use tch::{Device, Kind, Tensor};
use ternary::activation::{self, fake_quantize};
use ternary::learned::FixedCodes;
use ternary::quantize::{Scale, quantize, soft};
use ternary::tequila::Reactivation;
use ternary::weight::{Blend, CastWeight, Estimator, Method, TernaryWeight};

const GROUPINGS: [Grouping; 3] = [Grouping::Tensor, Grouping::Row, Grouping::Group(64)];
const RULES: [Scale; 4] = [Scale::AbsMean, Scale::Twn, Scale::AbsMax, Scale::Mse];
const LEARNED: [Estimator; 4] =
    [Estimator::LearnedScale, Estimator::Stretched, Estimator::EfficientQat, Estimator::Binary];
const ESTIMATORS: [Estimator; 7] = [
    Estimator::Plain,
    Estimator::Clipped { bound: 1.5 },
    Estimator::LearnedScale,
    Estimator::Stretched,
    Estimator::EfficientQat,
    Estimator::Binary,
    Estimator::Soft,
];

fn weights() -> Tensor {
    draws::seed(11);
    normal([32, 192]) * 0.02 * normal([32, 1]).exp()
}

#[track_caller]
fn close(a: &Tensor, b: &Tensor, tolerance: f64) {
    let error = ((a - b).abs().max() / b.abs().max().clamp_min(1e-9)).double_value(&[]);
    assert!(error <= tolerance, "differs by {error} of the largest");
}

fn method(grouping: Grouping, scale: Scale, estimator: Estimator) -> Method {
    Method { grouping, scale, deadzone: scale.default_deadzone(), estimator }
}

#[test]
fn dequantized_is_bit_for_bit_the_artifacts() {
    for grouping in GROUPINGS {
        for rule in RULES {
            let quantized = quantize(&weights(), grouping, rule, rule.default_deadzone());
            let stored = quantized.to_artifact("w".into(), grouping);
            let ours = Vec::<f32>::try_from(quantized.dequantize().reshape([-1])).expect("f32");
            let theirs = stored.dequantize();
            assert!(ours.iter().zip(&theirs).all(|(a, b)| a.to_bits() == b.to_bits()), "{grouping:?} {rule:?}");
        }
    }
}

#[test]
fn what_training_used_is_what_is_exported() {
    for estimator in ESTIMATORS {
        for grouping in GROUPINGS {
            for compute in [Kind::Float, Kind::BFloat16] {
                let mut weight = TernaryWeight::new(weights(), method(grouping, Scale::Twn, estimator), compute);
                weight.refresh(Blend { lambda: 0.4, temperature: Some(0.5) });
                assert_ne!(weight.leaf().to_kind(Kind::Float), weight.export().dequantize());
                weight.refresh(Blend::HARD);
                assert_eq!(*weight.leaf(), weight.export().dequantize().to_kind(compute), "{estimator:?} {grouping:?}");
            }
        }
    }
}

#[test]
fn lambda_blends() {
    let w = weights();
    for grouping in GROUPINGS {
        for rule in [Scale::Twn, Scale::ThreeOfFour] {
            let mut weight = TernaryWeight::new(w.copy(), method(grouping, rule, Estimator::Plain), Kind::Float);
            let hard = weight.export().dequantize();
            for lambda in [0.0, 0.25, 0.9] {
                weight.refresh(Blend { lambda, temperature: None });
                close(&weight.leaf().detach(), &(&w + (&hard - &w) * lambda), 1e-6);
            }
            weight.refresh(Blend { lambda: 0.0, temperature: None });
            assert_eq!(*weight.leaf(), w);
        }
    }
}

/// Sorted magnitudes a₁ ≥ a₂ ≥ …: keeping the first k with their mean is best where (a₁ + … + a_k)²/k is largest.
#[test]
fn mse_is_close_to_the_optimum_and_best_of_the_rules() {
    let w = weights();
    let groups = w.reshape([-1, 64]);
    let (sorted, _) = groups.abs().sort(1, true);
    let sums = sorted.cumsum(1, Kind::Float);
    let counts = Tensor::arange(64, (Kind::Float, Device::Cpu)) + 1.0;
    let best = (&groups * &groups).sum(Kind::Float) - (&sums * &sums / counts).amax(1, false).sum(Kind::Float);
    let best = best.double_value(&[]);
    let error = |rule: Scale| {
        let error = quantize(&w, Grouping::Group(64), rule, rule.default_deadzone()).dequantize() - &w;
        (&error * &error).sum(Kind::Float).double_value(&[])
    };
    let reached = error(Scale::Mse);
    assert!(reached >= best * 0.9999 && reached < best * 1.005, "{reached} against the optimum {best}");
    assert!(reached < error(Scale::Twn) && error(Scale::Twn) < error(Scale::AbsMean));
    assert!(error(Scale::AbsMean) < error(Scale::AbsMax));
}

/// Relative errors and zeros of a Gaussian, as METHODS-style tables of real weights have them: .27-.28 and .31 for
/// absmean, .19-.21 and .45 for TWN.
#[test]
fn a_gaussian_loses_what_is_known() {
    draws::seed(12);
    let w = normal([256, 576]);
    for (rule, error, zero) in [(Scale::AbsMean, 0.262, 0.310), (Scale::Twn, 0.190, 0.450), (Scale::Mse, 0.190, 0.459)]
    {
        let quantized = quantize(&w, Grouping::Tensor, rule, rule.default_deadzone());
        let off = quantized.dequantize() - &w;
        let got = ((&off * &off).sum(Kind::Float) / (&w * &w).sum(Kind::Float)).double_value(&[]);
        assert!((got - error).abs() < 0.01, "{rule:?} has an error of {got}");
        let [minus, none, plus] = quantized.shares();
        assert!((none - zero).abs() < 0.01, "{rule:?} has {none} zeros");
        assert!((minus - plus).abs() < 0.01 && (minus + none + plus - 1.0).abs() < 1e-12);
    }
}

#[test]
fn the_deadzone_moves_the_zeros() {
    let zeros = |deadzone| quantize(&weights(), Grouping::Group(64), Scale::Twn, deadzone).shares()[1];
    assert_eq!(zeros(0.0), 0.0);
    assert!(zeros(0.5) < zeros(0.75) && zeros(0.75) < zeros(1.0));
}

#[test]
fn zeros_stay_zero_and_finite() {
    let none = Tensor::zeros([4, 64], (Kind::Float, Device::Cpu));
    for rule in RULES {
        let quantized = quantize(&none, Grouping::Group(64), rule, rule.default_deadzone());
        assert_eq!(quantized.dequantize(), none);
        assert!(quantized.scales.min().double_value(&[]) > 0.0);
    }
}

#[test]
#[should_panic(expected = "groups of 128 do not divide rows of 192")]
fn a_group_must_divide_the_row() {
    quantize(&weights(), Grouping::Group(128), Scale::Twn, 0.75);
}

/// Sends G to the leaf as a model would.
fn send(weight: &TernaryWeight, gradient: &Tensor) {
    (weight.leaf().to_kind(Kind::Float) * gradient).sum(Kind::Float).backward();
}

#[test]
fn straight_through_passes_the_gradient() {
    let gradient = normal([32, 192]);
    let mut weight = TernaryWeight::new(weights(), method(Grouping::Row, Scale::Twn, Estimator::Plain), Kind::Float);
    assert!(weight.gradients().master.is_none(), "nothing was sent yet");
    for lambda in [0.3, 1.0] {
        weight.refresh(Blend { lambda, temperature: None });
        send(&weight, &gradient);
        assert_eq!(weight.gradients().master.expect("sent"), gradient);
    }
    weight.refresh(Blend::HARD);
    assert!(weight.gradients().master.is_none(), "a fresh leaf has no gradient");
}

#[test]
fn clipping_stops_what_is_far_out() {
    let (gradient, w) = (normal([32, 192]), weights());
    let clipped = method(Grouping::Tensor, Scale::Twn, Estimator::Clipped { bound: 1.5 });
    let mut weight = TernaryWeight::new(w.copy(), clipped, Kind::Float);
    let outside = w.abs().gt_tensor(&(weight.export().scales * 1.5)).to_kind(Kind::Float);
    assert!(outside.sum(Kind::Float).double_value(&[]) > 0.0);
    weight.refresh(Blend { lambda: 0.25, temperature: None });
    send(&weight, &gradient);
    close(&weight.gradients().master.expect("sent"), &(&gradient * (1.0 - outside * 0.25)), 1e-6);
}

/// `scales` over the weights that they belong to, by operations that autograd follows.
fn spread(scales: &Tensor, [rows, columns]: [i64; 2]) -> Tensor {
    match scales.size()[..] {
        [_, groups] => scales.unsqueeze(-1).expand([rows, groups, columns / groups], false).reshape([rows, columns]),
        _ => scales.expand([rows, columns], false),
    }
}

/// round(x), to the last bit, whose gradient is that of x.
fn round_through(x: &Tensor) -> Tensor {
    x.detach().round() + (x - x.detach())
}

/// The rules against their papers' forward passes, written with straight-through rounding for autograd.
#[test]
fn learned_scales_get_their_papers_gradients() {
    let (gradient, w, lambda) = (normal([32, 192]), weights(), 0.7);
    let count = f64::from(32 * 192).sqrt();
    for estimator in LEARNED {
        for grouping in GROUPINGS {
            let mut weight = TernaryWeight::new(w.copy(), method(grouping, Scale::Twn, estimator), Kind::Float);
            weight.refresh(Blend { lambda, temperature: None });
            send(&weight, &gradient);
            let got = weight.gradients();
            let alpha = weight.scales().expect("learned").copy().set_requires_grad(true);
            let wide = spread(&alpha, [32, 192]);
            let master = w.copy().set_requires_grad(true);
            let x = &master / &wide;
            let (quantized, factor) = match estimator {
                Estimator::LearnedScale => (round_through(&x.clamp(-1.0, 1.0)) * &wide, 1.0 / count),
                Estimator::Binary => {
                    // α gets no part of the slope of w.
                    let fixed = wide.detach();
                    let inside = (&master / &fixed).clamp(-1.0, 1.0) * &fixed;
                    (x.sign().detach() * &wide + (&inside - inside.detach()), 1.0 / count)
                }
                Estimator::EfficientQat => (round_through(&x).clamp(-1.0, 1.0) * &wide, 1.0),
                _ => {
                    let inside = x.abs().le(0.99);
                    let level = (x.clamp(-0.99, 0.99) * 1.5).round() / 1.5;
                    // Beyond 0.99 the value is the level's, the slope that of α itself.
                    let beyond = x.sign() * &wide + ((&level - x.sign()) * &wide).detach();
                    let within = (&x + (&level - &x).detach()) * &wide;
                    (within.where_self(&inside, &beyond), 1.0 / count)
                }
            };
            let mixed = &master * (1.0 - lambda) + quantized * lambda;
            close(&weight.leaf().detach(), &mixed.detach(), 1e-3);
            (mixed * &gradient).sum(Kind::Float).backward();
            close(&got.master.expect("sent"), &master.grad(), 1e-5);
            close(&got.scales.expect("learned"), &(alpha.grad() * factor), 1e-4);
        }
    }
}

/// A learned scale starts with the level of the rule; from max|w| as ParetoQ does, or from half the range as EfficientQAT.
#[test]
fn learned_scales_start_at_the_rules_level() {
    for estimator in LEARNED {
        let weight = TernaryWeight::new(weights(), method(Grouping::Group(64), Scale::Mse, estimator), Kind::Float);
        let wanted = quantize(&weights(), Grouping::Group(64), Scale::Mse, 0.5);
        assert_eq!(weight.export().scales, wanted.scales, "{estimator:?}");
        let weight = TernaryWeight::new(weights(), method(Grouping::Row, Scale::AbsMax, estimator), Kind::Float);
        let own_start = match estimator {
            Estimator::EfficientQat => (weights().amax(1, true) - weights().amin(1, true)) / 2.0,
            _ => weights().abs().amax(1, true),
        };
        assert_eq!(*weight.scales().expect("learned"), own_start, "{estimator:?}");
    }
}

#[test]
fn one_of_each_four_is_zero() {
    let codes = quantize(&weights(), Grouping::Tensor, Scale::ThreeOfFour, 0.5).codes.to_kind(Kind::Float).abs();
    assert_eq!(
        codes.reshape([-1, 4]).sum_dim_intlist(1, false, Kind::Float).ne(3.0).sum(Kind::Int64),
        Tensor::from(0i64)
    );
    // The first of equals, whatever thread has it.
    let equal = Tensor::ones([64, 1024], (Kind::Float, Device::Cpu));
    let codes = quantize(&equal, Grouping::Tensor, Scale::ThreeOfFour, 0.5).codes.reshape([-1, 4]);
    assert_eq!(codes.sum_dim_intlist(0, false, Kind::Int64), Tensor::from_slice(&[0i64, 16384, 16384, 16384]));
}

#[test]
#[should_panic(expected = "choose groups of a multiple of four, not 6")]
fn fours_are_not_cut() {
    quantize(&weights(), Grouping::Group(6), Scale::ThreeOfFour, 0.5);
}

#[test]
fn soft_weights_have_their_true_gradient() {
    draws::seed(13);
    let gradient = normal([4, 16]);
    // Away from each other, so that a small step keeps the same weights.
    let w = normal([4, 16]);
    for rule in RULES {
        let mut weight = TernaryWeight::new(w.copy(), method(Grouping::Group(16), rule, Estimator::Soft), Kind::Float);
        let blend = Blend { lambda: 0.6, temperature: Some(0.5) };
        weight.refresh(blend);
        let deadzone = rule.default_deadzone();
        let at = |w: &Tensor| {
            let mixed = w + (soft(w, Grouping::Group(16), rule, deadzone, 0.5) - w) * 0.6;
            (mixed * &gradient).sum(Kind::Double).double_value(&[])
        };
        close(&weight.leaf().detach(), &(&w + (soft(&w, Grouping::Group(16), rule, deadzone, 0.5) - &w) * 0.6), 1e-6);
        send(&weight, &gradient);
        let got = weight.gradients().master.expect("sent").reshape([-1]);
        let mut wrong = 0;
        for i in 0..got.numel() as i64 {
            let moved = |by: f64| {
                let w = w.copy();
                let _ = w.view([-1]).get(i).g_add_scalar_(by);
                at(&w)
            };
            let slope = (moved(2e-3) - moved(-2e-3)) / 4e-3;
            wrong += i32::from((slope - got.double_value(&[i])).abs() > 1e-2);
        }
        // A weight within the step of a threshold changes what is kept, which the rule's derivative leaves out.
        assert!(wrong <= 2, "{rule:?}: {wrong} of {} derivatives are not the numerical ones", got.numel());
    }
}

#[test]
fn soft_weights_harden() {
    let w = weights();
    for rule in RULES {
        let deadzone = rule.default_deadzone();
        let hard = quantize(&w, Grouping::Group(64), rule, deadzone).dequantize();
        let soft = soft(&w, Grouping::Group(64), rule, deadzone, 1e-5);
        let off = (soft - &hard).abs().gt_tensor(&(hard.abs() * 1e-3 + 1e-6)).to_kind(Kind::Float).mean(Kind::Float);
        assert!(off.double_value(&[]) < 2e-3, "{rule:?}");
    }
}

#[test]
fn dense_weights_follow_their_master() {
    let master = normal([8, 8]);
    for compute in [Kind::Float, Kind::BFloat16] {
        let mut weight = CastWeight::new(master.copy(), compute);
        assert_eq!(*weight.leaf(), master.to_kind(compute));
        assert!(weight.gradient().is_none());
        (weight.leaf() * 2.0).sum(Kind::Float).backward();
        assert_eq!(weight.gradient().expect("sent").sum(Kind::Float).double_value(&[]), 128.0);
        let _ = weight.master().shallow_clone().g_add_scalar_(1.0);
        weight.refresh();
        assert_eq!(*weight.leaf(), (&master + 1.0).to_kind(compute));
        assert!(weight.gradient().is_none());
    }
}

#[test]
fn activations_are_on_a_grid_by_token_and_pass_gradients() {
    draws::seed(14);
    let x = normal([6, 64]) * normal([6, 1]).exp();
    for bits in [8u32, 4] {
        let most = f64::from((1 << (bits - 1)) - 1);
        let steps = activation::quantize(&x, bits) / (x.abs().amax(-1, true) / most);
        close(&steps, &steps.round(), 1e-5);
        assert!(steps.abs().max().double_value(&[]) <= most + 1e-3);
        close(&activation::quantize(&x, bits), &x, 0.5 / most);
    }
    let input = x.copy().set_requires_grad(true);
    let mixed = fake_quantize(&input, 8, 0.5);
    close(&mixed.detach(), &((activation::quantize(&x, 8) + &x) * 0.5), 1e-6);
    mixed.sum(Kind::Float).backward();
    assert_eq!(input.grad(), x.ones_like());
    assert_eq!(fake_quantize(&x, 16, 1.0), x);
    assert_eq!(fake_quantize(&x.to_kind(Kind::BFloat16), 8, 1.0).kind(), Kind::BFloat16);
}

/// C = λ·(w on the deadzone)·1 by autograd, with codes and deadzone held.
#[test]
fn a_reactivated_deadzone_has_its_gradients() {
    draws::seed(15);
    let (w, x, gradient) = (weights(), normal([5, 192]), normal([5, 32]));
    let mut weight =
        TernaryWeight::new(w.copy(), method(Grouping::Group(64), Scale::Twn, Estimator::Plain), Kind::Float);
    let mut tequila = Reactivation::new(&weight, 0.3, true);
    weight.refresh(Blend::HARD);
    tequila.refresh(&weight, 0.5);
    let y = x.matmul(&weight.leaf().tr()) + tequila.bias();
    (&y * &gradient).sum(Kind::Float).backward();
    let (got, strength) = tequila.gradients(&weight);

    let (master, lambda) = (w.copy().set_requires_grad(true), Tensor::from(0.3f32).set_requires_grad(true));
    let hard = weight.export();
    let through = &master + (hard.dequantize() - &master).detach();
    let bias = (&master * hard.codes.eq(0)).sum_dim_intlist(1, false, Kind::Float) * &lambda * 0.5;
    let plain = x.matmul(&through.tr()) + bias;
    close(&y.detach(), &plain.detach(), 1e-6);
    (plain * &gradient).sum(Kind::Float).backward();
    close(&got.master.expect("used"), &master.grad(), 1e-5);
    close(&strength.expect("trained"), &lambda.grad().reshape([1]), 1e-5);
}

#[test]
fn a_bias_is_not_exported() {
    let weight = TernaryWeight::new(weights(), method(Grouping::Row, Scale::AbsMean, Estimator::Plain), Kind::Float);
    let mut tequila = Reactivation::new(&weight, 1e-3, false);
    let error = tequila.export(&weight).expect_err("a bias").to_string();
    assert_eq!(
        error,
        "Tequila's bias cannot be exported, because an artifact holds codes -1, 0, 1 and one scale a group: let its \
         share fall to 0 before the end of the run"
    );
    tequila.refresh(&weight, 0.0);
    assert_eq!(tequila.bias().abs().max().double_value(&[]), 0.0);
    assert_eq!(tequila.export(&weight).expect("no bias").codes, weight.export().codes);
}

#[test]
fn scales_are_trained_under_codes_that_stay() {
    let gradient = normal([32, 192]);
    for grouping in GROUPINGS {
        let first = quantize(&weights(), grouping, Scale::Twn, 0.75);
        let (codes, scales) = (first.codes.to_kind(Kind::Float), first.scales.copy().set_requires_grad(true));
        let (values, mut fixed) = (first.dequantize(), FixedCodes::new(first, Kind::Float));
        assert_eq!(*fixed.leaf(), values);
        assert!(fixed.gradient().is_none());
        (fixed.leaf() * &gradient).sum(Kind::Float).backward();
        (spread(&scales, [32, 192]) * &codes * &gradient).sum(Kind::Float).backward();
        close(&fixed.gradient().expect("sent"), &scales.grad(), 1e-5);
        let _ = fixed.scales().shallow_clone().g_mul_scalar_(1.5);
        fixed.refresh();
        assert_eq!(*fixed.leaf(), fixed.export().dequantize());
        assert_eq!(fixed.export().codes.to_kind(Kind::Float), codes);
        close(&fixed.leaf().detach(), &(values * 1.5), 5e-4);
    }
}
