//! What one program of this project writes and another reads, each format declared once. No libtorch.
//!
//! - [`campaign`]: `campaign.toml`, what a search is about.
//! - [`corpus`]: tokenized text on disk.
//! - [`contract`]: what the orchestrator and the programs that it runs leave for each other.
//! - [`artifact`]: the quantized model that a trainer hands over, and the block formats of inference engines.

pub mod artifact;
pub mod campaign;
pub mod contract;
pub mod corpus;
