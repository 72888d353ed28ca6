//! One step as the user sees it: a bar while it runs, a line when it is over, and the child processes in between.
//!
//! Everything goes to stderr, so that stdout stays the caller's. Without a terminal only the lines are left.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use indicatif::{HumanDuration, ProgressBar, ProgressStyle};

/// Lines of a child's output that are kept for an error message.
const KEPT: usize = 400;
/// How often a bar is redrawn while its child says nothing.
const TICK: Duration = Duration::from_millis(200);

/// A step in progress.
pub struct Step {
    bar: ProgressBar,
    title: String,
    started: Instant,
}

/// How a child ended.
pub struct Ended {
    pub status: ExitStatus,
    /// Its last lines on stdout and stderr.
    pub output: String,
}

impl Step {
    /// Begins a step: a line without a terminal, a spinner with one.
    pub fn begin(title: &str) -> Self {
        let bar = ProgressBar::new_spinner().with_message(title.to_owned());
        bar.enable_steady_tick(TICK);
        if bar.is_hidden() {
            eprintln!("{title} …");
        }
        Self { bar, title: title.to_owned(), started: Instant::now() }
    }

    /// Shows that `done` of `total` pieces are done.
    pub fn progress(&self, done: u64, total: u64, now: &str) {
        if self.bar.length() != Some(total) {
            let style = "{spinner} {prefix} [{bar:30}] {pos}/{len} {elapsed} {wide_msg}";
            self.bar.set_style(ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar()));
            self.bar.set_prefix(self.title.clone());
            self.bar.set_length(total);
        }
        self.bar.set_position(done);
        self.bar.set_message(now.to_owned());
    }

    /// Shows what is going on now, behind the bar.
    pub fn message(&self, now: &str) {
        self.bar.set_message(now.to_owned());
    }

    /// Takes the bar away and leaves a line with the time it took.
    pub fn done(self) {
        self.bar.finish_and_clear();
        eprintln!("{}: done in {}", self.title, HumanDuration(self.started.elapsed()));
    }

    /// Takes the bar away: there was nothing to do.
    pub fn skip(self) {
        self.bar.finish_and_clear();
    }

    /// Runs a child to its end, with each line it writes (a carriage return ends one too) and each tick given to `look`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn run(&self, command: &mut Command, mut look: impl FnMut(&Self, Option<&str>)) -> Result<Ended> {
        let name = command.get_program().to_string_lossy().into_owned();
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        let (sender, lines) = mpsc::channel();
        let readers = [
            child.stdout.take().map(|pipe| read_lines(pipe, sender.clone())),
            child.stderr.take().map(|pipe| read_lines(pipe, sender)),
        ];
        let mut kept = VecDeque::new();
        loop {
            match lines.recv_timeout(TICK) {
                Ok(line) => {
                    look(self, Some(&line));
                    if kept.len() == KEPT {
                        kept.pop_front();
                    }
                    kept.push_back(line);
                }
                Err(mpsc::RecvTimeoutError::Timeout) => look(self, None),
                Err(mpsc::RecvTimeoutError::Disconnected) => break,
            }
        }
        let status = child.wait().with_context(|| format!("cannot wait for {name}"))?;
        for reader in readers.into_iter().flatten() {
            // A reader that panicked has only lost lines of a message.
            let _ = reader.join();
        }
        Ok(Ended { status, output: kept.make_contiguous().join("\n") })
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

fn read_lines(pipe: impl Read + Send + 'static, sender: mpsc::Sender<String>) -> std::thread::JoinHandle<()> {
    std::thread::spawn(move || {
        let mut reader = BufReader::new(pipe);
        let mut line = Vec::new();
        let send = |line: &mut Vec<u8>| {
            let text = String::from_utf8_lossy(line).trim_end().to_owned();
            line.clear();
            text.is_empty() || sender.send(text).is_ok()
        };
        loop {
            let available = match reader.fill_buf() {
                Ok([]) | Err(_) => break,
                Ok(bytes) => bytes,
            };
            let length = available.len();
            for &byte in available {
                // A carriage return ends a line too: that is how bars are drawn.
                if !matches!(byte, b'\r' | b'\n') {
                    line.push(byte);
                } else if !send(&mut line) {
                    return;
                }
            }
            reader.consume(length);
        }
        send(&mut line);
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_is_heard_line_by_line_and_its_end_is_known() {
        let step = Step::begin("test");
        let mut seen = Vec::new();
        let mut command = Command::new("sh");
        command.args(["-c", "printf 'one\\rtwo\\n\\nthree'; echo oops >&2; exit 7"]);
        let ended = step.run(&mut command, |_, line| seen.extend(line.map(str::to_owned))).expect("sh runs");
        seen.sort();
        assert_eq!(seen, ["one", "oops", "three", "two"]);
        assert_eq!(ended.status.code(), Some(7));
        assert!(ended.output.contains("oops"));
        assert!(step.run(&mut Command::new("no-such-program"), |_, _| ()).is_err());
    }
}
