//! Writing an artifact.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::Path;

use sha2::{Digest, Sha256};

use super::{ALIGNMENT, Header, MAGIC, MAX_HEADER_BYTES, VERSION};
use crate::artifact::{Artifact, ArtifactError, DenseData, trits};

impl Artifact {
    /// Checks the artifact and writes it; a reader sees the whole file or none (temporary file, sync, rename).
    ///
    /// # Errors
    /// When the artifact is invalid or the file cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), ArtifactError> {
        let header = self.encode_header()?;
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let temporary = folder.join(format!(".{name}.{}.tmp", std::process::id()));
        let written = || -> io::Result<()> {
            let file = BufWriter::with_capacity(1 << 20, File::create(&temporary)?);
            let file = self.encode(&header, file)?;
            file.into_inner().map_err(|e| e.into_error())?.sync_all()?;
            fs::rename(&temporary, path)?;
            // The rename itself must survive a power cut.
            File::open(folder)?.sync_all()
        };
        written().map_err(|source| {
            let _ = fs::remove_file(&temporary);
            ArtifactError::Io { doing: "write", path: path.to_owned(), source }
        })
    }

    /// The bytes of the file that [`Artifact::write`] writes.
    ///
    /// # Errors
    /// When the artifact is invalid.
    pub fn to_bytes(&self) -> Result<Vec<u8>, ArtifactError> {
        let header = self.encode_header()?;
        self.encode(&header, Vec::new()).map_err(|source| ArtifactError::Io {
            doing: "write",
            path: "memory".into(),
            source,
        })
    }

    fn encode_header(&self) -> Result<Vec<u8>, ArtifactError> {
        self.validate()?;
        let invalid = |reason: String| ArtifactError::Invalid { reason };
        let header = Header::of(self).encode().map_err(|e| invalid(e.to_string()))?;
        if header.len() > MAX_HEADER_BYTES {
            return Err(invalid(format!("its header has more than {MAX_HEADER_BYTES} bytes; shorten provenance")));
        }
        Ok(header)
    }

    fn encode<W: Write>(&self, header: &[u8], to: W) -> io::Result<W> {
        let mut out = HashingWriter { to, hash: Sha256::new(), position: 0 };
        out.put(&MAGIC)?;
        out.put(&VERSION.to_le_bytes())?;
        out.put(&(header.len() as u32).to_le_bytes())?;
        out.put(header)?;
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
        let HashingWriter { mut to, hash, .. } = out;
        to.write_all(&hash.finalize())?;
        Ok(to)
    }
}

/// Writes and hashes; blobs are aligned.
struct HashingWriter<W> {
    to: W,
    hash: Sha256,
    position: usize,
}

impl<W: Write> HashingWriter<W> {
    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.hash.update(bytes);
        self.position += bytes.len();
        self.to.write_all(bytes)
    }

    fn blob(&mut self, bytes: &[u8]) -> io::Result<()> {
        let padding = self.position.next_multiple_of(ALIGNMENT) - self.position;
        self.put(&[0; ALIGNMENT][..padding])?;
        self.put(bytes)
    }
}
