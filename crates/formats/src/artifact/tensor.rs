//! Tensors of an artifact: ternary ones as codes and scales, the rest in floating point.

use half::{bf16, f16};

use crate::artifact::{ArtifactError, Grouping, trits};

/// A quantized matrix: weight = code × scale of its group.
#[derive(Debug, Clone, PartialEq)]
pub struct TernaryTensor {
    /// Hugging Face's tensor name.
    pub name: String,
    /// `[out, in]`.
    pub shape: [usize; 2],
    /// Which weights share a scale.
    pub grouping: Grouping,
    /// −1, 0 or 1; row-major, `out × in`.
    pub codes: Vec<i8>,
    /// Above 0; row-major, `out × in/width`; a single one for [`Grouping::Tensor`].
    pub scales: Vec<f16>,
}

/// Values of a dense tensor.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub enum DenseData {
    F32(Vec<f32>),
    F16(Vec<f16>),
    Bf16(Vec<bf16>),
}

/// A tensor stored in floating point.
#[derive(Debug, Clone, PartialEq)]
pub struct DenseTensor {
    /// Hugging Face's tensor name.
    pub name: String,
    /// Shape.
    pub shape: Vec<usize>,
    /// Row-major values.
    pub data: DenseData,
}

impl TernaryTensor {
    /// Scales that `shape` and `grouping` call for.
    pub fn scale_count(shape: [usize; 2], grouping: Grouping) -> usize {
        match grouping {
            Grouping::Tensor => 1,
            Grouping::Row => shape[0],
            Grouping::Group(width) => shape[0] * (shape[1] / width.max(1)),
        }
    }

    /// The weights, row-major `out × in`: `code × scale` in f32.
    pub fn dequantize(&self) -> Vec<f32> {
        let run = match self.grouping {
            Grouping::Tensor => self.codes.len(),
            Grouping::Row | Grouping::Group(_) => self.grouping.width(self.shape[1]),
        };
        let mut weights = Vec::with_capacity(self.codes.len());
        for (codes, scale) in self.codes.chunks(run.max(1)).zip(&self.scales) {
            let scale = scale.to_f32();
            weights.extend(codes.iter().map(|&code| f32::from(code) * scale));
        }
        weights
    }

    /// Bytes that this tensor takes in the file: rows of packed codes, and scales.
    pub fn stored_bytes(&self) -> usize {
        self.shape[0] * trits::row_bytes(self.shape[1]) + 2 * self.scales.len()
    }

    /// How many codes are −1, 0 and +1.
    pub fn counts(&self) -> [usize; 3] {
        let (mut minus, mut plus) = (0, 0);
        // Byte counters over short runs: the compiler counts a whole vector register at a time.
        for run in self.codes.chunks(255) {
            minus += usize::from(run.iter().fold(0u8, |n, &code| n + u8::from(code == -1)));
            plus += usize::from(run.iter().fold(0u8, |n, &code| n + u8::from(code == 1)));
        }
        [minus, self.codes.len() - minus - plus, plus]
    }

    pub(crate) fn check(&self) -> Result<(), ArtifactError> {
        let invalid = |reason| Err(ArtifactError::Invalid { reason });
        let Self { name, shape, .. } = self;
        let wanted = shape[0] * shape[1];
        if self.codes.len() != wanted {
            return invalid(format!("{name} has {} codes; {shape:?} needs {wanted}", self.codes.len()));
        }
        let wanted = Self::scale_count(*shape, self.grouping);
        if self.scales.len() != wanted {
            return invalid(format!("{name} has {} scales; it needs {wanted}", self.scales.len()));
        }
        if !self.codes.iter().fold(true, |ok, &code| ok & (-1..=1).contains(&code)) {
            return invalid(format!("{name} has codes other than -1, 0 and 1"));
        }
        // A sign belongs to the codes, and a group of zeros says so in its codes: a weight is written in one way.
        if !self.scales.iter().all(|scale| scale.is_finite() && *scale > f16::ZERO) {
            return invalid(format!("{name} has a scale that is not a positive number"));
        }
        Ok(())
    }
}

impl DenseData {
    /// Number of values.
    pub fn len(&self) -> usize {
        match self {
            Self::F32(v) => v.len(),
            Self::F16(v) => v.len(),
            Self::Bf16(v) => v.len(),
        }
    }

    /// Whether there is no value.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The values in f32.
    pub fn to_f32(&self) -> Vec<f32> {
        match self {
            Self::F32(v) => v.clone(),
            Self::F16(v) => v.iter().map(|x| x.to_f32()).collect(),
            Self::Bf16(v) => v.iter().map(|x| x.to_f32()).collect(),
        }
    }

    /// Bytes in the file.
    pub fn stored_bytes(&self) -> usize {
        self.len() * if matches!(self, Self::F32(_)) { 4 } else { 2 }
    }

    fn finite(&self) -> bool {
        match self {
            Self::F32(v) => v.iter().fold(true, |ok, x| ok & x.is_finite()),
            Self::F16(v) => v.iter().fold(true, |ok, x| ok & x.is_finite()),
            Self::Bf16(v) => v.iter().fold(true, |ok, x| ok & x.is_finite()),
        }
    }
}

impl DenseTensor {
    pub(crate) fn check(&self) -> Result<(), ArtifactError> {
        let invalid = |reason| Err(ArtifactError::Invalid { reason });
        let Self { name, shape, data } = self;
        let wanted: usize = shape.iter().product();
        if data.len() != wanted {
            return invalid(format!("{name} has {} values; {shape:?} needs {wanted}", data.len()));
        }
        if !data.finite() {
            return invalid(format!("{name} has a value that is not finite"));
        }
        Ok(())
    }
}
