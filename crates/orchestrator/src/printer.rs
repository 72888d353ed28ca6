//! What a running search shows on the terminal: a line an experiment on stdout, and a bar on stderr for what runs now.
//!
//! Bars appear only on a terminal; lines always. With `--json` the lines are records.

use std::io::Write;
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

/// Text as a terminal may have it: part of it may be what a candidate or a model wrote.
pub fn shown(text: &str) -> String {
    language_model::printable(text.as_bytes())
}

/// Where output goes. Cloning it is sharing it.
#[derive(Debug, Clone)]
pub struct Printer {
    bars: MultiProgress,
    json: bool,
}

impl Printer {
    /// For people, or JSON lines.
    pub fn new(json: bool) -> Self {
        Self { bars: MultiProgress::new(), json }
    }

    /// A line for people.
    pub fn line(&self, text: &str) {
        let text = shown(text);
        tracing::info!("{text}");
        if !self.json {
            self.write(&text);
        }
    }

    /// A line for people, and the value that says the same to programs.
    pub fn record<T: serde::Serialize>(&self, text: &str, value: &T) {
        let text = &shown(text);
        tracing::info!("{text}");
        match serde_json::to_string(value) {
            Ok(json) if self.json => self.write(&json),
            _ => self.write(text),
        }
    }

    fn write(&self, text: &str) {
        // A reader that went away is no reason to end a search.
        self.bars.suspend(|| {
            let _ = writeln!(std::io::stdout(), "{text}");
        });
    }

    /// A notice on stderr.
    pub fn notice(&self, text: &str) {
        let text = shown(text);
        tracing::info!("{text}");
        self.bars.suspend(|| {
            let _ = writeln!(std::io::stderr(), "{text}");
        });
    }

    /// A bar for something of known length, in thousandths.
    pub fn bar(&self, what: String) -> Bar {
        let style = ProgressStyle::with_template("{prefix} {wide_bar} {percent:>3} % {elapsed} {msg}");
        self.add(ProgressBar::new(1000), style, what)
    }

    /// A bar for something of unknown length.
    pub fn spinner(&self, what: String) -> Bar {
        let style = ProgressStyle::with_template("{prefix} {spinner} {elapsed} {msg}");
        self.add(ProgressBar::new_spinner(), style, what)
    }

    fn add<E>(&self, bar: ProgressBar, style: Result<ProgressStyle, E>, what: String) -> Bar {
        let bar = self.bars.add(bar);
        if let Ok(style) = style {
            bar.set_style(style);
        }
        bar.set_prefix(what);
        bar.tick();
        Bar(bar)
    }
}

/// A bar; gone when dropped.
#[derive(Debug)]
pub struct Bar(ProgressBar);

impl Bar {
    /// Whether anybody sees it.
    pub fn visible(&self) -> bool {
        !self.0.is_hidden()
    }

    /// Sets how much is done, 0 to 1, and a word about it.
    pub fn set(&self, share: f64, message: String) {
        self.0.set_position((share.clamp(0.0, 1.0) * 1000.0) as u64);
        self.0.set_message(shown(&message));
    }

    /// Shows that time passes.
    pub fn tick(&self, _elapsed: Duration) {
        self.0.tick();
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
