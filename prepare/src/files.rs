//! Small file work that every stage needs: hashes, atomic writes, `*` patterns, progress bars.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use sha2::{Digest, Sha256};

/// sha256 of a file, lower-case hex.
///
/// # Errors
/// When it cannot be read.
pub fn sha256_file(path: &Path) -> Result<String> {
    let mut file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let n = file.read(&mut buffer).with_context(|| format!("cannot read {}", path.display()))?;
        if n == 0 {
            return Ok(hex(&hash.finalize()));
        }
        hash.update(&buffer[..n]);
    }
}

/// sha256 of bytes, lower-case hex.
pub fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Writes a file whole or not at all: a temporary file next to it, synced, then renamed. The folder is made.
///
/// # Errors
/// When the disk refuses.
pub fn write_atomically(path: &Path, write: impl FnOnce(&mut File) -> Result<()>) -> Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let attempt = || -> Result<()> {
        fs::create_dir_all(folder)?;
        let mut temporary = tempfile::NamedTempFile::new_in(folder)?;
        write(temporary.as_file_mut())?;
        temporary.as_file().sync_all()?;
        // Temporary files are private; what is kept is as readable as any other file.
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            temporary.as_file().set_permissions(fs::Permissions::from_mode(0o644))?;
        }
        temporary.persist(path)?;
        Ok(())
    };
    attempt().with_context(|| format!("cannot write {}", path.display()))
}

/// [`write_atomically`] of bytes.
///
/// # Errors
/// When the disk refuses.
pub fn write_bytes(path: &Path, bytes: &[u8]) -> Result<()> {
    write_atomically(path, |file| Ok(file.write_all(bytes)?))
}

/// Whether `name` matches `pattern`, in which `*` stands for any characters within a folder, `**` across folders, and
/// `?` for one character.
pub fn matches(pattern: &str, name: &str) -> bool {
    fn go(p: &[u8], n: &[u8]) -> bool {
        match (p, n) {
            ([b'*', b'*', rest @ ..], _) => {
                let rest = rest.strip_prefix(b"/").unwrap_or(rest);
                (0..=n.len()).any(|i| go(rest, &n[i..]))
            }
            ([b'*', rest @ ..], _) => {
                let folder = n.iter().position(|&c| c == b'/').unwrap_or(n.len());
                (0..=folder).any(|i| go(rest, &n[i..]))
            }
            ([b'?', p @ ..], [c, n @ ..]) => *c != b'/' && go(p, n),
            ([a, p @ ..], [b, n @ ..]) => a == b && go(p, n),
            ([], []) => true,
            _ => false,
        }
    }
    go(pattern.as_bytes(), name.as_bytes())
}

/// Where progress goes: bars on standard error, or nowhere.
#[derive(Debug, Clone, Copy)]
pub struct Progress {
    /// No bars, no notes.
    pub quiet: bool,
}

impl Progress {
    /// A bar of `total` units (bytes or documents).
    pub fn bar(self, what: &str, total: u64, bytes: bool) -> ProgressBar {
        let template = if bytes {
            "{msg:28} {wide_bar} {bytes}/{total_bytes} {eta}"
        } else {
            "{msg:28} {wide_bar} {human_pos}/{human_len} {eta}"
        };
        self.styled(ProgressBar::new(total), what, template)
    }

    /// A spinner that counts, for work of unknown size.
    pub fn counter(self, what: &str) -> ProgressBar {
        let bar = self.styled(ProgressBar::no_length(), what, "{msg:28} {spinner} {human_pos}");
        bar.enable_steady_tick(Duration::from_millis(200));
        bar
    }

    fn styled(self, bar: ProgressBar, what: &str, template: &str) -> ProgressBar {
        if self.quiet {
            bar.set_draw_target(ProgressDrawTarget::hidden());
        }
        let style = ProgressStyle::with_template(template);
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.set_message(what.to_owned());
        bar
    }

    /// One line for people.
    pub fn note(self, line: &str) {
        if !self.quiet {
            eprintln!("{line}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_stay_within_folders() {
        assert!(matches("sample/10BT/*.parquet", "sample/10BT/000_00000.parquet"));
        assert!(!matches("sample/*.parquet", "sample/10BT/000_00000.parquet"));
        assert!(matches("**/*.parquet", "sample/10BT/0.parquet"));
        assert!(matches("**/*.parquet", "0.parquet"));
        assert!(matches("a?c", "abc") && !matches("a?c", "a/c"));
        assert!(!matches("abc", "abcd") && !matches("abcd", "abc"));
    }

    #[test]
    fn a_failed_write_leaves_the_old_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/file");
        write_bytes(&path, b"old").unwrap();
        let failed = write_atomically(&path, |file| {
            file.write_all(b"half")?;
            anyhow::bail!("disk full")
        });
        assert!(failed.is_err());
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "no leftovers");
    }
}
