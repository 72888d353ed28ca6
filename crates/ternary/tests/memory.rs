//! What training SmolLM2-135M against its parent takes on the CPU. One test, because the figure is the process's.
#![cfg(target_os = "linux")]

use formats::artifact::{Architecture, Grouping, ModelConfig, ProjectionKind};
use tch::{Device, Kind, Tensor};
use ternary::distill::{feature_loss, relation_loss};
use ternary::loss::{Teacher, objective};
use ternary::model::{Decoder, Frozen, Linears, Tapped, Taps, Weights, ops};
use ternary::optim::{AdamW, Group, Options};
use ternary::quantize::Scale;
use ternary::weight::{Blend, Estimator, Method, TernaryWeight};

/// Teacher and student with gradients and the optimizer's state.
const LIMIT: u64 = 6_000_000_000;
/// Windows and their tokens, as the recipe for pretrained models has them.
const BATCH: [i64; 2] = [4, 256];
/// As BitDistill splits queries, keys and values.
const RELATION_HEADS: i64 = 32;

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

/// Bytes that this process has had in memory at most.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("VmHWM");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1024
}

/// The projections in training.
struct Student(Vec<TernaryWeight>);

impl Linears for Student {
    fn project(&self, layer: usize, kinds: &[ProjectionKind], x: &Tensor) -> Vec<Tensor> {
        let weights: Vec<&Tensor> = kinds.iter().map(|&kind| self.0[layer * 7 + kind as usize].leaf()).collect();
        ops::linears(x, &weights)
    }
}

/// More logits than the losses may hold at a time: of each model, 400 MB in bf16.
fn logits_exist_in_chunks(compute: Kind) {
    const TOKENS: i64 = 4096;
    const MOST: u64 = 300_000_000;
    let new = |shape: [i64; 2]| Tensor::randn(shape, (Kind::Float, Device::Cpu)).to_kind(compute);
    let (hidden, head, taught) = (new([TOKENS, 64]), new([49152, 64]), new([TOKENS, 64]));
    let targets = Tensor::zeros([TOKENS], (Kind::Int64, Device::Cpu));
    let before = peak();
    let teacher = Teacher { hidden: &taught, head: &head, weight: 0.5, temperature: 2.0 };
    let objective = objective(&hidden, &head, &targets, Some(teacher));
    assert_eq!(objective.hidden_gradient().size(), [TOKENS, 64]);
    let grown = peak() - before;
    assert!(grown < MOST, "{grown} bytes");
}

/// A step against the parent's logits, then one with the hidden states behind every block and the attention relations
/// of one besides, when the optimizer's state is there.
#[test]
fn distillation_of_smollm2_135m_stays_within_its_memory() {
    tch::set_num_threads(2);
    let (config, compute) = (smollm2(), ops::preferred_kind(Device::Cpu));
    logits_exist_in_chunks(compute);
    let weights: Weights = (config.tensors().into_iter())
        .map(|(name, shape)| {
            let shape: Vec<i64> = shape.into_iter().map(|n| n as i64).collect();
            let mut ones = Tensor::ones(&shape, (Kind::Float, Device::Cpu));
            (name, if shape.len() == 1 { ones } else { ones.normal_(0.0, 0.02) })
        })
        .collect();
    let dense = weights.unquantized(&config).expect("the rest");
    let parent = Frozen::new(&config, &weights, &dense, compute).expect("parent");
    let method = Method {
        grouping: Grouping::Group(64),
        scale: Scale::Twn,
        deadzone: Scale::Twn.default_deadzone(),
        estimator: Estimator::Plain,
    };
    let master = |(layer, kind)| weights.projection(layer, kind).expect("a projection").shallow_clone();
    let all = (0..config.num_hidden_layers).flat_map(|layer| ProjectionKind::ALL.map(|kind| (layer, kind)));
    let mut student = Student(all.map(|at| TernaryWeight::new(master(at), method, compute)).collect());
    let decoder = Decoder::new(&config, &dense, compute).expect("decoder");
    drop((weights, dense));
    let mut optimizer = AdamW::new(Options::default());
    let group = optimizer.group(Group { learning_rate: 1e-4, weight_decay: 0.0 });
    for weight in &student.0 {
        optimizer.add(group, weight.master());
    }
    let loaded = peak();

    let layers: Vec<usize> = (0..config.num_hidden_layers).collect();
    let mut peaks = Vec::new();
    for taps in [Taps::default(), Taps { streams: &layers, attention: &[24] }] {
        student.0.iter_mut().for_each(|weight| weight.refresh(Blend::HARD));
        let ids = Tensor::randint(config.vocab_size as i64, BATCH, (Kind::Int64, Device::Cpu));
        let Tapped { hidden, streams, attention } = decoder.tapped(&student, &ids, taps);
        let taught = parent.tapped(&ids, taps);
        let teacher = Teacher { hidden: &taught.hidden, head: parent.head(), weight: 0.5, temperature: 2.0 };
        let mut objective = objective(&hidden, parent.head(), &ids.reshape([-1]), Some(teacher));
        for (student, teacher) in streams.iter().zip(&taught.streams) {
            objective.add(1.0 / layers.len() as f64, &feature_loss(student, teacher));
        }
        for (student, teacher) in attention.iter().zip(&taught.attention) {
            objective.add(10.0, &relation_loss(student, teacher, RELATION_HEADS));
        }
        assert!(objective.loss.isfinite().int64_value(&[]) == 1, "{:?}", objective.loss);
        drop((hidden, streams, attention, taught));
        objective.backward().expect("gradients");
        let gradients: Vec<Option<Tensor>> = student.0.iter().map(|weight| weight.gradients().master).collect();
        assert!(gradients.iter().all(Option::is_some), "every projection learns");
        let _norm = optimizer.step(&gradients, 1.0).expect("a step");
        peaks.push(peak());
    }
    let [logits, everything] = peaks[..] else { unreachable!("two rounds") };
    println!("{compute:?}, GB: loaded {:.2}, logits {:.2}, all {:.2}", gb(loaded), gb(logits), gb(everything));
    assert!(everything < LIMIT, "{everything} bytes");
}

fn gb(bytes: u64) -> f64 {
    bytes as f64 / 1e9
}
