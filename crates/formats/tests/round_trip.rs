//! What is written is what is read, whatever it is; and nothing else is read.
#![allow(clippy::unwrap_used)]

mod sample;

use std::fs;

use formats::artifact::{
    Architecture, Artifact, ArtifactError, DenseData, DenseTensor, Grouping, ModelConfig, TernaryTensor, sha256_file,
};
use half::{bf16, f16};
use proptest::prelude::*;
use sample::forge::{ALIGNMENT, DIGEST_BYTES, Forgery, PREFIX_BYTES};
use sample::{Filler, small};

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
        ("has a scale that is not a positive number", |a| a.ternary[0].scales[0] = f16::INFINITY),
        ("codes; [", |a| a.ternary[0].codes.truncate(1)),
        ("groups of 5 do not divide", |a| a.ternary[0].grouping = Grouping::Group(5)),
        ("is there twice", |a| a.ternary[1].name = a.ternary[0].name.clone()),
        ("is not one of the model", |a| a.ternary[1].name = "lm_head.weight".into()),
        ("is missing: it has", |a| drop(a.ternary.pop())),
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

/// So that bits cannot be had elsewhere: what is not counted is the model's other tensors, in their shapes, and what says
/// which tensors there are.
#[test]
fn every_byte_of_the_file_is_counted_or_has_another_purpose() {
    for seed in 0..20 {
        let artifact = Filler(seed).artifact(small().config);
        let projections = artifact.config.projection_names();
        let weights: usize = (artifact.config.tensors().iter())
            .filter(|(name, _)| projections.contains(name))
            .map(|(_, shape)| shape.iter().product::<usize>())
            .sum();
        let counted = (artifact.bits_per_weight() * weights as f64 / 8.0).round() as usize;
        let ternary = artifact.ternary.iter().filter(|t| !projections.contains(&t.name)).map(|t| t.stored_bytes());
        let dense = artifact.dense.iter().filter(|t| !projections.contains(&t.name)).map(|t| t.data.stored_bytes());
        let others: usize = ternary.chain(dense).sum();
        let forgery = Forgery::of(&artifact);
        let framing = PREFIX_BYTES + forgery.header.len() + DIGEST_BYTES;
        let gaps = artifact.to_bytes().unwrap().len() - framing - counted - others;
        assert!(gaps < forgery.blobs.len() * ALIGNMENT, "{gaps} bytes are zeros before {} blobs", forgery.blobs.len());
    }
}

/// Whatever spelling serde_json prefers today.
#[test]
fn numbers_in_the_header_have_one_spelling() {
    let mut artifact = small();
    (artifact.config.rms_norm_eps, artifact.config.rope_theta) = (1e-5, 1e16);
    let header = Forgery::of(&artifact).header;
    assert!(header.contains("\"rope_theta\":1e16,\"rms_norm_eps\":1e-5,"), "{header}");
}
