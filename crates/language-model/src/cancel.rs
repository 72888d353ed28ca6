//! Stops a request from another thread.

use tokio::sync::watch;

/// A switch that goes one way. Its clones are one switch; keep one where Ctrl-C is handled and hand one to each request.
#[derive(Debug, Clone)]
pub struct Cancel(watch::Sender<bool>);

impl Default for Cancel {
    fn default() -> Self {
        Self(watch::Sender::new(false))
    }
}

impl Cancel {
    /// Ends the request that runs with it, at once, and every later one before it begins.
    pub fn cancel(&self) {
        self.0.send_replace(true);
    }

    /// Whether [`Cancel::cancel`] was called.
    pub fn is_cancelled(&self) -> bool {
        *self.0.borrow()
    }

    /// Returns once it is.
    pub(crate) async fn cancelled(&self) {
        // The error means that no sender is left, and `self` is one.
        let _ = self.0.subscribe().wait_for(|cancelled| *cancelled).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clones_are_one_switch() {
        let here = Cancel::default();
        let there = here.clone();
        assert!(!there.is_cancelled());
        here.cancel();
        assert!(there.is_cancelled() && !Cancel::default().is_cancelled());
    }
}
