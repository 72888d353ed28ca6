//! Against bytes that the engines' own code made, and back.
#![allow(clippy::unwrap_used)]

use half::f16;

use super::{Layout, PackError, quantize_q1_0};
use crate::artifact::{Grouping, TernaryTensor};

const SCALE: f16 = f16::from_bits(0x2400);

const GOLDEN: [(Layout, &str); 6] = [
    (
        Layout::Tq1_0,
        "3b76a73b76a73b76b162f6b162f6b1621327e21327e213273b76a73b76a73b763b27f63b27f63b271362a71362a7136233826f330024",
    ),
    (
        Layout::Tq2_0,
        "084569084569084582519a82519a82512014a62014a62014084569084569084582519a82519a82512014a62014a6201408456908456908\
         4582519a82519a82510024",
    ),
    (
        Layout::Q2_0,
        "00241445a66920081445a66920081445a669002420081445a66920081445a669200814450024a66920081445a66920081445a669200800\
         241445a66920081445a66920081445a669",
    ),
    (
        Layout::Q2_0G128,
        "00241445a66920081445a66920081445a66920081445a66920081445a669200814450024a66920081445a66920081445a66920081445a6\
         6920081445a66920081445a669",
    ),
    (
        Layout::I2sX86,
        "20516920516920518245a68245a6824508149a08149a081420516920516920518245a68245a6824508149a08149a081420516920516920\
         518245a68245a682450000803c00000000000000000000000000000000000000000000000000000000",
    ),
    (
        Layout::I2sArm,
        "084569084569084582519a82519a82512014a62014a62014084569084569084582519a82519a82512014a62014a6201408456908456908\
         4582519a82519a82510000803c00000000000000000000000000000000000000000000000000000000",
    ),
];
const GOLDEN_Q1_0: &str = "3021b6ff24b6ff24b6ff24b6ff24b6ff24b65021ff24b6ff24b6ff24b6ff24b6ff24b6ff";

fn codes() -> Vec<i8> {
    (0..256i32).map(|i| ((i * i * 7 + i * 3 + (i >> 3)) % 3) as i8 - 1).collect()
}

fn tensor(shape: [usize; 2], grouping: Grouping, codes: Vec<i8>, scales: Vec<f16>) -> TernaryTensor {
    TernaryTensor { name: "w".into(), shape, grouping, codes, scales }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn packs_and_unpacks_the_engines_bytes() {
    for (layout, golden) in GOLDEN {
        let tensor = tensor([1, 256], Grouping::Tensor, codes(), vec![SCALE]);
        let packed = layout.pack(&tensor).unwrap();
        assert_eq!(hex(&packed), golden, "{layout:?}");
        let unpacked = layout.unpack(&packed, tensor.shape).unwrap();
        assert_eq!(unpacked.codes, tensor.codes, "{layout:?}");
        assert!(unpacked.scales.iter().all(|&scale| scale == SCALE.to_f32()), "{layout:?}");
    }
}

#[test]
fn one_bit_quantizer_makes_the_engines_bytes() {
    let weights: Vec<f32> = codes().iter().map(|&t| f32::from(t) * SCALE.to_f32()).collect();
    let (codes, scales) = quantize_q1_0(&weights).unwrap();
    let tensor = tensor([1, 256], Grouping::Group(128), codes, scales);
    let packed = Layout::Q1_0.pack(&tensor).unwrap();
    assert_eq!(hex(&packed), GOLDEN_Q1_0);
    let unpacked = Layout::Q1_0.unpack(&packed, tensor.shape).unwrap();
    assert_eq!(unpacked.codes, tensor.codes);
    assert_eq!(unpacked.scales, tensor.scales.iter().map(|s| s.to_f32()).collect::<Vec<_>>());
}

#[test]
fn zero_blocks_are_ggmls() {
    let zeros = tensor([1, 256], Grouping::Tensor, vec![0; 256], vec![f16::ZERO]);
    let pack = |layout: Layout| layout.pack(&zeros).unwrap();
    assert_eq!(hex(&pack(Layout::Tq1_0)), format!("{}7f7f7f7f0000", "80".repeat(48)));
    assert_eq!(hex(&pack(Layout::Tq2_0)), format!("{}0000", "55".repeat(64)));
    assert_eq!(hex(&pack(Layout::Q2_0)), format!("0000{}", "55".repeat(16)).repeat(4));
}

#[test]
fn every_scale_reaches_its_own_block() {
    let codes: Vec<i8> = codes().into_iter().cycle().take(2 * 512).collect();
    let scale = |i: usize| f16::from_f32(i as f32 + 1.0);
    let cases = [
        (Grouping::Tensor, 1, [1.0, 1.0, 1.0, 1.0]),
        (Grouping::Row, 2, [1.0, 1.0, 2.0, 2.0]),
        (Grouping::Group(256), 4, [1.0, 2.0, 3.0, 4.0]),
    ];
    for (grouping, count, wanted) in cases {
        let scales = (0..count).map(scale).collect();
        let tensor = tensor([2, 512], grouping, codes.clone(), scales);
        for layout in [Layout::Tq1_0, Layout::Tq2_0, Layout::Q2_0, Layout::Q2_0G128] {
            let unpacked = layout.unpack(&layout.pack(&tensor).unwrap(), [2, 512]).unwrap();
            assert_eq!(unpacked.codes, codes);
            let per_256 = 256 / layout.block_weights();
            let wanted: Vec<f32> = wanted.iter().flat_map(|&s| std::iter::repeat_n(s, per_256)).collect();
            assert_eq!(unpacked.scales, wanted, "{layout:?} {grouping:?}");
        }
    }
}

#[test]
fn refuses_what_a_layout_cannot_hold() {
    let smollm = tensor([1, 576], Grouping::Group(64), vec![1; 576], vec![SCALE; 9]);
    assert!(Layout::Q2_0.pack(&smollm).is_ok());
    assert_eq!(
        Layout::Tq2_0.pack(&smollm).unwrap_err().to_string(),
        "rows of 576 weights do not divide into blocks of 256 (Tq2_0)"
    );
    let groups = tensor([1, 256], Grouping::Group(64), vec![1; 256], vec![SCALE; 4]);
    assert_eq!(
        Layout::Q2_0G128.pack(&groups).unwrap_err().to_string(),
        "Q2_0G128 cannot hold scales by 64; it has one per 128 weights"
    );
    assert!(matches!(Layout::I2sX86.pack(&groups), Err(PackError::Grouping { .. })));
    let zero = tensor([1, 128], Grouping::Tensor, vec![0; 128], vec![SCALE]);
    assert!(matches!(Layout::Q1_0.pack(&zero), Err(PackError::Code { code: 0, .. })));
    let plus_two = [[0, 0x24].as_slice(), &[0xff; 16]].concat();
    assert!(matches!(Layout::Q2_0.unpack(&plus_two, [1, 64]), Err(PackError::Code { code: 2, .. })));
    assert!(matches!(Layout::Q2_0.unpack(&plus_two, [2, 64]), Err(PackError::Length { .. })));
}
