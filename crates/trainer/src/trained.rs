//! What a recipe hands over.

use formats::artifact::Grouping;
use tch::Tensor;
use ternary::quantize::Quantized;

/// One quantized matrix, as the recipe hands it over.
#[derive(Debug)]
pub struct TernaryMatrix {
    /// Hugging Face's tensor name.
    pub name: String,
    /// Which weights share a scale.
    pub grouping: Grouping,
    /// Codes and scales.
    pub quantized: Quantized,
    /// What the forward pass multiplies with at λ = 1 (out, in), f32 or bf16: the stored weights must equal it.
    pub weight: Tensor,
}

/// A model at hard ternary.
#[derive(Debug)]
pub struct Trained {
    /// Bits of the projections' inputs: 16, 8 or 4.
    pub activation_bits: u32,
    /// The quantized projections.
    pub ternary: Vec<TernaryMatrix>,
    /// Every other trained tensor by Hugging Face name. What is in neither is taken from the base model.
    pub dense: Vec<(String, Tensor)>,
}
