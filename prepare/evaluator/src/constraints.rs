//! What an artifact must satisfy before it is measured.

use formats::artifact::{Artifact, Grouping, ModelConfig};
use formats::campaign::Constraints;

/// Checks an artifact that [`Artifact::read`] accepted against the campaign; the error says which limit it breaks.
///
/// # Errors
/// When the model is another one, a projection is not ternary, a grouping is not allowed, too many bits are stored,
/// the base model is another one, or a part was changed that must stay untouched.
pub fn check(
    artifact: &Artifact,
    config: &ModelConfig,
    base_sha256: Option<&str>,
    limits: &Constraints,
) -> Result<(), String> {
    if artifact.config != *config {
        return Err("the artifact's model is not the campaign's model".into());
    }
    let projections = config.projection_names();
    for name in &projections {
        let Some(tensor) = artifact.ternary(name) else {
            return Err(format!("projection {name} is not ternary"));
        };
        // A width that spans the row is the same geometry as one scale a row.
        let same = |allowed: Grouping| {
            allowed == tensor.grouping
                || (allowed != Grouping::Tensor
                    && tensor.grouping != Grouping::Tensor
                    && allowed.width(tensor.shape[1]) == tensor.grouping.width(tensor.shape[1]))
        };
        if !limits.groupings.iter().any(|&allowed| same(allowed)) {
            let allowed: Vec<String> = limits.groupings.iter().map(Grouping::to_string).collect();
            return Err(format!(
                "projection {name} has scales by {}; this campaign allows {}",
                tensor.grouping,
                allowed.join(", ")
            ));
        }
    }
    let bits = artifact.bits_per_weight();
    if bits > limits.max_bits_per_weight {
        let most = limits.max_bits_per_weight;
        return Err(format!("it stores {bits:.4} bits per weight; this campaign allows {most}"));
    }
    match (&artifact.base_sha256, base_sha256) {
        (Some(of), Some(base)) if of == base => {}
        (Some(of), Some(base)) => {
            return Err(format!("it was made from base model {of}; this campaign's is {base}"));
        }
        (Some(_), None) => return Err("it names a base model; this campaign has none".into()),
        (None, Some(_)) => return Err("it does not name the base model it was made from".into()),
        (None, None) => {}
    }
    if !limits.train_unquantized {
        let all = config.tensors().into_iter().map(|(name, _)| name);
        for name in all.filter(|name| !projections.contains(name)) {
            if !artifact.from_base.contains(&name) {
                return Err(format!("{name} must be left as it is in the base model"));
            }
        }
    }
    Ok(())
}
