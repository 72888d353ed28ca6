//! What a child prints, in a file of bounded size: its beginning, and its end, where errors are.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{PipeReader, Read, Write};
use std::path::Path;
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;

use anyhow::{Context, Result};

/// Bytes kept from the beginning.
pub(super) const HEAD: usize = 4 << 20;
/// Bytes kept from the end.
pub(super) const TAIL: usize = 256 << 10;
/// How long to wait for a handle that a child's child holds open after the child is gone.
const LEAK: Duration = Duration::from_secs(1);

/// Drains a pipe into a file on a thread of its own, so that the child never blocks on its output.
pub(super) struct Log {
    done: Receiver<()>,
}

impl Log {
    pub(super) fn start(mut pipe: PipeReader, path: &Path) -> Result<Self> {
        let mut file = File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
        let (sender, done) = mpsc::channel();
        std::thread::spawn(move || {
            // A full disk must not stop the child from printing, so errors of the file are not acted on here.
            let _ = drain(&mut pipe, &mut file);
            let _ = sender.send(());
        });
        Ok(Self { done })
    }

    /// Waits until the pipe is closed, but not for ever: a process that left the group may hold it.
    pub(super) fn finish(self) {
        if self.done.recv_timeout(LEAK).is_err() {
            tracing::warn!("a process that left its group still holds the output of a finished command");
        }
    }
}

fn drain(pipe: &mut impl Read, file: &mut impl Write) -> std::io::Result<()> {
    let mut buffer = [0; 1 << 14];
    let mut head = HEAD;
    let mut tail: VecDeque<u8> = VecDeque::new();
    let mut dropped = 0_u64;
    let mut written = Ok(());
    loop {
        let read = match pipe.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => &buffer[..n],
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(e),
        };
        let (first, rest) = read.split_at(read.len().min(head));
        head -= first.len();
        if written.is_ok() {
            written = file.write_all(first);
        }
        tail.extend(rest);
        if tail.len() > TAIL {
            let excess = tail.len() - TAIL;
            dropped += excess as u64;
            tail.drain(..excess);
        }
    }
    written?;
    if dropped > 0 {
        writeln!(file, "\n[{dropped} bytes of output left out here]")?;
    }
    let (front, back) = tail.as_slices();
    file.write_all(front)?;
    file.write_all(back)
}

/// The last lines of a log, at most `lines`, for a message: without escapes and characters that deceive.
pub fn last_lines(path: &Path, lines: usize) -> String {
    let text = language_model::printable(&std::fs::read(path).unwrap_or_default());
    let all: Vec<&str> = text.lines().map(str::trim_end).filter(|line| !line.is_empty()).collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_both_ends_of_a_long_output() {
        let mut input = b"first\n".to_vec();
        input.resize(HEAD + 3 * TAIL, b'x');
        input.extend(b"\nlast");
        let mut kept = Vec::new();
        drain(&mut input.as_slice(), &mut kept).unwrap();
        assert!(kept.len() < HEAD + TAIL + 100);
        assert!(kept.starts_with(b"first\n") && kept.ends_with(b"\nlast"));
        let note = format!("\n[{} bytes of output left out here]\n", 2 * TAIL + 5);
        assert!(kept.windows(note.len()).any(|w| w == note.as_bytes()));
    }

    #[test]
    fn last_lines_move_no_cursor() {
        let log = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(log.path(), "first\n\u{1b}]0;gone\u{7}\u{1b}[2J\u{1b}[31mPWNED \u{202e}\u{ad}\n\nlast\u{e0041}")
            .unwrap();
        assert_eq!(last_lines(log.path(), 2), "PWNED\nlast");
    }

    #[test]
    fn a_short_output_is_kept_as_it_is() {
        let mut kept = Vec::new();
        drain(&mut &b"a\nb\n"[..], &mut kept).unwrap();
        assert_eq!(kept, b"a\nb\n");
    }
}
