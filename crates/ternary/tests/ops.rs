//! The fused operators against compositions of libtorch's: values and gradients, f32 and bf16.

#[path = "../src/draws.rs"]
mod draws;

use tch::{Kind, Tensor};
use ternary::model::Rope;
use ternary::model::ops::{self, HeadNorm, portable};

fn random(shape: &[i64], kind: Kind) -> Tensor {
    // Values that bf16 holds exactly, so that only the operators differ.
    draws::normal(shape).to_kind(Kind::BFloat16).to_kind(kind).set_requires_grad(true)
}

fn close(what: &str, fused: &Tensor, plain: &Tensor, kind: Kind) {
    assert_eq!(fused.size(), plain.size(), "{what}");
    assert_eq!(fused.kind(), plain.kind(), "{what}");
    let (fused, plain) = (fused.to_kind(Kind::Double), plain.to_kind(Kind::Double));
    let error = ((&fused - &plain).norm() / (plain.norm() + 1e-12)).double_value(&[]);
    let limit = if kind == Kind::Float { 1e-5 } else { 6e-3 };
    assert!(error < limit, "{what} in {kind:?}: relative error {error}");
}

/// Runs both versions on the same inputs with the same gradient of the output, and compares everything.
fn compare(
    what: &str,
    kind: Kind,
    inputs: &[&Tensor],
    fused: impl Fn() -> Vec<Tensor>,
    plain: impl Fn() -> Vec<Tensor>,
) {
    draws::seed(11);
    let mut sides = vec![];
    let upstream: Vec<Tensor> = plain().iter().map(|x| draws::normal(x.size())).collect();
    for run in [&fused as &dyn Fn() -> Vec<Tensor>, &plain] {
        for input in inputs {
            let mut gradient = input.grad();
            if gradient.defined() {
                let _ = gradient.zero_();
            }
        }
        let out = run();
        let sum = out
            .iter()
            .zip(&upstream)
            .map(|(out, g)| (out.to_kind(Kind::Float) * g.to_kind(Kind::Float)).sum(Kind::Float))
            .reduce(|a, b| a + b)
            .expect("an output");
        sum.backward();
        let gradients: Vec<Tensor> = inputs.iter().map(|input| input.grad().copy()).collect();
        sides.push((out, gradients));
    }
    for (i, (a, b)) in sides[0].0.iter().zip(&sides[1].0).enumerate() {
        close(&format!("{what}: output {i}"), a, b, kind);
    }
    for (i, (a, b)) in sides[0].1.iter().zip(&sides[1].1).enumerate() {
        close(&format!("{what}: gradient {i}"), a, b, kind);
    }
}

const KINDS: [Kind; 2] = [Kind::Float, Kind::BFloat16];

#[test]
fn add_rms_norm() {
    draws::seed(1);
    for kind in KINDS {
        let (residual, delta) = (random(&[37, 72], Kind::Float), random(&[37, 72], kind));
        let weight = random(&[72], Kind::Float);
        let both = |f: Norm| {
            let (sum, normal) = f(&residual, Some(&delta), &weight, 1e-5, kind);
            vec![sum, normal]
        };
        compare(
            "add_rms_norm",
            kind,
            &[&residual, &delta, &weight],
            || both(ops::add_rms_norm),
            || both(portable::add_rms_norm),
        );
        // Without anything to add; and when only one of the two outputs is used.
        let alone = |f: Norm| vec![f(&residual, None, &weight, 1e-5, kind).1];
        compare("rms_norm", kind, &[&residual, &weight], || alone(ops::add_rms_norm), || alone(portable::add_rms_norm));
        let last = |f: Norm| vec![f(&residual, Some(&delta), &weight, 1e-5, kind).1];
        compare(
            "last norm",
            kind,
            &[&residual, &delta, &weight],
            || last(ops::add_rms_norm),
            || last(portable::add_rms_norm),
        );
    }
}

type Norm = fn(&Tensor, Option<&Tensor>, &Tensor, f64, Kind) -> (Tensor, Tensor);

#[test]
fn rotate() {
    draws::seed(2);
    let angles = draws::normal([9, 12]);
    let rope = Rope { cos: angles.cos(), sin: angles.sin() };
    for kind in KINDS {
        let x = random(&[3, 7, 5, 24], kind);
        let weight = random(&[24], Kind::Float);
        let norm = || Some(HeadNorm { weight: &weight, eps: 1e-6 });
        compare(
            "rotate",
            kind,
            &[&x],
            || vec![ops::rotate(&x, &rope, None)],
            || vec![portable::rotate(&x, &rope, None)],
        );
        compare(
            "norm and rotate",
            kind,
            &[&x, &weight],
            || vec![ops::rotate(&x, &rope, norm())],
            || vec![portable::rotate(&x, &rope, norm())],
        );
    }
}

#[test]
fn swiglu() {
    draws::seed(3);
    for kind in KINDS {
        let (gate, up) = (random(&[19, 33], kind), random(&[19, 33], kind));
        // Large gates, where the exponential is clamped, must be right too.
        let gate = (gate.detach() * 40.0).set_requires_grad(true);
        compare(
            "swiglu",
            kind,
            &[&gate, &up],
            || vec![ops::swiglu(&gate, &up)],
            || vec![(gate.to_kind(Kind::Float).silu() * up.to_kind(Kind::Float)).to_kind(kind)],
        );
    }
}

#[test]
fn linears() {
    draws::seed(4);
    for kind in KINDS {
        let x = random(&[21, 48], kind);
        let (a, b) = (random(&[32, 48], kind), random(&[16, 48], kind));
        compare("linears", kind, &[&x, &a, &b], || ops::linears(&x, &[&a, &b]), || portable::linears(&x, &[&a, &b]));
    }
}

#[test]
fn attention() {
    draws::seed(5);
    for kind in KINDS {
        let q = random(&[2, 33, 6, 16], kind);
        let (k, v) = (random(&[2, 33, 2, 16], kind), random(&[2, 33, 2, 16], kind));
        compare(
            "attention",
            kind,
            &[&q, &k, &v],
            || vec![ops::attention(&q, &k, &v)],
            || vec![portable::attention(&q, &k, &v)],
        );
    }
}
