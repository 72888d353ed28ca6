//! Artifact files taken apart, and put together again with every length, gap and checksum right: what code that knows
//! the format would hand over.

use formats::artifact::{Artifact, TernaryTensor};
use sha2::{Digest, Sha256};

/// Bytes before the header.
pub const PREFIX_BYTES: usize = 16;
/// Where a blob may begin.
pub const ALIGNMENT: usize = 64;
/// Bytes of the checksum at the end.
pub const DIGEST_BYTES: usize = 32;

/// The parts of a file that are free.
pub struct Forgery {
    pub header: String,
    /// Of each ternary tensor its codes and its scales, then the dense tensors.
    pub blobs: Vec<Vec<u8>>,
}

impl Forgery {
    /// Of an artifact that is valid, or only ends up so.
    pub fn of(artifact: &Artifact) -> Self {
        let bytes = artifact.to_bytes().expect("a valid artifact");
        let length = u32::from_le_bytes(bytes[12..PREFIX_BYTES].try_into().expect("four bytes")) as usize;
        let mut position = PREFIX_BYTES + length;
        let header = String::from_utf8(bytes[PREFIX_BYTES..position].to_vec()).expect("JSON");
        let codes_and_scales = |t: &TernaryTensor| [t.stored_bytes() - 2 * t.scales.len(), 2 * t.scales.len()];
        let sizes = artifact.ternary.iter().flat_map(codes_and_scales);
        let sizes = sizes.chain(artifact.dense.iter().map(|t| t.data.stored_bytes()));
        let blobs = sizes.map(|size| {
            let begin = position.next_multiple_of(ALIGNMENT);
            position = begin + size;
            bytes[begin..position].to_vec()
        });
        Self { header, blobs: blobs.collect() }
    }

    /// Replaces a part of the header, which must be there.
    pub fn edit(mut self, from: &str, to: &str) -> Self {
        assert!(self.header.contains(from), "{} has no {from}", self.header);
        self.header = self.header.replacen(from, to, 1);
        self
    }

    /// The file.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = b"TERNART\0\x02\0\0\0".to_vec();
        bytes.extend((self.header.len() as u32).to_le_bytes());
        bytes.extend(self.header.as_bytes());
        for blob in &self.blobs {
            bytes.resize(bytes.len().next_multiple_of(ALIGNMENT), 0);
            bytes.extend(blob);
        }
        bytes.resize(bytes.len() + DIGEST_BYTES, 0);
        seal(&mut bytes);
        bytes
    }
}

/// Makes the last bytes the checksum of those before.
pub fn seal(bytes: &mut [u8]) {
    if let Some((content, digest)) = bytes.split_last_chunk_mut::<DIGEST_BYTES>() {
        digest.copy_from_slice(&Sha256::digest(content));
    }
}
