//! The sealed measurement: an artifact, a part of the text, and the campaign's limits in; figures out.
//!
//! Everything is computed from the artifact's file (hard codes and stored scales, read back from disk) and, for the
//! tensors it names as unchanged, from the base model identified by its hash. Nothing that the trainer printed or
//! logged is read, and the train part is never opened. An artifact outside the campaign's limits is not measured.

pub mod constraints;
pub mod prepared;
pub mod quantized;
pub mod report;
