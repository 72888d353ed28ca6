//! The mount namespace: the command sees every file system read-only and without set-uid programs. What its policy lets
//! it write is a mount of its own; its scratch folders lie in memory of bounded size and vanish with it.
//!
//! Landlock cannot do this: it has no right for modes, owners, times and extended attributes.

use std::ffi::CString;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind_recursive, mount_change, unmount,
};

use crate::policy::{Policy, Scratch};

/// Most files and folders of a scratch folder: each takes kernel memory that its size does not count.
const SCRATCH_INODES: u64 = 100_000;
/// Parts of the memory below a scratch folder that shows what lies there.
const LAYERS: [&str; 2] = ["changed", "work"];

/// Gives each writable folder a mount of its own, and each scratch folder its memory; a handle of each scratch folder, in
/// the policy's order. Nothing of it is visible outside of this namespace.
pub fn prepare(policy: &Policy) -> Result<Vec<File>> {
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).context("private mounts")?;
    for folder in existing(&policy.write) {
        mount_bind_recursive(folder, folder).with_context(|| format!("cannot mount {}", folder.display()))?;
    }
    let mut handles = Vec::new();
    for (index, scratch) in policy.scratch.iter().enumerate() {
        match enter_memory(scratch) {
            Ok(handle) => handles.push(handle),
            Err(error) => {
                // The command then writes to the folders themselves, all of them.
                for mounted in &policy.scratch[..index] {
                    unmount(&mounted.folder, UnmountFlags::DETACH)
                        .with_context(|| format!("cannot unmount {}", mounted.folder.display()))?;
                }
                return Err(error);
            }
        }
    }
    // The folder that this process is in may lie below one of the mounts.
    let here = std::env::current_dir().context("the working folder is gone")?;
    std::env::set_current_dir(&here).with_context(|| format!("cannot enter {}", here.display()))?;
    Ok(handles)
}

/// Makes everything read-only but the policy's writable and scratch folders.
pub fn seal(policy: &Policy) -> Result<()> {
    set_attributes(Path::new("/"), libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID, 0)?;
    let scratch = policy.scratch.iter().map(|scratch| &scratch.folder);
    for folder in existing(&policy.write).chain(scratch) {
        set_attributes(folder, libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV, libc::MOUNT_ATTR_RDONLY)?;
    }
    Ok(())
}

/// Paths that do not exist grant nothing.
fn existing(folders: &[PathBuf]) -> impl Iterator<Item = &PathBuf> {
    folders.iter().filter(|folder| folder.exists())
}

/// Mounts a file system in memory on the folder; above it, where the folder is to show through, the two together.
fn enter_memory(scratch: &Scratch) -> Result<File> {
    let folder = &scratch.folder;
    let open = |path: &Path| File::open(path).with_context(|| format!("cannot open {}", path.display()));
    let below = open(folder)?;
    let options = CString::new(format!("size={},nr_inodes={SCRATCH_INODES},mode=755", scratch.bytes))?;
    mount("scratch", folder, "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, options.as_c_str())
        .with_context(|| format!("cannot mount memory on {}", folder.display()))?;
    let over = || -> Result<()> {
        for layer in LAYERS {
            std::fs::create_dir(folder.join(layer))?;
        }
        let memory = open(folder)?;
        // By handles: paths may hold commas and colons.
        let [below, memory] = [&below, &memory].map(|file| format!("/proc/self/fd/{}", file.as_raw_fd()));
        let [changed, work] = LAYERS;
        let options =
            CString::new(format!("lowerdir={below},upperdir={memory}/{changed},workdir={memory}/{work},userxattr"))?;
        Ok(mount("scratch", folder, "overlay", MountFlags::NOSUID | MountFlags::NODEV, options.as_c_str())?)
    };
    if scratch.over
        && let Err(error) = over()
    {
        unmount(folder, UnmountFlags::DETACH).with_context(|| format!("cannot unmount {}", folder.display()))?;
        return Err(error).with_context(|| format!("cannot mount an overlay on {}", folder.display()));
    }
    open(folder)
}

/// mount_setattr (Linux 5.12) on a mount and those below it.
#[allow(unsafe_code)]
fn set_attributes(folder: &Path, set: u64, clear: u64) -> Result<()> {
    use std::os::unix::ffi::OsStrExt;
    let path = CString::new(folder.as_os_str().as_bytes())?;
    let attributes = libc::mount_attr { attr_set: set, attr_clr: clear, propagation: 0, userns_fd: 0 };
    // SAFETY: path and attributes outlive the call, and the size is that of the attributes.
    let outcome = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            libc::AT_FDCWD,
            path.as_ptr(),
            libc::AT_RECURSIVE,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    let error = std::io::Error::last_os_error();
    ensure!(outcome == 0, "cannot change the mount {}: {error}", folder.display());
    Ok(())
}
