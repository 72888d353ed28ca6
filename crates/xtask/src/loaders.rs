//! `cargo xtask loaders`: small checkpoints, right and wrong ones, read by transformers and by us.
//!
//! Each goes through the real programs, `prepare` and `evaluator --base`. We must give transformers' loss or refuse with a
//! reason, and what is harmless must be loaded; anything else fails the command. `loaders/checkpoints.py` makes the cases.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

use crate::{cargo, root};

const CHECKPOINTS: &str = include_str!("loaders/checkpoints.py");
/// The reference. On Linux PyTorch is what deploy pins, since `import torch` needs its CUDA libraries even where no GPU is.
const TRANSFORMERS: &str = "transformers==5.23.0";
/// Where [`TRANSFORMERS`] and PyTorch go, in the cache folder.
const ENVIRONMENT: &str = "loaders/venv";
/// Tokens of a window.
const WINDOW: &str = "64";
/// Largest difference of two losses in nats a token that rounding explains: both compute in f32.
const TOLERANCE: f64 = 1e-4;
/// Fewest cases that the comparison stands for.
const FEWEST: usize = 60;

#[derive(Deserialize)]
struct Cases {
    versions: String,
    cases: Vec<Case>,
}

/// A checkpoint and what transformers made of it.
#[derive(Deserialize)]
struct Case {
    name: String,
    folder: String,
    /// Nothing is wrong with it, so that it must not be refused.
    loaded: bool,
    loss: Option<f64>,
    raises: Option<String>,
}

/// What we made of it.
enum Ours {
    Loss(f64),
    Refused(String),
    /// Neither: a program died, or failed without a reason.
    Failed(String),
}

/// Makes the checkpoints, reads each twice, and prints a table.
///
/// # Errors
/// When one case is neither the same number nor refused, or something cannot be run.
pub fn run() -> Result<()> {
    let root = root()?;
    let mut build = cargo(&root);
    succeed(build.args([
        "build",
        "--quiet",
        "--release",
        "--locked",
        "--package",
        "prepare",
        "--package",
        "evaluator",
    ]))?;
    // Cargo puts all programs of a profile into one folder.
    let programs = std::env::current_exe().context("this program has no path")?;
    let programs = programs.parent().context("this program lies in no folder")?;
    let python = environment(&root)?;
    let folder = root.join("target/loaders");
    if folder.exists() {
        fs::remove_dir_all(&folder).with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    succeed(Command::new(python).args(["-c", CHECKPOINTS]).arg(&folder).arg(WINDOW))?;
    let cases = fs::read(folder.join("cases.json")).context("checkpoints.py left no cases.json")?;
    let Cases { versions, cases } = serde_json::from_slice(&cases).context("cases.json is not understood")?;
    ensure!(cases.len() >= FEWEST, "checkpoints.py made {} cases, fewer than {FEWEST}", cases.len());

    let (mut same, mut refused, mut largest, mut wrong) = (0, 0, 0.0f64, Vec::new());
    for case in &cases {
        let theirs = match (case.loss, &case.raises) {
            (Some(loss), _) => format!("{loss:.6}"),
            (None, raised) => format!("raises {}", raised.as_deref().unwrap_or("without a word")),
        };
        let ours = ours(programs, &folder, &case.folder)?;
        let verdict = match (&ours, case.loss) {
            (Ours::Loss(ours), Some(theirs)) if (ours - theirs).abs() <= TOLERANCE => {
                same += 1;
                largest = largest.max((ours - theirs).abs());
                "same number".to_owned()
            }
            (Ours::Refused(reason), _) if !case.loaded => {
                refused += 1;
                format!("refused: {reason}")
            }
            (Ours::Refused(reason), _) => format!("WRONG, refused though harmless: {reason}"),
            (Ours::Loss(ours), _) => format!("WRONG, {ours:.6}"),
            (Ours::Failed(message), _) => format!("WRONG, failed: {message}"),
        };
        if verdict.starts_with("WRONG") {
            wrong.push(case.name.as_str());
        }
        println!("{}\n    transformers: {theirs}\n    here: {verdict}", case.name);
    }
    println!(
        "\n{} checkpoints, {versions}: {same} the same number (within {TOLERANCE} nats a token, {largest:.1e} at most), \
         {refused} refused, {} wrong",
        cases.len(),
        wrong.len()
    );
    ensure!(wrong.is_empty(), "neither the right number nor a refusal: {}", wrong.join("; "));
    Ok(())
}

/// A python with PyTorch and transformers, made where there is none.
fn environment(root: &Path) -> Result<PathBuf> {
    let folder = root.join(".cache").join(ENVIRONMENT);
    let python = folder.join("bin/python");
    let versions = Command::new(&python).args(["-c", "import torch, transformers"]).output();
    if versions.is_ok_and(|output| output.status.success()) {
        return Ok(python);
    }
    println!("installing PyTorch and {TRANSFORMERS} into {} (5 GB, once)", folder.display());
    succeed(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&folder))?;
    let pip = || {
        let mut pip = Command::new(&python);
        pip.args(["-m", "pip", "install", "--quiet"]);
        pip
    };
    let pinned = if cfg!(target_os = "macos") { "requirements-macos-arm64.txt" } else { "requirements-cuda.txt" };
    succeed(pip().args(["--no-deps", "--require-hashes", "--requirement"]).arg(root.join("deploy").join(pinned)))?;
    succeed(pip().arg(TRANSFORMERS))?;
    Ok(python)
}

/// Prepares a checkpoint and measures it.
fn ours(programs: &Path, folder: &Path, name: &str) -> Result<Ours> {
    let case = folder.join(name);
    let (campaign, data, out) = (case.join("campaign.toml"), case.join("data"), case.join("eval.json"));
    fs::write(&campaign, campaign_of(folder, &case)).with_context(|| format!("cannot write {}", campaign.display()))?;
    let run = |program: &str, more: &[&str]| {
        let mut command = Command::new(programs.join(program));
        command.arg("--campaign").arg(&campaign).arg("--data").arg(&data).args(more);
        command.output().with_context(|| format!("cannot start {program}"))
    };
    let prepared = run("prepare", &["--json"])?;
    if !prepared.status.success() {
        let message = last_line(&prepared);
        // A refusal of the model says so; anything else is the harness's or the program's own fault.
        let refused = prepared.status.code() == Some(1) && message.starts_with("error: ");
        return Ok(if refused { Ours::Refused(message["error: ".len()..].into()) } else { Ours::Failed(message) });
    }
    let out_path = out.to_string_lossy();
    let measured = run("evaluator", &["--base", "--part", "select", "--device", "cpu", "--out", &out_path])?;
    if !measured.status.success() {
        return Ok(Ours::Failed(last_line(&measured)));
    }
    let report = fs::read(&out).with_context(|| format!("the evaluator left no {}", out.display()))?;
    let report: serde_json::Value = serde_json::from_slice(&report).context("the evaluator's figures are no JSON")?;
    Ok(Ours::Loss(report["eval_loss"].as_f64().context("the evaluator gave no eval_loss")?))
}

/// A campaign with the checkpoint as its base, and one document a part.
fn campaign_of(folder: &Path, case: &Path) -> String {
    let texts = ["train", "dev", "select", "report"].map(|part| {
        let path = folder.join(format!("{part}.txt"));
        format!(
            "[[data.text]]\nformat = \"whole\"\nparts = {{ {part} = 1.0 }}\n[data.text.source]\nfrom = \"file:{}\"\n\
             sha256 = \"any\"\n",
            path.display()
        )
    });
    format!(
        "description = \"A checkpoint of cargo xtask loaders\"\n[model.base]\nfrom = \"file:{}\"\nsha256 = \"any\"\n\
         [data]\nseed = 0\ndecontaminate = false\n{}[budget]\nseconds = 1.0\nhard_limit_seconds = 60.0\n[evaluation]\n\
         window = {WINDOW}\nprecision = \"f32\"\n[constraints]\nmax_bits_per_weight = 2.0\ngroupings = [\"row\"]\n\
         train_unquantized = true\n",
        case.display(),
        texts.concat()
    )
}

fn last_line(output: &Output) -> String {
    let errors = String::from_utf8_lossy(&output.stderr);
    errors.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("it said nothing").to_owned()
}

fn succeed(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot start {:?}", command.get_program()))?;
    if !status.success() {
        bail!("{} ended with {status}", command.get_program().display());
    }
    Ok(())
}
