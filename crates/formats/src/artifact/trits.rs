//! The artifact's own packing of codes: five a byte, each row on its own (1.6 bits a weight).
//!
//! A byte is the base-3 number of its five codes plus one, the first code least significant; the codes that are missing
//! at the end of a row count as −1 + 1 = 0. So every row has exactly one encoding.

/// Codes in a byte.
const PER_BYTE: usize = 5;
/// Bytes that are codes: 3⁵.
const STATES: usize = 243;

/// The five codes of each byte, padded to eight bytes so that a copy is one store.
static DECODE: [[i8; 8]; STATES] = decode_table();

const fn decode_table() -> [[i8; 8]; STATES] {
    let mut table = [[0i8; 8]; STATES];
    let mut byte = 0;
    while byte < STATES {
        let mut rest = byte;
        let mut i = 0;
        while i < PER_BYTE {
            table[byte][i] = (rest % 3) as i8 - 1;
            rest /= 3;
            i += 1;
        }
        byte += 1;
    }
    table
}

/// Bytes of a packed row.
pub(crate) fn row_bytes(columns: usize) -> usize {
    columns.div_ceil(PER_BYTE)
}

/// Packs one row; `codes` must be −1, 0 or 1 and `out` hold [`row_bytes`].
pub(crate) fn pack_row(codes: &[i8], out: &mut [u8]) {
    let digit = |code: i8| (code + 1) as u8;
    let (whole, rest) = codes.as_chunks::<PER_BYTE>();
    for (byte, c) in out.iter_mut().zip(whole) {
        let [a, b, c, d, e] = c.map(digit);
        *byte = a + 3 * b + 9 * c + 27 * d + 81 * e;
    }
    if !rest.is_empty() {
        out[whole.len()] = rest.iter().rev().fold(0, |byte, &code| 3 * byte + digit(code));
    }
}

/// Appends the codes of one packed row of `columns` to `codes`; false when a byte is none that [`pack_row`] writes.
#[must_use]
pub(crate) fn unpack_row(bytes: &[u8], columns: usize, codes: &mut Vec<i8>) -> bool {
    let whole = columns / PER_BYTE;
    let mut valid = true;
    for &byte in &bytes[..whole] {
        let index = usize::from(byte);
        valid &= index < STATES;
        codes.extend_from_slice(&DECODE[index.min(STATES - 1)][..PER_BYTE]);
    }
    let rest = columns % PER_BYTE;
    if rest > 0 {
        let index = usize::from(bytes[whole]);
        valid &= index < 3usize.pow(rest as u32);
        codes.extend_from_slice(&DECODE[index.min(STATES - 1)][..rest]);
    }
    valid
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_has_one_meaning() {
        for byte in 0..=255u8 {
            let mut codes = Vec::new();
            assert_eq!(unpack_row(&[byte], 5, &mut codes), byte < 243);
            if byte < 243 {
                let mut packed = [0];
                pack_row(&codes, &mut packed);
                assert_eq!(packed, [byte]);
            }
        }
    }

    #[test]
    fn padding_must_be_zero() {
        let mut packed = [0; 2];
        pack_row(&[-1, 0, 1, 1, 1, 0, 1], &mut packed);
        assert_eq!(packed, [3 + 2 * 9 + 2 * 27 + 2 * 81, 1 + 2 * 3]);
        assert!(unpack_row(&packed, 7, &mut Vec::new()));
        packed[1] += 9;
        assert!(!unpack_row(&packed, 7, &mut Vec::new()));
    }
}
