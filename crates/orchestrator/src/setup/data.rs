//! Prepares a campaign's model and text by the `prepare` program, which skips what is done and shows its own progress.

use std::process::Stdio;

use anyhow::{Context, Result, bail};

use super::Ready;

use crate::secrets;

/// Runs `prepare` for the campaign.
///
/// # Errors
/// When it fails; it has said why on stderr itself.
pub fn prepare(ready: &Ready) -> Result<()> {
    let mut command = secrets::command(&ready.prepare);
    command.current_dir(&ready.root).arg("--campaign").arg(&ready.campaign_file);
    command.arg("--data").arg(&ready.data).arg("--cache").arg(ready.root.join(".cache"));
    command.arg("--pretrainer").arg(&ready.pretrain);
    // Our own stdout may be JSON.
    command.stdin(Stdio::null()).stdout(std::io::stderr());
    let status = command.status().with_context(|| format!("cannot start {}", ready.prepare.display()))?;
    if !status.success() {
        bail!(
            "model and data of {} could not be prepared ({status}): the reason is above; \
             running this again goes on from there",
            ready.campaign_file.display()
        );
    }
    Ok(())
}
