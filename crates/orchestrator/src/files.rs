//! Files that must be there as a whole or not at all, and hashes of them.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags};
use sha2::{Digest, Sha256};

use crate::failpoints;

/// Mode of a program.
const PROGRAM: u32 = 0o755;

/// Replaces a file as a whole: a temporary file beside it, synced, then renamed, then the folder synced.
/// One writer at a time, so what a killed one left is overwritten by the next.
///
/// # Errors
/// When the folder cannot be written.
pub fn replace(path: &Path, contents: &[u8]) -> io::Result<()> {
    let temporary = temporary(path);
    let mut file = File::create(&temporary)?;
    file.write_all(contents)?;
    file.sync_all()?;
    failpoints::at("table-unrenamed");
    fs::rename(&temporary, path)?;
    sync_folder(path)
}

/// Copies a program as a whole and returns the sha256 of what was copied.
///
/// # Errors
/// When the source cannot be read or the target cannot be written.
pub fn copy(from: &Path, to: &Path) -> io::Result<String> {
    let temporary = temporary(to);
    fs::copy(from, &temporary)?;
    fs::set_permissions(&temporary, fs::Permissions::from_mode(PROGRAM))?;
    File::open(&temporary)?.sync_all()?;
    let hash = sha256(&temporary)?;
    fs::rename(&temporary, to)?;
    sync_folder(to)?;
    Ok(hash)
}

fn temporary(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    path.with_file_name(name)
}

/// Most bytes that are read of a file that people write, such as a campaign's, or that a search writes for itself.
pub const LARGEST_TEXT: u64 = 64 << 20;

/// Reads a regular file, or a link to one, of at most `most` bytes. Devices and pipes, which may never end, are refused.
///
/// # Errors
/// When it cannot be read, is longer, or is anything else.
pub fn read_regular(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = regular(File::from(rustix::fs::open(path, flags, Mode::empty())?))?;
    let mut bytes = Vec::new();
    file.take(most.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most {
        return Err(io::Error::other(format!("it has more than {most} bytes")));
    }
    Ok(bytes)
}

/// The same of a text.
///
/// # Errors
/// As [`read_regular`], and when it is not UTF-8.
pub fn read_text(path: &Path) -> io::Result<String> {
    let bytes = read_regular(path, LARGEST_TEXT)?;
    String::from_utf8(bytes).map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "it is not UTF-8 text"))
}

/// Opens a file that a candidate may have put there: a regular one, no link, no pipe that never ends.
///
/// # Errors
/// When it cannot be read, or is anything else.
pub fn open_untrusted(path: &Path) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    regular(File::from(rustix::fs::open(path, flags, Mode::empty())?))
}

/// Opens a file below a folder that a program of unknown origin wrote in: no link on the way is followed either.
///
/// # Errors
/// As [`open_untrusted`].
pub fn open_untrusted_below(folder: &Path, file: &Path) -> io::Result<File> {
    open_untrusted_at(rustix::fs::open(folder, FOLDER, Mode::empty())?, file)
}

/// The same below an open folder.
///
/// # Errors
/// As [`open_untrusted`].
pub fn open_untrusted_at(folder: impl AsFd, file: &Path) -> io::Result<File> {
    let mut at = folder.as_fd().try_clone_to_owned()?;
    for part in file.parent().into_iter().flat_map(Path::components) {
        at = rustix::fs::openat(&at, Path::new(&part), FOLDER, Mode::empty())?;
    }
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let name = file.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    regular(File::from(rustix::fs::openat(&at, name, flags, Mode::empty())?))
}

/// Flags for opening a folder at an untrusted path.
const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::NOFOLLOW).union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

fn regular(file: File) -> io::Result<File> {
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is no regular file"));
    }
    Ok(file)
}

/// Removes a file, or a folder with all that is below it, however deep and whatever the modes. What is not there is fine.
///
/// Folders are moved up to the first one instead of being descended into: the depth costs neither handles nor stack, and
/// no path grows long.
///
/// # Errors
/// When the system refuses.
pub fn remove_tree(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
        Ok(metadata) if !metadata.is_dir() => return fs::remove_file(path),
        Ok(_) => {}
    }
    let top = open_up(CWD, path)?;
    let mut moved = 0_u64;
    while let Some(entries) = some_entries(&top)? {
        for (name, is_folder) in entries {
            if !is_folder {
                rustix::fs::unlinkat(&top, &name, AtFlags::empty())?;
                continue;
            }
            let folder = open_up(&top, &name)?;
            while let Some(inner) = some_entries(&folder)? {
                for (name, is_folder) in inner {
                    if is_folder {
                        // A folder can be moved by who may write to it.
                        drop(open_up(&folder, &name)?);
                        move_up(&folder, &name, &top, &mut moved)?;
                    } else {
                        rustix::fs::unlinkat(&folder, &name, AtFlags::empty())?;
                    }
                }
            }
            rustix::fs::unlinkat(&top, &name, AtFlags::REMOVEDIR)?;
        }
    }
    fs::remove_dir(path)
}

/// Removes as [`remove_tree`] does; what the system does not remove is moved into `aside` under a new name, which is
/// returned.
///
/// # Errors
/// When it can be neither removed nor moved.
pub fn clear_away(path: &Path, aside: &Path) -> io::Result<Option<PathBuf>> {
    let Err(error) = remove_tree(path) else { return Ok(None) };
    fs::create_dir_all(aside)?;
    let free = (1_u64..).map(|number| aside.join(number.to_string())).find(|path| fs::symlink_metadata(path).is_err());
    let free = free.ok_or(error)?;
    fs::rename(path, &free)?;
    Ok(Some(free))
}

/// Entries of a folder that are handled at once.
const ENTRIES: usize = 1024;

/// Some of a folder's entries, and whether each is a folder; `None` when it is empty.
fn some_entries(folder: &OwnedFd) -> io::Result<Option<Vec<(std::ffi::CString, bool)>>> {
    let mut found = Vec::new();
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let kind = match entry.file_type() {
            FileType::Unknown => {
                let stat = rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW)?;
                FileType::from_raw_mode(stat.st_mode)
            }
            kind => kind,
        };
        found.push((name.to_owned(), kind == FileType::Directory));
        if found.len() == ENTRIES {
            break;
        }
    }
    Ok((!found.is_empty()).then_some(found))
}

/// Opens a folder after making it ours to read and write.
fn open_up(at: impl AsFd, name: impl rustix::path::Arg + Copy) -> io::Result<OwnedFd> {
    // Not through a link: it was seen to be a folder, and what could replace it is gone.
    rustix::fs::chmodat(&at, name, Mode::RWXU, AtFlags::empty())?;
    Ok(rustix::fs::openat(at, name, FOLDER, Mode::empty())?)
}

/// Moves a folder to the first one, under a name that is free there.
fn move_up(from: &OwnedFd, name: &std::ffi::CStr, top: &OwnedFd, moved: &mut u64) -> io::Result<()> {
    loop {
        *moved += 1;
        match rustix::fs::renameat(from, name, top, format!("moved-{moved}")) {
            Err(rustix::io::Errno::EXIST | rustix::io::Errno::NOTEMPTY | rustix::io::Errno::NOTDIR) => {}
            outcome => return Ok(outcome?),
        }
    }
}

/// Bytes that a folder takes on disk; links are not followed, and what vanishes meanwhile counts nothing.
pub fn size(folder: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(folder) else { return 0 };
    let of = |entry: fs::DirEntry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => size(&entry.path()),
        Ok(metadata) => metadata.blocks() * 512,
        Err(_) => 0,
    };
    entries.flatten().map(of).sum()
}

/// sha256 of a file, lower-case hex, read in pieces.
///
/// # Errors
/// When the file cannot be read.
pub fn sha256(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            n => hasher.update(&buffer[..n]),
        }
    }
    Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Makes a new name in a folder durable.
///
/// # Errors
/// When the folder cannot be opened.
pub fn sync_folder(of: &Path) -> io::Result<()> {
    match of.parent().filter(|p| !p.as_os_str().is_empty()) {
        Some(folder) => File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_tree_goes_however_deep_closed_or_oddly_named() {
        let dir = tempfile::tempdir().unwrap();
        let (tree, outside) = (dir.path().join("tree"), dir.path().join("outside"));
        fs::create_dir_all(tree.join("moved-1")).unwrap();
        fs::create_dir_all(tree.join("a/b/moved-1/c")).unwrap();
        fs::write(tree.join("moved-2"), "in the way").unwrap();
        fs::write(&outside, "stays").unwrap();
        symlink(&outside, tree.join("a/link")).unwrap();
        symlink("/", tree.join("a/root")).unwrap();
        for closed in ["a/b/moved-1", "a/b", "a"] {
            fs::set_permissions(tree.join(closed), fs::Permissions::from_mode(0o000)).unwrap();
        }
        // Deeper than any path that a call takes, and than a process has handles.
        let mut at = rustix::fs::open(&tree, FOLDER, Mode::empty()).unwrap();
        for _ in 0..5_000 {
            rustix::fs::mkdirat(&at, "d", Mode::RWXU).unwrap();
            at = rustix::fs::openat(&at, "d", FOLDER, Mode::empty()).unwrap();
        }
        drop(at);
        remove_tree(&tree).unwrap();
        assert!(!tree.exists());
        assert_eq!(fs::read_to_string(&outside).unwrap(), "stays");
        remove_tree(&tree).unwrap();
    }

    #[test]
    fn what_never_ends_is_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let (file, link) = (dir.path().join("file"), dir.path().join("link"));
        fs::write(&file, "text").unwrap();
        symlink(&file, &link).unwrap();
        assert_eq!(read_text(&link).unwrap(), "text");
        assert!(read_regular(&file, 3).unwrap_err().to_string().contains("more than 3 bytes"));
        fs::remove_file(&link).unwrap();
        symlink("/dev/zero", &link).unwrap();
        assert!(read_text(&link).unwrap_err().to_string().contains("no regular file"));
        fs::remove_file(&link).unwrap();
        assert!(std::process::Command::new("mkfifo").arg(&link).status().unwrap().success());
        assert!(read_text(&link).is_err());
    }

    #[test]
    fn a_link_is_removed_and_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("kept")).unwrap();
        symlink(dir.path().join("kept"), dir.path().join("link")).unwrap();
        remove_tree(&dir.path().join("link")).unwrap();
        assert!(dir.path().join("kept").is_dir() && !dir.path().join("link").exists());
    }
}
