//! What the journal of a comparison says beside what a search's says.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Evaluation, Status, Trained};

/// The recipe of an arm, committed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Arm {
    /// Its number in the comparison, from 1. An arm whose recipe was changed is another one.
    pub number: u64,
    /// Name of its file.
    pub name: String,
    /// The commit that it is built from.
    pub commit: String,
    /// Hash of the recipe's tokens.
    pub recipe: String,
    /// Steps instead of the campaign's budget.
    pub max_steps: Option<u64>,
    /// What it sets, for people.
    pub knobs: BTreeMap<String, String>,
}

/// One run of an arm.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ArmRun {
    /// Its number among the comparison's runs, from 1.
    pub run: u64,
    /// The arm.
    pub arm: u64,
    /// Seed of the training run.
    pub seed: u64,
    /// What came of it.
    pub outcome: Outcome,
}

/// What came of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It was measured.
    Measured(Box<Measured>),
    /// It gave no figure.
    Failed {
        /// Which kind of failure.
        status: Status,
        /// Why.
        reason: String,
    },
}

/// The figures of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// The training run.
    pub trained: Trained,
    /// The figures on `select`.
    pub select: Evaluation,
    /// The figures on `report`.
    pub report: Evaluation,
    /// Size of the artifact.
    pub artifact_bytes: u64,
}

impl ArmRun {
    /// Its figures, when it has any.
    pub fn measured(&self) -> Option<&Measured> {
        match &self.outcome {
            Outcome::Measured(measured) => Some(measured),
            Outcome::Failed { .. } => None,
        }
    }
}
