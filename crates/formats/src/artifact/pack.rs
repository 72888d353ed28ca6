//! Byte layouts of ternary and binary weights in inference engines, packed and unpacked exactly.
//!
//! Layouts of ggml (llama.cpp `0c1e57098`), of PrismML's fork (`Q2_0` with 128 weights) and of bitnet.cpp
//! (`microsoft/BitNet@16da220`). Packing keeps codes and scales as they are and never quantizes: a tensor whose groups a
//! layout cannot express is refused. Containers such as GGUF are not here.

mod blocks;
mod i2s;

use half::f16;

use crate::artifact::{Grouping, TernaryTensor};

/// A byte layout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// ggml `TQ1_0` (type 34): 256 weights in 54 bytes, five codes a byte.
    Tq1_0,
    /// ggml `TQ2_0` (type 35): 256 weights in 66 bytes.
    Tq2_0,
    /// ggml `Q2_0` (type 42): 64 weights in 18 bytes.
    Q2_0,
    /// PrismML's `Q2_0_g128` (type 142, formerly 42): 128 weights in 34 bytes.
    Q2_0G128,
    /// ggml `Q1_0` (type 41): 128 weights of ±1 in 18 bytes.
    Q1_0,
    /// bitnet.cpp `I2_S` on x86: 128 weights in 32 bytes, one f32 scale for the tensor at the end.
    I2sX86,
    /// bitnet.cpp `I2_S` on ARM: 64 weights in 16 bytes, one f32 scale for the tensor at the end.
    I2sArm,
}

/// What was unpacked.
#[derive(Debug, Clone, PartialEq)]
pub struct Unpacked {
    /// −1, 0 or 1; row-major.
    pub codes: Vec<i8>,
    /// One scale for every [`Layout::block_weights`] codes; for `I2_S` a single one.
    pub scales: Vec<f32>,
}

/// Why bytes and weights do not fit each other.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PackError {
    /// Rows are not a whole number of blocks.
    #[error("rows of {columns} weights do not divide into blocks of {block} ({layout:?})")]
    Row {
        /// The layout.
        layout: Layout,
        /// Weights in a row.
        columns: usize,
        /// Weights in a block.
        block: usize,
    },
    /// A block would need two scales, or a tensor more than one.
    #[error("{layout:?} cannot hold scales by {grouping}; it has one per {unit}")]
    Grouping {
        /// The layout.
        layout: Layout,
        /// How the tensor shares scales.
        grouping: Grouping,
        /// What shares a scale in the layout.
        unit: String,
    },
    /// A code that the layout cannot hold.
    #[error("{layout:?} cannot hold the code {code}")]
    Code {
        /// The layout.
        layout: Layout,
        /// The code.
        code: i8,
    },
    /// Codes or scales are missing, or there are too many.
    #[error("{layout:?}: {given} {what}, {wanted} are needed")]
    Length {
        /// The layout.
        layout: Layout,
        /// Of what.
        what: &'static str,
        /// How many there are.
        given: usize,
        /// How many there should be.
        wanted: usize,
    },
}

impl Layout {
    /// All layouts.
    pub const ALL: [Self; 7] =
        [Self::Tq1_0, Self::Tq2_0, Self::Q2_0, Self::Q2_0G128, Self::Q1_0, Self::I2sX86, Self::I2sArm];

    /// Consecutive weights of a row that are packed together.
    pub fn block_weights(self) -> usize {
        match self {
            Self::Tq1_0 | Self::Tq2_0 => 256,
            Self::Q2_0 | Self::I2sArm => 64,
            Self::Q2_0G128 | Self::Q1_0 | Self::I2sX86 => 128,
        }
    }

    /// Bytes of a block, its scale included where it has one of its own.
    pub fn block_bytes(self) -> usize {
        match self {
            Self::Tq1_0 => 54,
            Self::Tq2_0 => 66,
            Self::Q2_0 | Self::Q1_0 => 18,
            Self::Q2_0G128 => 34,
            Self::I2sX86 => 32,
            Self::I2sArm => 16,
        }
    }

    /// Whether the tensor has a single scale, stored behind its blocks.
    fn scale_per_tensor(self) -> bool {
        matches!(self, Self::I2sX86 | Self::I2sArm)
    }

    /// Bytes of a packed tensor of `[out, in]`.
    ///
    /// # Errors
    /// When its rows do not divide into blocks.
    pub fn packed_bytes(self, shape: [usize; 2]) -> Result<usize, PackError> {
        let block = self.block_weights();
        if !shape[1].is_multiple_of(block) {
            return Err(PackError::Row { layout: self, columns: shape[1], block });
        }
        let tail = if self.scale_per_tensor() { i2s::TAIL_BYTES } else { 0 };
        Ok(shape[0] * (shape[1] / block) * self.block_bytes() + tail)
    }

    /// Packs a tensor, rows one after the other. Blocks inside one group share its scale.
    ///
    /// # Errors
    /// When the layout cannot hold the tensor exactly: rows that are no whole number of blocks, groups that end inside
    /// a block, more than one scale for `I2_S`, zeros for `Q1_0`.
    pub fn pack(self, tensor: &TernaryTensor) -> Result<Vec<u8>, PackError> {
        let TernaryTensor { shape, grouping, codes, scales, .. } = tensor;
        let mut out = vec![0; self.packed_bytes(*shape)?];
        let length = |what, given, wanted| {
            if given == wanted {
                return Ok(());
            }
            Err(PackError::Length { layout: self, what, given, wanted })
        };
        length("codes", codes.len(), shape[0] * shape[1])?;
        length("scales", scales.len(), TernaryTensor::scale_count(*shape, *grouping))?;
        let binary = self == Self::Q1_0;
        let held = |code: i8| (-1..=1).contains(&code) & !(binary & (code == 0));
        if !codes.iter().fold(true, |ok, &code| ok & held(code)) {
            let code = codes.iter().copied().find(|&code| !held(code)).unwrap_or_default();
            return Err(PackError::Code { layout: self, code });
        }
        let refuse = |unit: String| Err(PackError::Grouping { layout: self, grouping: *grouping, unit });
        if self.scale_per_tensor() {
            let &[scale] = scales.as_slice() else {
                return refuse("tensor".into());
            };
            i2s::pack(self, codes, scale.to_f32(), &mut out);
            return Ok(out);
        }
        let block = self.block_weights();
        let run = match grouping {
            Grouping::Tensor => codes.len(),
            Grouping::Row => shape[1],
            Grouping::Group(width) if width.is_multiple_of(block) => *width,
            Grouping::Group(_) => return refuse(format!("{block} weights")),
        };
        let blocks = codes.chunks(block).zip(out.chunks_mut(self.block_bytes()));
        for (index, (codes, out)) in blocks.enumerate() {
            blocks::pack(self, codes, scales[index * block / run], out);
        }
        Ok(out)
    }

    /// Unpacks a tensor of `[out, in]`.
    ///
    /// # Errors
    /// When the length is wrong or a code is not ternary (`Q2_0` can hold +2).
    pub fn unpack(self, bytes: &[u8], shape: [usize; 2]) -> Result<Unpacked, PackError> {
        let wanted = self.packed_bytes(shape)?;
        if bytes.len() != wanted {
            let given = bytes.len();
            return Err(PackError::Length { layout: self, what: "bytes", given, wanted });
        }
        let mut codes = vec![0; shape[0] * shape[1]];
        let scales = if self.scale_per_tensor() {
            vec![i2s::unpack(self, bytes, &mut codes)]
        } else {
            let blocks = bytes.chunks(self.block_bytes()).zip(codes.chunks_mut(self.block_weights()));
            blocks.map(|(bytes, codes)| blocks::unpack(self, bytes, codes).to_f32()).collect()
        };
        if let Some(&code) = codes.iter().find(|&&code| code > 1) {
            return Err(PackError::Code { layout: self, code });
        }
        Ok(Unpacked { codes, scales })
    }
}

/// Quantizes a row to one bit a weight the way ggml does for `Q1_0`: the scale is the mean magnitude of 128 weights, the
/// code +1 where the weight is not negative. Returns codes and a scale for every 128 weights.
///
/// # Errors
/// When the length is no multiple of 128.
pub fn quantize_q1_0(weights: &[f32]) -> Result<(Vec<i8>, Vec<f16>), PackError> {
    let (layout, block) = (Layout::Q1_0, Layout::Q1_0.block_weights());
    if !weights.len().is_multiple_of(block) {
        return Err(PackError::Row { layout, columns: weights.len(), block });
    }
    let codes = weights.iter().map(|&w| if w >= 0.0 { 1 } else { -1 }).collect();
    let mean = |w: &[f32]| f16::from_f32(w.iter().map(|w| w.abs()).sum::<f32>() / block as f32);
    Ok((codes, weights.chunks(block).map(mean).collect()))
}

#[cfg(test)]
mod tests;
