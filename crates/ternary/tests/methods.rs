//! Every method by its name on one small problem: a ternary matrix learns another's products. Each must come closer
//! than it started, and its export must be what was trained.

use formats::artifact::Grouping;
use tch::{Device, Kind, Tensor};
use ternary::adapter::LoraWeight;
use ternary::grid::{Grid, GridWeight};
use ternary::learned::FixedCodes;
use ternary::muon::{self, Muon};
use ternary::optim::{AdamW, Group, Options};
use ternary::quantize::Scale;
use ternary::schedule::{Lambda, Residual, Temperature, Warmup};
use ternary::start::{Inputs, error_feedback};
use ternary::tequila::Reactivation;
use ternary::weight::{Blend, Estimator, Method, TernaryWeight};

const STEPS: u32 = 120;
const OUT: i64 = 24;
const IN: i64 = 64;

/// Inputs that depend on each other, and the weights whose products are learned.
struct Problem {
    x: Tensor,
    w: Tensor,
}

impl Problem {
    fn new() -> Self {
        // Of its own generator: libtorch's is shared with tests that run beside this one.
        let mut state = 61u64;
        let mut uniform = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1 << 24) as f32
        };
        // About normal: the sum of twelve.
        let mut normal = |shape: [i64; 2]| {
            let count = shape[0] * shape[1];
            let values: Vec<f32> = (0..count).map(|_| (0..12).map(|_| uniform()).sum::<f32>() - 6.0).collect();
            Tensor::from_slice(&values).reshape(shape)
        };
        Self { x: normal([256, IN]).matmul(&(normal([IN, IN]) * 0.125)), w: normal([OUT, IN]) * 0.05 }
    }

    /// Mean square of what products with `leaf` miss, relative to the products.
    fn loss(&self, leaf: &Tensor, bias: Option<&Tensor>) -> Tensor {
        let wanted = self.x.matmul(&self.w.tr());
        let got = self.x.matmul(&leaf.tr());
        let got = bias.map_or_else(|| got.shallow_clone(), |bias| &got + bias);
        (got - &wanted).square().mean(Kind::Float) / wanted.square().mean(Kind::Float)
    }

    fn error(&self, values: &Tensor) -> f64 {
        self.loss(&values.detach(), None).double_value(&[])
    }
}

fn progress() -> impl Iterator<Item = f64> {
    (0..STEPS).map(|step| f64::from(step) / f64::from(STEPS))
}

fn adamw(rates: &[(&Tensor, f64)]) -> AdamW {
    let mut adamw = AdamW::new(Options { clip: None, ..Options::default() });
    for &(parameter, learning_rate) in rates {
        let group = adamw.group(Group { learning_rate, weight_decay: 0.0 });
        adamw.add(group, parameter);
    }
    adamw
}

fn method(scale: Scale, estimator: Estimator) -> Method {
    Method { grouping: Grouping::Group(32), scale, deadzone: scale.default_deadzone(), estimator }
}

/// Trains with the blend and residual of a progress, and returns the errors of the exports before and after.
fn train(method: Method, blend: impl Fn(f64) -> (Blend, f64)) -> [f64; 2] {
    let problem = Problem::new();
    let mut weight = TernaryWeight::new(problem.w.copy(), method, Kind::Float);
    let before = problem.error(&weight.export().dequantize());
    let mut rates = vec![(weight.master(), 5e-4)];
    rates.extend(weight.scales().map(|scales| (scales, 1e-3)));
    let mut optimizer = adamw(&rates);
    for progress in progress() {
        let (blend, residual) = blend(progress);
        weight.refresh_with_residual(blend, residual);
        problem.loss(weight.leaf(), None).backward();
        let gradients = weight.gradients();
        let mut all = vec![gradients.master];
        all.extend(weight.scales().map(|_| gradients.scales));
        let _ = optimizer.step(&all, 1.0 - progress).expect("a step");
    }
    weight.refresh(Blend::HARD);
    assert_eq!(*weight.leaf(), weight.export().dequantize());
    [before, problem.error(weight.leaf())]
}

#[track_caller]
fn learns(name: &str, [before, after]: [f64; 2]) {
    assert!(after < 0.95 * before, "{name}: an error of {after}, at the start {before}");
}

#[test]
fn ternary_methods_learn() {
    let hard = |_: f64| (Blend::HARD, 0.0);
    for scale in [Scale::AbsMean, Scale::Twn, Scale::Mse, Scale::ThreeOfFour] {
        learns(&format!("{scale:?}"), train(method(scale, Estimator::Plain), hard));
    }
    for estimator in [
        Estimator::Clipped { bound: 1.5 },
        Estimator::LearnedScale,
        Estimator::Stretched,
        Estimator::EfficientQat,
        Estimator::Binary,
    ] {
        learns(&format!("{estimator:?}"), train(method(Scale::Twn, estimator), hard));
    }
    // ParetoQ from its own start.
    learns("Stretched from max|w|", train(method(Scale::AbsMax, Estimator::Stretched), hard));
}

#[test]
fn schedules_end_ternary() {
    let temperature = Temperature { first: 0.5, last: 0.1, hard_from: 0.5 };
    let soft = |progress| (Blend { lambda: 1.0, temperature: temperature.at(progress) }, 0.0);
    learns("Soft", train(method(Scale::AbsMean, Estimator::Soft), soft));
    let residual = Residual { rise: 0.1, end: 0.6 };
    learns(
        "Arenas",
        train(method(Scale::ThreeOfFour, Estimator::Plain), |progress| (Blend::HARD, residual.at(progress))),
    );
    for warmup in Warmup::ALL {
        let lambda = Lambda::new(warmup, 0.3);
        let blend = |progress| (Blend { lambda: lambda.at(progress), temperature: None }, 0.0);
        learns(&warmup.to_string(), train(method(Scale::AbsMean, Estimator::Plain), blend));
    }
}

#[test]
fn grids_learn() {
    let problem = Problem::new();
    for grid in [Grid::StretchedTwoBit, Grid::Lsq { bits: 3 }, Grid::Dlt, Grid::Affine { bits: 2 }] {
        let mut weight = GridWeight::new(problem.w.copy(), grid, Grouping::Group(32), Kind::Float);
        let before = problem.error(weight.leaf());
        let levels = weight.levels();
        let mut rates = vec![(weight.master(), 5e-4), (&levels.scales, 1e-3)];
        rates.extend(levels.offsets.as_ref().map(|offsets| (offsets, 1e-3)));
        let mut optimizer = adamw(&rates);
        for progress in progress() {
            weight.refresh(1.0);
            problem.loss(weight.leaf(), None).backward();
            let gradients = weight.gradients().expect("used");
            let mut all = vec![Some(gradients.master), Some(gradients.levels.scales)];
            all.extend(gradients.levels.offsets.map(Some));
            let _ = optimizer.step(&all, 1.0 - progress).expect("a step");
        }
        weight.refresh(1.0);
        learns(&format!("{grid:?}"), [before, problem.error(weight.leaf())]);
        assert!(weight.export().is_err(), "{grid:?} is not ternary after training");
    }
}

#[test]
fn soft_to_hard_with_lora_learns() {
    let problem = Problem::new();
    let weight = TernaryWeight::new(problem.w.copy(), method(Scale::AbsMean, Estimator::Plain), Kind::Float);
    let mut weight = LoraWeight::new(weight, 8, 16.0);
    let before = problem.error(&weight.export().dequantize());
    let (lambda, ramp) = (Lambda::new(Warmup::Linear, 0.5), Lambda::new(Warmup::Linear, 0.9));
    let mut optimizer = adamw(&[(weight.a(), 5e-3), (weight.b(), 5e-3)]);
    for progress in progress() {
        weight.refresh(Blend { lambda: lambda.at(progress), temperature: None });
        problem.loss(weight.leaf(), None).backward();
        let gradients = weight.gradients(0.1 * ramp.at(progress));
        let _ = optimizer.step(&[gradients.a, gradients.b], 1.0 - progress).expect("a step");
    }
    weight.refresh(Blend::HARD);
    assert_eq!(*weight.leaf(), weight.export().dequantize());
    learns("soft to hard with LoRA", [before, problem.error(weight.leaf())]);
}

#[test]
fn tequila_learns_and_ends_without_its_bias() {
    let problem = Problem::new();
    let mut weight = TernaryWeight::new(problem.w.copy(), method(Scale::AbsMean, Estimator::Plain), Kind::Float);
    let mut tequila = Reactivation::new(&weight, 1e-3, true);
    let before = problem.error(&weight.export().dequantize());
    let mut optimizer = adamw(&[(weight.master(), 5e-4), (tequila.strength().expect("trained"), 1e-4)]);
    for progress in progress() {
        weight.refresh(Blend::HARD);
        tequila.refresh(&weight, (1.0 - progress / 0.8).max(0.0));
        problem.loss(weight.leaf(), Some(tequila.bias())).backward();
        let (gradients, strength) = tequila.gradients(&weight);
        let _ = optimizer.step(&[gradients.master, strength], 1.0 - progress).expect("a step");
    }
    let exported = tequila.export(&weight).expect("the bias is gone");
    learns("Tequila", [before, problem.error(&exported.dequantize())]);
}

/// EfficientQAT's two phases, from GPTQ's start.
#[test]
fn phases_follow_each_other() {
    let problem = Problem::new();
    let mut inputs = Inputs::new(IN, Device::Cpu);
    inputs.add(&problem.x);
    let method = method(Scale::Mse, Estimator::EfficientQat);
    let start = error_feedback(&problem.w, &inputs, method.grouping, method.scale).expect("finite");
    let plain = TernaryWeight::new(problem.w.copy(), method, Kind::Float);
    let mut weight = TernaryWeight::new(start.master, method, Kind::Float);
    weight.set_levels(&start.quantized.scales);
    weight.refresh(Blend::HARD);
    let nearest = problem.error(plain.leaf());
    learns("GPTQ", [nearest, problem.error(weight.leaf())]);
    let mut optimizer = adamw(&[(weight.master(), 2e-4), (weight.scales().expect("learned"), 2e-4)]);
    for progress in progress() {
        weight.refresh(Blend::HARD);
        problem.loss(weight.leaf(), None).backward();
        let gradients = weight.gradients();
        let _ = optimizer.step(&[gradients.master, gradients.scales], 1.0 - progress).expect("a step");
    }
    let first = problem.error(&weight.export().dequantize());
    learns("Block-AP", [nearest, first]);
    let mut fixed = FixedCodes::new(weight.export(), Kind::Float);
    let mut optimizer = adamw(&[(fixed.scales(), 2e-4)]);
    for progress in progress() {
        fixed.refresh();
        problem.loss(fixed.leaf(), None).backward();
        let _ = optimizer.step(&[fixed.gradient()], 1.0 - progress).expect("a step");
    }
    let second = problem.error(&fixed.export().dequantize());
    assert!(second < first, "E2E-QP: an error of {second}, before it {first}");
}

#[test]
fn muon_moves_ternary_matrices() {
    let problem = Problem::new();
    let mut weight = TernaryWeight::new(problem.w.copy(), method(Scale::AbsMean, Estimator::Plain), Kind::Float);
    let before = problem.error(weight.leaf());
    let mut optimizer = Muon::new(muon::Options::new(Kind::Float));
    optimizer.add(Group { learning_rate: 5e-3, weight_decay: 0.0 }, weight.master());
    for progress in progress() {
        weight.refresh(Blend::HARD);
        problem.loss(weight.leaf(), None).backward();
        optimizer.step(&[weight.gradients().master], 1.0 - progress);
    }
    learns("Muon", [before, problem.error(&weight.export().dequantize())]);
}
