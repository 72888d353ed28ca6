//! Random tensors for tests, each thread with a generator of its own.
//!
//! libtorch has one generator a process, and tests run on parallel threads: between a test's `manual_seed` and its
//! `randn` another test may draw, and two draws that a test takes for equal are not.

#![allow(dead_code, reason = "each test that includes this file uses a part of it")]

use std::cell::RefCell;

use rand::{RngExt, SeedableRng, rngs::StdRng};
use tch::Tensor;
use tch::kind::Element;

thread_local! {
    static GENERATOR: RefCell<StdRng> = RefCell::new(StdRng::seed_from_u64(0));
}

/// Starts this thread's generator anew.
pub fn seed(seed: u64) {
    GENERATOR.replace(StdRng::seed_from_u64(seed));
}

/// f32 from the standard normal distribution (Box and Muller's transform), on the CPU.
pub fn normal(shape: impl AsRef<[i64]>) -> Tensor {
    filled(shape.as_ref(), |generator| {
        let radius = (-2.0 * (1.0 - generator.random::<f64>()).ln()).sqrt();
        (radius * (std::f64::consts::TAU * generator.random::<f64>()).cos()) as f32
    })
}

/// f32 from 0 to below 1, on the CPU.
pub fn uniform(shape: impl AsRef<[i64]>) -> Tensor {
    filled(shape.as_ref(), |generator| generator.random::<f32>())
}

/// i64 from 0 to below `high`, on the CPU.
pub fn integers(high: i64, shape: impl AsRef<[i64]>) -> Tensor {
    filled(shape.as_ref(), |generator| generator.random_range(0..high))
}

fn filled<T: Element>(shape: &[i64], draw: impl Fn(&mut StdRng) -> T) -> Tensor {
    let count = shape.iter().product::<i64>() as usize;
    let values: Vec<T> = GENERATOR.with_borrow_mut(|generator| (0..count).map(|_| draw(generator)).collect());
    Tensor::from_slice(&values).reshape(shape)
}
