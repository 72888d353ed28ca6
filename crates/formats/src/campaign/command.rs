//! `[agent.command]`: a coding program that is asked instead of an endpoint, and what of this machine it may use.

use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Stands in an argument for the path of the file with the prompt.
pub const PROMPT_FILE: &str = "{prompt_file}";
/// Stands in an argument for the path of the file that may be changed, from the working folder.
pub const MUTABLE_FILE: &str = "{file}";

/// `[agent.command]`: either `preset` or `argv`. What else is given is added to a preset's lists, or takes the place of its
/// values.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Command {
    /// A program that is known.
    #[serde(default)]
    pub preset: Option<Preset>,
    /// Any program with its arguments, in which [`PROMPT_FILE`] and [`MUTABLE_FILE`] are replaced.
    #[serde(default)]
    pub argv: Vec<String>,
    /// Arguments behind those of a preset.
    #[serde(default)]
    pub arguments: Vec<String>,
    /// How it gets the prompt; on standard input when absent.
    #[serde(default)]
    pub prompt: Option<PromptBy>,
    /// How its output is read; as text when absent.
    #[serde(default)]
    pub output: Option<Output>,
    /// Seconds after which it is stopped, as a training run is.
    #[serde(default = "default_seconds")]
    pub seconds: f64,
    /// Whether it may use the network; not when absent.
    #[serde(default)]
    pub network: Option<bool>,
    /// Environment variables that it gets besides the harmless ones; those with keys. Nothing else that is started here
    /// gets them.
    #[serde(default)]
    pub variables: Vec<String>,
    /// Files and folders below the user's home that are copied into the throw-away home that it gets.
    #[serde(default)]
    pub home: Vec<PathBuf>,
    /// Files and folders that it may read besides the system's; `~` is the user's home.
    #[serde(default)]
    pub read: Vec<PathBuf>,
    /// Folders that it may change, for good; `~` is the user's home.
    #[serde(default)]
    pub write: Vec<PathBuf>,
}

/// Programs that are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Preset {
    /// Claude Code.
    Claude,
    /// OpenAI's Codex.
    Codex,
    /// Google's Gemini CLI.
    Gemini,
    /// Aider.
    Aider,
    /// OpenCode.
    OpenCode,
}

impl Preset {
    /// Its name in campaigns and rows.
    pub fn name(self) -> &'static str {
        match self {
            Self::Claude => "claude",
            Self::Codex => "codex",
            Self::Gemini => "gemini",
            Self::Aider => "aider",
            Self::OpenCode => "opencode",
        }
    }
}

/// How a program gets the prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PromptBy {
    /// On standard input.
    #[default]
    Stdin,
    /// In a file, whose path takes the place of [`PROMPT_FILE`].
    File,
}

/// How a program's output is read: what it says, and what it counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Output {
    /// All of it is what it says.
    #[default]
    Text,
    /// Claude Code's `--output-format json`.
    ClaudeJson,
    /// Codex's `--json`.
    CodexJson,
    /// Gemini CLI's `--output-format json`.
    GeminiJson,
    /// OpenCode's `--format json`.
    #[serde(rename = "opencode-json")]
    OpenCodeJson,
}

impl Command {
    /// Checks that it does not contradict itself.
    pub(crate) fn check(&self) -> Result<(), String> {
        match (self.preset, self.argv.first()) {
            (None, None) => {
                return Err("agent.command has neither preset nor argv; give one of them".into());
            }
            (Some(_), Some(_)) => {
                return Err(
                    "agent.command.preset and agent.command.argv exclude each other; remove one (agent.command.\
                            arguments are added to a preset's)"
                        .into(),
                );
            }
            (None, Some(program)) if program.trim().is_empty() => {
                return Err("agent.command.argv begins with an empty word; name a program".into());
            }
            _ => {}
        }
        let words = || self.argv.iter().chain(&self.arguments);
        if self.prompt == Some(PromptBy::File) && !words().any(|word| word.contains(PROMPT_FILE)) {
            return Err(format!(
                "agent.command.prompt is \"file\", and no argument says {PROMPT_FILE}; put it where the \
                                path of the prompt belongs"
            ));
        }
        if self.prompt != Some(PromptBy::File)
            && self.preset.is_none()
            && words().any(|word| word.contains(PROMPT_FILE))
        {
            return Err(format!("agent.command.argv says {PROMPT_FILE}; set agent.command.prompt to \"file\""));
        }
        if !(self.seconds.is_finite() && self.seconds > 0.0) {
            return Err(format!("agent.command.seconds is {}; it must be a positive number", self.seconds));
        }
        if let Some(name) = self.variables.iter().find(|name| name.is_empty() || name.contains(['=', '\0'])) {
            return Err(format!(
                "agent.command.variables: {name:?} is no name of a variable; values do not belong here"
            ));
        }
        let below = |path: &Path| path.components().all(|part| matches!(part, Component::Normal(_)));
        if let Some(path) =
            self.home.iter().find(|path| path.as_os_str().is_empty() || path.starts_with("~") || !below(path))
        {
            return Err(format!(
                "agent.command.home: {} is no path below the home folder; write it without `~/` and `..`",
                path.display()
            ));
        }
        if let Some(path) =
            self.read.iter().chain(&self.write).find(|path| !path.is_absolute() && !path.starts_with("~"))
        {
            return Err(format!(
                "agent.command: {} in read or write is relative; begin it with `/` or `~/`",
                path.display()
            ));
        }
        Ok(())
    }
}

fn default_seconds() -> f64 {
    600.0
}
