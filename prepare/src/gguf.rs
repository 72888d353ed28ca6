//! Reader of GGUF files (versions 2 and 3, little endian): metadata and tensor data, nothing executed or trusted.
//!
//! Every length in the file is checked against what is left of the file before anything is allocated for it.

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

use memmap2::Mmap;

use crate::dequant::GgmlType;

/// Why a GGUF file was refused.
#[derive(Debug, thiserror::Error)]
pub enum GgufError {
    /// The file could not be opened or mapped.
    #[error("cannot read {path}: {source}")]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file does not follow the format.
    #[error("not a valid GGUF file: {0}; fetch it again, or convert the model again")]
    Malformed(String),
    /// A metadata key that is needed is missing or has another type.
    #[error("the GGUF file has no `{0}`, or one of another type; convert the model again with a current converter")]
    Key(String),
    /// A tensor that is needed is missing.
    #[error("the GGUF file has no tensor `{0}`; only whole models can be loaded")]
    MissingTensor(String),
    /// A tensor has a type that is not decoded here.
    #[error(
        "tensor `{name}` has ggml type {kind}, which is not supported; use a file in F32, F16, BF16, Q8_0, Q4_0, Q4_1, \
         Q4_K or Q6_K"
    )]
    UnsupportedType {
        /// Tensor.
        name: String,
        /// ggml's number of the type, and its name where it is known.
        kind: String,
    },
}

/// A metadata value. Integers are widened; arrays hold scalars only.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Any integer type.
    Int(i128),
    /// f32 or f64.
    Float(f64),
    /// bool.
    Bool(bool),
    /// UTF-8 string.
    Text(String),
    /// Array of scalars of one type.
    Array(Vec<Value>),
}

/// Where a tensor's data is.
#[derive(Debug, Clone)]
pub struct TensorInfo {
    /// Row-major shape: `[rows, columns]`, the reverse of the order in the file.
    pub shape: Vec<usize>,
    /// ggml's number of the element type.
    pub type_id: u32,
    /// Start, from the beginning of the file.
    start: usize,
}

impl TensorInfo {
    /// Number of values.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Where the data lies in the file when its elements are of `kind`, whose blocks never span two rows; `None` when a
    /// row is no whole number of blocks or the sizes overflow.
    fn range(&self, kind: GgmlType) -> Option<Range<usize>> {
        kind.bytes(self.shape.last().copied().unwrap_or(1))?;
        Some(self.start..self.start.checked_add(kind.bytes(self.elements())?)?)
    }
}

/// An opened GGUF file. Tensor data stays in the file until it is asked for.
#[derive(Debug)]
pub struct Gguf {
    map: Mmap,
    metadata: BTreeMap<String, Value>,
    tensors: BTreeMap<String, TensorInfo>,
}

/// Dimensions a tensor may have (ggml's `GGML_MAX_DIMS`).
const MAX_DIMENSIONS: u32 = 4;

fn malformed(message: impl Into<String>) -> GgufError {
    GgufError::Malformed(message.into())
}

fn misfit(name: &str) -> GgufError {
    malformed(format!("tensor `{name}` does not fit into the file, or its rows are no whole blocks"))
}

impl Gguf {
    /// Opens a file, reads its metadata and checks that every tensor lies inside of it.
    ///
    /// # Errors
    /// When the file cannot be read or is malformed. Types that cannot be decoded are an error when they are used.
    pub fn open(path: &Path) -> Result<Self, GgufError> {
        let read = |source| GgufError::Read { path: path.to_owned(), source };
        let file = File::open(path).map_err(read)?;
        // SAFETY: the map is only read; cached files are written under another name and renamed, never changed.
        #[allow(unsafe_code)]
        let map = unsafe { Mmap::map(&file) }.map_err(read)?;
        let (metadata, tensors) = parse(&map)?;
        Ok(Self { map, metadata, tensors })
    }

    /// All metadata.
    pub fn metadata(&self) -> &BTreeMap<String, Value> {
        &self.metadata
    }

    /// All tensors by name.
    pub fn tensors(&self) -> &BTreeMap<String, TensorInfo> {
        &self.tensors
    }

    /// A string.
    ///
    /// # Errors
    /// When it is missing or something else.
    pub fn text(&self, key: &str) -> Result<&str, GgufError> {
        match self.metadata.get(key) {
            Some(Value::Text(text)) => Ok(text),
            _ => Err(GgufError::Key(key.into())),
        }
    }

    /// A non-negative integer; of an array whose elements are equal (per layer), that element.
    ///
    /// # Errors
    /// When it is missing or something else.
    pub fn integer(&self, key: &str) -> Result<usize, GgufError> {
        let value = match self.metadata.get(key) {
            Some(Value::Array(all)) if all.windows(2).all(|w| w[0] == w[1]) => all.first(),
            other => other,
        };
        match value {
            Some(Value::Int(n)) => usize::try_from(*n).map_err(|_| GgufError::Key(key.into())),
            _ => Err(GgufError::Key(key.into())),
        }
    }

    /// What `read` (one of the readers of a key) gives; `None` when the key is absent, an error when it is something else.
    ///
    /// # Errors
    /// When the key is there and `read` cannot use it.
    pub fn optional<'a, T>(
        &'a self,
        key: &str,
        read: impl FnOnce(&'a Self, &str) -> Result<T, GgufError>,
    ) -> Result<Option<T>, GgufError> {
        if self.metadata.contains_key(key) { read(self, key).map(Some) } else { Ok(None) }
    }

    /// A float.
    ///
    /// # Errors
    /// When it is missing or something else.
    pub fn float(&self, key: &str) -> Result<f64, GgufError> {
        match self.metadata.get(key) {
            Some(Value::Float(x)) => Ok(*x),
            Some(Value::Int(n)) => Ok(*n as f64),
            _ => Err(GgufError::Key(key.into())),
        }
    }

    /// A flag.
    ///
    /// # Errors
    /// When it is missing or something else.
    pub fn flag(&self, key: &str) -> Result<bool, GgufError> {
        match self.metadata.get(key) {
            Some(Value::Bool(flag)) => Ok(*flag),
            _ => Err(GgufError::Key(key.into())),
        }
    }

    /// An array.
    ///
    /// # Errors
    /// When it is missing or something else.
    pub fn array(&self, key: &str) -> Result<&[Value], GgufError> {
        match self.metadata.get(key) {
            Some(Value::Array(all)) => Ok(all),
            _ => Err(GgufError::Key(key.into())),
        }
    }

    /// A tensor's place.
    ///
    /// # Errors
    /// When there is none of this name.
    pub fn info(&self, name: &str) -> Result<&TensorInfo, GgufError> {
        self.tensors.get(name).ok_or_else(|| GgufError::MissingTensor(name.into()))
    }

    /// How a tensor's elements are encoded, and its bytes: whole blocks, row-major.
    ///
    /// # Errors
    /// When there is none of this name, or its type cannot be decoded.
    pub fn data(&self, name: &str) -> Result<(GgmlType, &[u8]), GgufError> {
        let info = self.info(name)?;
        let kind = GgmlType::from_id(info.type_id)
            .ok_or_else(|| GgufError::UnsupportedType { name: name.into(), kind: self.unsupported(info.type_id) })?;
        let data = info.range(kind).and_then(|range| self.map.get(range)).ok_or_else(|| misfit(name))?;
        Ok((kind, data))
    }

    /// What a type that is not decoded is called, its number first.
    fn unsupported(&self, id: u32) -> String {
        let name = match id {
            Q2_0 if self.tensors.values().any(|info| self.is_prism(info)) => PRISM_NAME,
            Q2_0 => "Q2_0: groups of 64 in llama.cpp, of 128 in PrismML's fork",
            142 => PRISM_NAME,
            other => match unsupported_name(other) {
                Some(name) => name,
                None => return id.to_string(),
            },
        };
        format!("{id} ({name})")
    }

    /// Whether a tensor's room in the file shows that its blocks are PrismML's [`Q2_0`]: llama.cpp's would not fit.
    fn is_prism(&self, info: &TensorInfo) -> bool {
        let next = self.tensors.values().map(|other| other.start).filter(|&start| start > info.start).min();
        let room = next.unwrap_or(self.map.len()) - info.start;
        let fits = |(elements, bytes): (usize, usize)| {
            let whole = info.shape.last().is_some_and(|row| row.is_multiple_of(elements));
            whole && (info.elements() / elements).checked_mul(bytes).is_some_and(|size| size <= room)
        };
        info.type_id == Q2_0 && fits(PRISM_BLOCK) && !fits(Q2_0_BLOCK)
    }

    /// A tensor's values, row-major.
    ///
    /// # Errors
    /// As [`Self::data`].
    pub fn values(&self, name: &str) -> Result<Vec<f32>, GgufError> {
        self.data(name).map(|(kind, data)| kind.dequantize(data))
    }
}

type Parsed = (BTreeMap<String, Value>, BTreeMap<String, TensorInfo>);

fn parse(bytes: &[u8]) -> Result<Parsed, GgufError> {
    let mut cursor = Cursor { bytes, at: 0 };
    if cursor.take(4)? != b"GGUF" {
        return Err(malformed("it does not start with GGUF"));
    }
    let version = cursor.u32()?;
    if !(2..=3).contains(&version) {
        return Err(malformed(format!("version {version} is not 2 or 3")));
    }
    let tensor_count = cursor.u64()?;
    let key_count = cursor.u64()?;

    let mut metadata = BTreeMap::new();
    for _ in 0..key_count {
        let key = cursor.text()?;
        let kind = cursor.u32()?;
        let value = cursor.value(kind, true)?;
        if metadata.insert(key.clone(), value).is_some() {
            return Err(malformed(format!("key `{key}` is there twice")));
        }
    }

    let mut tensors = BTreeMap::new();
    for _ in 0..tensor_count {
        let name = cursor.text()?;
        let dimensions = cursor.u32()?;
        if dimensions > MAX_DIMENSIONS {
            return Err(malformed(format!("tensor `{name}` has {dimensions} dimensions")));
        }
        let mut shape = Vec::new();
        for _ in 0..dimensions {
            shape.push(cursor.size()?);
        }
        shape.reverse();
        if shape.iter().try_fold(1usize, |product, &n| product.checked_mul(n)).is_none() {
            return Err(malformed(format!("the shape of tensor `{name}` overflows")));
        }
        let type_id = cursor.u32()?;
        let start = cursor.size()?;
        if tensors.insert(name.clone(), TensorInfo { shape, type_id, start }).is_some() {
            return Err(malformed(format!("tensor `{name}` is there twice")));
        }
    }

    let alignment = match metadata.get("general.alignment") {
        None => 32,
        Some(Value::Int(n)) if (1..=65536).contains(n) => *n as usize,
        Some(_) => return Err(malformed("general.alignment is no sensible number")),
    };
    let data = cursor.at.next_multiple_of(alignment);
    for (name, info) in &mut tensors {
        if !info.start.is_multiple_of(alignment) {
            return Err(malformed(format!(
                "the offset of tensor `{name}`, {}, is no multiple of the alignment, {alignment}",
                info.start
            )));
        }
        info.start = info
            .start
            .checked_add(data)
            .ok_or_else(|| malformed(format!("the offset of tensor `{name}` overflows")))?;
        let fits = match GgmlType::from_id(info.type_id) {
            Some(kind) => info.range(kind).is_some_and(|range| range.end <= bytes.len()),
            None => info.start <= bytes.len(),
        };
        if !fits {
            return Err(misfit(name));
        }
    }
    check_apart(&tensors)?;
    Ok((metadata, tensors))
}

/// Refuses tensors that share bytes. Of a type that is not decoded here the size is unknown, so only its first byte is
/// taken to be its own.
fn check_apart(tensors: &BTreeMap<String, TensorInfo>) -> Result<(), GgufError> {
    let place = |(name, info): (&'_ String, &TensorInfo)| {
        let end = GgmlType::from_id(info.type_id).and_then(|kind| info.range(kind)).map(|range| range.end);
        let least = info.start + usize::from(info.elements() > 0);
        (info.start, end.unwrap_or(least), name.clone())
    };
    // Tensors without elements lie nowhere.
    let mut places: Vec<_> = tensors.iter().map(place).filter(|(start, end, _)| end > start).collect();
    places.sort_unstable();
    for pair in places.windows(2) {
        if pair[1].0 < pair[0].1 {
            return Err(malformed(format!("tensors `{}` and `{}` overlap", pair[0].2, pair[1].2)));
        }
    }
    Ok(())
}

/// ggml's number of llama.cpp's Q2_0: groups of 64 weights in 18 bytes.
const Q2_0: u32 = 42;
/// `(elements, bytes)` of a block of [`Q2_0`] in llama.cpp.
const Q2_0_BLOCK: (usize, usize) = (64, 18);
/// The same in files of PrismML's fork, which took the number first.
const PRISM_BLOCK: (usize, usize) = (128, 34);

const PRISM_NAME: &str = "PrismML's Q2_0, groups of 128, which is not the Q2_0 of llama.cpp";

/// Names of types that are known and not decoded: llama.cpp's, then one of PrismML's fork.
fn unsupported_name(id: u32) -> Option<&'static str> {
    Some(match id {
        6 => "Q5_0",
        7 => "Q5_1",
        10 => "Q2_K",
        11 => "Q3_K",
        13 => "Q5_K",
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        20 => "IQ4_NL",
        21 => "IQ3_S",
        22 => "IQ2_S",
        23 => "IQ4_XS",
        28 => "F64",
        29 => "IQ1_M",
        34 => "TQ1_0",
        35 => "TQ2_0",
        39 => "MXFP4",
        40 => "NVFP4",
        41 => "Q1_0",
        143 => "PrismML's PTQ1_0, groups of 128",
        _ => return None,
    })
}

struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], GgufError> {
        let end = self.at.checked_add(count).filter(|&end| end <= self.bytes.len());
        let end = end.ok_or_else(|| malformed("it ends too early"))?;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    fn fixed<const N: usize>(&mut self) -> Result<[u8; N], GgufError> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N)?);
        Ok(out)
    }

    fn u32(&mut self) -> Result<u32, GgufError> {
        Ok(u32::from_le_bytes(self.fixed()?))
    }

    fn u64(&mut self) -> Result<u64, GgufError> {
        Ok(u64::from_le_bytes(self.fixed()?))
    }

    fn size(&mut self) -> Result<usize, GgufError> {
        usize::try_from(self.u64()?).map_err(|_| malformed("a size does not fit this machine"))
    }

    fn text(&mut self) -> Result<String, GgufError> {
        let length = self.size()?;
        let bytes = self.take(length)?;
        String::from_utf8(bytes.to_vec()).map_err(|_| malformed("a string is not UTF-8"))
    }

    fn value(&mut self, kind: u32, arrays: bool) -> Result<Value, GgufError> {
        Ok(match kind {
            0 => Value::Int(self.fixed::<1>()?[0].into()),
            1 => Value::Int(i8::from_le_bytes(self.fixed()?).into()),
            2 => Value::Int(u16::from_le_bytes(self.fixed()?).into()),
            3 => Value::Int(i16::from_le_bytes(self.fixed()?).into()),
            4 => Value::Int(self.u32()?.into()),
            5 => Value::Int(i32::from_le_bytes(self.fixed()?).into()),
            6 => Value::Float(f32::from_le_bytes(self.fixed()?).into()),
            7 => Value::Bool(self.fixed::<1>()?[0] != 0),
            8 => Value::Text(self.text()?),
            9 if arrays => {
                let kind = self.u32()?;
                let length = self.size()?;
                // The smallest element is a byte, so a longer array cannot be in the file.
                if length > self.bytes.len() - self.at {
                    return Err(malformed("an array is longer than the file"));
                }
                let mut all = Vec::new();
                for _ in 0..length {
                    all.push(self.value(kind, false)?);
                }
                Value::Array(all)
            }
            10 => Value::Int(self.u64()?.into()),
            11 => Value::Int(i64::from_le_bytes(self.fixed()?).into()),
            12 => Value::Float(f64::from_le_bytes(self.fixed()?)),
            other => return Err(malformed(format!("metadata of type {other}"))),
        })
    }
}
