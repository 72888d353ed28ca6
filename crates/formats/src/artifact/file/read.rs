//! Reading an artifact as what it is: bytes from a stranger.

use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use bytemuck::Pod;
use sha2::{Digest, Sha256};

use super::{ALIGNMENT, DIGEST_BYTES, DenseHeader, Dtype, Header, MAGIC, PREFIX_BYTES, TernaryHeader};
use super::{MAX_HEADER_BYTES, VERSION};
use crate::artifact::error::shown;
use crate::artifact::{Artifact, ArtifactError, DenseData, DenseTensor, ModelConfig, TernaryTensor, trits};

impl Artifact {
    /// Reads and checks an artifact. What comes back has passed [`Artifact::validate`].
    ///
    /// # Errors
    /// [`ArtifactError::Malformed`] when it is no artifact, cut off or changed, [`ArtifactError::Invalid`] when its
    /// content contradicts its configuration. It never panics and allocates no more than the file's length justifies.
    pub fn read(path: &Path) -> Result<Self, ArtifactError> {
        decode(HashingReader::open(path)?, None)
    }

    /// As [`Artifact::read`], and refuses any other model than `config` before it reads a weight, so that memory is
    /// bounded by the model that is expected.
    ///
    /// # Errors
    /// As [`Artifact::read`].
    pub fn read_expecting(path: &Path, config: &ModelConfig) -> Result<Self, ArtifactError> {
        decode(HashingReader::open(path)?, Some(config))
    }

    /// As [`Artifact::read`], of a file's bytes.
    ///
    /// # Errors
    /// As [`Artifact::read`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, ArtifactError> {
        decode(HashingReader::new("memory".into(), bytes, bytes.len() as u64), None)
    }
}

fn decode<R: Read>(mut input: HashingReader<R>, expected: Option<&ModelConfig>) -> Result<Artifact, ArtifactError> {
    let header = read_header(&mut input, expected)?;
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
            return Err(input.malformed(format!("{name} has bytes that are no ternary codes")));
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
    let artifact = Artifact {
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

/// Everything up to the first blob. What comes back agrees with its configuration and with the file's length.
fn read_header<R: Read>(input: &mut HashingReader<R>, expected: Option<&ModelConfig>) -> Result<Header, ArtifactError> {
    let mut prefix = [0; PREFIX_BYTES];
    input.take(&mut prefix)?;
    let (magic, rest) = prefix.split_at(8);
    let (version, header_bytes) = rest.split_at(4);
    if magic != MAGIC {
        return Err(input.malformed("it does not begin with the magic number"));
    }
    let number = |b: &[u8]| b.iter().rev().fold(0u32, |n, &byte| n << 8 | u32::from(byte));
    if number(version) != VERSION {
        let version = number(version);
        return Err(input.malformed(format!("version {version}; this program reads {VERSION}")));
    }
    let header_bytes = number(header_bytes) as usize;
    if header_bytes > MAX_HEADER_BYTES || header_bytes as u64 > input.left() {
        return Err(input.malformed(format!("a header of {header_bytes} bytes does not fit in it")));
    }
    let mut json = vec![0; header_bytes];
    input.take(&mut json)?;
    // A message of the parser may quote what it read.
    let header: Header =
        serde_json::from_slice(&json).map_err(|e| input.malformed(format!("header: {}", shown(&e.to_string()))))?;
    if let Some(expected) = expected
        && header.config != *expected
    {
        let reason = format!("it is another model: {:?} instead of {expected:?}", header.config);
        return Err(ArtifactError::Invalid { reason });
    }
    header.check()?;
    // Spaces, a key given twice or a number written in another way would be room for what is not counted.
    if header.encode().ok().as_ref() != Some(&json) {
        return Err(input.malformed("its header is not written as an artifact's is, to the byte"));
    }
    let (wanted, length) = (header.file_bytes(header_bytes), input.length);
    if wanted != Some(length) {
        let wanted = wanted.map_or("more than can be".into(), |n| n.to_string());
        return Err(input.malformed(format!("it is {length} bytes long; its header says {wanted}")));
    }
    Ok(header)
}

/// Reads and hashes; knows how much is left.
struct HashingReader<R> {
    /// For messages.
    path: PathBuf,
    from: R,
    hash: Sha256,
    position: u64,
    length: u64,
}

impl HashingReader<File> {
    fn open(path: &Path) -> Result<Self, ArtifactError> {
        let io = |source| ArtifactError::Io { doing: "read", path: path.to_owned(), source };
        // Before it is opened: a pipe would be waited on for ever.
        if !fs::metadata(path).map_err(io)?.is_file() {
            let reason = "it is not a regular file".into();
            return Err(ArtifactError::Malformed { path: path.to_owned(), reason });
        }
        let file = File::open(path).map_err(io)?;
        let length = file.metadata().map_err(io)?.len();
        Ok(Self::new(path.to_owned(), file, length))
    }
}

impl<R: Read> HashingReader<R> {
    fn new(path: PathBuf, from: R, length: u64) -> Self {
        Self { path, from, hash: Sha256::new(), position: 0, length }
    }

    fn left(&self) -> u64 {
        self.length - self.position
    }

    fn malformed(&self, reason: impl Into<String>) -> ArtifactError {
        ArtifactError::Malformed { path: self.path.clone(), reason: reason.into() }
    }

    fn read(&mut self, out: &mut [u8]) -> Result<(), ArtifactError> {
        if out.len() as u64 > self.left() {
            return Err(self.malformed("it is cut off"));
        }
        self.from.read_exact(out).map_err(|source| match source.kind() {
            ErrorKind::UnexpectedEof => self.malformed("it became shorter while it was read"),
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
