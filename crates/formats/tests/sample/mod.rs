//! Valid artifacts of small models, for the tests and as seeds of the fuzzer.
#![allow(dead_code, reason = "each of them uses a part")]

pub mod forge;

use std::collections::BTreeMap;

use formats::artifact::{Architecture, Artifact, DenseData, DenseTensor, Grouping, ModelConfig, TernaryTensor};
use half::{bf16, f16};

/// Grows the content of an artifact from a seed: proptest chooses shapes, this fills them.
pub struct Filler(pub u64);

impl Filler {
    /// splitmix64.
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// A number below `n`.
    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    fn value(&mut self) -> f32 {
        (self.below(2001) as f32 - 1000.0) / 64.0
    }

    /// A valid artifact of this shape.
    pub fn artifact(&mut self, config: ModelConfig) -> Artifact {
        let mut artifact = Artifact {
            activation_bits: [4, 8, 16][self.below(3)],
            ternary: Vec::new(),
            dense: Vec::new(),
            from_base: Vec::new(),
            base_sha256: Some("0123456789abcdef".repeat(4)),
            provenance: BTreeMap::from([("commit".into(), "é \" \\".into())]),
            config,
        };
        let projections = artifact.config.projection_names();
        for (name, shape) in artifact.config.tensors() {
            let kind = self.below(4);
            if let &[rows, columns] = shape.as_slice()
                && (kind < 2 || projections.contains(&name) && kind == 3)
            {
                let divisors: Vec<_> = (1..=columns).filter(|d| columns.is_multiple_of(*d)).collect();
                let grouping = match self.below(3) {
                    0 => Grouping::Tensor,
                    1 => Grouping::Row,
                    _ => Grouping::Group(divisors[self.below(divisors.len())]),
                };
                let shape = [rows, columns];
                let codes = (0..rows * columns).map(|_| self.below(3) as i8 - 1).collect();
                let scales = (0..TernaryTensor::scale_count(shape, grouping))
                    .map(|_| f16::from_f32(self.value().abs() + 0.25))
                    .collect();
                artifact.ternary.push(TernaryTensor { name, shape, grouping, codes, scales });
            } else if kind == 3 {
                artifact.from_base.push(name);
            } else {
                let dtype = self.below(3);
                let values = (0..shape.iter().product()).map(|_| self.value());
                let data = match dtype {
                    0 => DenseData::F32(values.collect()),
                    1 => DenseData::F16(values.map(f16::from_f32).collect()),
                    _ => DenseData::Bf16(values.map(bf16::from_f32).collect()),
                };
                artifact.dense.push(DenseTensor { name, shape, data });
            }
        }
        artifact
    }
}

/// An artifact of the smallest model that has everything.
pub fn small() -> Artifact {
    let config = ModelConfig {
        architecture: Architecture::Qwen3,
        vocab_size: 7,
        hidden_size: 12,
        intermediate_size: 8,
        num_hidden_layers: 1,
        num_attention_heads: 2,
        num_key_value_heads: 1,
        head_dim: 4,
        rope_theta: 1e4,
        rope_scaling: None,
        rms_norm_eps: 1e-6,
        tie_word_embeddings: true,
        max_position_embeddings: 64,
    };
    Filler(1).artifact(config)
}
