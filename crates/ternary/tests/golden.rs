//! Quantizers and losses against what the methods' own published code returns (`golden/quantizers.json`, whose `doc`
//! says how the inputs are made).

use std::sync::LazyLock;

use serde::Deserialize;
use tch::{Kind, Tensor};
use ternary::Grouping;
use ternary::activation;
use ternary::distill::feature_loss;
use ternary::grid::{Grid, Levels};
use ternary::learned::LearnedRule;
use ternary::loss::{Teacher, objective};
use ternary::quantize::{Scale, quantize, quantize_with, soft, weight_quant};
use ternary::tequila::Reactivation;
use ternary::weight::{Blend, Estimator, Method, TernaryWeight};

#[derive(Deserialize)]
struct Summary {
    sum: f64,
    abssum: f64,
    sqsum: f64,
    first8: Vec<f64>,
    n: usize,
}

static GOLDEN: LazyLock<serde_json::Value> =
    LazyLock::new(|| serde_json::from_str(include_str!("golden/quantizers.json")).expect("valid JSON"));

fn golden(path: &str) -> Summary {
    Summary::deserialize(GOLDEN.pointer(path).unwrap_or_else(|| panic!("no {path}"))).expect("a summary")
}

fn numbers(path: &str) -> Vec<f64> {
    let value = GOLDEN.pointer(path).unwrap_or_else(|| panic!("no {path}"));
    match value.as_f64() {
        Some(number) => vec![number],
        None => flat(value),
    }
}

fn flat(value: &serde_json::Value) -> Vec<f64> {
    match value.as_array() {
        Some(array) => array.iter().flat_map(flat).collect(),
        None => vec![value.as_f64().expect("a number")],
    }
}

fn values(tensor: &Tensor) -> Vec<f64> {
    Vec::<f64>::try_from(tensor.detach().to_kind(Kind::Double).reshape([-1])).expect("a vector")
}

#[track_caller]
fn close(got: &[f64], wanted: &[f64], tolerance: f64) {
    assert_eq!(got.len(), wanted.len());
    for (got, wanted) in got.iter().zip(wanted) {
        assert!((got - wanted).abs() <= tolerance, "got {got}, the source gives {wanted}");
    }
}

/// Within `tolerance` relative to the sum of magnitudes, and of the largest of the first entries.
#[track_caller]
fn agrees(tensor: &Tensor, path: &str, tolerance: f64) {
    let (got, wanted) = (values(tensor), golden(path));
    assert_eq!(got.len(), wanted.n, "{path}");
    let sum: f64 = got.iter().sum();
    let abssum: f64 = got.iter().map(|v| v.abs()).sum();
    let sqsum: f64 = got.iter().map(|v| v * v).sum();
    close(&[sum, abssum], &[wanted.sum, wanted.abssum], tolerance * wanted.abssum);
    close(&[sqsum], &[wanted.sqsum], 2.0 * tolerance * wanted.sqsum);
    let largest = wanted.first8.iter().fold(0.0, |a: f64, b| a.max(b.abs()));
    close(&got[..8], &wanted.first8, tolerance * largest);
}

#[track_caller]
fn zeros(tensor: &Tensor, path: &str) {
    let share = values(tensor).iter().filter(|&&v| v == 0.0).count() as f64 / tensor.numel() as f64;
    close(&[share], &numbers(path), 1e-12);
}

fn made(rows: i64, columns: i64, f: impl Fn(i64, i64) -> f64) -> Tensor {
    let values: Vec<f32> =
        (0..rows).flat_map(|i| (0..columns).map(move |j| (i, j))).map(|(i, j)| f(i, j) as f32).collect();
    Tensor::from_slice(&values).reshape([rows, columns])
}

fn w() -> Tensor {
    made(3, 128, |i, j| {
        let k = (37 * i + 101 * j + 7 * i * j) % 255 - 127;
        (k * k.abs()) as f64 / 131_072.0
    })
}

fn g() -> Tensor {
    made(3, 128, |i, j| (((53 * i + 29 * j + 11) % 61) as f64 - 27.5) / 64.0)
}

fn x() -> Tensor {
    made(2, 128, |t, j| ((19 * t + 43 * j + 5) % 97 - 48) as f64 / 32.0)
}

fn gy() -> Tensor {
    made(2, 3, |t, i| ((7 * t + 3 * i + 1) % 5 - 2) as f64 / 4.0)
}

const EXACT: f64 = 2e-7;
/// Half a unit in the last place of f16, by which a stored scale differs.
const SNAPPED: f64 = 4.9e-4;

#[test]
fn the_fixture_is_the_sources() {
    agrees(&w(), "/W", 1e-15);
    agrees(&g(), "/G", 1e-15);
}

#[test]
fn hugging_face_weights() {
    let quantized = weight_quant(&w(), Grouping::Tensor);
    agrees(&quantized, "/hf_weight_quant", EXACT);
    zeros(&quantized, "/hf_weight_quant/zero");
    // The same codes, with the scale as it is stored.
    let stored = quantize(&w(), Grouping::Tensor, Scale::AbsMean, 0.5);
    assert_eq!(stored.codes.to_kind(Kind::Float), quantized.sign());
    close(&values(&stored.scales), &numbers("/hf_weight_quant/scale"), SNAPPED * 0.0415);
}

#[test]
fn hugging_face_activations() {
    agrees(&activation::quantize(&x(), 8), "/hf_activation_quant", EXACT);
}

/// y = x_·w_ᵀ with x_ and w_ mixed by λ; dW and dX are the straight-through gradients from the mixed operands.
#[test]
fn hugging_face_linear() {
    for (lambda, case) in [(0.0, "hf_bitlinear_lam0.0"), (0.25, "hf_bitlinear_lam0.25"), (1.0, "hf_bitlinear_lam1.0")] {
        let w = w();
        let leaf = (&w + (weight_quant(&w, Grouping::Tensor) - &w) * lambda).set_requires_grad(true);
        let input = x().set_requires_grad(true);
        let y = activation::fake_quantize(&input, 8, lambda).matmul(&leaf.tr());
        close(&values(&y), &numbers(&format!("/{case}/y")), 1e-6);
        ternary::backward(&[&y], &[&gy()]).expect("a graph");
        agrees(&leaf.grad(), &format!("/{case}/dw"), EXACT * 10.0);
        agrees(&input.grad(), &format!("/{case}/dx"), EXACT * 10.0);
    }
}

/// The same through a [`TernaryWeight`], whose scale is the stored one: HF's clamped mean in f16.
#[test]
fn hugging_face_linear_as_it_is_trained() {
    let method =
        Method { grouping: Grouping::Tensor, scale: Scale::AbsMean, deadzone: 0.5, estimator: Estimator::Plain };
    for (lambda, case) in [(0.25, "hf_bitlinear_lam0.25"), (1.0, "hf_bitlinear_lam1.0")] {
        let mut weight = TernaryWeight::new(w(), method, Kind::Float);
        weight.refresh(Blend { lambda, temperature: None });
        let input = x().set_requires_grad(true);
        let y = activation::fake_quantize(&input, 8, lambda).matmul(&weight.leaf().tr());
        close(&values(&y), &numbers(&format!("/{case}/y")), SNAPPED * 0.4);
        ternary::backward(&[&y], &[&gy()]).expect("a graph");
        agrees(&weight.gradients().master.expect("used"), &format!("/{case}/dw"), EXACT * 10.0);
        agrees(&input.grad(), &format!("/{case}/dx"), SNAPPED);
    }
}

#[test]
fn learned_scale() {
    let alpha = w().abs().mean_dim(1, true, None);
    close(&values(&alpha), &numbers("/lsq_ternary_meanabs/alpha"), 1e-8);
    let (dw, dalpha) = LearnedRule::Lsq.gradients(&w(), &alpha, &g());
    agrees(&dw, "/lsq_ternary_meanabs/dw", EXACT);
    close(&values(&dalpha), &numbers("/lsq_ternary_meanabs/dalpha"), 1e-6);
    let stored = quantize_with(&w(), Grouping::Row, &alpha, 0.5).dequantize();
    agrees(&stored, "/lsq_ternary_meanabs", SNAPPED);
    zeros(&stored, "/lsq_ternary_meanabs/zero");
}

/// ParetoQ's own start, α = max|w| of the row, and half of it.
#[test]
fn stretched_scale() {
    let rule = LearnedRule::Stretched;
    let start = rule.start(&w(), Grouping::Row, Scale::AbsMax);
    close(&values(&start), &numbers("/paretoq_seq_ternary/alpha"), 1e-8);
    for (alpha, case) in [(&start * 1.0, "paretoq_seq_ternary"), (&start * 0.5, "paretoq_seq_ternary_alpha_half")] {
        let (dw, dalpha) = rule.gradients(&w(), &alpha, &g());
        agrees(&dw, &format!("/{case}/dw"), EXACT);
        close(&values(&dalpha), &numbers(&format!("/{case}/dalpha")), 1e-6);
        let stored = quantize_with(&w(), Grouping::Row, &rule.levels(&alpha), rule.deadzone()).dequantize();
        agrees(&stored, &format!("/{case}"), SNAPPED);
        zeros(&stored, &format!("/{case}/zero"));
    }
}

/// One bit: every weight but an exact zero is ±α.
#[test]
fn binary_scale() {
    let rule = LearnedRule::Binary;
    let alpha = w().abs().mean_dim(1, true, None);
    close(&values(&rule.start(&w(), Grouping::Row, Scale::AbsMean)), &values(&alpha), SNAPPED * 0.042);
    let (dw, dalpha) = rule.gradients(&w(), &alpha, &g());
    agrees(&dw, "/binary_1bit/dw", EXACT);
    close(&values(&dalpha), &numbers("/binary_1bit/dalpha"), 1e-6);
    let stored = quantize_with(&w(), Grouping::Row, &rule.levels(&alpha), rule.deadzone()).dequantize();
    agrees(&stored, "/binary_1bit", SNAPPED);
    zeros(&stored, "/binary_1bit/zero");
}

#[test]
fn two_and_three_bits() {
    for (grid, case) in [(Grid::StretchedTwoBit, "paretoq_seq_2bit"), (Grid::Lsq { bits: 3 }, "lsq_3bit")] {
        let levels = grid.start(&w(), Grouping::Row);
        close(&values(&levels.scales), &numbers(&format!("/{case}/alpha")), 1e-8);
        let quantized = grid.values(&w(), &levels);
        agrees(&quantized, &format!("/{case}"), EXACT);
        zeros(&quantized, &format!("/{case}/zero"));
        let gradients = grid.gradients(&w(), &levels, &g());
        agrees(&gradients.master, &format!("/{case}/dw"), EXACT);
        close(&values(&gradients.levels.scales), &numbers(&format!("/{case}/dalpha")), 1e-6);
    }
}

#[test]
fn dual_learnable_ternarization() {
    let column = |values: &[f32]| Tensor::from_slice(values).reshape([3, 1]);
    let scales = w().abs().mean_dim(1, true, None);
    close(&values(&scales), &numbers("/dlt/alpha"), 1e-8);
    let levels = Levels { scales, offsets: Some(column(&[0.0, 0.01, -0.02])) };
    agrees(&Grid::Dlt.values(&w(), &levels), "/dlt", EXACT);
    let gradients = Grid::Dlt.gradients(&w(), &levels, &g());
    agrees(&gradients.master, "/dlt/dw", EXACT);
    close(&values(&gradients.levels.scales), &numbers("/dlt/dalpha"), 1e-6);
    close(&values(&gradients.levels.offsets.expect("γ")), &numbers("/dlt/dgamma"), 1e-6);
}

#[test]
fn trained_steps_and_zero_points() {
    let (grid, case) = (Grid::Affine { bits: 2 }, "efficientqat_w2g64");
    let levels = grid.start(&w(), Grouping::Group(64));
    close(&values(&levels.scales), &numbers(&format!("/{case}/scale")), 1e-8);
    close(&values(levels.offsets.as_ref().expect("z")), &numbers(&format!("/{case}/zero_point")), 0.0);
    agrees(&grid.values(&w(), &levels), &format!("/{case}"), EXACT);
    let gradients = grid.gradients(&w(), &levels, &g());
    agrees(&gradients.master, &format!("/{case}/dw"), EXACT);
    close(&values(&gradients.levels.scales), &numbers(&format!("/{case}/dscale")), 2e-6);
    close(&values(&gradients.levels.offsets.expect("z")), &numbers(&format!("/{case}/dzero")), 1e-6);
}

/// Tequila in groups of 128 with λ = 1e-3: the ternary product, the bias, and gradients through both.
#[test]
fn deadzone_reactivation() {
    let case = "tequila_v2_g128_lam1e-3";
    let method = Method {
        grouping: Grouping::Group(128),
        scale: Scale::AbsMean,
        deadzone: Scale::AbsMean.default_deadzone(),
        estimator: Estimator::Plain,
    };
    let weight = TernaryWeight::new(w(), method, Kind::Float);
    let tequila = Reactivation::new(&weight, 1e-3, false);
    agrees(weight.leaf(), &format!("/{case}/A"), SNAPPED);
    zeros(weight.leaf(), &format!("/{case}/zero"));
    close(&values(tequila.bias()), &numbers(&format!("/{case}/bias")), 1e-10);
    let input = x().set_requires_grad(true);
    let y = input.matmul(&weight.leaf().tr()) + tequila.bias();
    close(&values(&y), &numbers(&format!("/{case}/y")), SNAPPED * 0.3);
    ternary::backward(&[&y], &[&gy()]).expect("a graph");
    let (gradients, strength) = tequila.gradients(&weight);
    agrees(&gradients.master.expect("used"), &format!("/{case}/dw"), EXACT);
    assert!(strength.is_none() && tequila.strength().is_none());
    agrees(&input.grad(), &format!("/{case}/dx"), SNAPPED);
}

/// Sherry keeps three of four; its gradient is straight through, with ε of Arenas beside it.
#[test]
fn three_of_four() {
    let method = Method {
        grouping: Grouping::Group(128),
        scale: Scale::ThreeOfFour,
        deadzone: Scale::ThreeOfFour.default_deadzone(),
        estimator: Estimator::Plain,
    };
    let mut weight = TernaryWeight::new(w(), method, Kind::Float);
    agrees(weight.leaf(), "/sherry_3of4_g128", SNAPPED);
    zeros(weight.leaf(), "/sherry_3of4_g128/zero");
    let hard = weight.leaf().detach().copy();
    weight.refresh_with_residual(Blend::HARD, 0.25);
    close(&values(weight.leaf()), &values(&(hard + w() * 0.25)), 1e-7);
    (weight.leaf() * g()).sum(Kind::Float).backward();
    close(&values(&weight.gradients().master.expect("sent")), &values(&(g() * 1.25)), 1e-7);
}

#[test]
fn static_scales_in_groups_of_64() {
    for (rule, deadzone, case) in [(Scale::AbsMean, 0.5, "static_absmean_g64"), (Scale::Twn, 0.75, "static_twn_g64")] {
        let quantized = quantize(&w(), Grouping::Group(64), rule, deadzone).dequantize();
        agrees(&quantized, &format!("/{case}"), SNAPPED);
        zeros(&quantized, &format!("/{case}/zero"));
    }
}

#[test]
fn soft_quantizer_and_its_gradient() {
    for (temperature, case) in [(1.0, "hestia_soft_T1.0"), (0.1, "hestia_soft_T0.1"), (0.01, "hestia_soft_T0.01")] {
        let w = w().set_requires_grad(true);
        let soft = soft(&w, Grouping::Tensor, Scale::AbsMean, 0.5, temperature);
        agrees(&soft, &format!("/{case}"), 1e-6);
        ternary::backward(&[&soft], &[&g()]).expect("a graph");
        agrees(&w.grad(), &format!("/{case}/dw"), 1e-5);
        // And as it is trained, without a recorded graph.
        let (grouping, scale, estimator) = (Grouping::Tensor, Scale::AbsMean, Estimator::Soft);
        let mut weight =
            TernaryWeight::new(w.detach(), Method { grouping, scale, deadzone: 0.5, estimator }, Kind::Float);
        weight.refresh(Blend { lambda: 1.0, temperature: Some(temperature) });
        agrees(weight.leaf(), &format!("/{case}"), 1e-6);
        ternary::backward(&[weight.leaf()], &[&g()]).expect("a leaf");
        agrees(&weight.gradients().master.expect("sent"), &format!("/{case}/dw"), 1e-5);
    }
}

/// Two rows of 32 logits; an identity head makes hidden states of logits.
#[test]
fn distillation() {
    let student = x().narrow(1, 0, 32).contiguous().set_requires_grad(true);
    let teacher = x().narrow(1, 32, 32).contiguous();
    let identity = Tensor::eye(32, (Kind::Float, tch::Device::Cpu));
    let targets = Tensor::from_slice(&[3i64, 7]);
    for (temperature, case) in [(1.0, "kd_T1.0"), (5.0, "kd_T5.0")] {
        let teacher = Teacher { hidden: &teacher, head: &identity, weight: 1.0, temperature };
        let objective = objective(&student, &identity, &targets, Some(teacher));
        close(&values(&objective.loss), &numbers(&format!("/{case}/loss")), 3e-6);
        agrees(objective.hidden_gradient(), &format!("/{case}/ds"), 1e-6);
    }
}

#[test]
fn features() {
    let student = x().narrow(1, 0, 32).contiguous().set_requires_grad(true);
    let loss = feature_loss(&student, &x().narrow(1, 32, 32));
    close(&values(&loss), &numbers("/off_cos_loss/loss"), 1e-6);
    loss.backward();
    agrees(&student.grad(), "/off_cos_loss/ds", 1e-6);
}

/// The values are those that the authors' code gives for these weights: `models/utils_quant.py` of ParetoQ and
/// `quantize/quantizer.py` of EfficientQAT, whose bounds they are.
#[test]
fn scales_stay_within_the_sources_bounds() {
    let (w, gradient) = (
        Tensor::from_slice(&[0.0f32, 0.0, 0.5, -0.25]).reshape([2, 2]),
        Tensor::ones([2, 2], (Kind::Float, tch::Device::Cpu)),
    );
    let alpha = Tensor::from_slice(&[0.0f32, -0.3]).reshape([2, 1]);
    for (rule, least) in [
        (LearnedRule::Lsq, 1e-5),
        (LearnedRule::Stretched, 1e-5 / 1.5),
        (LearnedRule::Binary, 1e-5),
        (LearnedRule::EfficientQat, 1e-4),
    ] {
        close(&values(&rule.levels(&alpha)), &[least; 2], 1e-11);
        // Of zeros at α = 0 and of weights far beyond a negative α: sign(w)·G summed, times g.
        let (master, scales) = rule.gradients(&w, &alpha, &gradient);
        close(&values(&scales), &[0.0, 0.0], 1e-6);
        assert_eq!(values(&master)[2..], [0.0, 0.0], "{rule:?}: both lie beyond the bound");
    }
    let far = Tensor::from_slice(&[1e5f32]).reshape([1, 1]);
    close(&values(&LearnedRule::EfficientQat.levels(&far)), &[1e4], 1e-3);
    for grid in [Grid::StretchedTwoBit, Grid::Lsq { bits: 3 }, Grid::Dlt] {
        let offsets = (grid == Grid::Dlt).then(|| alpha.zeros_like());
        let levels = Levels { scales: alpha.shallow_clone(), offsets };
        assert!(values(&grid.values(&w, &levels)).iter().all(|v| v.abs() < 1e-4), "{grid:?}");
        let found = grid.gradients(&w, &levels, &gradient);
        assert!(values(&found.levels.scales).iter().all(|v| v.is_finite()), "{grid:?}");
    }
}

#[test]
fn efficientqat_starts_from_the_range() {
    let w = Tensor::from_slice(&[0.1f32, 0.5, -0.3, 0.2, 2.0, 2.0, -2.0, -2.0]).reshape([4, 2]);
    let alpha = LearnedRule::EfficientQat.start(&w, Grouping::Row, Scale::AbsMax);
    close(&values(&alpha), &[0.2, 0.25, 1e-4, 1e-4], 1e-7);
    close(&values(&LearnedRule::Stretched.start(&w, Grouping::Row, Scale::AbsMax)), &[0.5, 0.3, 2.0, 2.0], 1e-7);
    let levels = Grid::Affine { bits: 2 }.start(&w, Grouping::Row);
    close(&values(&levels.scales), &[0.4 / 3.0, 0.5 / 3.0, 1e-4, 1e-4], 1e-7);
    // min/s is ∓20,000 in the last two.
    close(&values(&levels.offsets.expect("z")), &[-1.0, 2.0, -1e4, 1e4], 0.0);
}
