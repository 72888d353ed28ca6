//! Prepares a campaign's model and text by the `prepare` program, which skips what is done and shows its own progress; and
//! keeps what searches began with, for `prepare` makes anew what another version or another campaign file would give.

use std::fs;
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, Result, bail, ensure};

use super::Ready;

use crate::files;
use crate::journal;
use crate::layout::{Kind, Layout};
use crate::ledger::Event;
use crate::secrets;

/// The list of all that was prepared.
const STAMP: &str = "prepared.json";

/// Runs `prepare` for the campaign. Searches and comparisons that began with what is there keep it.
///
/// # Errors
/// When it fails; it has said why on stderr itself.
pub fn prepare(ready: &Ready) -> Result<()> {
    keep_for_begun(ready)?;
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

/// Makes `own` a copy of the prepared `data` and returns the sha256 of its stamp. The files are hard links where the file
/// system has them, so they take no space: `prepare` replaces files and never writes into one.
///
/// # Errors
/// When `data` is not prepared, or changes meanwhile.
pub fn keep(data: &Path, own: &Path) -> Result<String> {
    let stamp = data.join(STAMP);
    let bytes =
        files::read_regular(&stamp, files::LARGEST_TEXT).with_context(|| format!("cannot read {}", stamp.display()))?;
    let list: serde_json::Value =
        serde_json::from_slice(&bytes).with_context(|| format!("{} is damaged", stamp.display()))?;
    let stages = list["stages"].as_object().into_iter().flat_map(|stages| stages.values());
    let files = stages.filter_map(|stage| stage["outputs"].as_object()).flat_map(|outputs| outputs.keys());
    let new = own.with_extension("new");
    for folder in [&new, own] {
        match fs::remove_dir_all(folder) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(e).with_context(|| format!("cannot clear {}", folder.display()));
            }
            _ => {}
        }
    }
    for file in files.map(String::as_str).chain([STAMP]) {
        let (from, to) = (data.join(file), new.join(file));
        let parent = to.parent().unwrap_or(&new);
        fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
        fs::hard_link(&from, &to)
            .or_else(|_| fs::copy(&from, &to).map(drop))
            .with_context(|| format!("cannot keep {} as {}", from.display(), to.display()))?;
    }
    // `prepare` takes the stamp away before it changes anything else.
    let same = |path: &Path| fs::read(path).is_ok_and(|now| now == bytes);
    ensure!(same(&stamp) && same(&new.join(STAMP)), "{} is being prepared anew; try again", data.display());
    fs::rename(&new, own).with_context(|| format!("cannot make {}", own.display()))?;
    let kept = own.join(STAMP);
    files::sha256(&kept).with_context(|| format!("cannot read {}", kept.display()))
}

/// Keeps the data of searches and comparisons that began before each had its own.
fn keep_for_begun(ready: &Ready) -> Result<()> {
    let Ok(now) = files::sha256(&ready.data.join(STAMP)) else { return Ok(()) };
    let name = ready.campaign_file.parent().and_then(Path::file_name).unwrap_or_default().to_string_lossy();
    for kind in [Kind::Search, Kind::Comparison] {
        let layout = |tag: &str| Layout { root: ready.root.clone(), kind, name: name.clone().into(), tag: tag.into() };
        let folder = layout("").run();
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let layout = layout(&entry.file_name().to_string_lossy());
            if layout.data().exists() {
                continue;
            }
            let records = journal::read(&layout.journal()).unwrap_or_default();
            let began_with_it = |event: &Event| matches!(event, Event::Started(with) if with.data_sha256 == now);
            if records.iter().any(|record| began_with_it(&record.event)) {
                keep(&ready.data, &layout.data())?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_search_began_with_stays_when_the_data_are_made_anew() {
        let folder = tempfile::tempdir().expect("a folder");
        let (data, own) = (folder.path().join("data"), folder.path().join("runs/t/data"));
        let write = |file: &str, text: &str| {
            fs::create_dir_all(data.join("text")).expect("a folder");
            fs::write(data.join("new"), text).expect("a file");
            // As `prepare` does.
            fs::rename(data.join("new"), data.join(file)).expect("a file");
        };
        write("text/select-00000.tokens", "old");
        write(STAMP, r#"{"stages": {"text": {"outputs": {"text/select-00000.tokens": "…"}}}}"#);
        for _ in 0..2 {
            let hash = keep(&data, &own).expect("kept");
            assert_eq!(Some(hash), files::sha256(&data.join(STAMP)).ok());
        }
        fs::remove_dir_all(data.join("text")).expect("removed");
        write("text/select-00000.tokens", "new");
        write(STAMP, r#"{"stages": {}}"#);
        assert_eq!(fs::read_to_string(own.join("text/select-00000.tokens")).ok().as_deref(), Some("old"));
        assert!(fs::read_to_string(own.join(STAMP)).is_ok_and(|stamp| stamp.contains("outputs")));

        fs::remove_file(data.join(STAMP)).expect("removed");
        assert!(keep(&data, &own).is_err(), "unfinished data are nothing to begin with");
    }
}
