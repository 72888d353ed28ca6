//! What is written is what is read, whatever it is; and nothing else is read.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;

use artifact::{
    Architecture, Artifact, ArtifactError, DenseData, DenseTensor, Grouping, ModelConfig, TernaryTensor, sha256_file,
};
use half::{bf16, f16};
use proptest::prelude::*;

/// Grows the content of an artifact from a seed: proptest chooses shapes, this fills them.
struct Filler(u64);

impl Filler {
    /// splitmix64.
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    fn value(&mut self) -> f32 {
        (self.below(2001) as f32 - 1000.0) / 64.0
    }

    fn artifact(&mut self, config: ModelConfig) -> Artifact {
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
                let scales =
                    (0..TernaryTensor::scale_count(shape, grouping)).map(|_| f16::from_f32(self.value())).collect();
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

fn configs() -> impl Strategy<Value = ModelConfig> {
    let sizes = (1..40usize, 1..24usize, 1..24usize, 1..3usize, 1..3usize, 1..3usize, 1..5usize);
    (sizes, any::<bool>(), any::<bool>()).prop_map(|(sizes, qwen3, tied)| {
        let (vocab, hidden, intermediate, layers, kv_heads, repeat, half_head) = sizes;
        ModelConfig {
            architecture: if qwen3 { Architecture::Qwen3 } else { Architecture::Llama },
            vocab_size: vocab,
            hidden_size: hidden,
            intermediate_size: intermediate,
            num_hidden_layers: layers,
            num_attention_heads: kv_heads * repeat,
            num_key_value_heads: kv_heads,
            head_dim: 2 * half_head,
            rope_theta: 1e4,
            rope_scaling: None,
            rms_norm_eps: 1e-6,
            tie_word_embeddings: tied,
            max_position_embeddings: 64,
        }
    })
}

fn small() -> Artifact {
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

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(24) })]

    #[test]
    fn what_is_written_is_read(config in configs(), seed in any::<u64>()) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("artifact.ternary");
        let artifact = Filler(seed).artifact(config);
        artifact.write(&path).unwrap();
        let read = Artifact::read(&path).unwrap();
        prop_assert_eq!(&read, &artifact);
        prop_assert_eq!(&Artifact::read_expecting(&path, &artifact.config).unwrap(), &artifact);
        for tensor in &read.ternary {
            let run = tensor.codes.len() / tensor.scales.len();
            for (i, weight) in tensor.dequantize().into_iter().enumerate() {
                prop_assert_eq!(weight, f32::from(tensor.codes[i]) * tensor.scales[i / run].to_f32());
            }
        }
        // Only the file is left behind.
        prop_assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_was_changed_is_refused(seed in any::<u64>()) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("artifact.ternary");
        let mut filler = Filler(seed);
        let config = small().config;
        filler.artifact(config).write(&path).unwrap();
        let whole = fs::read(&path).unwrap();
        for _ in 0..64 {
            let mut bytes = whole.clone();
            let at = filler.below(bytes.len());
            match filler.below(4) {
                0 => bytes.truncate(at),
                1 => bytes.extend_from_slice(&whole[..1 + at]),
                2 => bytes[at] ^= 1 << filler.below(8),
                _ => bytes.copy_within(at.., at / 2),
            }
            if bytes == whole {
                continue;
            }
            fs::write(&path, &bytes).unwrap();
            prop_assert!(Artifact::read(&path).is_err());
        }
    }
}

/// Writes `header` and `blobs` as the file would have them, with a right checksum.
fn forged(header: &str, blobs: &[u8]) -> Result<Artifact, ArtifactError> {
    use sha2::{Digest, Sha256};
    let mut bytes = b"TERNART\0\x01\0\0\0".to_vec();
    bytes.extend((header.len() as u32).to_le_bytes());
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len().next_multiple_of(64), 0);
    bytes.extend(blobs);
    let digest = Sha256::digest(&bytes);
    bytes.extend(digest);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("forged");
    fs::write(&path, bytes).unwrap();
    Artifact::read(&path)
}

#[test]
fn a_header_cannot_ask_for_memory() {
    let huge = 1u64 << 20;
    let header = |layers: u64, size: u64, tensors: &str| {
        format!(
            r#"{{"config":{{"architecture":"llama","vocab_size":{size},"hidden_size":{size},"intermediate_size":{size},
            "num_hidden_layers":{layers},"num_attention_heads":1,"num_key_value_heads":1,"head_dim":2,"rope_theta":1e4,
            "rms_norm_eps":1e-5,"tie_word_embeddings":true,"max_position_embeddings":8}},"activation_bits":16,
            "ternary":[],"dense":[{tensors}],"from_base":[],"base_sha256":null,"provenance":{{}}}}"#
        )
    };
    let message = |header: &str| forged(header, &[0; 64]).unwrap_err().to_string();
    let huge_layers = message(&header(u64::MAX, 8, ""));
    assert!(huge_layers.contains("num_hidden_layers is 18446744073709551615"), "{huge_layers}");
    let layers = message(&header(1000, 8, ""));
    assert!(layers.contains("it has 0 tensors; the configuration has 9002"), "{layers}");
    let config: ModelConfig = serde_json::from_value(
        serde_json::from_str::<serde_json::Value>(&header(1, huge, "")).unwrap()["config"].clone(),
    )
    .unwrap();
    let tensors: Vec<String> = config
        .tensors()
        .iter()
        .map(|(name, shape)| format!(r#"{{"name":"{name}","shape":{shape:?},"dtype":"f32"}}"#))
        .collect();
    let terabytes = message(&header(1, huge, &tensors.join(",")));
    assert!(terabytes.contains("bytes long; its header says 1759"), "{terabytes}");
}

#[test]
fn another_model_is_refused_before_its_weights_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("artifact.ternary");
    let artifact = small();
    artifact.write(&path).unwrap();
    let other = ModelConfig { rms_norm_eps: 1e-5, ..artifact.config.clone() };
    let error = Artifact::read_expecting(&path, &other).unwrap_err();
    assert!(matches!(error, ArtifactError::Invalid { .. }), "{error}");
    assert_eq!(sha256_file(&path).unwrap().len(), 64);
}

#[test]
fn an_invalid_artifact_is_not_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("artifact.ternary");
    type Damage = fn(&mut Artifact);
    let breaks: [(&str, Damage); 9] = [
        ("has codes other than", |a| a.ternary[0].codes[3] = 2),
        ("has a scale that is not finite", |a| a.ternary[0].scales[0] = f16::INFINITY),
        ("codes; [", |a| a.ternary[0].codes.truncate(1)),
        ("groups of 5 do not divide", |a| a.ternary[0].grouping = Grouping::Group(5)),
        ("is there twice", |a| a.ternary[1].name = a.ternary[0].name.clone()),
        ("is not in the configuration", |a| a.ternary[1].name = "lm_head.weight".into()),
        ("tensors; the configuration has", |a| drop(a.ternary.pop())),
        ("activation_bits is 2", |a| a.activation_bits = 2),
        ("base_sha256 is not", |a| a.base_sha256 = Some("?".into())),
    ];
    for (reason, damage) in breaks {
        let mut artifact = small();
        damage(&mut artifact);
        let error = artifact.write(&path).unwrap_err().to_string();
        assert!(error.contains(reason), "{error:?} does not say {reason:?}");
        assert!(!path.exists());
    }
}

#[test]
fn every_projection_must_be_stored() {
    let mut artifact = small();
    let moved = artifact.ternary.iter().position(|t| t.name.contains("q_proj")).unwrap();
    let moved = artifact.ternary.remove(moved);
    artifact.from_base.push(moved.name);
    let error = artifact.validate().unwrap_err().to_string();
    assert!(error.contains("projection model.layers.0.self_attn.q_proj.weight is not stored"), "{error}");
    artifact.from_base.pop();
    artifact.from_base.push("model.norm.weight".into());
    artifact.dense.retain(|t| t.name != "model.norm.weight");
    artifact.base_sha256 = None;
    assert!(artifact.validate().is_err());
}

#[test]
fn bits_and_shares_count_what_is_stored() {
    let config = ModelConfig {
        architecture: Architecture::Llama,
        vocab_size: 3,
        hidden_size: 64,
        intermediate_size: 64,
        num_hidden_layers: 1,
        num_attention_heads: 1,
        num_key_value_heads: 1,
        head_dim: 64,
        rope_theta: 1e4,
        rope_scaling: None,
        rms_norm_eps: 1e-6,
        tie_word_embeddings: true,
        max_position_embeddings: 8,
    };
    let mut artifact = Filler(3).artifact(config);
    artifact.ternary.clear();
    artifact.dense.clear();
    artifact.from_base.clear();
    let projections = artifact.config.projection_names();
    for (name, shape) in artifact.config.tensors() {
        if projections.contains(&name) {
            let codes = (0..4096).map(|i| [-1, 0, 0, 1][i % 4]).collect();
            let scales = vec![f16::ONE; 128];
            let grouping = Grouping::Group(32);
            artifact.ternary.push(TernaryTensor { name, shape: [64, 64], grouping, codes, scales });
        } else {
            let data = DenseData::F32(vec![1.0; shape.iter().product()]);
            artifact.dense.push(DenseTensor { name, shape, data });
        }
    }
    artifact.validate().unwrap();
    // Rows of 64 codes take 13 bytes; two scales take 4.
    assert_eq!(artifact.bits_per_weight(), 8.0 * 17.0 / 64.0);
    assert_eq!(artifact.shares(), [0.25, 0.5, 0.25]);
    // A dense projection counts its own bits.
    let TernaryTensor { name, shape, .. } = artifact.ternary.pop().unwrap();
    let data = DenseData::Bf16(vec![bf16::ONE; 4096]);
    artifact.dense.push(DenseTensor { name, shape: shape.to_vec(), data });
    artifact.validate().unwrap();
    assert_eq!(artifact.bits_per_weight(), (6.0 * 8.0 * 17.0 / 64.0 + 16.0) / 7.0);
}
