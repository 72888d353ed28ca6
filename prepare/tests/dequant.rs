//! Each block format against values that the gguf Python package (0.17.1, `gguf.quants.dequantize`) gave for random
//! blocks (seed 7), and against a second decoder written element by element.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use half::f16;
use prepare::dequant::GgmlType;

const GOLDEN: &str = include_str!("golden/dequant.json");

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap()).collect()
}

fn golden(name: &str) -> (Vec<u8>, Vec<f32>) {
    let all: serde_json::Value = serde_json::from_str(GOLDEN).unwrap();
    let bytes = unhex(all[name]["bytes"].as_str().unwrap());
    let values = unhex(all[name]["values_f32_le"].as_str().unwrap());
    (bytes, values.chunks_exact(4).map(|c| f32::from_le_bytes(c.try_into().unwrap())).collect())
}

#[test]
fn every_format_equals_the_python_package() {
    for (name, kind) in [
        ("F16", GgmlType::F16),
        ("BF16", GgmlType::Bf16),
        ("Q4_0", GgmlType::Q4_0),
        ("Q4_1", GgmlType::Q4_1),
        ("Q8_0", GgmlType::Q8_0),
        ("Q4_K", GgmlType::Q4_K),
        ("Q6_K", GgmlType::Q6_K),
    ] {
        let (bytes, expected) = golden(name);
        assert_eq!(kind.bytes(expected.len()), Some(bytes.len()), "{name}");
        let got = kind.dequantize(&bytes);
        assert_eq!(got.len(), expected.len());
        for (i, (a, b)) in got.iter().zip(&expected).enumerate() {
            assert!((a - b).abs() <= 1e-6 * b.abs().max(1e-3), "{name}[{i}]: {a} instead of {b}");
        }
    }
    let one = GgmlType::F32.dequantize(&1.5f32.to_le_bytes());
    assert_eq!(one, [1.5]);
}

/// Element `i` of a Q4_K super-block, straight from the format's description.
fn q4_k_element(block: &[u8], i: usize) -> f32 {
    let half = |at: usize| f16::from_le_bytes([block[at], block[at + 1]]).to_f32();
    let sub = i / 32;
    let packed = &block[4..16];
    let (scale, min) = match sub {
        0..4 => (packed[sub] % 64, packed[sub + 4] % 64),
        _ => (packed[sub + 4] % 16 + 16 * (packed[sub - 4] / 64), packed[sub + 4] / 16 + 16 * (packed[sub] / 64)),
    };
    let byte = block[16 + 32 * (sub / 2) + i % 32];
    let q = if sub.is_multiple_of(2) { byte % 16 } else { byte / 16 };
    half(0) * f32::from(scale) * f32::from(q) - half(2) * f32::from(min)
}

#[test]
fn q4_k_equals_the_slow_way() {
    let (bytes, _) = golden("Q4_K");
    let got = GgmlType::Q4_K.dequantize(&bytes);
    for (i, value) in got.iter().enumerate() {
        let expected = q4_k_element(&bytes[144 * (i / 256)..][..144], i % 256);
        assert!((value - expected).abs() <= 1e-5 * expected.abs().max(1e-2), "{i}");
    }
}

#[test]
fn partial_blocks_have_no_size() {
    assert_eq!(GgmlType::Q4_1.bytes(33), None);
    assert_eq!(GgmlType::Q4_1.bytes(64), Some(40));
    assert_eq!(GgmlType::Q6_K.bytes(usize::MAX), None);
}
