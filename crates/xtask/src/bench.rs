//! `cargo xtask bench`: runs every benchmark of the workspace, one after the other, in a process of its own.
//!
//! A benchmark is a `[[bench]]` target with `harness = false` that prints its lines as ratios. It is built in the
//! release profile, like everything here.

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::{cargo, root};

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    targets: Vec<Target>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
    kind: Vec<String>,
}

/// Runs the benchmarks whose `package/name` contains `filter`.
///
/// # Errors
/// When none matches, or with those that did not come to their end.
pub fn run(filter: Option<&str>) -> Result<()> {
    let root = root()?;
    let output = cargo(&root)
        .args(["metadata", "--no-deps", "--format-version", "1"])
        .output()
        .context("cannot start cargo metadata")?;
    if !output.status.success() {
        bail!("cargo metadata failed: {}", String::from_utf8_lossy(&output.stderr));
    }
    let metadata: Metadata = serde_json::from_slice(&output.stdout).context("cargo metadata is not understood")?;
    let benches = benches(&metadata, filter);
    if benches.is_empty() {
        bail!("no benchmark's name contains {:?}; leave the filter out to run all", filter.unwrap_or_default());
    }
    // Built first, so that no compiler runs beside a measurement.
    let mut failed = Vec::new();
    for build in [true, false] {
        for (package, bench) in &benches {
            let mut command = cargo(&root);
            command.args(["bench", "--quiet", "--locked", "--profile", "release", "--package", package]);
            command.args(["--bench", bench]);
            if build {
                command.arg("--no-run");
            } else {
                println!("\n── {package}/{bench} ──");
            }
            if !command.status().context("cannot start cargo bench")?.success() {
                failed.push(format!("{package}/{bench}"));
            }
        }
        if !failed.is_empty() {
            bail!("{} failed; the reason is above", failed.join(", "));
        }
    }
    Ok(())
}

fn benches<'a>(metadata: &'a Metadata, filter: Option<&str>) -> Vec<(&'a str, &'a str)> {
    let mut found = Vec::new();
    for package in &metadata.packages {
        for target in package.targets.iter().filter(|target| target.kind.iter().any(|kind| kind == "bench")) {
            let name = format!("{}/{}", package.name, target.name);
            if filter.is_none_or(|filter| name.contains(filter)) {
                found.push((package.name.as_str(), target.name.as_str()));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn benchmarks_are_found_by_part_of_their_name() {
        let json = r#"{"packages": [
            {"name": "model", "targets": [{"name": "model", "kind": ["lib"]}, {"name": "step", "kind": ["bench"]}]},
            {"name": "evaluator", "targets": [{"name": "windows", "kind": ["bench"]}]}]}"#;
        let metadata: Metadata = serde_json::from_str(json).expect("metadata");
        assert_eq!(benches(&metadata, None), [("model", "step"), ("evaluator", "windows")]);
        assert_eq!(benches(&metadata, Some("model/")), [("model", "step")]);
        assert!(benches(&metadata, Some("absent")).is_empty());
    }
}
