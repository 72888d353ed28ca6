//! Speed of training and evaluation, as ratios to what this machine's own matrix products reach in the same run.
//!
//! Run it on an idle machine: `cargo xtask bench speed`. Weights and tokens are random; speed does not depend on them.
//! Each figure is the best of several repetitions. The training step is the recipe's: weights quantized once a step,
//! straight-through gradients, the loss in chunks, fused AdamW with clipping. Where PyTorch is installed for `python3`
//! (or for the program that `PYTHON` names), `pytorch.py` runs the same step in it.

use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use formats::artifact::{Architecture, Grouping, ModelConfig, ProjectionKind};
use formats::campaign;
use tch::{Device, Kind, Tensor};
use ternary::activation::{Per, fake_quantize_per};
use ternary::adapter::LoraWeight;
use ternary::loss::objective;
use ternary::model::{Decoder, Dense, Linears, Weights, score};
use ternary::optim::{AdamW, Group, Options};
use ternary::quantize::Scale;
use ternary::weight::{Blend, CastWeight, Estimator, Method, TernaryWeight};

/// Weights along a row that share a scale.
const GROUP: usize = 64;

fn main() -> Result<()> {
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    tch::set_num_threads(i32::try_from(threads)?);
    tch::manual_seed(0);
    let compute = ternary::model::ops::preferred_kind(Device::Cpu);
    println!("{threads} threads, products in {compute:?}");
    println!(
        "products of 2048 × 2048 × 2048: f32 {:.0} GFLOP/s, {compute:?} {:.0} GFLOP/s",
        products(Kind::Float, [2048; 3], 6) / 1e9,
        products(compute, [2048; 3], 6) / 1e9
    );
    quantizers(compute)?;
    activations(compute)?;
    training("nano step, 8 × 128", &nano()?, [8, 128], compute, true, 100)?;
    training("SmolLM2-135M step, 4 × 256", &smollm2(), [4, 256], compute, false, 4)?;
    println!("peak memory of this process up to here: {:.2} GB", peak_memory()? / 1e9);
    evaluation("SmolLM2-135M evaluation, window 2048", &smollm2(), 2048, compute)?;
    evaluation("nano evaluation, window 256", &nano()?, 256, Kind::Float)
}

/// The shape of the campaign `nano`.
fn nano() -> Result<ModelConfig> {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../../experiments/nano/campaign.toml");
    campaign::Campaign::load(file.as_ref())?.model.scratch.context("nano is no longer trained from scratch")
}

fn smollm2() -> ModelConfig {
    ModelConfig {
        architecture: Architecture::Llama,
        vocab_size: 49152,
        hidden_size: 576,
        intermediate_size: 1536,
        num_hidden_layers: 30,
        num_attention_heads: 9,
        num_key_value_heads: 3,
        head_dim: 64,
        rope_theta: 1e5,
        rope_scaling: None,
        rms_norm_eps: 1e-5,
        tie_word_embeddings: true,
        max_position_embeddings: 8192,
    }
}

/// Seconds of the fastest of `times` calls.
fn fastest(times: usize, mut call: impl FnMut()) -> f64 {
    let mut best = f64::INFINITY;
    for _ in 0..times {
        let start = Instant::now();
        call();
        best = best.min(start.elapsed().as_secs_f64());
    }
    best
}

/// FLOP/s of `(m, k) × (k, n)` with the second operand transposed, as a linear layer has it.
fn products(kind: Kind, [m, k, n]: [i64; 3], times: usize) -> f64 {
    let (a, b) = (Tensor::randn([m, k], (kind, Device::Cpu)), Tensor::randn([n, k], (kind, Device::Cpu)));
    let seconds = fastest(times, || {
        let _ = a.matmul(&b.tr());
    });
    (2 * m * k * n) as f64 / seconds
}

/// What quantizing a matrix and mapping its gradient costs, as a multiple of absmean with plain straight-through.
fn quantizers(compute: Kind) -> Result<()> {
    let shape = [1536, 576];
    let gradient = Tensor::randn(shape, (compute, Device::Cpu));
    let seconds = |scale: Scale, estimator: Estimator| -> Result<f64> {
        let master = Tensor::randn(shape, (Kind::Float, Device::Cpu)) * 0.02;
        let deadzone = scale.default_deadzone();
        let method = Method { grouping: Grouping::Group(GROUP), scale, deadzone, estimator };
        let mut weight = TernaryWeight::new(master, method, compute);
        let mut outcome = Ok(());
        let seconds = fastest(50, || {
            weight.refresh(Blend { lambda: 1.0, temperature: Some(0.5) });
            outcome = ternary::backward(&[weight.leaf()], &[&gradient]);
            let _ = weight.gradients();
        });
        outcome?;
        Ok(seconds)
    };
    let plain = seconds(Scale::AbsMean, Estimator::Plain)?;
    println!(
        "quantizing {shape:?} with its gradient: absmean, straight through {:.2} ms; others, in that:",
        plain * 1e3
    );
    for scale in [Scale::Twn, Scale::Mse, Scale::ThreeOfFour] {
        println!("  {scale:?} {:.1}", seconds(scale, Estimator::Plain)? / plain);
    }
    let clipped = Estimator::Clipped { bound: 1.5 };
    let learned = [Estimator::LearnedScale, Estimator::Stretched, Estimator::EfficientQat, Estimator::Binary];
    for estimator in learned.into_iter().chain([clipped, Estimator::Soft]) {
        println!("  {estimator:?} {:.1}", seconds(Scale::AbsMean, estimator)? / plain);
    }
    for penalty in [0.0, 1.0] {
        let master = Tensor::randn(shape, (Kind::Float, Device::Cpu)) * 0.02;
        let method = Method {
            grouping: Grouping::Group(GROUP),
            scale: Scale::AbsMean,
            deadzone: Scale::AbsMean.default_deadzone(),
            estimator: Estimator::Plain,
        };
        let mut weight = LoraWeight::new(TernaryWeight::new(master, method, compute), 16, 16.0);
        let mut outcome = Ok(());
        let seconds = fastest(50, || {
            weight.refresh(Blend::HARD);
            outcome = ternary::backward(&[weight.leaf()], &[&gradient]);
            let _ = weight.gradients(penalty);
        });
        outcome?;
        println!("  LoRA of rank 16, penalty {penalty} {:.1}", seconds / plain);
    }
    Ok(())
}

/// What rounding activations costs, with its gradient.
fn activations(compute: Kind) -> Result<()> {
    let shape = [1024, 576];
    let x = Tensor::randn(shape, (compute, Device::Cpu)).set_requires_grad(true);
    let gradient = Tensor::randn(shape, (compute, Device::Cpu));
    let seconds = |per: Per| -> Result<f64> {
        let mut outcome = Ok(());
        let seconds = fastest(50, || outcome = ternary::backward(&[&fake_quantize_per(&x, 8, 1.0, per)], &[&gradient]));
        outcome?;
        Ok(seconds)
    };
    let token = seconds(Per::Token)?;
    println!("rounding {shape:?} to 8 bits with its gradient: per token {:.2} ms; others, in that:", token * 1e3);
    println!("  Channel {:.1}", seconds(Per::Channel)? / token);
    Ok(())
}

/// Seconds that the matrix products alone of a pass over `[rows, length]` tokens take, those of attention included:
/// forward, and backward when training.
fn product_seconds(config: &ModelConfig, [rows, length]: [i64; 2], kind: Kind, training: bool) -> f64 {
    /// Repetitions of each shape, of which the fastest counts.
    const TIMES: usize = 20;
    let new = |shape: &[i64]| Tensor::randn(shape, (kind, Device::Cpu));
    let tokens = rows * length;
    let linear = |[out, input]: [usize; 2]| {
        let (x, w, g) = (new(&[tokens, input as i64]), new(&[out as i64, input as i64]), new(&[tokens, out as i64]));
        fastest(TIMES, || {
            let _ = x.matmul(&w.tr());
            if training {
                let _ = g.matmul(&w);
                let _ = g.tr().matmul(&x);
            }
        })
    };
    let (heads, head_dim) = (config.num_attention_heads as i64, config.head_dim as i64);
    let (q, p) = (new(&[rows * heads, length, head_dim]), new(&[rows * heads, length, length]));
    // Scores and what they mix; half of the scores are masked and need not be computed.
    let attention = 0.5
        * fastest(TIMES, || {
            let _ = q.bmm(&q.transpose(1, 2));
            let _ = p.bmm(&q);
            if training {
                let _ = q.bmm(&q.transpose(1, 2));
                let _ = p.transpose(1, 2).bmm(&q);
                let _ = p.bmm(&q);
                let _ = p.transpose(1, 2).bmm(&q);
            }
        });
    let block: f64 = ProjectionKind::ALL.map(|kind| linear(config.projection_shape(kind))).iter().sum();
    (block + attention) * config.num_hidden_layers as f64 + linear([config.vocab_size, config.hidden_size])
}

/// Ternary projections over their leaves.
struct Quantized(Vec<TernaryWeight>);

impl Linears for Quantized {
    fn project(&self, layer: usize, kinds: &[ProjectionKind], x: &Tensor) -> Vec<Tensor> {
        let weights: Vec<&Tensor> =
            kinds.iter().map(|&kind| self.0[layer * ProjectionKind::ALL.len() + kind as usize].leaf()).collect();
        ternary::model::ops::linears(x, &weights)
    }
}

/// Times a training step of `[rows, length]` tokens; `dense` trains embedding and norms too.
fn training(
    name: &str,
    config: &ModelConfig,
    [rows, length]: [i64; 2],
    compute: Kind,
    dense: bool,
    times: usize,
) -> Result<()> {
    let weights = Weights::init(config, 0, Device::Cpu)?;
    let method = Method {
        grouping: Grouping::Group(GROUP),
        scale: Scale::Twn,
        deadzone: Scale::Twn.default_deadzone(),
        estimator: Estimator::Plain,
    };
    let mut quantized = Vec::new();
    for layer in 0..config.num_hidden_layers {
        for kind in ProjectionKind::ALL {
            quantized.push(TernaryWeight::new(weights.projection(layer, kind)?.shallow_clone(), method, compute));
        }
    }
    let mut projections = Quantized(quantized);
    let rest: Weights = weights
        .unquantized(config)?
        .iter()
        .map(|(name, tensor)| (name.to_owned(), tensor.detach().set_requires_grad(dense)))
        .collect();
    drop(weights);
    let decoder = Decoder::new(config, &rest, compute)?;
    let mut head = CastWeight::new(decoder.head().detach(), compute);
    let mut optimizer = AdamW::new(Options::default());
    let group = optimizer.group(Group { learning_rate: 1e-4, weight_decay: 0.0 });
    for weight in &projections.0 {
        optimizer.add(group, weight.master());
    }
    if dense {
        optimizer.add(group, head.master());
        for (_, tensor) in rest.iter().filter(|(_, tensor)| tensor.dim() == 1) {
            optimizer.add(group, tensor);
        }
    }
    let ids = Tensor::randint(config.vocab_size as i64, [rows, length + 1], (Kind::Int64, Device::Cpu));
    let (inputs, targets) = (ids.narrow(1, 0, length).contiguous(), ids.narrow(1, 1, length).reshape([-1]));
    let mut failed = None;
    let seconds = fastest(times, || {
        let step = || -> Result<()> {
            for weight in &mut projections.0 {
                weight.refresh(Blend::HARD);
            }
            if dense {
                head.refresh();
            }
            for (_, tensor) in rest.iter() {
                tensor.shallow_clone().zero_grad();
            }
            let hidden = decoder.hidden(&projections, &inputs);
            let fixed = head.leaf().detach();
            objective(&hidden, if dense { head.leaf() } else { &fixed }, &targets, None).backward()?;
            let mut gradients: Vec<Option<Tensor>> =
                projections.0.iter().map(|weight| weight.gradients().master).collect();
            if dense {
                gradients.push(head.gradient());
                let norms = rest.iter().filter(|(_, tensor)| tensor.dim() == 1);
                gradients.extend(norms.map(|(_, tensor)| Some(tensor.grad())));
            }
            let _norm = optimizer.step(&gradients, 1.0)?;
            Ok(())
        };
        let mut step = step;
        if let Err(error) = step() {
            failed = Some(error);
        }
    });
    if let Some(error) = failed {
        return Err(error).with_context(|| name.to_owned());
    }
    let speed = (rows * length) as f64 / seconds;
    let alone = product_seconds(config, [rows, length], compute, true);
    println!("{name}: {speed:.0} tokens/s, {:.0} % of its matrix products alone", 100.0 * alone / seconds);
    match pytorch(config, [rows, length], compute, dense) {
        Ok(theirs) => {
            println!("  PyTorch, the same step: {theirs:.0} tokens/s; ours is {:.2} times that", speed / theirs)
        }
        Err(reason) => println!("  PyTorch: {reason:#}"),
    }
    Ok(())
}

/// Tokens per second of the same step in PyTorch.
fn pytorch(config: &ModelConfig, [rows, length]: [i64; 2], compute: Kind, dense: bool) -> Result<f64> {
    let shape = serde_json::json!({
        "threads": tch::get_num_threads(),
        "bf16": compute == Kind::BFloat16,
        "dense": dense,
        "times": 5,
        "group": GROUP,
        "rows": rows,
        "length": length,
        "vocabulary": config.vocab_size,
        "hidden": config.hidden_size,
        "intermediate": config.intermediate_size,
        "layers": config.num_hidden_layers,
        "heads": config.num_attention_heads,
        "kv_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "qk_norm": config.architecture == Architecture::Qwen3,
    });
    let python = std::env::var_os("PYTHON").unwrap_or_else(|| "python3".into());
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/pytorch.py");
    let output = Command::new(python).arg(script).arg(shape.to_string()).output().context("cannot start python3")?;
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if !output.status.success() {
        bail!("{}", err.lines().last().unwrap_or("it failed without a word"));
    }
    out.trim().parse().with_context(|| format!("it printed {out:?}"))
}

/// Times the scoring of windows, as the evaluator and the dev evaluation do it.
fn evaluation(name: &str, config: &ModelConfig, window: usize, compute: Kind) -> Result<()> {
    let weights = Weights::init(config, 0, Device::Cpu)?;
    let decoder = Decoder::new(config, &weights, compute)?;
    let linears = Dense::new(config, &weights, compute)?;
    let bytes = vec![1u16; config.vocab_size];
    let ids: Vec<i64> = (0..4096).map(|i| i * 7919 % config.vocab_size as i64).collect();
    let seconds = fastest(3, || {
        let _ = score(&decoder, &linears, &ids, &bytes, window, |_| {});
    });
    let alone = product_seconds(config, [(ids.len() / window) as i64, window as i64], compute, false);
    println!(
        "{name}: {:.0} tokens/s, {:.0} % of its matrix products alone",
        ids.len() as f64 / seconds,
        100.0 * alone / seconds
    );
    Ok(())
}

/// Most resident memory so far, bytes.
fn peak_memory() -> Result<f64> {
    let status = std::fs::read_to_string("/proc/self/status").context("peak memory is read from /proc (Linux)")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("the system tells no VmHWM")?;
    let kib: f64 = line.trim().trim_end_matches(" kB").parse().context("VmHWM is not a number")?;
    Ok(kib * 1024.0)
}
