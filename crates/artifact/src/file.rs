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
//! Sizes follow from the header's shapes and must add up to the file's length before anything is allocated: the file
//! comes from code that nobody has read.

use std::fs::{self, File};
use std::io::{BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use bytemuck::Pod;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

use crate::{
    Artifact, ArtifactError, DenseData, DenseTensor, Grouping, Layout, ModelConfig, TernaryTensor, check_layout, trits,
};

const MAGIC: [u8; 8] = *b"TERNART\0";
const VERSION: u32 = 1;
const ALIGNMENT: usize = 64;
const DIGEST_BYTES: usize = 32;
const PREFIX_BYTES: usize = 16;
/// Longest header that is read; a model of 100 layers needs about 150 kB.
pub const MAX_HEADER_BYTES: usize = 16 << 20;

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

impl Artifact {
    /// Checks the artifact and writes it; a reader sees the whole file or none (temporary file, sync, rename).
    ///
    /// # Errors
    /// When the artifact is invalid or the file cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), ArtifactError> {
        self.validate()?;
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let temporary = folder.join(format!(".{name}.{}.tmp", std::process::id()));
        let done = self.write_file(&temporary).and_then(|()| fs::rename(&temporary, path)).and_then(
            // The rename itself must survive a power cut.
            |()| File::open(folder)?.sync_all(),
        );
        done.map_err(|source| {
            let _ = fs::remove_file(&temporary);
            ArtifactError::Io { doing: "write", path: path.to_owned(), source }
        })
    }

    fn write_file(&self, path: &Path) -> std::io::Result<()> {
        let header = serde_json::to_vec(&self.header())?;
        if header.len() > MAX_HEADER_BYTES {
            return Err(std::io::Error::other("the header is too long; shorten provenance"));
        }
        let mut out = HashingWriter {
            file: BufWriter::with_capacity(1 << 20, File::create(path)?),
            hash: Sha256::new(),
            position: 0,
        };
        out.put(&MAGIC)?;
        out.put(&VERSION.to_le_bytes())?;
        out.put(&(header.len() as u32).to_le_bytes())?;
        out.put(&header)?;
        let mut packed = Vec::new();
        for tensor in &self.ternary {
            let [rows, columns] = tensor.shape;
            let row_bytes = trits::row_bytes(columns);
            packed.clear();
            packed.resize(rows * row_bytes, 0);
            for (codes, out) in tensor.codes.chunks(columns).zip(packed.chunks_mut(row_bytes)) {
                trits::pack_row(codes, out);
            }
            out.blob(&packed)?;
            out.blob(bytemuck::cast_slice(&tensor.scales))?;
        }
        for tensor in &self.dense {
            match &tensor.data {
                DenseData::F32(v) => out.blob(bytemuck::cast_slice(v))?,
                DenseData::F16(v) => out.blob(bytemuck::cast_slice(v))?,
                DenseData::Bf16(v) => out.blob(bytemuck::cast_slice(v))?,
            }
        }
        let HashingWriter { mut file, hash, .. } = out;
        file.write_all(&hash.finalize())?;
        file.into_inner().map_err(|e| e.into_error())?.sync_all()
    }

    fn header(&self) -> Header {
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
        Header {
            config: self.config.clone(),
            activation_bits: self.activation_bits,
            ternary: self.ternary.iter().map(ternary).collect(),
            dense: self.dense.iter().map(dense).collect(),
            from_base: self.from_base.clone(),
            base_sha256: self.base_sha256.clone(),
            provenance: self.provenance.clone(),
        }
    }

    /// Reads and checks an artifact. What comes back has passed [`Artifact::validate`].
    ///
    /// # Errors
    /// [`ArtifactError::Malformed`] when it is no artifact, cut off or changed, [`ArtifactError::Invalid`] when its
    /// content contradicts its configuration. It never panics and allocates no more than the file's length justifies.
    pub fn read(path: &Path) -> Result<Self, ArtifactError> {
        Self::read_checked(path, None)
    }

    /// As [`Artifact::read`], and refuses any other model than `config` before it reads a weight, so that memory is
    /// bounded by the model that is expected.
    ///
    /// # Errors
    /// As [`Artifact::read`].
    pub fn read_expecting(path: &Path, config: &ModelConfig) -> Result<Self, ArtifactError> {
        Self::read_checked(path, Some(config))
    }

    fn read_checked(path: &Path, expected: Option<&ModelConfig>) -> Result<Self, ArtifactError> {
        let malformed = |reason: String| ArtifactError::Malformed { path: path.to_owned(), reason };
        let mut input = HashingReader::open(path)?;
        let mut prefix = [0; PREFIX_BYTES];
        input.take(&mut prefix)?;
        let (magic, rest) = prefix.split_at(8);
        let (version, header_bytes) = rest.split_at(4);
        if magic != MAGIC {
            return Err(malformed("it does not begin with the magic number".into()));
        }
        let number = |b: &[u8]| b.iter().rev().fold(0u32, |n, &byte| n << 8 | u32::from(byte));
        if number(version) != VERSION {
            let version = number(version);
            return Err(malformed(format!("version {version}; this program reads {VERSION}")));
        }
        let header_bytes = number(header_bytes) as usize;
        if header_bytes > MAX_HEADER_BYTES || header_bytes as u64 > input.left() {
            return Err(malformed(format!("a header of {header_bytes} bytes does not fit in it")));
        }
        let mut json = vec![0; header_bytes];
        input.take(&mut json)?;
        let header: Header = serde_json::from_slice(&json).map_err(|e| malformed(format!("header: {e}")))?;
        if let Some(expected) = expected
            && header.config != *expected
        {
            let reason = format!("it is another model: {:?} instead of {expected:?}", header.config);
            return Err(ArtifactError::Invalid { reason });
        }
        header.check()?;
        let (wanted, length) = (header.file_bytes(header_bytes), input.length);
        if wanted != Some(length) {
            let wanted = wanted.map_or("more than can be".into(), |n| n.to_string());
            let reason = format!("it is {length} bytes long; its header says {wanted}");
            return Err(malformed(reason));
        }

        let mut ternary = Vec::with_capacity(header.ternary.len());
        let mut packed = Vec::new();
        for TernaryHeader { name, shape, grouping } in header.ternary {
            let [rows, columns] = shape;
            let row_bytes = trits::row_bytes(columns);
            packed.resize(rows * row_bytes, 0);
            input.blob(&mut packed)?;
            let mut codes = Vec::with_capacity(rows * columns);
            let mut valid = true;
            for row in packed.chunks(row_bytes) {
                valid &= trits::unpack_row(row, columns, &mut codes);
            }
            if !valid {
                return Err(malformed(format!("{name} has bytes that are no ternary codes")));
            }
            let scales = input.values(TernaryTensor::scale_count(shape, grouping))?;
            ternary.push(TernaryTensor { name, shape, grouping, codes, scales });
        }
        let mut dense = Vec::with_capacity(header.dense.len());
        for DenseHeader { name, shape, dtype } in header.dense {
            let length = shape.iter().product();
            let data = match dtype {
                Dtype::F32 => DenseData::F32(input.values(length)?),
                Dtype::F16 => DenseData::F16(input.values(length)?),
                Dtype::Bf16 => DenseData::Bf16(input.values(length)?),
            };
            dense.push(DenseTensor { name, shape, data });
        }
        input.finish()?;
        let artifact = Self {
            config: header.config,
            activation_bits: header.activation_bits,
            ternary,
            dense,
            from_base: header.from_base,
            base_sha256: header.base_sha256,
            provenance: header.provenance,
        };
        artifact.validate()?;
        Ok(artifact)
    }
}

impl Header {
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

/// Writes and hashes; blobs are aligned.
struct HashingWriter {
    file: BufWriter<File>,
    hash: Sha256,
    position: usize,
}

impl HashingWriter {
    fn put(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.hash.update(bytes);
        self.position += bytes.len();
        self.file.write_all(bytes)
    }

    fn blob(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        let padding = self.position.next_multiple_of(ALIGNMENT) - self.position;
        self.put(&[0; ALIGNMENT][..padding])?;
        self.put(bytes)
    }
}

/// Reads and hashes; knows how much is left.
struct HashingReader {
    path: PathBuf,
    file: File,
    hash: Sha256,
    position: u64,
    length: u64,
}

impl HashingReader {
    fn open(path: &Path) -> Result<Self, ArtifactError> {
        let io = |source| ArtifactError::Io { doing: "read", path: path.to_owned(), source };
        let metadata = fs::metadata(path).map_err(io)?;
        if !metadata.is_file() {
            let reason = "it is not a regular file".into();
            return Err(ArtifactError::Malformed { path: path.to_owned(), reason });
        }
        let file = File::open(path).map_err(io)?;
        let length = metadata.len();
        Ok(Self { path: path.to_owned(), file, hash: Sha256::new(), position: 0, length })
    }

    fn left(&self) -> u64 {
        self.length - self.position
    }

    fn malformed(&self, reason: &str) -> ArtifactError {
        ArtifactError::Malformed { path: self.path.clone(), reason: reason.into() }
    }

    fn read(&mut self, out: &mut [u8]) -> Result<(), ArtifactError> {
        if out.len() as u64 > self.left() {
            return Err(self.malformed("it is cut off"));
        }
        self.file.read_exact(out).map_err(|source| match source.kind() {
            std::io::ErrorKind::UnexpectedEof => self.malformed("it became shorter while it was read"),
            _ => ArtifactError::Io { doing: "read", path: self.path.clone(), source },
        })?;
        self.position += out.len() as u64;
        Ok(())
    }

    fn take(&mut self, out: &mut [u8]) -> Result<(), ArtifactError> {
        self.read(out)?;
        self.hash.update(out);
        Ok(())
    }

    fn blob(&mut self, out: &mut [u8]) -> Result<(), ArtifactError> {
        let padding = self.position.next_multiple_of(ALIGNMENT as u64) - self.position;
        let mut zeros = [0; ALIGNMENT];
        self.take(&mut zeros[..padding as usize])?;
        if zeros.iter().any(|&byte| byte != 0) {
            return Err(self.malformed("there is something between its tensors"));
        }
        self.take(out)
    }

    fn values<T: Pod>(&mut self, length: usize) -> Result<Vec<T>, ArtifactError> {
        let mut values = vec![T::zeroed(); length];
        self.blob(bytemuck::cast_slice_mut(&mut values))?;
        Ok(values)
    }

    fn finish(mut self) -> Result<(), ArtifactError> {
        let mut digest = [0; DIGEST_BYTES];
        self.read(&mut digest)?;
        if self.hash.clone().finalize().as_slice() != digest {
            return Err(self.malformed("its checksum is wrong; it was changed after it was written"));
        }
        Ok(())
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
