//! Scratch folders of a confined command, seen from outside: read while it runs, and what is to be kept of them copied
//! when it has ended. Nothing in them is trusted: no link is followed, sizes are checked, modes and owners are ours.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::Confined;
use crate::files;

/// Free bytes below which a scratch folder counts as full: less than any write that fails for want of space.
const FULL_BYTES: u64 = 1 << 16;

/// The mode of a file that its owner may read.
const OWNER_READS: u32 = 0o400;

/// Handles of a command's scratch folders, in its policy's order; none where the system could not mount them, and the
/// command wrote to the folders themselves.
#[derive(Debug)]
pub(super) struct Handles(pub(super) Vec<OwnedFd>);

impl Handles {
    /// The path of the first, for this process.
    pub(super) fn visible(&self) -> Option<PathBuf> {
        Some(PathBuf::from(format!("/proc/self/fd/{}", self.0.first()?.as_raw_fd())))
    }

    /// Bytes that they hold together.
    pub(super) fn bytes(&self) -> u64 {
        let used = |handle| {
            let space = rustix::fs::fstatvfs(handle).ok()?;
            Some(space.f_blocks.saturating_sub(space.f_bfree).saturating_mul(space.f_frsize))
        };
        self.0.iter().filter_map(used).sum()
    }

    /// Whether one of them has no room left.
    pub(super) fn is_full(&self) -> bool {
        let full = |handle| {
            rustix::fs::fstatvfs(handle)
                .is_ok_and(|space| space.f_bfree.saturating_mul(space.f_frsize) < FULL_BYTES || space.f_ffree == 0)
        };
        self.0.iter().any(full)
    }

    /// Copies what is to be kept into the real folders, which hold nothing else of the command afterwards. Says what
    /// could not be kept, which is the command's fault.
    pub(super) fn collect(self, confined: &Confined) -> Result<Vec<String>> {
        let mut refused = Vec::new();
        for (index, scratch) in confined.policy.scratch.iter().enumerate() {
            let kept = confined.keep.iter().filter_map(|(path, most)| {
                let file = path.strip_prefix(&scratch.folder).ok()?;
                Some((file, *most))
            });
            match self.0.get(index) {
                Some(handle) => take(handle.as_fd(), &scratch.folder, kept, &mut refused)?,
                // Compiled dependencies stay where they are.
                None if scratch.over => {}
                None => {
                    let aside = scratch.folder.with_extension("untrusted");
                    files::remove_tree(&aside).with_context(|| format!("cannot remove {}", aside.display()))?;
                    fs::rename(&scratch.folder, &aside)
                        .and_then(|()| fs::create_dir(&scratch.folder))
                        .with_context(|| format!("cannot move {} aside", scratch.folder.display()))?;
                    fs::set_permissions(&aside, fs::Permissions::from_mode(0o700))
                        .with_context(|| format!("cannot open up {}", aside.display()))?;
                    let folder = File::open(&aside).with_context(|| format!("cannot open {}", aside.display()))?;
                    take(folder.as_fd(), &scratch.folder, kept, &mut refused)?;
                    files::remove_tree(&aside).with_context(|| format!("cannot remove {}", aside.display()))?;
                }
            }
        }
        Ok(refused)
    }
}

/// Copies files out of a folder that is not to be trusted.
fn take<'a>(
    from: BorrowedFd,
    to: &Path,
    kept: impl Iterator<Item = (&'a Path, u64)>,
    refused: &mut Vec<String>,
) -> Result<()> {
    for (file, most) in kept {
        let source = match files::open_untrusted_at(from, file) {
            Ok(source) => source,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => {
                refused.push(format!("{}: {error}", file.display()));
                continue;
            }
        };
        let metadata = source.metadata().with_context(|| format!("cannot see {}", file.display()))?;
        let length = metadata.len();
        // Root could read it all the same; a row must not depend on who runs the search.
        if metadata.permissions().mode() & OWNER_READS == 0 {
            refused.push(format!("{}: it is closed to readers", file.display()));
            continue;
        }
        if length > most {
            refused.push(format!("{}: {length} bytes, and at most {most} are kept", file.display()));
            continue;
        }
        let target = to.join(file);
        let copy = || -> io::Result<()> {
            if let Some(parent) = target.parent() {
                fs::create_dir_all(parent)?;
            }
            let mut copy = File::create(&target)?;
            // It may grow meanwhile where something still writes to it.
            io::copy(&mut source.take(most), &mut copy)?;
            copy.sync_all()
        };
        copy().with_context(|| format!("cannot write {}", target.display()))?;
    }
    Ok(())
}
