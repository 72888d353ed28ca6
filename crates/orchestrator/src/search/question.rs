//! Whether a campaign's first question has room.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Context;
use formats::campaign::Campaign;
use language_model::Spent;

use crate::agent::prompt::{self, Knowledge, Left};
use crate::agent::{self, model};
use crate::error::Failure;
use crate::files;
use crate::layout::RECIPE;
use crate::ledger::State;

/// Refuses a campaign whose language model would be asked more than it may, before anything is begun.
///
/// # Errors
/// [`Failure::Campaign`] with the sizes of the question's parts.
pub(super) fn check_question(root: &Path, campaign: &Campaign) -> Result<(), Failure> {
    let read = |path: &str| files::read_text(&root.join(path)).unwrap_or_default();
    let (spent, agent) = (Spent::default(), &campaign.agent);
    let left =
        Left { experiment: 1, kept: 0, experiments: None, hours: None, spent: &spent, caps: &agent.caps }.to_string();
    let knowledge = Knowledge {
        program: read("program.md"),
        outline: agent::outline(root).unwrap_or_default(),
        rules: model::rules(model::format(agent)),
        campaign: prompt::campaign(campaign).context("cannot write the campaign out")?,
        prompt_tokens: agent.prompt_tokens,
        history_tokens: agent.history_tokens,
        diffs: BTreeMap::new(),
        log: String::new(),
        left,
        in_flight: None,
        recipe: read(RECIPE),
    };
    prompt::prompt(&State::default(), &knowledge).map(drop).map_err(|too_long| Failure::Campaign {
        message: too_long.to_string(),
        hint: "fix [agent] of the campaign file, or run with --agent tpe".into(),
    })
}
