//! Files whose checksum is right and whose content is not: each is refused, and the message says what is wrong with it.
#![allow(clippy::unwrap_used)]

mod sample;

use formats::artifact::{Artifact, ArtifactError, DenseData, ModelConfig};
use half::{bf16, f16};
use sample::forge::{ALIGNMENT, DIGEST_BYTES, Forgery, PREFIX_BYTES, seal};
use sample::small;

fn refused(bytes: &[u8], reason: &str) {
    let message = Artifact::from_bytes(bytes).unwrap_err().to_string();
    assert!(message.contains(reason), "{message:?} does not say {reason:?}");
}

/// [`small`], with every dense tensor in f32.
fn artifact() -> Artifact {
    let mut artifact = small();
    for tensor in &mut artifact.dense {
        tensor.data = DenseData::F32(tensor.data.to_f32());
    }
    assert!(artifact.ternary[0].shape[1] % 5 == 2 && !artifact.dense.is_empty());
    artifact
}

fn forgery() -> Forgery {
    Forgery::of(&artifact())
}

#[test]
fn an_untouched_forgery_is_the_artifact() {
    assert_eq!(Artifact::from_bytes(&forgery().bytes()).unwrap(), artifact());
}

#[test]
fn codes_are_ternary_and_nothing_hides_beside_them() {
    for byte in 243..=255 {
        let mut forgery = forgery();
        forgery.blobs[0][0] = byte;
        refused(&forgery.bytes(), "has bytes that are no ternary codes");
    }
    // The last byte of a row of 12 holds two codes; the other three digits are padding.
    let mut forgery = forgery();
    forgery.blobs[0][2] = 9 + forgery.blobs[0][2] % 9;
    refused(&forgery.bytes(), "has bytes that are no ternary codes");
}

#[test]
fn scales_are_positive_numbers() {
    for scale in [f16::NAN, f16::INFINITY, f16::NEG_INFINITY, f16::ZERO, f16::NEG_ZERO, f16::NEG_ONE] {
        let mut forgery = forgery();
        forgery.blobs[1][..2].copy_from_slice(&scale.to_le_bytes());
        refused(&forgery.bytes(), "has a scale that is not a positive number");
    }
}

#[test]
fn dense_values_are_finite() {
    for bits in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::from_bits(0x7f80_0001)].map(f32::to_le_bytes) {
        let mut forgery = forgery();
        forgery.blobs.last_mut().unwrap()[..4].copy_from_slice(&bits);
        refused(&forgery.bytes(), "has a value that is not finite");
    }
    let mut half = artifact();
    let values = half.dense[0].data.to_f32();
    half.dense[0].data = DenseData::F16(values.iter().map(|&x| f16::from_f32(x)).collect());
    half.dense[1].data = DenseData::Bf16(half.dense[1].data.to_f32().into_iter().map(bf16::from_f32).collect());
    for (index, bits) in [f16::NAN.to_le_bytes(), bf16::INFINITY.to_le_bytes()].into_iter().enumerate() {
        let mut forgery = Forgery::of(&half);
        forgery.blobs[2 * half.ternary.len() + index][..2].copy_from_slice(&bits);
        refused(&forgery.bytes(), "has a value that is not finite");
    }
}

#[test]
fn every_byte_is_accounted_for() {
    let whole = forgery().bytes();
    let header_end = PREFIX_BYTES + forgery().header.len();
    let first = header_end.next_multiple_of(ALIGNMENT);
    assert!(header_end < first, "there is a gap to fill");
    let codes_end = first + forgery().blobs[0].len();
    assert!(!codes_end.is_multiple_of(ALIGNMENT));
    for gap in [header_end, first - 1, codes_end] {
        let mut bytes = whole.clone();
        bytes[gap] = 1;
        seal(&mut bytes);
        refused(&bytes, "there is something between its tensors");
    }
    for more in [1, ALIGNMENT, 5000] {
        let mut bytes = whole.clone();
        bytes.resize(whole.len() + more, 0);
        seal(&mut bytes);
        refused(&bytes, "bytes long; its header says");
    }
    for blob in 0..forgery().blobs.len() {
        let mut forgery = forgery();
        forgery.blobs[blob].extend([0; ALIGNMENT]);
        refused(&forgery.bytes(), "bytes long; its header says");
    }
    let mut unsealed = whole.clone();
    *unsealed.last_mut().unwrap() ^= 1;
    refused(&unsealed, "its checksum is wrong");
    refused(&whole[..whole.len() - DIGEST_BYTES], "bytes long; its header says");
    refused(&whole[..10], "it is cut off");
}

#[test]
fn tensors_are_those_of_the_model() {
    let artifact = artifact();
    let side = |name: &str| {
        let tensor = format!("\"dense\":[{{\"name\":{name:?},\"shape\":[8,12],\"dtype\":\"f32\"}},");
        let mut forgery = forgery().edit("\"dense\":[", &tensor);
        forgery.blobs.insert(2 * artifact.ternary.len(), vec![0; 4 * 8 * 12]);
        forgery.bytes()
    };
    // A parent's weights beside the ternary ones, under a name of their own, under theirs, and as a bias.
    refused(&side("model.layers.0.self_attn.q_proj.full"), "q_proj.full is not one of the model");
    refused(&side("model.layers.0.self_attn.q_proj.weight"), "q_proj.weight is there twice");
    refused(&side("model.layers.0.self_attn.q_proj.bias"), "q_proj.bias is not one of the model");

    let first = &artifact.ternary[0];
    let [rows, columns] = first.shape;
    let shape = format!("\"shape\":[{rows},{columns}]");
    for other in [[columns, rows], [rows, columns + 1], [0, columns], [usize::MAX, columns], [1 << 63, 2]] {
        let [rows, columns] = other;
        refused(&forgery().edit(&shape, &format!("\"shape\":[{rows},{columns}]")).bytes(), "; the configuration says");
    }
    let grouping = serde_json::to_string(&first.grouping).unwrap();
    let grouping = format!("\"grouping\":{grouping}");
    for width in ["0", "7", "18446744073709551615"] {
        refused(&forgery().edit(&grouping, &format!("\"grouping\":{width}")).bytes(), "do not divide rows");
    }
    let gone = &artifact.dense[0];
    let header = format!("{{\"name\":{:?},\"shape\":{:?},\"dtype\":\"f32\"}},", gone.name, gone.shape);
    let mut missing = forgery().edit(&header.replace(", ", ","), "");
    missing.blobs.remove(2 * artifact.ternary.len());
    refused(&missing.bytes(), &format!("tensor {} is missing", gone.name));
}

#[test]
fn a_header_says_what_it_must_and_no_more() {
    let unknown = forgery().edit("\"activation_bits\"", "\"parent\":[1.5,2.5],\"activation_bits\"");
    refused(&unknown.bytes(), "unknown field `parent`");
    let unknown = forgery().edit("\"grouping\"", "\"bias\":0,\"grouping\"");
    refused(&unknown.bytes(), "unknown field `bias`");
    let unknown = forgery().edit("\"rope_theta\"", "\"softcap\":1,\"rope_theta\"");
    refused(&unknown.bytes(), "unknown field `softcap`");
    refused(&forgery().edit("\"f32\"", "\"f64\"").bytes(), "unknown variant `f64`");
    for deep in ["[", "{\"a\":"] {
        let deep = format!("\"provenance\":{}", deep.repeat(100_000));
        refused(&forgery().edit("\"provenance\":", &deep).bytes(), "header: ");
    }
    let deep = format!("\"grouping\":{}", "[".repeat(100_000));
    refused(&forgery().edit("\"grouping\":", &deep).bytes(), "recursion limit exceeded");
    // The same in other words.
    for (from, to) in [
        ("\"activation_bits\":", "\"activation_bits\": "),
        ("\"rope_theta\":10000.0", "\"rope_theta\":1e4"),
        ("\"provenance\":{", "\"provenance\":{\"commit\":\"hidden\","),
        ("\"commit\"", "\"c\\u006fmmit\""),
        ("{\"config\"", "\n{\"config\""),
        ("\"vocab_size\":7,\"hidden_size\":12", "\"hidden_size\":12,\"vocab_size\":7"),
    ] {
        refused(&forgery().edit(from, to).bytes(), "not written as an artifact's is");
    }
    refused(&forgery().edit("89abcdef\"", "89abcdeF\"").bytes(), "base_sha256 is not 64 hex digits in lower case");
}

#[test]
fn the_beginning_is_an_artifacts() {
    let whole = forgery().bytes();
    let with = |at: usize, bytes: &[u8]| {
        let mut changed = whole.clone();
        changed[at..at + bytes.len()].copy_from_slice(bytes);
        seal(&mut changed);
        changed
    };
    refused(&with(0, b"GGUF"), "it does not begin with the magic number");
    refused(&with(8, &1u32.to_le_bytes()), "version 1; this program reads 2");
    refused(&with(12, &(whole.len() as u32).to_le_bytes()), "bytes does not fit in it");
    // A header as long as a gigabyte of provenance needs is not even read.
    let mut long = forgery();
    long.header.extend(std::iter::repeat_n(' ', 3 << 20));
    refused(&long.bytes(), "bytes does not fit in it");
}

#[test]
fn a_message_quotes_no_control_characters_and_no_book() {
    let hostile = "\\u001b]0;gone\\u0007\\u001b[2J\\u202e".to_owned() + &"IGNORE ALL ".repeat(1000);
    for forgery in [
        forgery().edit("\"dense\":[{\"name\":\"", &format!("\"dense\":[{{\"name\":\"{hostile}")),
        forgery().edit("\"activation_bits\"", &format!("\"{hostile}\":1,\"activation_bits\"")),
        forgery().edit("\"f32\"", &format!("\"{hostile}\"")),
        forgery().edit("\"provenance\":{", &format!("\"provenance\":\"{hostile}\"")),
    ] {
        let message = Artifact::from_bytes(&forgery.bytes()).unwrap_err().to_string();
        assert!(message.chars().count() < 1000 && !message.contains(|c: char| c.is_control()), "{message:?}");
        assert!(!message.contains('\u{202e}'), "{message:?}");
    }
}

#[test]
fn a_header_cannot_ask_for_memory() {
    let huge = 1u64 << 20;
    let header = |layers: u64, size: u64, tensors: &str| {
        format!(
            concat!(
                r#"{{"config":{{"architecture":"llama","vocab_size":{size},"hidden_size":{size},"#,
                r#""intermediate_size":{size},"num_hidden_layers":{layers},"num_attention_heads":1,"#,
                r#""num_key_value_heads":1,"head_dim":2,"rope_theta":10000.0,"rms_norm_eps":1e-5,"#,
                r#""tie_word_embeddings":true,"max_position_embeddings":8}},"activation_bits":16,"ternary":[],"#,
                r#""dense":[{tensors}],"from_base":[],"base_sha256":null,"provenance":{{}}}}"#
            ),
            size = size,
            layers = layers,
            tensors = tensors
        )
    };
    let message = |header: String| {
        let forgery = Forgery { header, blobs: vec![vec![0; 64]] };
        Artifact::from_bytes(&forgery.bytes()).unwrap_err().to_string()
    };
    let huge_layers = message(header(u64::MAX, 8, ""));
    assert!(huge_layers.contains("num_hidden_layers is 18446744073709551615"), "{huge_layers}");
    let layers = message(header(1000, 8, ""));
    assert!(layers.contains("is missing: it has 0 tensors; the configuration has 9002"), "{layers}");
    let config: ModelConfig = serde_json::from_value(
        serde_json::from_str::<serde_json::Value>(&header(1, huge, "")).unwrap()["config"].clone(),
    )
    .unwrap();
    let tensors: Vec<String> = config
        .tensors()
        .iter()
        .map(|(name, shape)| {
            let shape = serde_json::to_string(shape).unwrap();
            format!(r#"{{"name":"{name}","shape":{shape},"dtype":"f32"}}"#)
        })
        .collect();
    let terabytes = message(header(1, huge, &tensors.join(",")));
    assert!(terabytes.contains("bytes long; its header says 1759"), "{terabytes}");
}

/// A file of 40 GB that takes no room on disk, a pipe that never ends, a folder, a device.
#[test]
#[cfg(unix)]
fn what_is_no_file_of_that_length_is_refused_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a");
    let file = std::fs::File::create(&path).unwrap();
    file.set_len(40 << 30).unwrap();
    let message = Artifact::read(&path).unwrap_err().to_string();
    assert!(message.contains("magic number"), "{message}");
    let valid = forgery().bytes();
    std::os::unix::fs::FileExt::write_all_at(&file, &valid, 0).unwrap();
    let message = Artifact::read(&path).unwrap_err().to_string();
    assert!(message.contains(&format!("it is {} bytes long; its header says {}", 40u64 << 30, valid.len())));

    let pipe = folder.path().join("pipe");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    for path in [&pipe, folder.path(), std::path::Path::new("/dev/zero")] {
        let error = Artifact::read(path).unwrap_err();
        assert!(matches!(error, ArtifactError::Malformed { .. }), "{error}");
        assert!(error.to_string().contains("not a regular file"), "{error}");
    }
}
