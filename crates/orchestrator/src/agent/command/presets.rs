//! What a campaign says of a coding program, with what is known of the common ones.
//!
//! The arguments are those of the programs' documentation of 2026, compared with their `--help` (but for Aider's). No service
//! that they ask was within reach where this was written, so none has answered yet. They let a program read
//! and edit files and nothing else, where it can be told so: what confines it is the sandbox.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use formats::campaign;
use formats::campaign::command::{Output, Preset, PromptBy};

/// A coding program, and all that it may use.
#[derive(Debug, Clone)]
pub(super) struct Program {
    /// Its name in rows.
    pub name: String,
    pub argv: Vec<String>,
    pub prompt: PromptBy,
    pub output: Output,
    pub limit: Duration,
    pub network: bool,
    /// Variables of ours that it gets.
    pub variables: Vec<String>,
    /// Variables that are set for it.
    pub set: &'static [(&'static str, &'static str)],
    /// What is copied into its home.
    pub home: Vec<PathBuf>,
    pub read: Vec<PathBuf>,
    pub write: Vec<PathBuf>,
}

/// What is known of a program.
struct Known {
    argv: &'static [&'static str],
    /// The flag before the name of a model.
    model: &'static str,
    prompt: PromptBy,
    output: Output,
    variables: &'static [&'static str],
    set: &'static [(&'static str, &'static str)],
    /// Its credentials and settings below the home folder: files, so that no past conversation is copied.
    home: &'static [&'static str],
    /// Where installers put it.
    read: &'static [&'static str],
}

/// code.claude.com/docs: "CLI reference", "Run Claude Code programmatically", "Environment variables".
const CLAUDE: Known = Known {
    argv: &[
        "claude",
        "--print",
        "--output-format",
        "json",
        "--permission-mode",
        "acceptEdits",
        "--allowedTools",
        "Read,Edit,Write,Glob,Grep",
        "--disallowedTools",
        "Bash,WebFetch,WebSearch",
    ],
    model: "--model",
    prompt: PromptBy::Stdin,
    output: Output::ClaudeJson,
    variables: &["ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "ANTHROPIC_BASE_URL", "CLAUDE_CODE_OAUTH_TOKEN"],
    set: &[("CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC", "1"), ("DISABLE_AUTOUPDATER", "1")],
    home: &[".claude/.credentials.json", ".claude.json"],
    read: &["~/.local/share/claude"],
};

/// developers.openai.com/codex: "Non-interactive mode". Its own sandbox cannot be set up within ours, so it is left out.
const CODEX: Known = Known {
    argv: &["codex", "exec", "--json", "--skip-git-repo-check", "--sandbox", "danger-full-access"],
    model: "--model",
    prompt: PromptBy::Stdin,
    output: Output::CodexJson,
    variables: &["CODEX_API_KEY", "OPENAI_API_KEY", "OPENAI_BASE_URL"],
    set: &[],
    home: &[".codex/auth.json", ".codex/config.toml"],
    read: &[],
};

/// geminicli.com/docs: "Headless mode", "Configuration", "Trusted folders".
const GEMINI: Known = Known {
    argv: &["gemini", "--output-format", "json", "--approval-mode", "auto_edit"],
    model: "--model",
    prompt: PromptBy::Stdin,
    output: Output::GeminiJson,
    variables: &["GEMINI_API_KEY", "GOOGLE_API_KEY", "GOOGLE_CLOUD_PROJECT", "GOOGLE_GENAI_USE_VERTEXAI"],
    set: &[("GEMINI_CLI_TRUST_WORKSPACE", "true")],
    home: &[".gemini/oauth_creds.json", ".gemini/google_accounts.json", ".gemini/settings.json"],
    read: &[],
};

/// aider.chat/docs: "Scripting aider", "Options reference".
const AIDER: Known = Known {
    argv: &[
        "aider",
        "--message-file",
        campaign::command::PROMPT_FILE,
        "--yes-always",
        "--no-git",
        "--no-check-update",
        "--analytics-disable",
        "--no-show-model-warnings",
        "--no-suggest-shell-commands",
        "--no-stream",
        "--no-pretty",
        campaign::command::MUTABLE_FILE,
    ],
    model: "--model",
    prompt: PromptBy::File,
    output: Output::Text,
    variables: &["ANTHROPIC_API_KEY", "OPENAI_API_KEY", "OPENAI_API_BASE", "GEMINI_API_KEY", "OPENROUTER_API_KEY"],
    set: &[],
    home: &[".aider.conf.yml", ".aider.model.settings.yml", ".aider.model.metadata.json"],
    read: &["~/.local/share/uv", "~/.local/share/pipx", "~/.local/pipx"],
};

/// opencode.ai/docs: "CLI", "Config".
const OPENCODE: Known = Known {
    argv: &["opencode", "run", "--format", "json"],
    model: "--model",
    prompt: PromptBy::Stdin,
    output: Output::OpenCodeJson,
    variables: &["ANTHROPIC_API_KEY", "OPENAI_API_KEY", "GEMINI_API_KEY", "OPENROUTER_API_KEY"],
    set: &[("OPENCODE_DISABLE_AUTOUPDATE", "true")],
    home: &[".local/share/opencode/auth.json", ".config/opencode/opencode.json", ".config/opencode/opencode.jsonc"],
    read: &["~/.opencode"],
};

fn known(preset: Preset) -> &'static Known {
    match preset {
        Preset::Claude => &CLAUDE,
        Preset::Codex => &CODEX,
        Preset::Gemini => &GEMINI,
        Preset::Aider => &AIDER,
        Preset::OpenCode => &OPENCODE,
    }
}

/// The variables of ours that a program gets.
pub(super) fn variables(command: &campaign::Command) -> Vec<String> {
    let known = command.preset.map_or(&[][..], |preset| known(preset).variables);
    known.iter().map(|&name| name.to_owned()).chain(command.variables.iter().cloned()).collect()
}

impl Program {
    /// What a campaign says, completed.
    ///
    /// # Errors
    /// When it names no program, or the limit is no time.
    pub(super) fn of(command: &campaign::Command, model: Option<&str>) -> Result<Self> {
        let known = command.preset.map(known);
        let mut argv = command.argv.clone();
        if let Some(known) = known {
            argv.extend(known.argv.iter().map(|&word| word.to_owned()));
            argv.extend(model.iter().flat_map(|model| [known.model.to_owned(), (*model).to_owned()]));
        }
        argv.extend(command.arguments.iter().cloned());
        let program = argv.first().context("agent.command names no program")?;
        let name = match command.preset {
            Some(preset) => preset.name().to_owned(),
            None => program.rsplit('/').next().unwrap_or(program).to_owned(),
        };
        let paths = |known: &[&str], given: &[PathBuf]| {
            known.iter().map(PathBuf::from).chain(given.iter().cloned()).map(below_home).collect()
        };
        Ok(Self {
            name,
            argv,
            prompt: command.prompt.or(known.map(|known| known.prompt)).unwrap_or_default(),
            output: command.output.or(known.map(|known| known.output)).unwrap_or_default(),
            limit: Duration::try_from_secs_f64(command.seconds).context("agent.command.seconds")?,
            // What is known asks a service.
            network: command.network.unwrap_or(known.is_some()),
            variables: variables(command),
            set: known.map_or(&[], |known| known.set),
            home: known
                .map_or(&[][..], |known| known.home)
                .iter()
                .map(PathBuf::from)
                .chain(command.home.iter().cloned())
                .collect(),
            read: paths(known.map_or(&[][..], |known| known.read), &command.read),
            write: paths(&[], &command.write),
        })
    }
}

/// A path whose `~` is the user's home.
fn below_home(path: PathBuf) -> PathBuf {
    match (path.strip_prefix("~"), std::env::home_dir()) {
        (Ok(rest), Some(home)) => home.join(rest),
        _ => path,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_preset_is_completed_by_what_the_campaign_says() {
        let command: campaign::Command = toml::from_str(
            "preset = \"claude\"\narguments = [\"--max-turns\", \"30\"]\nvariables = [\"MINE\"]\nread = [\"~/x\", \"/y\"]\n\
             network = false\nseconds = 90.0",
        )
        .unwrap();
        let program = Program::of(&command, Some("a-model")).unwrap();
        assert_eq!(program.argv[..2], ["claude", "--print"]);
        assert_eq!(program.argv[program.argv.len() - 4..], ["--model", "a-model", "--max-turns", "30"]);
        assert_eq!((program.name.as_str(), program.network, program.limit), ("claude", false, Duration::from_secs(90)));
        assert!(program.variables.contains(&"ANTHROPIC_API_KEY".into()) && program.variables.contains(&"MINE".into()));
        assert!(program.read.contains(&"/y".into()) && program.read.iter().all(|path| path.is_absolute()));
        let own: campaign::Command = toml::from_str("argv = [\"/opt/bin/coder\", \"-x\"]").unwrap();
        let own = Program::of(&own, Some("ignored")).unwrap();
        assert_eq!((own.name.as_str(), own.argv.len(), own.network), ("coder", 2, false));
        assert_eq!((own.prompt, own.output), (PromptBy::Stdin, Output::Text));
    }
}
