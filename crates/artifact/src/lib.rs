//! The file a trainer hands over: integer codes, stored scales, and what is needed to run the model. No libtorch.

pub mod config;
pub use config::{Architecture, Grouping, ModelConfig, ProjectionKind};
