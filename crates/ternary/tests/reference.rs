//! The decoder against an independent forward pass in plain loops, and its gradients against differences.

mod tiny;

use formats::artifact::{Architecture, ModelConfig, ProjectionKind};
use tch::{Device, Kind, Tensor};
use ternary::model::{Decoder, Dense, Weights, score};
use tiny::{tiny, weights};

fn rows(weights: &Weights, name: &str) -> Vec<Vec<f64>> {
    let tensor = weights.get(name).expect("tensor");
    let width = *tensor.size().last().expect("not a scalar") as usize;
    let flat = Vec::<f32>::try_from(tensor.reshape([-1])).expect("floats");
    flat.chunks(width).map(|row| row.iter().map(|&x| f64::from(x)).collect()).collect()
}

fn times(weight: &[Vec<f64>], x: &[f64]) -> Vec<f64> {
    weight.iter().map(|row| row.iter().zip(x).map(|(w, x)| w * x).sum()).collect()
}

fn rms_norm(x: &[f64], weight: &[f64], eps: f64) -> Vec<f64> {
    let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
    x.iter().zip(weight).map(|(x, w)| w * x / (mean + eps).sqrt()).collect()
}

/// Llama 3.1's frequency of pair `i`, from its published description.
fn frequency(config: &ModelConfig, i: usize) -> f64 {
    let plain = 1.0 / config.rope_theta.powf(2.0 * i as f64 / config.head_dim as f64);
    let Some(s) = &config.rope_scaling else { return plain };
    let turns = s.original_max_position as f64 * plain / (2.0 * std::f64::consts::PI);
    if turns < s.low_freq_factor {
        return plain / s.factor;
    }
    if turns > s.high_freq_factor {
        return plain;
    }
    let mix = (turns - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor);
    plain / s.factor * (1.0 - mix) + plain * mix
}

fn rotate(config: &ModelConfig, head: &[f64], position: usize) -> Vec<f64> {
    let half = head.len() / 2;
    let mut out = head.to_vec();
    for i in 0..half {
        let (sin, cos) = (position as f64 * frequency(config, i)).sin_cos();
        out[i] = head[i] * cos - head[i + half] * sin;
        out[i + half] = head[i + half] * cos + head[i] * sin;
    }
    out
}

/// Logits of one sequence, in loops.
fn reference(config: &ModelConfig, weights: &Weights, ids: &[i64]) -> Vec<Vec<f64>> {
    let one = |name: String| rows(weights, &name).remove(0);
    let embedding = rows(weights, "model.embed_tokens.weight");
    let mut stream: Vec<Vec<f64>> = ids.iter().map(|&id| embedding[id as usize].clone()).collect();
    let dim = config.head_dim;
    for layer in 0..config.num_hidden_layers {
        let w = |kind: ProjectionKind| rows(weights, &kind.tensor(layer));
        let norm = |name: &str| one(format!("model.layers.{layer}.{name}.weight"));
        let (wq, wk, wv, wo) = (w(ProjectionKind::Q), w(ProjectionKind::K), w(ProjectionKind::V), w(ProjectionKind::O));
        let (gate, up, down) = (w(ProjectionKind::Gate), w(ProjectionKind::Up), w(ProjectionKind::Down));
        let input = norm("input_layernorm");
        let heads = |x: &[f64], weight: &[Vec<f64>], which: &str, position: usize| {
            let all = times(weight, x);
            all.chunks(dim)
                .map(|head| match (config.architecture, which) {
                    (_, "v") => head.to_vec(),
                    (Architecture::Llama, _) => rotate(config, head, position),
                    (Architecture::Qwen3, _) => {
                        let weight = norm(&format!("self_attn.{which}_norm"));
                        rotate(config, &rms_norm(head, &weight, config.rms_norm_eps), position)
                    }
                })
                .collect::<Vec<_>>()
        };
        let (mut q, mut k, mut v) = (vec![], vec![], vec![]);
        for (position, x) in stream.iter().enumerate() {
            let x = rms_norm(x, &input, config.rms_norm_eps);
            q.push(heads(&x, &wq, "q", position));
            k.push(heads(&x, &wk, "k", position));
            v.push(heads(&x, &wv, "v", position));
        }
        let shared = config.num_attention_heads / config.num_key_value_heads;
        for position in 0..ids.len() {
            let mut mixed = vec![];
            for head in 0..config.num_attention_heads {
                let scores: Vec<f64> = (0..=position)
                    .map(|p| {
                        let dot: f64 = q[position][head].iter().zip(&k[p][head / shared]).map(|(a, b)| a * b).sum();
                        (dot / (dim as f64).sqrt()).exp()
                    })
                    .collect();
                let total: f64 = scores.iter().sum();
                mixed.extend(
                    (0..dim).map(|j| (0..=position).map(|p| scores[p] / total * v[p][head / shared][j]).sum::<f64>()),
                );
            }
            for (x, out) in stream[position].iter_mut().zip(times(&wo, &mixed)) {
                *x += out;
            }
        }
        let post = norm("post_attention_layernorm");
        for x in &mut stream {
            let h = rms_norm(x, &post, config.rms_norm_eps);
            let product: Vec<f64> =
                times(&gate, &h).iter().zip(times(&up, &h)).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect();
            for (x, out) in x.iter_mut().zip(times(&down, &product)) {
                *x += out;
            }
        }
    }
    let head = if config.tie_word_embeddings { embedding } else { rows(weights, "lm_head.weight") };
    let norm = one("model.norm.weight".into());
    stream.iter().map(|x| times(&head, &rms_norm(x, &norm, config.rms_norm_eps))).collect()
}

const IDS: [i64; 20] = [3, 17, 0, 39, 5, 5, 22, 8, 31, 2, 14, 27, 9, 9, 36, 1, 11, 20, 38, 6];

fn logits(config: &ModelConfig, weights: &Weights, compute: Kind, ids: &Tensor) -> Tensor {
    let decoder = Decoder::new(config, weights, compute).expect("decoder");
    let linears = Dense::new(config, weights, compute).expect("linears");
    decoder.hidden(&linears, ids).to_kind(Kind::Float).matmul(&decoder.head().tr())
}

#[test]
fn the_decoder_agrees_with_plain_loops() {
    for (architecture, tied) in [(Architecture::Llama, false), (Architecture::Qwen3, true)] {
        let config = tiny(architecture, tied);
        let weights = weights(&config);
        // Two rows: the second shows that rows do not see each other.
        let ids = Tensor::from_slice(
            &[IDS, {
                let mut r = IDS;
                r.reverse();
                r
            }]
            .concat(),
        )
        .view([2, 20]);
        let found = logits(&config, &weights, Kind::Float, &ids).view([2, 20, 40]);
        let mut reversed = IDS;
        reversed.reverse();
        for (row, ids) in [IDS, reversed].iter().enumerate() {
            let expected: Vec<f32> = reference(&config, &weights, ids).concat().iter().map(|&x| x as f32).collect();
            let expected = Tensor::from_slice(&expected).view([20, 40]);
            let error = (found.get(row as i64) - &expected).abs().max().double_value(&[]);
            let scale = expected.abs().max().double_value(&[]);
            assert!(error < 2e-5 * scale, "{architecture:?}: {error} of {scale}");
        }
    }
}

#[test]
fn bf16_stays_near_f32() {
    for architecture in [Architecture::Llama, Architecture::Qwen3] {
        let config = tiny(architecture, true);
        let weights = weights(&config);
        let ids = Tensor::from_slice(&IDS).view([1, 20]);
        let exact = logits(&config, &weights, Kind::Float, &ids);
        let rough = logits(&config, &weights, Kind::BFloat16, &ids);
        let relative = ((rough - &exact).norm() / exact.norm()).double_value(&[]);
        assert!(relative > 0.0 && relative < 0.02, "{architecture:?}: {relative}");
    }
}

#[test]
fn gradients_agree_with_differences() {
    for (architecture, tied) in [(Architecture::Llama, false), (Architecture::Qwen3, true)] {
        let config = tiny(architecture, tied);
        let weights = weights(&config);
        for (_, tensor) in weights.iter() {
            let _ = tensor.set_requires_grad(true);
        }
        let ids = Tensor::from_slice(&IDS).view([1, 20]);
        let (x, y) = (ids.narrow(1, 0, 19), ids.narrow(1, 1, 19).reshape([-1]));
        let run = || {
            let decoder = Decoder::new(&config, &weights, Kind::Float).expect("decoder");
            let linears = Dense::new(&config, &weights, Kind::Float).expect("linears");
            let hidden = decoder.hidden(&linears, &x);
            hidden.matmul(&decoder.head().tr()).cross_entropy_for_logits(&y)
        };
        run().backward();
        for (name, tensor) in weights.iter() {
            // Along the gradient itself the loss changes by its norm.
            let gradient = tensor.grad();
            let norm = gradient.norm().double_value(&[]);
            assert!(norm > 0.0, "{name} has no gradient");
            let step = 0.02 / norm.max(1.0) * (if norm < 0.2 { 5.0 } else { 1.0 });
            let direction = &gradient / norm * step;
            let moved = |sign: f64| {
                tch::no_grad(|| {
                    let mut place = tensor.shallow_clone();
                    let _ = place.g_add_(&(&direction * sign));
                    let value = run().double_value(&[]);
                    let _ = place.g_sub_(&(&direction * sign));
                    value
                })
            };
            let slope = (moved(1.0) - moved(-1.0)) / (2.0 * step);
            assert!(
                (slope - norm).abs() < 0.03 * norm + 2e-4,
                "{architecture:?} {name}: slope {slope}, gradient {norm}"
            );
        }
    }
}

#[test]
fn windows_are_scored_but_for_their_first_position() {
    let config = tiny(Architecture::Llama, false);
    let weights = weights(&config);
    let decoder = Decoder::new(&config, &weights, Kind::Float).expect("decoder");
    let linears = Dense::new(&config, &weights, Kind::Float).expect("linears");
    let bytes: Vec<u16> = (0..40).collect();
    let found = score(&decoder, &linears, &IDS[..19], &bytes, 6, |_| {});
    let mut nats = vec![];
    for window in IDS[..19].chunks(6).filter(|w| w.len() > 1) {
        let logits = reference(&config, &weights, window);
        let sum: f64 = (1..window.len())
            .map(|i| {
                let total: f64 = logits[i - 1].iter().map(|x| x.exp()).sum();
                total.ln() - logits[i - 1][window[i] as usize]
            })
            .sum();
        nats.push(sum / 5.0);
    }
    // 19 tokens: three windows of six, and one token alone with nothing to score.
    assert_eq!(found.window_losses.len(), 3);
    assert_eq!(found.tokens, 15);
    let scored = [1..6, 7..12, 13..18].map(|range| IDS[range].iter().sum::<i64>());
    assert_eq!(found.bytes, scored.iter().sum::<i64>() as u64);
    for (found, expected) in found.window_losses.iter().zip(&nats) {
        assert!((found - expected).abs() < 1e-4, "{found} {expected}");
    }
}

#[test]
fn random_weights_repeat_and_have_their_deviations() {
    let config = tiny(Architecture::Qwen3, true);
    let first = Weights::init(&config, 3, Device::Cpu).expect("init");
    let again = Weights::init(&config, 3, Device::Cpu).expect("init");
    let other = Weights::init(&config, 4, Device::Cpu).expect("init");
    first.check(&config).expect("whole");
    let name = ProjectionKind::Down.tensor(1);
    let get = |weights: &Weights| weights.get(&name).expect("tensor").shallow_clone();
    assert_eq!(get(&first), get(&again));
    assert_ne!(get(&first), get(&other));
    let deviation = get(&first).std(true).double_value(&[]);
    assert!((deviation / 0.01 - 1.0).abs() < 0.1, "0.02 / sqrt(2·2), found {deviation}");
}
