//! The rotary embedding in a `config.json`: `rope_theta`, `rope_scaling` (transformers 4) and `rope_parameters`
//! (transformers 5), which may all be there and must then say the same.

use anyhow::{Context, Result, bail, ensure};
use formats::artifact::config::RopeScaling;
use serde_json::Value;

use super::keys::Keys;

/// transformers' base of the frequencies where none is given.
const DEFAULT_THETA: f64 = 10_000.0;

/// What an object of rotary parameters may hold whatever its type.
const COMMON: [&str; 4] = ["rope_type", "type", "rope_theta", "partial_rotary_factor"];
/// What one of type llama3 holds besides.
const LLAMA3: [&str; 4] = ["factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"];

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Rope {
    pub theta: f64,
    pub scaling: Option<RopeScaling>,
}

pub(super) fn parse(root: Keys<'_>) -> Result<Rope> {
    let theta = root.number("rope_theta")?;
    let read = |key| root.object(key)?.map(|keys| parameters(keys, root, theta)).transpose();
    match (read("rope_scaling")?, read("rope_parameters")?) {
        // transformers takes `rope_scaling` whole and forgets the other.
        (Some(old), Some(new)) => {
            ensure!(
                old == new,
                "config.json has `rope_scaling` {old} and `rope_parameters` {new}; find out which is right and remove \
                 the other"
            );
            Ok(new)
        }
        (Some(one), None) | (None, Some(one)) => Ok(one),
        (None, None) => Ok(Rope { theta: theta.unwrap_or(DEFAULT_THETA), scaling: None }),
    }
}

/// One of the two objects, `theta` being the key beside it.
fn parameters(keys: Keys<'_>, root: Keys<'_>, theta: Option<f64>) -> Result<Rope> {
    let place = keys.place;
    if let Some((key, _)) = keys.map.iter().find(|(_, value)| matches!(value, Value::Object(_))) {
        bail!(
            "`{place}` in config.json has parameters for each type of layer (`{key}`), which the decoder does not have"
        );
    }
    let kind = match (keys.text("rope_type")?, keys.text("type")?) {
        (Some(new), Some(old)) if new != old => {
            bail!("`{place}` in config.json has rope_type `{new}` and type `{old}`; remove the one that is wrong")
        }
        (new, old) => new.or(old).unwrap_or("default"),
    };
    let scaled = match kind {
        "default" => false,
        "llama3" => true,
        other => bail!("rotary scaling `{other}` is not supported; only llama3 and none are"),
    };
    let known = |key: &str| COMMON.contains(&key) || (scaled && LLAMA3.contains(&key));
    if let Some(key) = keys.map.keys().find(|key| !known(key)) {
        bail!("`{place}` in config.json has `{key}`, which type {kind} does not know; remove it, or correct the type");
    }
    keys.one("partial_rotary_factor")?;
    let inner = keys.number("rope_theta")?;
    if let (Some(outer), Some(inner)) = (theta, inner) {
        ensure!(
            outer == inner,
            "config.json has `rope_theta` {outer}, and {inner} in `{place}`; find out which is right and remove the other"
        );
    }
    let theta = inner.or(theta).unwrap_or(DEFAULT_THETA);
    Ok(Rope { theta, scaling: scaled.then(|| llama3(keys, root)).transpose()? })
}

fn llama3(keys: Keys<'_>, root: Keys<'_>) -> Result<RopeScaling> {
    let missing = |key: &str| format!("`{}` in config.json is of type llama3 and has no `{key}`", keys.place);
    let number = |key: &str| keys.number(key)?.with_context(|| missing(key));
    let key = "original_max_position_embeddings";
    let original = keys.size(key)?.with_context(|| missing(key))?;
    if root.map.contains_key(key) {
        let outer = root.size(key)?.unwrap_or_default();
        ensure!(
            outer == original,
            "config.json has `{key}` {outer}, and {original} in `{}`; find out which is right and remove the other",
            keys.place
        );
    }
    Ok(RopeScaling {
        factor: number("factor")?,
        low_freq_factor: number("low_freq_factor")?,
        high_freq_factor: number("high_freq_factor")?,
        original_max_position: original,
    })
}

impl std::fmt::Display for Rope {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "(theta {}", self.theta)?;
        match &self.scaling {
            None => write!(f, ", no scaling)"),
            Some(s) => write!(
                f,
                ", llama3: factor {}, low_freq_factor {}, high_freq_factor {}, original_max_position_embeddings {})",
                s.factor, s.low_freq_factor, s.high_freq_factor, s.original_max_position
            ),
        }
    }
}
