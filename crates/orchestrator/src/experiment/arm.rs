//! One run of an arm of a comparison: built once, trained under the campaign's budget, and measured on both parts. Its
//! record is written when all of that is done; what is interrupted before is done again.

use std::fs;

use anyhow::Context;
use formats::corpus::Part;

use super::{StepError, Subject, Trainer};
use crate::error::Failure;
use crate::layout::Run;
use crate::ledger::{Arm, ArmRun, Event, Measured, Outcome, Proposed};
use crate::search::Search;

impl Search<'_> {
    /// Trains and measures an arm with a seed; a failure is its record. False when interrupted.
    ///
    /// # Errors
    /// When the comparison cannot go on.
    pub fn run_arm(&mut self, arm: &Arm, seed: u64) -> Result<bool, Failure> {
        let number = self.state.arm_runs.len() as u64 + 1;
        let run = Run::Replicate(number);
        let outcome = match self.measure_arm(arm, run, seed) {
            Ok(measured) => Outcome::Measured(Box::new(measured)),
            Err(StepError::Failed(status, reason)) => {
                // A full disk is no fault of the arm's.
                self.check_space()?;
                Outcome::Failed { status, reason }
            }
            Err(StepError::Interrupted(_)) => return Ok(false),
            Err(StepError::Cannot(failure)) => return Err(failure),
        };
        self.write(Event::ArmRun(ArmRun { run: number, arm: arm.number, seed, outcome }))?;
        self.clear(run, true);
        Ok(true)
    }

    fn measure_arm(&mut self, arm: &Arm, run: Run, seed: u64) -> Result<Measured, StepError> {
        let proposed = Proposed {
            experiment: arm.number,
            commit: arm.commit.clone(),
            parent: None,
            agent: "comparison".into(),
            description: arm.name.clone(),
            knobs: arm.knobs.clone(),
            recipe: arm.recipe.clone(),
            seed,
            expected: None,
            cost: None,
            waited: None,
        };
        let home = Run::Experiment(arm.number);
        let path = self.trainer(home);
        let trainer = match self.state.trainers.get(&arm.number) {
            Some(sha256) if path.is_file() => Trainer { path, sha256: sha256.clone() },
            _ => {
                self.empty(home)?;
                let built = self.build(home, &proposed)?;
                let sha256 = built.trainer_sha256.clone();
                self.write(Event::ArmBuilt(built))?;
                Trainer { path, sha256 }
            }
        };
        self.empty(run)?;
        let trained = self.train(run, &trainer, &proposed, arm.max_steps)?;
        let artifact = self.layout.artifact(run);
        let size = fs::symlink_metadata(&artifact).with_context(|| format!("cannot see {}", artifact.display()))?.len();
        let select = self.evaluate(Subject::Run(run), Part::Select)?;
        let report = self.evaluate(Subject::Run(run), Part::Report)?;
        Ok(Measured { trained, select, report, artifact_bytes: size })
    }

    /// Measures the full-precision parent on both parts, for campaigns that have one. False when interrupted.
    ///
    /// # Errors
    /// When it cannot be measured.
    pub fn measure_full_precisions(&mut self) -> Result<bool, Failure> {
        // The final figures of a search without rows are the parent's alone.
        Ok(self.measure_full_precision()? && self.measure_report()?)
    }
}
