//! Starting points from inputs, against slow and independent ways to the same numbers.

#[path = "../src/draws.rs"]
mod draws;

use draws::normal;
use formats::artifact::Grouping;
use tch::{Device, Kind, Tensor};
use ternary::quantize::{Scale, quantize, quantize_with};
use ternary::start::{DAMPING, Inputs, error_feedback, fit_outputs};
use ternary::weight::{Blend, Estimator, Method, TernaryWeight};

const ROWS: usize = 5;
const COLUMNS: usize = 12;

/// Weights, and inputs that depend on each other.
fn sample(rows: usize, columns: usize) -> (Tensor, Inputs) {
    draws::seed(31);
    let columns = columns as i64;
    let mix = normal([columns, columns]) + normal([1, columns]) * 0.5;
    let mut inputs = Inputs::new(columns, Device::Cpu);
    for _ in 0..4 {
        inputs.add(&normal([2, 3 * columns, columns]).matmul(&mix));
    }
    (normal([rows as i64, columns]) * 0.02, inputs)
}

fn matrix(x: &Tensor) -> Vec<Vec<f64>> {
    let columns = x.size()[1] as usize;
    let all = Vec::<f64>::try_from(x.to_kind(Kind::Double).reshape([-1])).expect("a vector");
    all.chunks(columns).map(<[f64]>::to_vec).collect()
}

/// Solves a·x = b by elimination with pivots.
fn solve(mut a: Vec<Vec<f64>>, mut b: Vec<f64>) -> Vec<f64> {
    let n = b.len();
    for i in 0..n {
        let pivot = (i..n).max_by(|&p, &q| a[p][i].abs().total_cmp(&a[q][i].abs())).expect("a row");
        a.swap(i, pivot);
        b.swap(i, pivot);
        let (row, right) = (a[i].clone(), b[i]);
        for j in (0..n).filter(|&j| j != i) {
            let factor = a[j][i] / row[i];
            a[j].iter_mut().zip(&row).for_each(|(entry, pivot)| *entry -= factor * pivot);
            b[j] -= factor * right;
        }
    }
    (0..n).map(|i| b[i] / a[i][i]).collect()
}

/// Column after column, with what is left solved anew each time: fixing w_i to q moves the rest by
/// −(w_i − q)/[H⁻¹]_ii·[H⁻¹]_i, H over the columns not yet fixed (the optimal brain surgeon's update).
fn surgeon(w: &Tensor, inputs: &Inputs, scales: &[f64]) -> Vec<Vec<f64>> {
    let mut hessian = matrix(&inputs.hessian());
    let columns = hessian.len();
    let mean = (0..columns).map(|i| hessian[i][i]).sum::<f64>() / columns as f64;
    (0..columns).for_each(|i| hessian[i][i] += DAMPING * mean);
    let mut rows = matrix(w);
    for (row, &scale) in rows.iter_mut().zip(scales) {
        for i in 0..columns {
            let left: Vec<Vec<f64>> = hessian[i..].iter().map(|row| row[i..].to_vec()).collect();
            let mut unit = vec![0.0; columns - i];
            unit[0] = 1.0;
            let inverse = solve(left, unit);
            let code = if row[i].abs() > scale / 2.0 { row[i].signum() } else { 0.0 };
            let error = (row[i] - code * scale) / inverse[0];
            for (k, slope) in inverse.iter().enumerate() {
                row[i + k] -= error * slope;
            }
        }
    }
    rows
}

#[test]
fn feedback_is_the_surgeons() {
    let (w, inputs) = sample(ROWS, COLUMNS);
    for grouping in [Grouping::Tensor, Grouping::Row] {
        let start = error_feedback(&w, &inputs, grouping, Scale::Mse).expect("finite");
        let scales = quantize(&w, grouping, Scale::Mse, 0.5).scales.expand([ROWS as i64, 1], false);
        let scales = Vec::<f64>::try_from(scales.to_kind(Kind::Double).reshape([-1])).expect("a vector");
        let wanted = surgeon(&w, &inputs, &scales);
        for (got, wanted) in matrix(&start.quantized.dequantize()).iter().zip(&wanted) {
            for (got, wanted) in got.iter().zip(wanted) {
                assert!((got - wanted).abs() < 1e-8, "{grouping:?}: {got} is not {wanted}");
            }
        }
    }
}

#[test]
fn feedback_makes_up_for_the_rounding() {
    // More columns than a block has, and groups that do not divide it.
    let (w, inputs) = sample(24, 288);
    let hessian = inputs.hessian();
    let diagonal = hessian.diagonal(0, 0, 1).mean(Kind::Double) * DAMPING;
    let damped = &hessian + Tensor::eye(288, (Kind::Double, Device::Cpu)) * diagonal;
    let upper = Tensor::linalg_inv(&damped).linalg_cholesky(true);
    for (grouping, group) in [(Grouping::Tensor, 1), (Grouping::Row, 1), (Grouping::Group(48), 6)] {
        let start = error_feedback(&w, &inputs, grouping, Scale::Twn).expect("finite");
        let again = quantize_with(&start.master, grouping, &start.quantized.scales, 0.5);
        assert_eq!((&again.codes, &again.scales), (&start.quantized.codes, &start.quantized.scales));
        // Whatever the blocks: what the outputs miss is the errors of the roundings, each passed on by its row of U,
        // where H⁻¹ = Uᵀ·U.
        let quantized = start.quantized.dequantize();
        let errors = (&start.master - &quantized).to_kind(Kind::Double) / upper.diagonal(0, 0, 1);
        let passed_on = errors.matmul(&upper).to_kind(Kind::Float);
        assert!(passed_on.allclose(&(&w - &quantized), 1e-3, 1e-5, false), "{grouping:?}");
        let rows = if grouping == Grouping::Tensor { vec![1] } else { vec![24, group] };
        assert_eq!(start.quantized.scales.size(), rows);
        let total = |q: &Tensor| inputs.errors(&w, q).sum(Kind::Double).double_value(&[]);
        let nearest = quantize(&w, grouping, Scale::Mse, 0.5).dequantize();
        let (with, without) = (total(&quantized), total(&nearest));
        assert!(with < 0.75 * without, "{grouping:?}: an error of {with}, without feedback {without}");
    }
}

#[test]
fn unused_inputs_do_no_harm() {
    let (w, _) = sample(ROWS, COLUMNS);
    let mut inputs = Inputs::new(COLUMNS as i64, Device::Cpu);
    let x = normal([40, COLUMNS as i64]);
    let _ = x.narrow(1, 3, 2).fill_(0.0);
    inputs.add(&x);
    let start = error_feedback(&w, &inputs, Grouping::Row, Scale::Mse).expect("finite");
    assert_eq!(start.quantized.codes.narrow(1, 3, 2).abs().max().int64_value(&[]), 0);
    assert!(start.master.isfinite().all().int64_value(&[]) == 1);
    inputs.add(&(x * f64::NAN));
    assert!(error_feedback(&w, &inputs, Grouping::Row, Scale::Mse).is_err());
}

/// The scales against their equations, written out and solved a row at a time.
#[test]
fn scales_solve_their_equations() {
    let (w, inputs) = sample(ROWS, COLUMNS);
    for grouping in [Grouping::Row, Grouping::Group(6), Grouping::Group(3)] {
        let nearest = quantize(&w, grouping, Scale::Mse, 0.5);
        let got = fit_outputs(&w, &inputs, grouping, 1).expect("finite");
        assert_eq!(got.codes.abs(), nearest.codes.abs(), "one round keeps the codes, or turns those of a group");
        let (hessian, codes, weights) =
            (matrix(&inputs.hessian()), matrix(&nearest.codes.to_kind(Kind::Float)), matrix(&w));
        let width = grouping.width(COLUMNS);
        for (row, fitted) in matrix(&got.dequantize()).iter().enumerate() {
            let product = |from: std::ops::Range<usize>, to: std::ops::Range<usize>, with: &[f64]| -> f64 {
                from.map(|i| to.clone().map(|j| codes[row][i] * hessian[i][j] * with[j]).sum::<f64>()).sum()
            };
            let groups = COLUMNS / width;
            let range = |g: usize| g * width..(g + 1) * width;
            let left = (0..groups).map(|g| (0..groups).map(|h| product(range(g), range(h), &codes[row])).collect());
            let right = (0..groups).map(|g| product(range(g), 0..COLUMNS, &weights[row]));
            let wanted = solve(left.collect(), right.collect());
            for (i, got) in fitted.iter().enumerate() {
                let wanted = wanted[i / width] * codes[row][i];
                assert!((got - wanted).abs() <= 6e-4 * wanted.abs(), "{grouping:?}: {got} is not {wanted}");
            }
        }
    }
}

#[test]
fn rounds_only_help() {
    let (w, inputs) = sample(24, 96);
    for grouping in [Grouping::Tensor, Grouping::Row, Grouping::Group(16)] {
        let total = |q: &Tensor| inputs.errors(&w, q).sum(Kind::Double).double_value(&[]);
        let mut last = total(&quantize(&w, grouping, Scale::Mse, 0.5).dequantize());
        for rounds in [0, 1, 4] {
            let error = total(&fit_outputs(&w, &inputs, grouping, rounds).expect("finite").dequantize());
            assert!(error <= last * (1.0 + 1e-9), "{grouping:?}: {error} after {rounds} rounds, before {last}");
            assert!(rounds != 1 || error < last, "{grouping:?}: the scales were not fitted");
            last = error;
        }
    }
}

#[test]
fn inputs_are_averaged() {
    let x = normal([7, 4]);
    let mut inputs = Inputs::new(4, Device::Cpu);
    inputs.add(&x.narrow(0, 0, 3));
    inputs.add(&x.narrow(0, 3, 4).reshape([2, 2, 4]));
    let wanted = (x.tr().matmul(&x) * (2.0 / 7.0)).to_kind(Kind::Double);
    assert!(inputs.hessian().allclose(&wanted, 1e-5, 1e-6, false));
    // 2/n·Σ |(W − Q)·x|² is what the errors are.
    let (w, q) = (normal([3, 4]), normal([3, 4]));
    let off = x.matmul(&(&w - &q).tr());
    let direct = (&off * &off).sum_dim_intlist(0, false, Kind::Double) * (2.0 / 7.0);
    assert!(inputs.errors(&w, &q).allclose(&direct, 1e-5, 1e-6, false));
}

#[test]
fn a_weight_starts_there() {
    let (w, inputs) = sample(8, 64);
    for estimator in [Estimator::LearnedScale, Estimator::Stretched] {
        let method = Method { grouping: Grouping::Group(16), scale: Scale::Twn, deadzone: 0.75, estimator };
        let start = error_feedback(&w, &inputs, method.grouping, method.scale).expect("finite");
        let mut weight = TernaryWeight::new(start.master, method, Kind::Float);
        weight.set_levels(&start.quantized.scales);
        weight.refresh(Blend::HARD);
        assert_eq!(*weight.leaf(), start.quantized.dequantize());
    }
}

#[test]
#[should_panic(expected = "Plain learns no scales")]
fn only_learned_scales_are_set() {
    let (w, _) = sample(4, 16);
    let method = Method { grouping: Grouping::Row, scale: Scale::Twn, deadzone: 0.75, estimator: Estimator::Plain };
    TernaryWeight::new(w, method, Kind::Float).set_levels(&normal([4, 1]));
}
