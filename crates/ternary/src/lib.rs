//! The tested parts that a training recipe is put together from: ternary quantizers, straight-through weights,
//! activation quantization, schedules, fused AdamW and losses over a large vocabulary. It knows no model, no data and
//! no command line.
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
//! # Where what comes from
//!
//! | part | source |
//! |---|---|
//! | [`quantize::Scale::AbsMean`], [`quantize::weight_quant`], [`activation`] | BitNet b1.58, arXiv 2402.17764, and the Hugging Face blog "Fine-tuning LLMs to 1.58bit" |
//! | [`quantize::Scale::Twn`] | Ternary Weight Networks, arXiv 1605.04711 |
//! | [`quantize::Scale::Mse`] | Lloyd's alternation on the levels −s, 0, s |
//! | [`quantize::Scale::ThreeOfFour`], [`schedule::Residual`] | Sherry and its Arenas, arXiv 2601.07892 |
//! | [`learned::LearnedRule::Lsq`] | LSQ, arXiv 1902.08153, in the ternary form of ParetoQ |
//! | [`learned::LearnedRule::Stretched`] | SEQ of ParetoQ, arXiv 2502.02631 |
//! | [`learned::LearnedRule::EfficientQat`], [`learned::FixedCodes`] | EfficientQAT, arXiv 2407.11062 |
//! | [`grid`] | two, three and four bits: ParetoQ, LSQ, EfficientQAT; DLT of TernaryLLM, arXiv 2406.07177 |
//! | [`tequila`] | Tequila, arXiv 2509.23809 |
//! | [`quantize::soft`] | the tempered assignment of Hestia, arXiv 2601.20745 |
//! | [`start`] | GPTQ, arXiv 2210.17323; the fit to outputs of PT2-LLM, arXiv 2510.03267 |
//! | [`loss`], [`distill`] | knowledge distillation, arXiv 1503.02531; OFF of TernaryLLM, arXiv 2406.07177; BitDistill, arXiv 2510.13998 |
//! | [`transform`] | HIGGS, arXiv 2411.17525; FlatQuant, arXiv 2410.09426; SmoothQuant, arXiv 2211.10438 |
//! | [`muon`] | Muon, arXiv 2502.16982 |
//! | [`optim`] | decoupled weight decay, arXiv 1711.05101 |

pub mod activation;
pub mod average;
pub mod distill;
pub mod grid;
mod kernel;
pub mod learned;
pub mod loss;
pub mod metrics;
pub mod muon;
mod native;
pub mod optim;
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

pub use artifact::Grouping;
pub use native::{NativeError, backward};
