//! Files that must be there as a whole or not at all, and hashes of them.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use sha2::{Digest, Sha256};

use crate::hold;

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
    hold::at("table-unrenamed");
    fs::rename(&temporary, path)?;
    sync_folder(path)
}

/// Copies a file as a whole, mode included, and returns the sha256 of what was copied.
///
/// # Errors
/// When the source cannot be read or the target cannot be written.
pub fn copy(from: &Path, to: &Path) -> io::Result<String> {
    let temporary = temporary(to);
    fs::copy(from, &temporary)?;
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
    let step = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut at = rustix::fs::open(folder, step, Mode::empty())?;
    for part in file.parent().into_iter().flat_map(Path::components) {
        at = rustix::fs::openat(&at, Path::new(&part), step, Mode::empty())?;
    }
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let name = file.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    regular(File::from(rustix::fs::openat(&at, name, flags, Mode::empty())?))
}

fn regular(file: File) -> io::Result<File> {
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is no regular file"));
    }
    Ok(file)
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
