//! What a recipe gets out of the decoder besides hidden states, against a decoder composed of libtorch's operators in
//! f64; the model in parts and the frozen model, by bits and by memory.

#[path = "../src/draws.rs"]
mod draws;

mod tiny;

use formats::artifact::{Architecture, ModelConfig, ProjectionKind};
use tch::{Device, Kind, Tensor};
use ternary::model::ops::{self, HeadNorm};
use ternary::model::{Calibration, Decoder, Dense, Frozen, Linears, Rope, SubLayerNorm, Tapped, Taps, Weights};
use tiny::{tiny, weights};

const KINDS: [Kind; 2] = [Kind::Float, Kind::BFloat16];
const MODELS: [(Architecture, bool); 2] = [(Architecture::Llama, false), (Architecture::Qwen3, true)];
const ALL: Taps<'static> = Taps { streams: &[0, 1], attention: &[0, 1] };

fn ids() -> Tensor {
    (Tensor::arange(40, (Kind::Int64, Device::Cpu)) * 17 + 3).remainder(40).view([2, 20])
}

fn parts(config: &ModelConfig, weights: &Weights, compute: Kind) -> (Decoder, Dense) {
    let decoder = Decoder::new(config, weights, compute).expect("decoder");
    (decoder, Dense::new(config, weights, compute).expect("linears"))
}

/// Copies that require a gradient.
fn leaves(weights: &Weights, kind: Kind) -> Weights {
    let leaf = |tensor: &Tensor| tensor.detach().to_dtype(kind, false, true).set_requires_grad(true);
    weights.iter().map(|(name, tensor)| (name.to_owned(), leaf(tensor))).collect()
}

fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Tensor {
    x / (x.square().mean_dim(-1, true, Kind::Double) + eps).sqrt() * weight
}

/// The whole model in f64 from libtorch's operators, one after the other, with everything in sight. `sub` are weights of
/// norms in front of o and down.
fn slow(config: &ModelConfig, weights: &Weights, sub: Option<&[[Tensor; 2]]>) -> Tapped {
    let (ids, eps) = (ids(), config.rms_norm_eps);
    let (rows, length) = ids.size2().expect("rows");
    let dim = config.head_dim as i64;
    let get = |name: &str| weights.get(name).expect("a tensor");
    let rope = Rope::new(config, length as usize, Device::Cpu);
    let turn = |x: &Tensor| {
        let table = |half: &Tensor| Tensor::cat(&[half, half], 1).to_kind(Kind::Double).unsqueeze(1);
        let halves = x.chunk(2, -1);
        x * table(&rope.cos) + Tensor::cat(&[-&halves[1], halves[0].shallow_clone()], -1) * table(&rope.sin)
    };
    let (mut streams, mut attention) = (Vec::new(), Vec::new());
    let mut stream = Tensor::embedding(get("model.embed_tokens.weight"), &ids, -1, false, false);
    for layer in 0..config.num_hidden_layers {
        let norm = |name: &str| get(&format!("model.layers.{layer}.{name}.weight"));
        let project = |kind: ProjectionKind, x: &Tensor| {
            let x = match (kind, sub) {
                (ProjectionKind::O, Some(sub)) => rms_norm(x, &sub[layer][0], eps),
                (ProjectionKind::Down, Some(sub)) => rms_norm(x, &sub[layer][1], eps),
                _ => x.shallow_clone(),
            };
            x.matmul(&weights.projection(layer, kind).expect("a projection").tr())
        };
        let x = rms_norm(&stream, norm("input_layernorm"), eps);
        let split = |kind: ProjectionKind, name: Option<&str>| {
            let heads = project(kind, &x).view([rows, length, -1, dim]);
            match (name, config.architecture) {
                (None, _) => heads,
                (Some(_), Architecture::Llama) => turn(&heads),
                (Some(name), Architecture::Qwen3) => turn(&rms_norm(&heads, norm(name), eps)),
            }
        };
        let q = split(ProjectionKind::Q, Some("self_attn.q_norm"));
        let k = split(ProjectionKind::K, Some("self_attn.k_norm"));
        let v = split(ProjectionKind::V, None);
        attention.push([&q, &k, &v].map(|x| x.reshape([rows, length, -1])));
        let shared = (config.num_attention_heads / config.num_key_value_heads) as i64;
        let by_head = |x: &Tensor| x.repeat_interleave_self_int(shared, 2, None).transpose(1, 2);
        let scores = q.transpose(1, 2).matmul(&by_head(&k).transpose(2, 3)) / (dim as f64).sqrt();
        let future = Tensor::ones([length, length], (Kind::Bool, Device::Cpu)).triu(1);
        let mixed = scores.masked_fill(&future, f64::NEG_INFINITY).softmax(-1, Kind::Double).matmul(&by_head(&v));
        stream = &stream + project(ProjectionKind::O, &mixed.transpose(1, 2).reshape([rows, length, -1]));
        let x = rms_norm(&stream, norm("post_attention_layernorm"), eps);
        let product = project(ProjectionKind::Gate, &x).silu() * project(ProjectionKind::Up, &x);
        stream = &stream + project(ProjectionKind::Down, &product);
        streams.push(stream.shallow_clone());
    }
    let hidden = rms_norm(&stream, get("model.norm.weight"), eps).reshape([rows * length, -1]);
    Tapped { hidden, streams, attention }
}

/// Everything that was given out, in one list.
fn outputs(tapped: &Tapped) -> Vec<&Tensor> {
    let attention = tapped.attention.iter().flatten();
    [&tapped.hidden].into_iter().chain(&tapped.streams).chain(attention).collect()
}

fn close(what: &str, found: &Tensor, expected: &Tensor) {
    assert_eq!(found.size(), expected.size(), "{what}");
    let (found, expected) = (found.to_kind(Kind::Double), expected.to_kind(Kind::Double));
    let error = ((found - &expected).norm() / (expected.norm() + 1e-12)).double_value(&[]);
    assert!(error < 2e-5, "{what}: relative error {error}");
}

/// Compares outputs, and gradients of the same random sum of all outputs.
fn compare(what: &str, found: &Tapped, expected: &Tapped, pairs: &[(String, &Tensor, &Tensor)]) {
    draws::seed(3);
    let upstream: Vec<Tensor> = outputs(expected).into_iter().map(|x| draws::normal(x.size())).collect();
    for side in [found, expected] {
        let sums = outputs(side).into_iter().zip(&upstream).map(|(x, g)| (x * g).sum(Kind::Double));
        sums.reduce(|a, b| a + b).expect("an output").backward();
    }
    for (i, (found, expected)) in outputs(found).into_iter().zip(outputs(expected)).enumerate() {
        close(&format!("{what}, output {i}"), found, expected);
    }
    for (name, found, expected) in pairs {
        close(&format!("{what}, gradient of {name}"), &found.grad(), &expected.grad());
    }
}

fn pairs<'a>(found: &'a Weights, expected: &'a Weights) -> Vec<(String, &'a Tensor, &'a Tensor)> {
    found.iter().zip(expected.iter()).map(|((name, a), (_, b))| (name.to_owned(), a, b)).collect()
}

#[test]
fn taps_and_their_gradients_are_those_of_a_slow_decoder() {
    for (architecture, tied) in MODELS {
        let config = tiny(architecture, tied);
        let plain = weights(&config);
        let (fast, exact) = (leaves(&plain, Kind::Float), leaves(&plain, Kind::Double));
        let (decoder, linears) = parts(&config, &fast, Kind::Float);
        let found = decoder.tapped(&linears, &ids(), ALL);
        // The head takes no part.
        let used = pairs(&fast, &exact).into_iter().filter(|(name, ..)| name != "lm_head.weight").collect::<Vec<_>>();
        compare(&format!("{architecture:?}"), &found, &slow(&config, &exact, None), &used);
    }
}

#[test]
fn norms_before_o_and_down_are_those_of_a_slow_decoder() {
    let config = tiny(Architecture::Llama, true);
    let (fast, exact) = (leaves(&weights(&config), Kind::Float), leaves(&weights(&config), Kind::Double));
    let norms = |kind: Kind| -> Vec<[Tensor; 2]> {
        let wave = |width: i64| Tensor::arange(width, (kind, Device::Cpu)).cos() * 0.3 + 1.0;
        (0..2).map(|_| [wave(32), wave(32)].map(|norm| norm.set_requires_grad(true))).collect()
    };
    let (own, expected) = (norms(Kind::Float), norms(Kind::Double));
    let (decoder, linears) = parts(&config, &fast, Kind::Float);
    let sub = SubLayerNorm { linears: &linears, weights: &own, eps: config.rms_norm_eps };
    let mut all = pairs(&fast, &exact);
    let both = own.iter().flatten().zip(expected.iter().flatten());
    all.extend(both.enumerate().map(|(i, (a, b))| (format!("norm {i}"), a, b)));
    compare("SubLN", &decoder.tapped(&sub, &ids(), ALL), &slow(&config, &exact, Some(&expected)), &all);
}

/// The forward pass from the operators, without taps or parts.
fn straight(config: &ModelConfig, weights: &Weights, linears: &dyn Linears, compute: Kind) -> Tensor {
    use ProjectionKind::{Down, Gate, K, O, Q, Up, V};
    let (ids, eps, dim) = (ids(), config.rms_norm_eps, config.head_dim as i64);
    let get = |name: &str| weights.get(name).expect("a tensor");
    let rope = Rope::new(config, 20, Device::Cpu);
    let mut residual = Tensor::embedding(get("model.embed_tokens.weight"), &ids.reshape([-1]), -1, false, false);
    let mut delta: Option<Tensor> = None;
    for layer in 0..config.num_hidden_layers {
        let name = |name: &str| format!("model.layers.{layer}.{name}.weight");
        let norm = |part: &str| weights.get(&name(part)).ok().map(|weight| HeadNorm { weight, eps });
        let (sum, x) = ops::add_rms_norm(&residual, delta.as_ref(), get(&name("input_layernorm")), eps, compute);
        let qkv = linears.project(layer, &[Q, K, V], &x);
        let heads = |x: &Tensor| x.view([2, 20, -1, dim]);
        let q = ops::rotate(&heads(&qkv[0]), &rope, norm("self_attn.q_norm"));
        let k = ops::rotate(&heads(&qkv[1]), &rope, norm("self_attn.k_norm"));
        let mixed = ops::attention(&q, &k, &heads(&qkv[2])).reshape([40, -1]);
        let out = &linears.project(layer, &[O], &mixed)[0];
        let (sum, x) = ops::add_rms_norm(&sum, Some(out), get(&name("post_attention_layernorm")), eps, compute);
        let gate_up = linears.project(layer, &[Gate, Up], &x);
        delta = linears.project(layer, &[Down], &ops::swiglu(&gate_up[0], &gate_up[1])).pop();
        residual = sum;
    }
    ops::add_rms_norm(&residual, delta.as_ref(), get("model.norm.weight"), eps, compute).1
}

#[test]
fn whole_tapped_and_block_by_block_are_one_forward_pass() {
    for (architecture, tied) in MODELS {
        for compute in KINDS {
            let config = tiny(architecture, tied);
            let weights = weights(&config);
            let (decoder, linears) = parts(&config, &weights, compute);
            let whole = decoder.hidden(&linears, &ids());
            assert_eq!(whole, straight(&config, &weights, &linears, compute), "{architecture:?} {compute:?}");
            let tapped = decoder.tapped(&linears, &ids(), ALL);
            assert_eq!(tapped.hidden, whole, "{architecture:?} {compute:?}");
            let mut stream = decoder.embed(&ids());
            for (layer, expected) in tapped.streams.iter().enumerate() {
                stream = decoder.block(&linears, layer, stream.detach());
                assert_eq!(stream.tensor(), *expected, "{architecture:?} {compute:?}: block {layer}");
            }
            assert_eq!(decoder.final_norm(stream), whole, "{architecture:?} {compute:?}");
            // Only what was asked for.
            let some = decoder.tapped(&linears, &ids(), Taps { streams: &[1], attention: &[] });
            assert_eq!((some.streams.len(), some.attention.len()), (1, 0));
            assert_eq!(some.streams[0], tapped.streams[1]);
        }
    }
}

#[test]
fn a_block_learns_its_parents_outputs_by_itself() {
    let config = tiny(Architecture::Llama, true);
    let weights = weights(&config);
    let parent = Frozen::new(&config, &weights, &Weights::default(), Kind::Float).expect("parent");
    let (decoder, teacher) = (parent.decoder(), parent.projections());
    let inputs = decoder.block(teacher, 0, decoder.embed(&ids())).detach();
    let wanted = decoder.block(teacher, 1, inputs.detach()).tensor();
    assert!(!wanted.requires_grad());
    // The student's block: the parent's, pushed off.
    let pushed = |tensor: &Tensor| (tensor + tensor.sin() * 0.2).set_requires_grad(true);
    let student: Weights = weights.iter().map(|(name, tensor)| (name.to_owned(), pushed(tensor))).collect();
    let linears = Dense::new(&config, &student, Kind::Float).expect("linears");
    let loss = || (decoder.block(&linears, 1, inputs.detach()).tensor() - &wanted).square().mean(Kind::Float);
    let before = loss();
    before.backward();
    let gradient = |kind: ProjectionKind| linears.weight(1, kind).grad();
    let squares: f64 =
        ProjectionKind::ALL.map(|kind| gradient(kind).square().sum(Kind::Double).double_value(&[])).iter().sum();
    let before = before.double_value(&[]);
    for kind in ProjectionKind::ALL {
        assert!(!linears.weight(0, kind).grad().defined(), "{kind:?} of block 0 took no part");
        // To first order this takes a tenth of the loss away.
        let step = gradient(kind) * (0.1 * before / squares);
        tch::no_grad(|| {
            let _ = linears.weight(1, kind).shallow_clone().g_sub_(&step);
        });
    }
    let after = loss().double_value(&[]);
    assert!(after < 0.95 * before, "{before} became {after}");
}

#[test]
fn calibration_sums_up_what_the_projections_are_given() {
    struct Recorded<'a>(&'a Dense, std::cell::RefCell<Vec<(usize, ProjectionKind, Tensor)>>);
    impl Linears for Recorded<'_> {
        fn project(&self, layer: usize, kinds: &[ProjectionKind], x: &Tensor) -> Vec<Tensor> {
            self.1.borrow_mut().extend(kinds.iter().map(|&kind| (layer, kind, x.detach())));
            self.0.project(layer, kinds, x)
        }
    }
    let config = tiny(Architecture::Qwen3, true);
    for compute in KINDS {
        let (decoder, linears) = parts(&config, &weights(&config), compute);
        let recorded = Recorded(&linears, Default::default());
        let calibration = Calibration::new(&recorded, 1..2);
        // A text in two batches.
        let halves: Vec<Tensor> = ids().chunk(2, 0).iter().map(|ids| decoder.hidden(&calibration, ids)).collect();
        assert_eq!(halves[0], decoder.hidden(&linears, &ids().narrow(0, 0, 1)));
        for kind in ProjectionKind::ALL {
            assert!(calibration.inputs(0, kind).is_none(), "block 0 was not asked for");
            let seen = recorded.1.borrow();
            let parts = seen.iter().filter(|(layer, of, _)| (*layer, *of) == (1, kind)).map(|(.., x)| x);
            let x = Tensor::cat(&parts.collect::<Vec<_>>()[..], 0).to_kind(Kind::Double);
            assert_eq!(x.size(), [40, config.projection_shape(kind)[1] as i64]);
            let hessian = x.tr().matmul(&x) * (2.0 / 40.0);
            close(&format!("{kind:?}"), &calibration.inputs(1, kind).expect("seen").hessian(), &hessian);
        }
    }
}

/// The tensors between the projections as a student holds them, sharing the memory of `weights`.
fn held(config: &ModelConfig, weights: &Weights, trained: impl Fn(&str) -> bool) -> Weights {
    let all = weights.unquantized(config).expect("the rest");
    let hold = |name: &str, tensor: &Tensor| tensor.detach().set_requires_grad(trained(name));
    all.iter().map(|(name, tensor)| (name.to_owned(), hold(name, tensor))).collect()
}

#[test]
fn a_frozen_parent_stays_what_it_was_while_its_student_trains() {
    for compute in KINDS {
        let config = tiny(Architecture::Llama, true);
        let weights = weights(&config);
        let (decoder, linears) = parts(&config, &weights, compute);
        let expected = decoder.hidden(&linears, &ids());
        for trains_dense in [false, true] {
            let student = held(&config, &weights, |_| trains_dense);
            let parent = Frozen::new(&config, &weights, &student, compute).expect("parent");
            let before = parent.tapped(&ids(), ALL);
            assert!(outputs(&before).into_iter().chain([parent.head()]).all(|x| !x.requires_grad()));
            let table = weights.get("model.embed_tokens.weight").expect("embedding").data_ptr();
            assert_eq!(parent.decoder().head().data_ptr() == table, !trains_dense);
            if !trains_dense {
                assert_eq!(before.hidden, expected);
            }
            // An optimizer moves masters in their memory.
            let trained = weights.iter().filter(|(name, _)| trains_dense || name.ends_with("_proj.weight"));
            let trained: Vec<(Tensor, Tensor)> = trained.map(|(_, w)| (w.shallow_clone(), w.copy())).collect();
            for (master, _) in &trained {
                let _ = master.shallow_clone().g_add_scalar_(0.1);
            }
            for (found, expected) in outputs(&parent.tapped(&ids(), ALL)).into_iter().zip(outputs(&before)) {
                assert_eq!(found, expected, "{compute:?}");
            }
            for (mut master, old) in trained {
                master.copy_(&old);
            }
        }
    }
}

#[test]
fn a_norm_that_took_something_over_is_not_shared() {
    let config = tiny(Architecture::Llama, true);
    let weights = weights(&config);
    let mut student = held(&config, &weights, |_| false);
    let name = "model.layers.0.input_layernorm.weight";
    student.insert(name, weights.get(name).expect("a norm") * 2.0);
    let parent = Frozen::new(&config, &weights, &student, Kind::Float).expect("parent");
    let (decoder, linears) = parts(&config, &weights, Kind::Float);
    assert_eq!(parent.hidden(&ids()), decoder.hidden(&linears, &ids()));
}
