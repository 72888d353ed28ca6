//! `agent check`: does the campaign's language model answer, what does that cost, and what would it be asked next?

use std::fs;
use std::path::Path;

use formats::campaign::{AgentKind, Campaign};
use language_model::Cancel;
use serde::Serialize;

use super::Options;
use super::campaign_file;
use super::question::check_question;
use super::start::{check_sandbox, with};
use crate::agent::Cost;
use crate::agent::model::{self, Model};
use crate::error::Failure;
use crate::layout::Layout;
use crate::results;
use crate::secrets;
use crate::workspace::Workspace;

/// What `agent check` found.
#[derive(Debug, Serialize)]
pub struct Answered {
    /// The model's name.
    pub model: String,
    /// What it said.
    pub answer: String,
    /// What that took.
    pub cost: Cost,
}

impl Answered {
    /// For people.
    pub fn line(&self) -> String {
        let (usage, answer) = (&self.cost.usage, results::plain(&self.answer));
        let price = self.cost.dollars.map_or_else(|| "no prices given".into(), |dollars| format!("${dollars:.6}"));
        format!(
            "{} answers {answer:?} after {:.1} s: {} tokens of prompt, {} of answer, {price}\n",
            self.model,
            self.cost.seconds,
            usage.total() - usage.output,
            usage.output,
        )
    }
}

/// Sends one small request to the language model of a campaign.
///
/// # Errors
/// [`Failure::Campaign`] when it asks none, or there is no answer.
pub fn check_agent(root: &Path, campaign: Option<&str>) -> Result<Answered, Failure> {
    let file = campaign_file(root, campaign)?;
    let refused =
        |message: String| Failure::Campaign { message, hint: "fix [agent] of the campaign file, or the key".into() };
    let campaign = Campaign::load(&file).map_err(|e| refused(e.to_string()))?;
    let agent = &campaign.agent;
    if !agent.kind.writes_code() {
        let message = format!("{} asks no language model: its agent is {}", file.display(), agent.kind.name());
        return Err(refused(message));
    }
    if agent.kind == AgentKind::Command {
        check_sandbox(campaign.sandbox)?;
    }
    secrets::hide(model::key_variables(agent));
    check_question(root, &campaign)?;
    let head = Workspace::open(root)?.head()?;
    // A question that belongs to no search.
    let folder = std::env::temp_dir().join(format!("ternary-autoresearch-check-{}", std::process::id()));
    let mut model = Model::open(agent, root, &folder.join("exchanges"), head, Cancel::default())
        .map_err(|e| refused(format!("{e:#}")))?;
    let answered = model.check();
    let _ = fs::remove_dir_all(&folder);
    let (answer, cost) = answered.map_err(refused)?;
    Ok(Answered { model: model.name().to_owned(), answer, cost })
}

/// The next question of a search that does not run, as it would be sent.
///
/// # Errors
/// When the search runs, or has no baseline yet.
pub fn next_prompt(root: &Path, layout: &Layout) -> Result<String, Failure> {
    let mut text = String::new();
    with(root, layout, &Options::default(), |search| {
        text = search.next_question()?;
        Ok(())
    })?;
    Ok(text)
}
