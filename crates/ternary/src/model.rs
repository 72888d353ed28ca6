//! The decoder (Llama, Qwen3) with replaceable projections, and its weights.
//!
//! The blocks call their linear projections through the [`Linears`] trait, so a recipe puts quantized ones in their
//! place and the evaluator plain ones. What lies between the projections (norms, rotary embedding, attention, SwiGLU)
//! is here, once, and fast: [`ops`] runs fused kernels on the CPU and compositions of libtorch's operators elsewhere.
//! The loss over the vocabulary is [`crate::loss`].
//!
//! Nothing here waits for the device, apart from loading. Operators without an error path panic with libtorch's
//! message, out of memory included; a trainer that panics exits with an error, which is what a crash should do.

mod calibration;
mod decoder;
mod frozen;
mod linears;
mod native;
pub mod ops;
mod rope;
mod score;
mod weights;

pub use calibration::Calibration;
pub use decoder::{Decoder, Stream, Tapped, Taps};
pub use frozen::Frozen;
pub use linears::{Dense, Linears, SubLayerNorm};
pub use rope::Rope;
pub use score::{Score, score};
pub use weights::{ModelError, Weights};
