//! Transforms leave products alone, undo themselves, and do what they are for.

#[path = "../src/draws.rs"]
mod draws;

use draws::normal;
use tch::{Device, Kind, Tensor};
use ternary::Grouping;
use ternary::quantize::{Scale, quantize};
use ternary::transform::{Hadamard, Kronecker, Smoothing, Transform};

const WIDTH: i64 = 96;

#[track_caller]
fn close(a: &Tensor, b: &Tensor, tolerance: f64) {
    let error = ((a - b).norm() / b.norm()).double_value(&[]);
    assert!(error <= tolerance, "differs by {error} of its norm");
}

fn all() -> Vec<Box<dyn Transform>> {
    draws::seed(41);
    let skewed = |n: i64| Tensor::eye(n, (Kind::Float, Device::Cpu)) + normal([n, n]) * 0.2;
    vec![
        Box::new(Hadamard::new(WIDTH, 32, 7, Device::Cpu)),
        Box::new(Hadamard::new(WIDTH, 1, 7, Device::Cpu)),
        Box::new(Kronecker::random(WIDTH, Device::Cpu).expect("QR")),
        Box::new(Kronecker::new(skewed(12), skewed(8))),
        Box::new(Smoothing::new(&normal([WIDTH]).exp(), &normal([20, WIDTH]), 0.3)),
    ]
}

#[test]
fn products_stay() {
    for (i, transform) in all().iter().enumerate() {
        let (x, w) = (normal([2, 5, WIDTH]), normal([20, WIDTH]));
        let folded = transform.fold(&w);
        assert!(i == 1 || (&folded - &w).norm().double_value(&[]) > 0.1 * w.norm().double_value(&[]));
        close(&transform.inputs(&x).matmul(&folded.tr()), &x.matmul(&w.tr()), 1e-5);
        close(&transform.unfold(&folded), &w, 1e-5);
    }
}

#[test]
fn kronecker_is_the_product_with_the_whole_matrix() {
    let (left, right) = (normal([4, 4]), normal([6, 6]));
    let whole = left.kron(&right);
    let x = normal([5, 24]);
    close(&Kronecker::new(left.copy(), right.copy()).inputs(&x), &x.matmul(&whole), 1e-5);
    let inverse = Tensor::linalg_inv(&whole.to_kind(Kind::Double)).tr().to_kind(Kind::Float);
    close(&Kronecker::new(left, right).fold(&x), &x.matmul(&inverse), 1e-3);
    let random = Kronecker::random(WIDTH, Device::Cpu).expect("QR");
    for (factor, size) in random.factors().into_iter().zip([8, 12]) {
        assert_eq!(factor.size(), [size, size]);
        close(&factor.matmul(&factor.tr()), &Tensor::eye(size, (Kind::Float, Device::Cpu)), 1e-5);
    }
}

/// What quantization does to folded weights reaches the factors by autograd.
#[test]
fn factors_are_trained() {
    let factors = [12, 8].map(|n| normal([n, n]).set_requires_grad(true));
    let transform = Kronecker::new(factors[0].shallow_clone(), factors[1].shallow_clone());
    let (x, w) = (normal([5, WIDTH]), normal([20, WIDTH]));
    let folded = transform.fold(&w);
    let quantized =
        &folded + (quantize(&folded.detach(), Grouping::Row, Scale::Twn, 0.75).dequantize() - &folded).detach();
    let error = (transform.inputs(&x).matmul(&quantized.tr()) - x.matmul(&w.tr())).square().mean(Kind::Float);
    error.backward();
    assert!(factors.iter().all(|factor| factor.grad().norm().double_value(&[]) > 0.0));
}

#[test]
fn rotations_spread_what_stands_out() {
    let mut w = normal([16, 256]) * 0.02;
    let _ = w.narrow(1, 17, 1).fill_(1.0);
    let rotated = Hadamard::new(256, 256, 3, Device::Cpu).fold(&w);
    close(&rotated.square().sum(Kind::Float), &w.square().sum(Kind::Float), 1e-5);
    let error = |w: &Tensor| {
        let off = quantize(w, Grouping::Row, Scale::Mse, 0.5).dequantize() - w;
        (off.norm() / w.norm()).double_value(&[])
    };
    assert!(rotated.abs().max().double_value(&[]) < 0.2);
    let plain = normal([16, 256]) * 0.02;
    assert!((error(&Hadamard::new(256, 256, 3, Device::Cpu).fold(&plain)) / error(&plain) - 1.0).abs() < 0.05);
    w = rotated;
    assert!(w.isfinite().all().int64_value(&[]) == 1);
    // Signs are those of the seed alone.
    let twice = [3, 3, 4].map(|seed| Hadamard::new(256, 16, seed, Device::Cpu).inputs(&plain));
    assert_eq!(twice[0], twice[1]);
    assert_ne!(twice[0], twice[2]);
}

#[test]
fn smoothing_evens_out() {
    let w = normal([20, WIDTH]) * normal([WIDTH]).exp();
    let x = normal([50, WIDTH]) * normal([WIDTH]).exp();
    let most = x.abs().amax(0, false);
    // At ½ inputs and weights end with the same largest magnitudes.
    let even = Smoothing::new(&most, &w, 0.5);
    close(&even.inputs(&x).abs().amax(0, false), &even.fold(&w).abs().amax(0, false), 1e-5);
    let columns = Smoothing::new(&most, &w, 0.0).fold(&w).abs().amax(0, false);
    close(&columns, &columns.ones_like(), 1e-5);
    // A norm with its weight divided gives the transformed inputs.
    let norm = normal([WIDTH]);
    close(&even.inputs(&(&x * &norm)), &(&x * (&norm / even.divisors())), 1e-5);
}

#[test]
#[should_panic(expected = "Hadamard blocks of 64 do not divide a width of 96")]
fn blocks_must_divide_the_width() {
    Hadamard::new(96, 64, 0, Device::Cpu);
}
