//! A reference loss curve: a tiny fixed model, 30 steps of straight-through ternary training on one thread in f32.
//!
//! It goes through the decoder, quantizer, schedules, loss and optimizer as the recipe does, with settings of its own:
//! a search that changes the recipe must not change it. A change of the curve is a change of what training computes;
//! if it is meant, put the printed values in place of `REFERENCE`.
#![allow(clippy::unwrap_used, reason = "a test that cannot set up fails")]

mod fixture;

use fixture::Fixture;
use formats::artifact::{Grouping, ModelConfig, ProjectionKind};
use formats::corpus::{Corpus, Part};
use tch::{Device, Kind, Tensor};
use ternary::loss::objective;
use ternary::model::{Decoder, Linears, Weights};
use ternary::optim::{AdamW, Group, Options};
use ternary::quantize::Scale;
use ternary::schedule::{Decay, Lambda, LearningRate, Warmup};
use ternary::weight::{Blend, CastWeight, Estimator, Method, TernaryWeight};
use trainer::batches::Batches;

const STEPS: usize = 30;

/// Losses of the 30 steps, nats a token, recorded on x86-64 with AVX-512; AVX2 kernels differ by up to 2e-4.
const REFERENCE: [f64; STEPS] = [
    5.81131, 5.79435, 5.74582, 5.59117, 5.45264, 5.25280, 5.20441, 4.95572, 4.87368, 4.80798, 4.66498, 4.52518,
    4.38374, 4.22830, 4.27867, 4.17815, 4.07453, 3.97755, 3.89653, 3.87662, 3.81349, 3.72100, 3.97136, 3.60128,
    3.67043, 3.73716, 3.55934, 3.58397, 3.51076, 3.52797,
];

struct Projections(Vec<Vec<TernaryWeight>>);

impl Linears for Projections {
    fn project(&self, layer: usize, kinds: &[ProjectionKind], x: &Tensor) -> Vec<Tensor> {
        let weights: Vec<&Tensor> = kinds.iter().map(|&kind| self.0[layer][kind as usize].leaf()).collect();
        ternary::model::ops::linears(x, &weights)
    }
}

fn curve() -> Vec<f64> {
    tch::set_num_threads(1);
    let fixture = Fixture::scratch();
    let config: ModelConfig = toml::from_str(&fixture::shape()).unwrap();
    let weights = Weights::init(&config, 1, Device::Cpu).unwrap();
    let method =
        Method { grouping: Grouping::Group(16), scale: Scale::Twn, deadzone: 0.75, estimator: Estimator::Plain };
    let mut optimizer = AdamW::new(Options { betas: (0.9, 0.95), epsilon: 1e-8, clip: Some(1.0) });
    let group = optimizer.group(Group { learning_rate: 5e-3, weight_decay: 0.0 });

    let mut projections = Projections(Vec::new());
    for layer in 0..config.num_hidden_layers {
        let block = ProjectionKind::ALL.map(|kind| {
            let master = weights.projection(layer, kind).unwrap().shallow_clone();
            TernaryWeight::new(master, method, Kind::Float)
        });
        projections.0.push(block.into());
    }
    projections.0.iter().flatten().for_each(|weight| optimizer.add(group, weight.master()));
    let mut dense: Vec<(String, CastWeight)> = (weights.unquantized(&config).unwrap().iter())
        .map(|(name, tensor)| (name.to_owned(), CastWeight::new(tensor.shallow_clone(), Kind::Float)))
        .collect();
    dense.iter().for_each(|(_, weight)| optimizer.add(group, weight.master()));

    let tokens = Corpus::open(&fixture.data().join("text")).unwrap().part(Part::Train).unwrap();
    let mut batches = Batches::new(tokens, 1);
    let lambda = Lambda::new(Warmup::Cosine, 0.5);
    let rate = LearningRate { warmup: 0.1, decay: Decay::Linear, cooldown: 0.0, last: 0.1 };
    let mut losses = Vec::new();
    for step in 0..STEPS {
        let progress = step as f64 / STEPS as f64;
        let blend = Blend { lambda: lambda.at(progress), temperature: None };
        projections.0.iter_mut().flatten().for_each(|weight| weight.refresh(blend));
        dense.iter_mut().for_each(|(_, weight)| weight.refresh());
        let leaves: Weights =
            dense.iter().map(|(name, weight)| (name.clone(), weight.leaf().shallow_clone())).collect();
        let decoder = Decoder::new(&config, &leaves, Kind::Float).unwrap();

        let batch = batches.next(4, 32, Device::Cpu).unwrap();
        let hidden = decoder.hidden(&projections, &batch.inputs);
        let objective = objective(&hidden, decoder.head(), &batch.targets.reshape([-1]), None);
        losses.push(objective.loss.double_value(&[]));
        objective.backward().unwrap();
        let mut gradients: Vec<Option<Tensor>> =
            projections.0.iter().flatten().map(|weight| weight.gradients().master).collect();
        gradients.extend(dense.iter().map(|(_, weight)| weight.gradient()));
        let _norm = optimizer.step(&gradients, rate.at(progress)).unwrap();
    }
    losses
}

#[test]
fn thirty_steps_follow_the_reference() {
    let losses = curve();
    println!("{losses:.5?}");
    for (step, (loss, reference)) in losses.iter().zip(REFERENCE).enumerate() {
        assert!((loss - reference).abs() < 1e-3, "step {step}: {loss:.5}, reference {reference:.5}");
    }
}
