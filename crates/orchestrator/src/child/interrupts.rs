//! Ctrl-C and its relatives, counted, and passed on to whoever waits for a child.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};
use rustix::process::Pid;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::Event;

#[derive(Debug, Default)]
struct Shared {
    count: AtomicUsize,
    subscribers: Mutex<Vec<(Pid, Sender<Event>)>>,
}

/// How often the user asked to stop. The first time is gentle; the second kills what runs.
#[derive(Debug, Clone, Default)]
pub struct Interrupts(Arc<Shared>);

impl Interrupts {
    /// Takes over SIGINT and SIGTERM, and leaves SIGHUP to nohup; `notice` is called with the count, on a thread of its own.
    ///
    /// # Errors
    /// When the system refuses the handlers.
    pub fn listen(notice: impl Fn(usize) + Send + 'static) -> Result<Self> {
        let interrupts = Self::default();
        let mut signals = Signals::new([SIGINT, SIGTERM]).context("cannot listen for Ctrl-C")?;
        let shared = interrupts.clone();
        std::thread::spawn(move || {
            for _ in signals.forever() {
                notice(shared.raise());
            }
        });
        Ok(interrupts)
    }

    /// Counts one more, and returns how many there were.
    pub fn raise(&self) -> usize {
        let count = self.0.count.fetch_add(1, Ordering::SeqCst) + 1;
        for (_, subscriber) in &*self.0.subscribers.lock().unwrap_or_else(PoisonError::into_inner) {
            let _ = subscriber.send(Event::Interrupt);
        }
        count
    }

    /// How many there were.
    pub fn count(&self) -> usize {
        self.0.count.load(Ordering::SeqCst)
    }

    /// Tells whoever waits for a command.
    pub(super) fn subscribe(&self, command: Pid, sender: Sender<Event>) {
        let mut subscribers = self.0.subscribers.lock().unwrap_or_else(PoisonError::into_inner);
        // One that came just before would otherwise be seen by nobody.
        if self.count() > 0 {
            let _ = sender.send(Event::Interrupt);
        }
        subscribers.push((command, sender));
    }

    pub(super) fn unsubscribe(&self, command: Pid) {
        let mut subscribers = self.0.subscribers.lock().unwrap_or_else(PoisonError::into_inner);
        subscribers.retain(|(other, _)| *other != command);
    }
}
