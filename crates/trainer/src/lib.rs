//! The fixed frame around the recipe: everything of a training run that is not the recipe's business.
//!
//! `src/train.rs` (the recipe, compiled into the binary with `src/main.rs`) asks the frame for initial weights, batches
//! and the progress of the budget, reports each step, and hands over what it trained. The frame owns the arguments,
//! seed, device, data, clock, log, dev evaluation, artifact and summary. It is a library so that an edited recipe
//! recompiles alone.

pub mod args;
pub mod batches;
pub mod clock;
pub mod dev;
pub mod frame;
pub mod handover;
pub mod log;
pub mod speed;
pub mod summary;
pub mod trained;
