//! The control: every knob uniformly over its annotation, on a logarithmic scale where it says `log`.
//!
//! The search agent starts with the same draws, so both arms share their first experiments for the same seed.

use std::collections::BTreeMap;

use rand::RngExt;
use rand::rngs::StdRng;

use crate::knobs::Space;

/// One draw of all knobs.
pub fn sample(space: &Space, rng: &mut StdRng) -> BTreeMap<String, String> {
    space
        .knobs
        .iter()
        .map(|knob| {
            let unit: f64 = rng.random();
            let width = knob.domain.choices().map_or(1.0, |n| n as f64);
            (knob.name.clone(), knob.domain.at(unit * width))
        })
        .collect()
}
