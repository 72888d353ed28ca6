//! The block formats of GGUF tensors, decoded to f32.
//!
//! Layouts as in ggml's `ggml-quants.c` (`dequantize_row_*`). Only decoding, and only the formats listed in
//! [`GgmlType`].

use half::{bf16, f16};

/// Element type of a GGUF tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(non_camel_case_types)]
pub enum GgmlType {
    /// 32-bit float.
    F32,
    /// 16-bit float.
    F16,
    /// bfloat16.
    Bf16,
    /// 4 bits, blocks of 32: `d * (q - 8)`.
    Q4_0,
    /// 4 bits, blocks of 32: `d * q + m`.
    Q4_1,
    /// 8 bits, blocks of 32: `d * q`.
    Q8_0,
    /// 4 bits, super-blocks of 256 with eight 6-bit scales and minima.
    Q4_K,
    /// 6 bits, super-blocks of 256 with sixteen 8-bit scales.
    Q6_K,
}

impl GgmlType {
    /// The type with this number in a GGUF file, if it can be decoded here.
    pub fn from_id(id: u32) -> Option<Self> {
        Some(match id {
            0 => Self::F32,
            1 => Self::F16,
            2 => Self::Q4_0,
            3 => Self::Q4_1,
            8 => Self::Q8_0,
            12 => Self::Q4_K,
            14 => Self::Q6_K,
            30 => Self::Bf16,
            _ => return None,
        })
    }

    /// `(elements, bytes)` of one block.
    pub fn block(self) -> (usize, usize) {
        match self {
            Self::F32 => (1, 4),
            Self::F16 | Self::Bf16 => (1, 2),
            Self::Q4_0 => (32, 2 + 16),
            Self::Q4_1 => (32, 2 + 2 + 16),
            Self::Q8_0 => (32, 2 + 32),
            Self::Q4_K => (256, 2 + 2 + 12 + 128),
            Self::Q6_K => (256, 128 + 64 + 16 + 2),
        }
    }

    /// Bytes of `elements` values, or `None` when they are no whole number of blocks or the size overflows.
    pub fn bytes(self, elements: usize) -> Option<usize> {
        let (per_block, bytes) = self.block();
        if !elements.is_multiple_of(per_block) {
            return None;
        }
        (elements / per_block).checked_mul(bytes)
    }

    /// Decodes whole blocks.
    ///
    /// # Panics
    /// When `data` is no whole number of blocks; sizes are checked when the file is opened ([`Self::bytes`]).
    pub fn dequantize(self, data: &[u8]) -> Vec<f32> {
        let (elements, bytes) = self.block();
        assert!(data.len().is_multiple_of(bytes), "partial {self:?} block");
        let mut out = Vec::with_capacity(data.len() / bytes * elements);
        for block in data.chunks_exact(bytes) {
            match self {
                Self::F32 => out.push(f32::from_le_bytes([block[0], block[1], block[2], block[3]])),
                Self::F16 => out.push(half_at(block, 0)),
                Self::Bf16 => out.push(bf16::from_le_bytes([block[0], block[1]]).to_f32()),
                Self::Q4_0 => q4_0(block, &mut out),
                Self::Q4_1 => q4_1(block, &mut out),
                Self::Q8_0 => q8_0(block, &mut out),
                Self::Q4_K => q4_k(block, &mut out),
                Self::Q6_K => q6_k(block, &mut out),
            }
        }
        out
    }
}

fn half_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// Low nibbles are the first half of the block, high nibbles the second.
fn q4_0(block: &[u8], out: &mut Vec<f32>) {
    let d = half_at(block, 0);
    let q = &block[2..];
    out.extend(q.iter().map(|b| f32::from(i16::from(b & 15) - 8) * d));
    out.extend(q.iter().map(|b| f32::from(i16::from(b >> 4) - 8) * d));
}

fn q4_1(block: &[u8], out: &mut Vec<f32>) {
    let (d, m) = (half_at(block, 0), half_at(block, 2));
    let q = &block[4..];
    out.extend(q.iter().map(|b| f32::from(b & 15) * d + m));
    out.extend(q.iter().map(|b| f32::from(b >> 4) * d + m));
}

fn q8_0(block: &[u8], out: &mut Vec<f32>) {
    let d = half_at(block, 0);
    out.extend(block[2..].iter().map(|&b| f32::from(b as i8) * d));
}

/// Scale and minimum of sub-block `j`: six bits each, the upper four sub-blocks' split over two bytes.
fn q4_k_scale_min(scales: &[u8], j: usize) -> (f32, f32) {
    let (scale, min) = if j < 4 {
        (scales[j] & 63, scales[j + 4] & 63)
    } else {
        ((scales[j + 4] & 15) | ((scales[j - 4] >> 6) << 4), (scales[j + 4] >> 4) | ((scales[j] >> 6) << 4))
    };
    (f32::from(scale), f32::from(min))
}

fn q4_k(block: &[u8], out: &mut Vec<f32>) {
    let (d, dmin) = (half_at(block, 0), half_at(block, 2));
    let (scales, q) = (&block[4..16], &block[16..]);
    for (pair, q) in q.chunks_exact(32).enumerate() {
        for half in 0..2 {
            let (scale, min) = q4_k_scale_min(scales, 2 * pair + half);
            let (scale, min) = (d * scale, dmin * min);
            out.extend(q.iter().map(|b| scale * f32::from((b >> (4 * half)) & 15) - min));
        }
    }
}

fn q6_k(block: &[u8], out: &mut Vec<f32>) {
    let d = half_at(block, 208);
    for part in 0..2 {
        let low = &block[64 * part..64 * (part + 1)];
        let high = &block[128 + 32 * part..128 + 32 * (part + 1)];
        let scales = &block[192 + 8 * part..192 + 8 * (part + 1)];
        for quarter in 0..4 {
            for l in 0..32 {
                // Quarters 0 and 1 are the low nibbles of the 64 bytes, 2 and 3 the high ones.
                let nibble = (low[l + 32 * (quarter & 1)] >> (4 * (quarter >> 1))) & 15;
                let bits = (high[l] >> (2 * quarter)) & 3;
                let q = i16::from(nibble | (bits << 4)) - 32;
                let scale = scales[2 * quarter + l / 16] as i8;
                out.push(d * f32::from(scale) * f32::from(q));
            }
        }
    }
}
