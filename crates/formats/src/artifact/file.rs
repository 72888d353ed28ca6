//! The artifact file.
//!
//! ```text
//! 0   8  magic "TERNART\0"
//! 8   4  version, little endian
//! 12  4  length of the header
//! 16     header: JSON, names and shapes of the tensors in the order of their blobs
//!        blobs, each at a multiple of 64: a ternary tensor's packed codes, its f16 scales; then the dense tensors
//! end 32 sha256 of everything before
//! ```
//!
//! An artifact has exactly one encoding, and the reader accepts no other: not a byte of the file is free to carry
//! something else. Sizes follow from the header's shapes and must add up to the file's length before anything is
//! allocated: the file comes from code that nobody has read.

mod read;
mod write;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::ser::{Formatter, Serializer};
use sha2::{Digest, Sha256};

use crate::artifact::{
    Artifact, ArtifactError, DenseData, DenseTensor, Grouping, Layout, ModelConfig, TernaryTensor, check_layout, trits,
};

const MAGIC: [u8; 8] = *b"TERNART\0";
/// 2: the header's bytes are fixed, too.
const VERSION: u32 = 2;
const ALIGNMENT: usize = 64;
const DIGEST_BYTES: usize = 32;
const PREFIX_BYTES: usize = 16;
/// Longest header; the largest model that is accepted, of 1024 blocks, takes about 1.2 MB. Parsed, a hostile one takes
/// some thirty times its length.
const MAX_HEADER_BYTES: usize = 2 << 20;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    config: ModelConfig,
    activation_bits: u32,
    ternary: Vec<TernaryHeader>,
    dense: Vec<DenseHeader>,
    from_base: Vec<String>,
    base_sha256: Option<String>,
    provenance: BTreeMap<String, String>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct TernaryHeader {
    name: String,
    shape: [usize; 2],
    grouping: Grouping,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct DenseHeader {
    name: String,
    shape: Vec<usize>,
    dtype: Dtype,
}

#[derive(Serialize, Deserialize, Clone, Copy)]
#[serde(rename_all = "lowercase")]
enum Dtype {
    F32,
    F16,
    Bf16,
}

impl Header {
    fn of(artifact: &Artifact) -> Self {
        let ternary = |t: &TernaryTensor| TernaryHeader { name: t.name.clone(), shape: t.shape, grouping: t.grouping };
        let dense = |t: &DenseTensor| DenseHeader {
            name: t.name.clone(),
            shape: t.shape.clone(),
            dtype: match t.data {
                DenseData::F32(_) => Dtype::F32,
                DenseData::F16(_) => Dtype::F16,
                DenseData::Bf16(_) => Dtype::Bf16,
            },
        };
        Self {
            config: artifact.config.clone(),
            activation_bits: artifact.activation_bits,
            ternary: artifact.ternary.iter().map(ternary).collect(),
            dense: artifact.dense.iter().map(dense).collect(),
            from_base: artifact.from_base.clone(),
            base_sha256: artifact.base_sha256.clone(),
            provenance: artifact.provenance.clone(),
        }
    }

    /// Its one spelling.
    fn encode(&self) -> serde_json::Result<Vec<u8>> {
        let mut json = Vec::new();
        self.serialize(&mut Serializer::with_formatter(&mut json, Spelling))?;
        Ok(json)
    }

    fn check(&self) -> Result<(), ArtifactError> {
        let ternary: Vec<_> = self.ternary.iter().map(|t| (t.name.as_str(), t.shape, t.grouping)).collect();
        let dense: Vec<_> = self.dense.iter().map(|t| (t.name.as_str(), t.shape.as_slice())).collect();
        check_layout(&Layout {
            config: &self.config,
            activation_bits: self.activation_bits,
            ternary: &ternary,
            dense: &dense,
            from_base: &self.from_base,
            base_sha256: self.base_sha256.as_deref(),
        })
    }

    /// Length that a file with these tensors and a header of `header_bytes` has; `None` when it overflows.
    fn file_bytes(&self, header_bytes: usize) -> Option<u64> {
        let mut position = (PREFIX_BYTES + header_bytes) as u64;
        let mut blob = |bytes: Option<usize>| -> Option<()> {
            position = position.checked_next_multiple_of(ALIGNMENT as u64)?;
            position = position.checked_add(bytes? as u64)?;
            Some(())
        };
        for t in &self.ternary {
            blob(t.shape[0].checked_mul(trits::row_bytes(t.shape[1])))?;
            blob(TernaryTensor::scale_count(t.shape, t.grouping).checked_mul(2))?;
        }
        for t in &self.dense {
            let width = if matches!(t.dtype, Dtype::F32) { 4 } else { 2 };
            blob(t.shape.iter().try_fold(width, |n: usize, &d| n.checked_mul(d)))?;
        }
        position.checked_add(DIGEST_BYTES as u64)
    }
}

/// JSON without spaces, and numbers as Rust writes them: serde_json's own spelling differs from version to version.
struct Spelling;

impl Formatter for Spelling {
    fn write_f64<W: ?Sized + Write>(&mut self, to: &mut W, value: f64) -> io::Result<()> {
        write!(to, "{value:?}")
    }
}

/// sha256 of a file, lower-case hex.
///
/// # Errors
/// When the file cannot be read.
pub fn sha256_file(path: &Path) -> Result<String, ArtifactError> {
    let io = |source| ArtifactError::Io { doing: "read", path: path.to_owned(), source };
    let mut file = File::open(path).map_err(io)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer).map_err(io)? {
            0 => return Ok(format!("{:x}", hash.finalize())),
            n => hash.update(&buffer[..n]),
        }
    }
}

// Blobs are little endian and are cast in place.
#[cfg(target_endian = "big")]
compile_error!("artifacts are read and written on little-endian machines only");
