//! GGUF files written by the test: a whole model is read back, and damaged files are refused without harm.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::path::Path;

use prepare::gguf::{Gguf, GgufError};
use prepare::gguf_model;
use proptest::prelude::*;
use safetensors::View;

mod common;
use common::{GgufFile, permute};

const HIDDEN: usize = 64;

fn values(seed: usize, count: usize) -> Vec<f32> {
    (0..count).map(|i| ((i * 31 + seed * 17) % 101) as f32 / 50.0 - 1.0).collect()
}

/// A llama model of one block whose q and k are permuted as llama.cpp's converter does.
fn tiny_llama() -> (GgufFile, Vec<(String, Vec<f32>)>) {
    let mut file = GgufFile::new("llama");
    file.integer("llama.embedding_length", HIDDEN as u32);
    file.integer("llama.block_count", 1);
    file.integer("llama.feed_forward_length", 96);
    file.integer("llama.attention.head_count", 4);
    file.integer("llama.attention.head_count_kv", 2);
    file.integer("llama.context_length", 128);
    file.integer("llama.rope.dimension_count", 16);
    file.float("llama.rope.freq_base", 10_000.0);
    file.float("llama.attention.layer_norm_rms_epsilon", 1e-5);
    let mut expected = Vec::new();
    let tensors = [
        ("token_embd", "model.embed_tokens", vec![10, HIDDEN], 0),
        ("output_norm", "model.norm", vec![HIDDEN], 0),
        ("blk.0.attn_q", "model.layers.0.self_attn.q_proj", vec![64, HIDDEN], 4),
        ("blk.0.attn_k", "model.layers.0.self_attn.k_proj", vec![32, HIDDEN], 2),
        ("blk.0.attn_v", "model.layers.0.self_attn.v_proj", vec![32, HIDDEN], 0),
        ("blk.0.attn_output", "model.layers.0.self_attn.o_proj", vec![HIDDEN, 64], 0),
        ("blk.0.ffn_gate", "model.layers.0.mlp.gate_proj", vec![96, HIDDEN], 0),
        ("blk.0.ffn_up", "model.layers.0.mlp.up_proj", vec![96, HIDDEN], 0),
        ("blk.0.ffn_down", "model.layers.0.mlp.down_proj", vec![HIDDEN, 96], 0),
        ("blk.0.attn_norm", "model.layers.0.input_layernorm", vec![HIDDEN], 0),
        ("blk.0.ffn_norm", "model.layers.0.post_attention_layernorm", vec![HIDDEN], 0),
    ];
    for (i, (gguf, hugging_face, shape, heads)) in tensors.into_iter().enumerate() {
        let plain = values(i, shape.iter().product());
        let stored = if heads > 0 { permute(&plain, heads, shape[0], shape[1]) } else { plain.clone() };
        file.f32_tensor(&format!("{gguf}.weight"), &shape, &stored);
        expected.push((format!("{hugging_face}.weight"), plain));
    }
    (file, expected)
}

fn open(bytes: &[u8]) -> Result<Gguf, GgufError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    std::fs::write(&path, bytes).unwrap();
    Gguf::open(&path)
}

#[test]
fn a_llama_file_becomes_hugging_face_tensors() {
    let (file, expected) = tiny_llama();
    let gguf = open(&file.bytes()).unwrap();
    let config = gguf_model::config(&gguf).unwrap();
    assert_eq!((config.vocab_size, config.head_dim, config.num_key_value_heads), (10, 16, 2));
    assert_eq!(config.rms_norm_eps, 1e-5, "not the f32 neighbour");
    assert!(config.tie_word_embeddings);
    let tensors = gguf_model::tensors(&gguf, &config).unwrap();
    assert_eq!(tensors.len(), expected.len());
    for (name, plain) in expected {
        let (_, view) = tensors.iter().find(|(n, _)| *n == name).unwrap();
        let bytes: Vec<u8> = plain.iter().flat_map(|v| v.to_le_bytes()).collect();
        assert_eq!(view.data().as_ref(), bytes, "{name}");
        assert_eq!(view.data_len(), bytes.len());
    }
}

#[test]
fn what_the_decoder_lacks_is_refused() {
    let (mut file, _) = tiny_llama();
    file.f32_tensor("blk.0.attn_q.bias", &[64], &[0.0; 64]);
    let gguf = open(&file.bytes()).unwrap();
    let config = gguf_model::config(&gguf).unwrap();
    assert!(gguf_model::tensors(&gguf, &config).unwrap_err().to_string().contains("biases"));

    let (mut file, _) = tiny_llama();
    file.text("llama.rope.scaling.type", "yarn");
    assert!(gguf_model::config(&open(&file.bytes()).unwrap()).is_err());

    let mut file = GgufFile::new("mamba");
    file.integer("mamba.embedding_length", 1);
    assert!(gguf_model::config(&open(&file.bytes()).unwrap()).unwrap_err().to_string().contains("mamba"));
}

#[test]
fn llama_3_frequencies_become_its_scaling() {
    let (mut file, _) = tiny_llama();
    file.float("llama.rope.freq_base", 500_000.0);
    // Divisors for head width 16 and theta 500000, computed with transformers' formula in Python.
    let divisors = [1.0, 1.0, 1.0, 1.0, 3.292_262, 32.0, 32.0, 32.0];
    file.f32_tensor("rope_freqs.weight", &[8], &divisors);
    let scaling = gguf_model::config(&open(&file.bytes()).unwrap()).unwrap().rope_scaling.unwrap();
    assert_eq!((scaling.factor, scaling.original_max_position), (32.0, 8192));

    file.f32_tensor("rope_freqs.weight", &[8], &[1.0, 1.0, 2.0, 3.0, 4.0, 32.0, 32.0, 32.0]);
    assert!(gguf_model::config(&open(&file.bytes()).unwrap()).is_err(), "unknown frequencies");
}

#[test]
fn lengths_are_checked_before_anything_is_allocated() {
    let header = |tensors: u64, keys: u64| {
        let mut bytes = b"GGUF\x03\0\0\0".to_vec();
        bytes.extend(tensors.to_le_bytes());
        bytes.extend(keys.to_le_bytes());
        bytes
    };
    // A string of 2^63 bytes; an array of 2^60 elements; a tensor of 2^62 × 2^62.
    let mut long_string = header(0, 1);
    long_string.extend((1u64 << 63).to_le_bytes());
    let mut long_array = header(0, 1);
    long_array.extend([1u64.to_le_bytes().as_slice(), b"a", &9u32.to_le_bytes(), &0u32.to_le_bytes()].concat());
    long_array.extend((1u64 << 60).to_le_bytes());
    let mut huge_tensor = header(1, 0);
    huge_tensor.extend([1u64.to_le_bytes().as_slice(), b"t", &2u32.to_le_bytes()].concat());
    huge_tensor.extend([(1u64 << 62).to_le_bytes(), (1u64 << 62).to_le_bytes()].concat());
    huge_tensor.extend([0u32.to_le_bytes().as_slice(), &0u64.to_le_bytes()].concat());
    for bytes in [long_string, long_array, huge_tensor, header(u64::MAX, u64::MAX), b"GGML".to_vec()] {
        assert!(matches!(open(&bytes), Err(GgufError::Malformed(_))));
    }
    assert!(matches!(Gguf::open(Path::new("/nonexistent.gguf")), Err(GgufError::Read { .. })));
}

#[test]
fn a_row_of_broken_blocks_is_refused() {
    // As Q6_K, rows of 64 values share blocks of 256, though the 96 rows together are whole blocks.
    let mut bytes = tiny_llama().0.bytes();
    let name = b"blk.0.ffn_gate.weight";
    let at = bytes.windows(name.len()).position(|window| window == name).unwrap();
    let kind = at + name.len() + 4 + 2 * 8;
    assert_eq!(bytes[kind..kind + 4], [0; 4], "the type of elements, F32");
    bytes[kind] = 14;
    assert!(open(&bytes).unwrap_err().to_string().contains("ffn_gate.weight"));
}

/// Where the info of a tensor of two dimensions says its type; its offset is four bytes further.
fn type_at(bytes: &[u8], name: &str) -> usize {
    let at = bytes.windows(name.len()).position(|window| window == name.as_bytes()).unwrap();
    at + name.len() + 4 + 2 * 8
}

fn offset(bytes: &[u8], name: &str) -> u64 {
    let at = type_at(bytes, name) + 4;
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

/// What opening says when a tensor's offset is changed.
fn moved(name: &str, to: impl Fn(&[u8]) -> u64) -> String {
    let mut bytes = tiny_llama().0.bytes();
    let to = to(&bytes);
    let at = type_at(&bytes, name) + 4;
    bytes[at..at + 8].copy_from_slice(&to.to_le_bytes());
    open(&bytes).unwrap_err().to_string()
}

#[test]
fn tensors_lie_apart_at_multiples_of_the_alignment() {
    let (up, gate) = ("blk.0.ffn_up.weight", "blk.0.ffn_gate.weight");
    let message = moved(up, |bytes| offset(bytes, up) - 4);
    assert!(message.contains(up) && message.contains("no multiple of the alignment, 32"), "{message}");
    for by in [0, 32] {
        let message = moved(up, |bytes| offset(bytes, gate) + by);
        assert!(message.contains("overlap") && message.contains(up) && message.contains(gate), "{message}");
    }
    for far in [1 << 40, u64::MAX - 31, u64::MAX / 32 * 32] {
        let message = moved(up, |_| far);
        assert!(message.contains(up) && message.contains("not a valid GGUF file"), "{message}");
    }
}

#[test]
fn other_alignments_are_followed_and_senseless_ones_refused() {
    for alignment in [8, 16, 24, 64] {
        let (mut file, expected) = tiny_llama();
        file.align(alignment);
        let gguf = open(&file.bytes()).unwrap();
        assert_eq!(gguf.values("output_norm.weight").unwrap(), expected[1].1, "{alignment}");
    }
    for alignment in [0, -8i32] {
        let mut file = tiny_llama().0;
        file.integer("general.alignment", alignment as u32);
        assert!(open(&file.bytes()).unwrap_err().to_string().contains("general.alignment"), "{alignment}");
    }
    let mut file = tiny_llama().0;
    file.text("general.alignment", "32");
    assert!(open(&file.bytes()).unwrap_err().to_string().contains("general.alignment"));
}

#[test]
fn a_name_is_there_once() {
    let mut bytes = tiny_llama().0.bytes();
    let (q, k) = (b"blk.0.attn_q.weight", b"blk.0.attn_k.weight");
    let at = bytes.windows(k.len()).position(|window| window == k).unwrap();
    bytes[at..at + k.len()].copy_from_slice(q);
    assert!(open(&bytes).unwrap_err().to_string().contains("`blk.0.attn_q.weight` is there twice"));
}

#[test]
fn types_that_are_not_decoded_are_named() {
    let said = |type_id: u32, bytes: usize| {
        let mut file = tiny_llama().0;
        // Behind all others, so that nothing tells where it ends but the file.
        file.tensor("z", &[64, 128], type_id, vec![0; bytes]);
        open(&file.bytes()).unwrap().data("z").unwrap_err().to_string()
    };
    let prism = "PrismML's Q2_0, groups of 128, which is not the Q2_0 of llama.cpp";
    assert!(said(42, 64 * 34).contains(prism));
    assert!(said(142, 64 * 34).contains(prism));
    assert!(said(143, 64 * 28).contains("PrismML's PTQ1_0"));
    let upstream = said(42, 128 * 18);
    assert!(upstream.contains("42 (Q2_0: groups of 64 in llama.cpp, of 128 in PrismML's fork)"), "{upstream}");
    assert!(said(35, 32 * 66).contains("35 (TQ2_0)"));
    let unknown = said(99, 64);
    assert!(unknown.contains("`z` has ggml type 99, which is not supported; use a file in F32"), "{unknown}");
}

#[test]
fn metadata_of_another_type_are_never_a_default() {
    let config = |edit: &dyn Fn(&mut GgufFile)| {
        let mut file = tiny_llama().0;
        edit(&mut file);
        gguf_model::config(&open(&file.bytes()).unwrap()).map_err(|e| e.to_string())
    };
    let expected = config(&|_| {}).unwrap();
    for key in [
        "attention.head_count_kv",
        "attention.key_length",
        "attention.value_length",
        "rope.dimension_count",
        "rope.freq_base",
        "rope.scaling.factor",
        "rope.scale_linear",
        "vocab_size",
        "logit_scale",
        "attention.sliding_window",
        "attention.causal",
    ] {
        let key = format!("llama.{key}");
        let message = config(&|file| file.text(&key, "16")).unwrap_err();
        assert!(message.contains(&format!("no `{key}`, or one of another type")), "{message}");
    }
    assert!(config(&|file| file.integer("llama.rope.scaling.type", 0)).is_err());
    let refused: [(&str, f32); 6] = [
        // llama.cpp takes the scaling for linear where its type is not said.
        ("rope.scaling.factor", 8.0),
        ("rope.scale_linear", 2.0),
        ("logit_scale", 0.5),
        ("attention.scale", 0.1),
        ("final_logit_softcapping", 30.0),
        ("attention.clamp_kqv", 8.0),
    ];
    for (key, value) in refused {
        assert!(config(&|file| file.float(&format!("llama.{key}"), value)).is_err(), "{key}");
    }
    for (key, value) in
        [("vocab_size", 11), ("attention.value_length", 8), ("expert_count", 8), ("attention.sliding_window", 64)]
    {
        assert!(config(&|file| file.integer(&format!("llama.{key}"), value)).is_err(), "{key}");
    }
    let harmless = config(&|file| {
        file.text("llama.rope.scaling.type", "linear");
        file.float("llama.rope.scaling.factor", 1.0);
        file.integer("llama.vocab_size", 10);
        file.integer("llama.attention.value_length", 16);
        file.integer("llama.expert_count", 0);
        file.float("llama.logit_scale", 1.0);
        file.f32_tensor("rope_freqs.weight", &[8], &[1.0; 8]);
    });
    assert_eq!(harmless.unwrap(), expected);
    // Frequencies that are scaled up, that are no numbers, or are too few are not the default's.
    for divisors in [vec![0.5; 8], vec![f32::NAN; 8], vec![1.0; 4]] {
        let count = divisors.len();
        assert!(config(&|file| file.f32_tensor("rope_freqs.weight", &[count], &divisors)).is_err(), "{divisors:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Cutting or changing a file anywhere gives an error or a readable file, never a panic.
    #[test]
    fn damaged_files_do_no_harm(cut in 0usize..2000, at in 0usize..1200, byte: u8) {
        let mut bytes = tiny_llama().0.bytes();
        prop_assert!(open(&bytes[..cut.min(bytes.len() - 1)]).is_err());
        bytes[at] = byte;
        if let Ok(gguf) = open(&bytes)
            && let Ok(config) = gguf_model::config(&gguf)
            && config.num_hidden_layers < 100
            && let Ok(tensors) = gguf_model::tensors(&gguf, &config)
        {
            for (_, view) in tensors {
                prop_assert_eq!(view.data().len(), view.data_len());
            }
        }
    }
}
