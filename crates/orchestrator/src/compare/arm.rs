//! An arm's file: what it is, where it starts from, and which knobs it sets.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::error::Failure;
use crate::files;

/// Folder of the arms, relative to the repository root.
pub const FOLDER: &str = "experiments/methods";
/// The arm that trains nothing: the end of the table opposite to the full-precision parent.
pub const ROUND_TO_NEAREST: &str = "round-to-nearest";

/// `experiments/methods/<name>.toml`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ArmFile {
    /// Its name: that of the file.
    #[serde(skip)]
    pub name: String,
    /// What it does, in one line.
    pub description: String,
    /// The campaign that it is run on, unless the command line names another.
    pub campaign: String,
    /// The recipe that it starts from, relative to the repository root; crates/trainer/src/train.rs of the commit that
    /// the comparison started from when absent.
    #[serde(default)]
    pub recipe: Option<PathBuf>,
    /// Steps instead of the campaign's budget; 0 exports the start.
    #[serde(default)]
    pub max_steps: Option<u64>,
    /// Fields of the recipe's knobs: numbers and booleans as they are, texts as Rust expressions.
    #[serde(default)]
    knobs: BTreeMap<String, Value>,
}

/// The value of a knob in the file.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(untagged)]
enum Value {
    Bool(bool),
    Integer(i64),
    Float(f64),
    Text(String),
}

impl ArmFile {
    /// Reads an arm by its name in [`FOLDER`], or by the path of its file.
    ///
    /// # Errors
    /// When there is none, with those there are; or when its file is refused.
    pub fn read(root: &Path, given: &str) -> Result<Self, Failure> {
        let by_name = root.join(FOLDER).join(format!("{given}.toml"));
        let path = if given.ends_with(".toml") { PathBuf::from(given) } else { by_name };
        let text = files::read_text(&path).map_err(|e| Failure::Campaign {
            message: format!("cannot read arm {given:?}, {}: {e}", path.display()),
            hint: format!("arms in {FOLDER}: {}", names(root).join(", ")),
        })?;
        let refused = |message: String| Failure::Campaign {
            message: format!("{}: {message}", path.display()),
            hint: format!("an arm has description, campaign, recipe, max_steps and [knobs]; see {FOLDER}"),
        };
        let mut arm: Self = toml::from_str(&text).map_err(|e| refused(e.to_string()))?;
        arm.name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        if arm.description.trim().is_empty() || arm.description.contains('\n') {
            return Err(refused("description: say in one line what it does".into()));
        }
        Ok(arm)
    }

    /// The knobs as Rust expressions.
    pub fn knobs(&self) -> BTreeMap<String, String> {
        let text = |value: &Value| match value {
            Value::Bool(value) => value.to_string(),
            Value::Integer(value) => value.to_string(),
            // With a point or an exponent: a float to Rust too.
            Value::Float(value) => format!("{value:?}"),
            Value::Text(value) => value.clone(),
        };
        self.knobs.iter().map(|(name, value)| (name.clone(), text(value))).collect()
    }
}

/// Names of the arms there are, sorted.
pub fn names(root: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(root.join(FOLDER)).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .filter_map(|entry| Some(entry.file_name().to_str()?.strip_suffix(".toml")?.to_owned()))
        .filter(|name| name != "campaign")
        .collect();
    names.sort();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_committed_arm_is_right_and_sets_fields_that_its_recipe_has() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let names = names(&root);
        assert!(names.iter().any(|name| name == ROUND_TO_NEAREST), "{names:?}");
        for name in names {
            let arm = ArmFile::read(&root, &name).unwrap();
            assert_eq!(arm.name, name);
            let recipe = arm.recipe.clone().unwrap_or_else(|| crate::layout::RECIPE.into());
            let source = std::fs::read_to_string(root.join(recipe)).unwrap();
            crate::knobs::set(&source, "PRETRAINED", &arm.knobs()).unwrap_or_else(|e| panic!("{name}: {e}"));
        }
    }

    #[test]
    fn knobs_become_rust_and_mistakes_are_told() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join(FOLDER);
        std::fs::create_dir_all(&folder).unwrap();
        let write = |text: &str| std::fs::write(folder.join("a.toml"), text).unwrap();
        write(
            "description = \"d\"\ncampaign = \"c\"\n[knobs]\na = 1\nb = 2.0\nc = 1e-3\nd = true\ne = \"Scale::Mse\"\n",
        );
        let knobs = ArmFile::read(root.path(), "a").unwrap().knobs();
        let text: Vec<&str> = knobs.values().map(String::as_str).collect();
        assert_eq!(text, ["1", "2.0", "0.001", "true", "Scale::Mse"]);
        write("description = \"d\"\ncampaign = \"c\"\nknbs = 1\n");
        assert!(ArmFile::read(root.path(), "a").unwrap_err().to_string().contains("knbs"));
        let missing = ArmFile::read(root.path(), "b").unwrap_err();
        assert_eq!(missing.hint().unwrap(), format!("arms in {FOLDER}: a"));
    }
}
