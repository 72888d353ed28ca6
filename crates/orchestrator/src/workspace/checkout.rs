//! Makes a folder hold exactly the files of a tree, and says what it had to change.
//!
//! git's own checkout trusts sizes and times of files that it wrote before, and filters line ends. Here every file is
//! compared by the hash of its bytes, because code that ran beside them may have changed them; files that are right
//! are left untouched, so that cargo rebuilds no more than what changed.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use git2::{ObjectType, Oid, Repository, Tree, TreeWalkMode, TreeWalkResult};

const EXECUTABLE: i32 = 0o100_755;
const LINK: i32 = 0o120_000;

pub(super) fn exactly(repository: &Repository, tree: &Tree, folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files: Vec<(PathBuf, Oid, i32)> = Vec::new();
    let mut strange = None;
    tree.walk(TreeWalkMode::PreOrder, |parent, entry| {
        let (Ok(parent), Ok(name)) = (std::str::from_utf8(parent.as_bytes()), std::str::from_utf8(entry.name_bytes()))
        else {
            strange = Some("a name that is not text".to_owned());
            return TreeWalkResult::Abort;
        };
        match entry.kind() {
            Some(ObjectType::Blob) => files.push((Path::new(parent).join(name), entry.id(), entry.filemode())),
            // A submodule's files are not in the repository; `check_committed` refuses those that a build needs.
            Some(ObjectType::Tree | ObjectType::Commit) => {}
            _ => strange = Some(format!("{parent}{name}, which is neither file nor folder")),
        }
        TreeWalkResult::Ok
    })
    .or_else(|e| if strange.is_some() { Ok(()) } else { Err(e) })?;
    if let Some(what) = strange {
        bail!("the commit holds {what}");
    }
    let mut wanted: BTreeSet<PathBuf> = BTreeSet::new();
    for (path, ..) in &files {
        wanted.extend(path.ancestors().map(Path::to_owned));
    }
    let mut changed = Vec::new();
    remove_others(folder, Path::new(""), &wanted, &mut changed)?;
    for (path, id, mode) in &files {
        let file = folder.join(path);
        if !is(&file, *id, *mode) {
            write(repository, &file, *id, *mode).with_context(|| format!("cannot write {}", file.display()))?;
            changed.push(path.clone());
        }
    }
    Ok(changed)
}

/// Removes what is not wanted; `at` is relative to the folder. `.git` at the top is git's.
fn remove_others(folder: &Path, at: &Path, wanted: &BTreeSet<PathBuf>, removed: &mut Vec<PathBuf>) -> Result<()> {
    let here = folder.join(at);
    for entry in fs::read_dir(&here).with_context(|| format!("cannot list {}", here.display()))? {
        let entry = entry?;
        let relative = at.join(entry.file_name());
        if relative == Path::new(".git") {
            continue;
        }
        let is_folder = entry.file_type()?.is_dir();
        if !wanted.contains(&relative) {
            let path = entry.path();
            let done = if is_folder { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            done.with_context(|| format!("cannot remove {}", path.display()))?;
            removed.push(relative);
        } else if is_folder {
            remove_others(folder, &relative, wanted, removed)?;
        }
    }
    Ok(())
}

fn is(file: &Path, id: Oid, mode: i32) -> bool {
    let Ok(metadata) = fs::symlink_metadata(file) else { return false };
    if mode == LINK {
        let target = fs::read_link(file).unwrap_or_default();
        return metadata.is_symlink()
            && Oid::hash_object(ObjectType::Blob, target.as_os_str().as_encoded_bytes()).ok() == Some(id);
    }
    let executable = metadata.permissions().mode() & 0o100 != 0;
    metadata.is_file()
        && executable == (mode == EXECUTABLE)
        && fs::read(file).is_ok_and(|bytes| Oid::hash_object(ObjectType::Blob, &bytes).ok() == Some(id))
}

fn write(repository: &Repository, file: &Path, id: Oid, mode: i32) -> Result<()> {
    let blob = repository.find_blob(id)?;
    match fs::symlink_metadata(file) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(file)?,
        Ok(_) => fs::remove_file(file)?,
        Err(_) => {}
    }
    if let Some(parent) = file.parent() {
        // A link or a file in the way of a folder is not wanted, so it is gone by now.
        fs::create_dir_all(parent)?;
    }
    if mode == LINK {
        symlink(std::str::from_utf8(blob.content())?, file)?;
        return Ok(());
    }
    fs::write(file, blob.content())?;
    let permissions = if mode == EXECUTABLE { 0o755 } else { 0o644 };
    fs::set_permissions(file, fs::Permissions::from_mode(permissions))?;
    Ok(())
}
