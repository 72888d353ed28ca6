//! `repair`: makes everything that is only a view of a search's journal agree with it again, and says what did not.

use std::path::Path;

use serde::Serialize;

use crate::error::Failure;
use crate::experiment::oid;
use crate::journal::{self, Journal};
use crate::layout::Layout;
use crate::ledger::State;
use crate::results;
use crate::search::lock;
use crate::workspace::Workspace;

/// What was found and put right in one search.
#[derive(Debug, Serialize)]
pub struct Repaired {
    /// Its campaign.
    pub campaign: String,
    /// Its tag.
    pub tag: String,
    /// One line for each thing that differed; empty where all agreed.
    pub findings: Vec<String>,
}

/// Repairs searches that do not run.
///
/// # Errors
/// [`Failure::Busy`] where one runs, [`Failure::Journal`] where the journal itself is damaged: nothing else knows what
/// it said.
pub fn repair(root: &Path, searches: &[Layout]) -> Result<Vec<Repaired>, Failure> {
    let workspace = Workspace::open(root)?;
    let mut aside = results::set_aside(root)?;
    let mut all = Vec::new();
    for layout in searches {
        let mut findings = Vec::new();
        if let Some(aside) = aside.take() {
            findings.push(format!("results.tsv could not be read; it is moved to {}", aside.display()));
        }
        one(&workspace, layout, &mut findings)?;
        all.push(Repaired { campaign: layout.name.clone(), tag: layout.tag.clone(), findings });
    }
    Ok(all)
}

fn one(workspace: &Workspace, layout: &Layout, findings: &mut Vec<String>) -> Result<(), Failure> {
    let _lock = lock(layout)?;
    if journal::is_torn(&layout.journal())? {
        findings.push("the journal's last line was cut short; it is removed, as nothing was done about it".into());
    }
    let (_, records) = Journal::open(&layout.journal())?;
    let damaged = |message| Failure::Journal { path: layout.journal(), message };
    let state = State::rebuild(&records).map_err(damaged)?;
    for proposed in state.proposals.values() {
        let commit = oid(&proposed.commit)?;
        let at = workspace.recorded(&layout.tag, proposed.experiment);
        if at == Some(commit) {
            continue;
        }
        let number = proposed.experiment;
        if workspace.has(commit) {
            workspace.record(&layout.tag, number, commit)?;
            findings.push(format!("the ref of #{number} was {}; it is at {commit}", named(at)));
        } else {
            findings.push(format!("the commit of #{number}, {commit}, is not in this repository any more"));
        }
    }
    if let Some(incumbent) = state.incumbent() {
        let (commit, at) = (oid(&incumbent.commit)?, workspace.branch(&layout.tag)?);
        if at != Some(commit) && workspace.has(commit) {
            workspace.put_branch(&layout.tag, commit)?;
            findings.push(format!("branch autoresearch/{} was {}; it is at {commit}", layout.tag, named(at)));
        }
    }
    let differences = results::publish(workspace, &layout.tag, &state.rows, &layout.run())?;
    if let Some(summary) = differences.summary() {
        findings.push(format!("results.tsv: {summary}; it is written anew"));
    }
    Ok(())
}

fn named(commit: Option<git2::Oid>) -> String {
    commit.map_or_else(|| "missing".into(), |commit| format!("at {commit}"))
}
