//! Blocks that carry their own scale: ggml's `TQ1_0`, `TQ2_0`, `Q2_0`, `Q1_0` and PrismML's `Q2_0` of 128.

use half::f16;

use super::Layout;

/// `TQ1_0`'s bytes: first element, distance between the codes of a byte, number of bytes, codes in a byte.
const TQ1_0: [(usize, usize, usize, usize); 3] = [(0, 32, 32, 5), (160, 16, 16, 5), (240, 4, 4, 4)];

/// Packs one block; codes are ternary, or ±1 for `Q1_0`.
pub(super) fn pack(layout: Layout, codes: &[i8], scale: f16, out: &mut [u8]) {
    let digit = |index: usize| (codes[index] + 1) as u8;
    let d = scale.to_le_bytes();
    match layout {
        Layout::Tq1_0 => {
            let mut position = 0;
            for (first, distance, bytes, count) in TQ1_0 {
                for m in 0..bytes {
                    // The first code is the most significant digit of five; a missing fifth is 0.
                    let number = (0..5).fold(0u16, |number, n| {
                        let missing = n >= count;
                        let digit = if missing { 0 } else { digit(first + m + distance * n) };
                        3 * number + u16::from(digit)
                    });
                    out[position] = (number * 256).div_ceil(243) as u8;
                    position += 1;
                }
            }
            out[position..].copy_from_slice(&d);
        }
        Layout::Tq2_0 => {
            for (half, out) in out[..64].chunks_mut(32).enumerate() {
                for (m, byte) in out.iter_mut().enumerate() {
                    *byte = (0..4).fold(0, |b, n| b | digit(128 * half + m + 32 * n) << (2 * n));
                }
            }
            out[64..].copy_from_slice(&d);
        }
        Layout::Q2_0 | Layout::Q2_0G128 => {
            out[..2].copy_from_slice(&d);
            for (m, byte) in out[2..].iter_mut().enumerate() {
                *byte = (0..4).fold(0, |b, n| b | digit(4 * m + n) << (2 * n));
            }
        }
        Layout::Q1_0 => {
            out[..2].copy_from_slice(&d);
            for (byte, codes) in out[2..].iter_mut().zip(codes.chunks(8)) {
                *byte = codes.iter().rev().fold(0, |b, &code| b << 1 | u8::from(code > 0));
            }
        }
        Layout::I2sX86 | Layout::I2sArm => {}
    }
}

/// Unpacks one block and returns its scale. A code of `Q2_0` may come out as 2.
pub(super) fn unpack(layout: Layout, bytes: &[u8], codes: &mut [i8]) -> f16 {
    let scale = |at: usize| f16::from_le_bytes([bytes[at], bytes[at + 1]]);
    let two_bits = |byte: u8, n: usize| (byte >> (2 * n) & 3) as i8 - 1;
    match layout {
        Layout::Tq1_0 => {
            let mut position = 0;
            for (first, distance, count, digits) in TQ1_0 {
                for m in 0..count {
                    // Multiplying by 3ⁿ drops the leading digits out of the byte; times 3, the next one is on top.
                    let mut rest = bytes[position];
                    for n in 0..digits {
                        codes[first + m + distance * n] = ((u16::from(rest) * 3) >> 8) as i8 - 1;
                        rest = rest.wrapping_mul(3);
                    }
                    position += 1;
                }
            }
            scale(position)
        }
        Layout::Tq2_0 => {
            for (half, bytes) in bytes[..64].chunks(32).enumerate() {
                for (m, &byte) in bytes.iter().enumerate() {
                    for n in 0..4 {
                        codes[128 * half + m + 32 * n] = two_bits(byte, n);
                    }
                }
            }
            scale(64)
        }
        Layout::Q2_0 | Layout::Q2_0G128 => {
            for (codes, &byte) in codes.chunks_mut(4).zip(&bytes[2..]) {
                for (n, code) in codes.iter_mut().enumerate() {
                    *code = two_bits(byte, n);
                }
            }
            scale(0)
        }
        Layout::Q1_0 => {
            for (codes, &byte) in codes.chunks_mut(8).zip(&bytes[2..]) {
                for (n, code) in codes.iter_mut().enumerate() {
                    *code = 2 * (byte >> n & 1) as i8 - 1;
                }
            }
            scale(0)
        }
        Layout::I2sX86 | Layout::I2sArm => f16::ZERO,
    }
}
