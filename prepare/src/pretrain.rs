//! The full-precision parent of `[model.pretrain]`: trained by the `pretrain` program, which links libtorch and keeps
//! checkpoints, and put into `base/` like any other model.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use formats::campaign::Campaign;
use serde_json::json;

use crate::base;
use crate::checkpoint::{Checkpoint, SINGLE};
use crate::files::Progress;

/// Folder for what is not finished, in the data folder.
const UNFINISHED: &str = "pretrain";

/// What is trained, and by which program.
pub(crate) struct Pretraining<'a> {
    /// The program; `pretrain` beside this one when absent.
    pub program: Option<&'a Path>,
    pub campaign: &'a Campaign,
    pub file: &'a Path,
    pub data: &'a Path,
}

impl Pretraining<'_> {
    /// Trains, and writes the base model; `text` is the hash of the text's manifest. Paths of the outputs in the data
    /// folder.
    pub fn run(&self, text: &str, progress: Progress) -> Result<Vec<String>> {
        let config = self.campaign.model.scratch.as_ref().context("[model.pretrain] needs [model.scratch]")?;
        let own = std::env::current_exe().context("cannot find this program")?;
        let program = self.program.map_or_else(|| own.with_file_name("pretrain"), Path::to_owned);
        let folder = self.data.join(UNFINISHED);
        let mut command = Command::new(&program);
        command.arg("--campaign").arg(self.file).arg("--data").arg(self.data).arg("--out").arg(&folder);
        if progress.quiet {
            command.arg("--quiet");
        }
        let status = command.stdin(Stdio::null()).stdout(Stdio::null()).status();
        let status = status.with_context(|| {
            format!(
                "cannot start {}, which trains the parent of [model.pretrain]: build it with `cargo build --release \
                 --workspace --bin pretrain`, or name it with --pretrainer",
                program.display()
            )
        })?;
        if !status.success() {
            bail!("the parent is not trained yet ({status}); running this again goes on from its last checkpoint");
        }
        let weights = Checkpoint::open(&[folder.join(SINGLE)])?;
        let source = json!({"pretrained": self.campaign.model.pretrain, "text": text});
        base::write(self.data, config, weights.tensors(config)?, &source)?;
        drop(weights);
        std::fs::remove_dir_all(&folder).with_context(|| format!("cannot remove {}", folder.display()))?;
        Ok(base::OUTPUTS.map(str::to_owned).to_vec())
    }
}
