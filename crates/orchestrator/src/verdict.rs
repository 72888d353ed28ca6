//! Whether a measured candidate replaces the incumbent. The one rule of the search, in one place.

use crate::ledger::Status;

/// Keeps what lowers the loss on `select`; a tie is discarded, as it gained nothing.
///
/// `incumbent` is `None` for the baseline, which is always kept. Losses are nats per token.
pub fn decide(incumbent: Option<f64>, candidate: f64) -> Status {
    match incumbent {
        None => Status::Keep,
        Some(best) if candidate < best => Status::Keep,
        Some(_) => Status::Discard,
    }
}

/// Nats per token that a candidate gained over its parent; positive is better.
pub fn gain(parent: Option<f64>, candidate: f64) -> f64 {
    parent.map_or(0.0, |parent| parent - candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_lower_loss_is_kept() {
        assert_eq!(decide(None, 9.0), Status::Keep);
        assert_eq!(decide(Some(3.0), 2.999), Status::Keep);
        assert_eq!(decide(Some(3.0), 3.0), Status::Discard);
        assert_eq!(decide(Some(3.0), 3.001), Status::Discard);
        assert_eq!(decide(Some(3.0), f64::NAN), Status::Discard);
        assert_eq!(gain(Some(3.0), 2.5), 0.5);
        assert_eq!(gain(None, 2.5), 0.0);
    }
}
