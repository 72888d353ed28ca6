//! The daemon and the command line: proposes, builds, trains, measures, keeps or discards, and writes it all down.
//!
//! Knows no tensor and links no libtorch, so it starts in milliseconds and can itself fetch libtorch before anything
//! that needs it is built. Trainer and evaluator are separate processes; what they hand over are files.
//!
//! The ledger of a search is its journal; `results.tsv`, `status` and `results` are views of it. The order is
//! always: append to the journal and sync, then act. Killed at any instant, the next run goes on from the journal.

mod agent;
mod child;
mod cli;
mod clock;
mod compare;
mod doctor;
mod error;
mod experiment;
pub mod failpoints;
mod files;
mod journal;
mod knobs;
mod layout;
mod ledger;
mod parsing;
mod plot;
mod printer;
mod repair;
mod results;
mod search;
mod secrets;
mod setup;
mod status;
pub mod verdict;
mod workspace;

pub use cli::main;
