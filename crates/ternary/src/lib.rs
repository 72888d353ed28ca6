//! The tested parts that a training recipe is put together from: ternary quantizers, straight-through weights,
//! activation quantization, schedules, fused AdamW, losses over a large vocabulary, and the decoder that they are used
//! in. It knows no data and no command line.
//!
//! # A step
//!
//! Let `w` be a master weight in f32, `Q(w)` its ternary form and λ the blend. A step
//!
//! 1. calls [`weight::TernaryWeight::refresh`], which writes `w + λ·(Q(w) − w)` in the compute kind (bf16 or f32)
//!    into a *leaf*: each weight is quantized once a step, however often the model uses it;
//! 2. runs the model on the leaves, takes [`loss::objective`] of its hidden states and calls its `backward`;
//! 3. maps each leaf's gradient to gradients of the master and of a learned scale
//!    ([`weight::TernaryWeight::gradients`]), by the rule of its [`weight::Estimator`];
//! 4. hands them to [`optim::AdamW::step`], which clips by the global norm without waiting for the device.
//!
//! At λ = 1 the leaf is exactly what [`weight::TernaryWeight::export`] gives out: integer codes times scales in f16.
//!
//! # Methods by name
//!
//! | method | what a recipe calls | an export |
//! |---|---|---|
//! | BitNet b1.58, arXiv 2402.17764, and λ of the Hugging Face blog "Fine-tuning LLMs to 1.58bit" | [`quantize::Scale::AbsMean`], [`schedule::Lambda`], [`activation::fake_quantize`] | is exact, but not with [`activation::Per::Channel`] |
//! | Ternary Weight Networks, arXiv 1605.04711 | [`quantize::Scale::Twn`]; [`quantize::Scale::Mse`] is Lloyd's alternation from there | is exact |
//! | LSQ, arXiv 1902.08153, with three levels | [`weight::Estimator::LearnedScale`] | is exact |
//! | ParetoQ, arXiv 2502.02631, with three levels and with one bit | [`weight::Estimator::Stretched`], [`weight::Estimator::Binary`] | is exact |
//! | ParetoQ with two, three and four bits | [`grid::Grid::StretchedTwoBit`], [`grid::Grid::Lsq`] | is refused |
//! | EfficientQAT, arXiv 2407.11062, on three levels | [`weight::Estimator::EfficientQat`], then [`learned::FixedCodes`] | is exact |
//! | EfficientQAT with zero points | [`grid::Grid::Affine`] | is refused |
//! | TernaryLLM, arXiv 2406.07177 | DLT: [`grid::Grid::Dlt`]; OFF: [`distill::feature_loss`] | is refused where γ ≠ 0 |
//! | Tequila, arXiv 2509.23809 | [`tequila::Reactivation`] | is refused while there is a bias |
//! | soft to hard with LoRA, arXiv 2106.09685; the penalty is defined here | [`adapter::LoraWeight`], [`schedule::Lambda`] | is exact, merged |
//! | Sherry and Arenas, arXiv 2601.07892 | [`quantize::Scale::ThreeOfFour`], [`weight::TernaryWeight::refresh_with_residual`], [`schedule::Residual`] | is exact, without the residual |
//! | Hestia, arXiv 2601.20745 | [`weight::Estimator::Soft`], [`schedule::Temperature`] | is exact |
//! | GPTQ, arXiv 2210.17323, and PT2-LLM, arXiv 2510.03267, as starts | [`start`], [`weight::TernaryWeight::set_levels`] | is exact |
//! | distillation, arXiv 1503.02531; BitDistill, arXiv 2510.13998 | [`loss::Teacher`]; [`distill::relation_loss`], [`loss::Objective::add`]; SubLN: [`model::SubLayerNorm`] | is another model where there is SubLN |
//! | HIGGS, arXiv 2411.17525; FlatQuant, arXiv 2410.09426; SmoothQuant, arXiv 2211.10438 | [`transform`] | only of what a norm takes over |
//! | AdamW, arXiv 1711.05101; Muon, arXiv 2502.16982 | [`optim`], [`muon`], [`average`] | |
//! | Fisher information; traces as in HAWQ-V2, arXiv 1911.03852 | [`sensitivity`] | |

pub mod activation;
pub mod adapter;
pub mod average;
pub mod distill;
#[cfg(test)]
mod draws;
pub mod grid;
mod kernel;
pub mod learned;
pub mod loss;
pub mod metrics;
pub mod model;
pub mod muon;
mod native;
pub mod optim;
pub mod probe;
pub mod quantize;
pub mod schedule;
pub mod sensitivity;
mod slopes;
mod softmax;
pub mod start;
mod tempered;
pub mod tequila;
pub mod transform;
pub mod weight;

pub use formats::artifact::Grouping;
pub use native::{NativeError, backward};
