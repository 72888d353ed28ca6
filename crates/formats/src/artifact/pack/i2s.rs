//! bitnet.cpp's `I2_S`: two bits a code in an order that depends on the processor, then one f32 scale.

use super::Layout;

/// Scale and 28 zero bytes.
pub(super) const TAIL_BYTES: usize = 32;

/// Weights in a block, and where code `n` of byte `p` lies: at `p + stride × n`, in bits `6 − 2n`.
fn stride(layout: Layout) -> usize {
    layout.block_weights() / 4
}

pub(super) fn pack(layout: Layout, codes: &[i8], scale: f32, out: &mut [u8]) {
    let stride = stride(layout);
    for (codes, out) in codes.chunks(4 * stride).zip(out.chunks_mut(stride)) {
        for (p, byte) in out.iter_mut().enumerate() {
            *byte = (0..4).fold(0, |b, n| b << 2 | (codes[p + stride * n] + 1) as u8);
        }
    }
    let tail = codes.len() / 4;
    out[tail..tail + 4].copy_from_slice(&scale.to_le_bytes());
}

pub(super) fn unpack(layout: Layout, bytes: &[u8], codes: &mut [i8]) -> f32 {
    let stride = stride(layout);
    let tail = codes.len() / 4;
    for (codes, bytes) in codes.chunks_mut(4 * stride).zip(bytes.chunks(stride)) {
        for (p, &byte) in bytes.iter().enumerate() {
            for n in 0..4 {
                codes[p + stride * n] = (byte >> (6 - 2 * n) & 3) as i8 - 1;
            }
        }
    }
    f32::from_le_bytes([bytes[tail], bytes[tail + 1], bytes[tail + 2], bytes[tail + 3]])
}
