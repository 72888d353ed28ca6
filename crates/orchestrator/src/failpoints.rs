//! Named points of an experiment at which a test can hold the orchestrator, to kill it there: between each two effects.
//!
//! `AUTORESEARCH_HOLD=POINT:N:FILE` in the environment makes it stop at the N-th passing of a point: it writes FILE and
//! waits until that is gone. Without the variable a point does nothing. What runs in the sandbox never sees it.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The variable.
pub const VARIABLE: &str = "AUTORESEARCH_HOLD";

/// `AUTORESEARCH_PANIC=POINT:N` makes the N-th passing of [`may_panic`] at that point panic: faults that only a defect has.
pub const PANIC: &str = "AUTORESEARCH_PANIC";

/// Every point, in the order in which a search passes them.
pub const POINTS: &[&str] = &[
    "search-pinned",
    "search-started",
    "record-unsynced",
    "candidate-committed",
    "candidate-proposed",
    "candidate-recorded",
    "folder-emptied",
    "dependencies-compiled",
    "worktree-shown",
    "trainer-compiled",
    "trainer-copied",
    "build-written",
    "program-started",
    "training-over",
    "training-written",
    "evaluation-over",
    "evaluation-written",
    "rerun-over",
    "rerun-written",
    "verdict-reached",
    "row-written",
    "branch-moved",
    "files-removed",
    "table-unrenamed",
    "table-written",
    "report-over",
    "report-written",
    "stop-written",
];

static PASSED: AtomicU64 = AtomicU64::new(0);
static PASSED_SAFELY: AtomicU64 = AtomicU64::new(0);

/// Passes a point at which a defect is feigned.
pub fn may_panic(point: &'static str) {
    let Ok(wanted) = std::env::var(PANIC) else { return };
    let nth = wanted.strip_prefix(point).and_then(|rest| rest.strip_prefix(':')?.parse::<u64>().ok());
    if nth.is_some_and(|nth| PASSED_SAFELY.fetch_add(1, Ordering::SeqCst) + 1 == nth) {
        panic!("{PANIC} at {point}");
    }
}

/// Passes a point of [`POINTS`].
pub fn at(point: &'static str) {
    debug_assert!(POINTS.contains(&point), "{point} is not in the list");
    let Ok(wanted) = std::env::var(VARIABLE) else { return };
    let mut parts = wanted.splitn(3, ':');
    let (Some(name), Some(nth), Some(file)) = (parts.next(), parts.next(), parts.next()) else { return };
    if name != point || PASSED.fetch_add(1, Ordering::SeqCst) + 1 != nth.parse().unwrap_or(0) {
        return;
    }
    if std::fs::write(file, point).is_ok() {
        while Path::new(file).exists() {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}
