//! `evaluator`: measures an artifact, or the full-precision parent, on a part of the text.
//!
//! Exit codes: 0 measured; 4 the artifact is invalid, which is the fault of what made it; 1 could not measure, which is
//! never the artifact's fault: the campaign, the data, the base model or the machine is not as it should be, and the
//! message says what to do.

use std::io::ErrorKind;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::{ArgGroup, Parser, ValueEnum};
use evaluator::prepared::Prepared;
use evaluator::quantized::{Quantized, weights};
use evaluator::report::{block, write_json};
use formats::artifact;
use formats::artifact::{Artifact, ArtifactError, ModelConfig};
use formats::campaign::{Campaign, Part, Precision};
use formats::contract::{Evaluation, FAILED, INVALID, Probed, Refused};
use formats::corpus::Corpus;
use indicatif::{ProgressBar, ProgressStyle};
use tch::{Cuda, Device, Kind};
use ternary::model::{Decoder, Dense, Weights};
use ternary::probe::Probe;

/// Times that the piece of work is timed: most of a second.
const PROBES: u32 = 100;
/// Times before that.
const UNTIMED: u32 = 20;

/// Measures an artifact on a part of the text, from its stored codes and scales alone.
///
/// Example: evaluator --campaign experiments/nano/campaign.toml --data experiments/nano/data
///          --artifact artifact.ternary --part select --out eval.json
#[derive(Parser)]
#[command(version, verbatim_doc_comment)]
#[command(group = ArgGroup::new("what").required(true).args(["artifact", "base", "probe"]))]
struct Args {
    /// The campaign's file: model, window, precision, limits.
    #[arg(long)]
    campaign: PathBuf,
    /// The folder that `prepare` made.
    #[arg(long)]
    data: PathBuf,
    /// The artifact to measure.
    #[arg(long)]
    artifact: Option<PathBuf>,
    /// Measure the full-precision parent instead: the floor.
    #[arg(long)]
    base: bool,
    /// Time a fixed piece of work instead, which the budget's clock is checked by; it reads nothing.
    #[arg(long)]
    probe: bool,
    /// The part of the text; `report` is for final figures only.
    #[arg(long)]
    part: EvaluationPart,
    /// Where the figures go, as JSON.
    #[arg(long)]
    out: PathBuf,
    /// Where the decoder runs.
    #[arg(long, default_value = "auto")]
    device: DeviceChoice,
    /// CPU threads; as many as libtorch chooses when left out.
    #[arg(long)]
    threads: Option<u16>,
}

/// The parts that can be measured.
#[derive(Clone, Copy, ValueEnum)]
enum EvaluationPart {
    Dev,
    Select,
    Report,
}

/// Where the decoder runs.
#[derive(Clone, Copy, ValueEnum)]
enum DeviceChoice {
    Auto,
    Cpu,
    Cuda,
    Mps,
}

/// How an evaluation ends when nothing failed.
enum Outcome {
    Measured(Box<Evaluation>),
    Invalid(String),
    /// Seconds of the processor, all threads together, that the piece of work took on average.
    Probed(f64),
}

fn main() -> ExitCode {
    let args = Args::parse();
    // libtorch's failures, out of memory included, come as panics that have printed their message. What an artifact can
    // do wrong has been refused before anything is computed from it.
    let outcome = catch_unwind(AssertUnwindSafe(|| run(&args)));
    ExitCode::from(match outcome {
        Ok(Ok(Outcome::Measured(report))) => {
            print!("{}", block(&report));
            0
        }
        Ok(Ok(Outcome::Probed(seconds))) => {
            println!("{:.3} ms of the processor for the piece of work", 1000.0 * seconds);
            0
        }
        Ok(Ok(Outcome::Invalid(reason))) => {
            eprintln!("invalid artifact: {reason}");
            INVALID
        }
        Ok(Err(error)) => {
            eprintln!("error: {error:#}");
            FAILED
        }
        Err(_) => {
            eprintln!("error: measuring broke off with the message above; if it speaks of memory, free some");
            FAILED
        }
    })
}

fn run(args: &Args) -> Result<Outcome> {
    if let Some(threads) = args.threads {
        tch::set_num_threads(i32::from(threads.max(1)));
    }
    let outcome = if args.probe { Outcome::Probed(probe()) } else { measure(args)? };
    match &outcome {
        Outcome::Measured(report) => write_json(&args.out, report)?,
        Outcome::Invalid(reason) => write_json(&args.out, &Refused { invalid: reason.clone() })?,
        Outcome::Probed(seconds) => write_json(&args.out, &Probed { probe_seconds: *seconds })?,
    }
    Ok(outcome)
}

fn probe() -> f64 {
    let probe = Probe::new();
    // libtorch prepares its kernels at their first use.
    for _ in 0..UNTIMED {
        probe.time();
    }
    let total: Duration = (0..PROBES).map(|_| probe.time()).sum();
    (total / PROBES).as_secs_f64()
}

fn measure(args: &Args) -> Result<Outcome> {
    let campaign = Campaign::load(&args.campaign)?;
    let device = device(args.device)?;
    let prepared = Prepared::read(&args.data)?;
    let base = Base::open(&campaign, &args.data, &prepared)?;
    campaign.check_model(&base.config).map_err(anyhow::Error::msg)?;
    let compute = match campaign.evaluation.precision {
        Precision::F32 => Kind::Float,
        Precision::Bf16 => Kind::BFloat16,
    };
    let part = match args.part {
        EvaluationPart::Dev => Part::Dev,
        EvaluationPart::Select => Part::Select,
        EvaluationPart::Report => Part::Report,
    };
    // The manifest has the hashes of the rest.
    prepared.verify("text/manifest.json")?;
    let text = Text::read(&args.data, part, &campaign, &base.config)?;

    let mut report = Evaluation {
        part,
        eval_loss: f64::NAN,
        eval_ppl: f64::NAN,
        eval_bpb: f64::NAN,
        tokens: 0,
        bytes: 0,
        window: campaign.evaluation.window,
        bits_per_weight: 0.0,
        q_neg1: 0.0,
        q_zero: 0.0,
        q_pos1: 0.0,
        artifact_sha256: String::new(),
        window_losses: Vec::new(),
        seconds: 0.0,
    };
    let (decoder, linears) = match &args.artifact {
        None => {
            let folder = base
                .folder
                .as_deref()
                .context("this campaign trains from scratch: there is no parent to measure; leave out --base")?;
            let stored = load_parent(folder, &base.config)?;
            report.bits_per_weight = stored_bits(&base.config, &stored)?;
            report.artifact_sha256 = base.sha256.clone().unwrap_or_default();
            let stored: Weights = stored.iter().map(|(n, t)| (n.to_owned(), t.to_device(device))).collect();
            let dense = Dense::new(&base.config, &stored, compute)?;
            let decoder = Decoder::new(&base.config, &stored.unquantized(&base.config)?, compute)?;
            (decoder, Quantized { dense, activation_bits: 16 })
        }
        Some(path) => {
            let artifact = match Artifact::read_expecting(path, &base.config) {
                Ok(artifact) => artifact,
                Err(ArtifactError::Invalid { reason }) => return Ok(Outcome::Invalid(reason)),
                Err(ArtifactError::Malformed { reason, .. }) => {
                    return Ok(Outcome::Invalid(format!("it is not a readable artifact: {reason}")));
                }
                // Who wrote it chose who may read it.
                Err(ArtifactError::Io { source, .. }) if source.kind() == ErrorKind::PermissionDenied => {
                    return Ok(Outcome::Invalid("its file or folder is closed to readers".into()));
                }
                Err(error @ ArtifactError::Io { .. }) => return Err(error.into()),
            };
            let sha256 = base.sha256.as_deref();
            if let Err(reason) = evaluator::constraints::check(&artifact, &base.config, sha256, &campaign.constraints) {
                return Ok(Outcome::Invalid(reason));
            }
            report.artifact_sha256 = artifact::sha256_file(path)?;
            report.bits_per_weight = artifact.bits_per_weight();
            [report.q_neg1, report.q_zero, report.q_pos1] = artifact.shares();
            let parent = match (&base.folder, artifact.from_base.is_empty()) {
                (Some(folder), false) => Some(load_parent(folder, &base.config)?),
                _ => None,
            };
            let all = weights(&artifact, parent.as_ref(), device)?;
            let dense = Dense::new(&base.config, &all, compute)?;
            let decoder = Decoder::new(&base.config, &all.unquantized(&base.config)?, compute)?;
            (decoder, Quantized { dense, activation_bits: artifact.activation_bits })
        }
    };

    let bar = ProgressBar::new(text.ids.len() as u64).with_message(format!("evaluating {part}"));
    bar.set_style(ProgressStyle::with_template("{msg} {bar:32} {pos}/{len} tokens, {per_sec}, {eta} left")?);
    let start = Instant::now();
    let window = campaign.evaluation.window;
    let score = ternary::model::score(&decoder, &linears, &text.ids, &text.token_bytes, window, |done| {
        bar.set_position(done as u64);
    });
    bar.finish_and_clear();
    report.seconds = start.elapsed().as_secs_f64();
    report.eval_loss = score.loss();
    report.eval_ppl = score.perplexity();
    report.eval_bpb = score.bits_per_byte();
    report.tokens = score.tokens;
    report.bytes = score.bytes;
    report.window_losses = score.window_losses;
    if !report.eval_loss.is_finite() {
        // JSON has no NaN, and a model whose loss is not a number has not been measured.
        ensure!(args.artifact.is_some(), "the base model's loss is not a finite number: run `prepare` again");
        return Ok(Outcome::Invalid("its loss on this part is not a finite number".into()));
    }
    Ok(Outcome::Measured(Box::new(report)))
}

/// The campaign's model: its shape and, when it is pretrained, where its weights are.
struct Base {
    config: ModelConfig,
    folder: Option<PathBuf>,
    sha256: Option<String>,
}

impl Base {
    /// Finds the model and checks that it is the one that `prepare` recorded.
    fn open(campaign: &Campaign, data: &Path, prepared: &Prepared) -> Result<Self> {
        if let Some(config) = campaign.model.scratch.as_ref().filter(|_| !campaign.model.has_parent()) {
            return Ok(Self { config: config.clone(), folder: None, sha256: None });
        }
        let folder = data.join("base");
        prepared.verify("base/config.json")?;
        // The trainer takes the hash that it hands over from here.
        prepared.verify("base/base.json")?;
        let sha256 = prepared.verify("base/model.safetensors")?;
        Ok(Self { config: Weights::config(&folder)?, folder: Some(folder), sha256: Some(sha256) })
    }
}

/// The parent's tensors in their stored types, on the processor.
fn load_parent(folder: &Path, config: &ModelConfig) -> Result<Weights> {
    let weights = Weights::load(folder, None, Device::Cpu)?;
    weights.check(config).context("the base model is not what its config.json says; run `prepare` again")?;
    Ok(weights)
}

/// The text to score.
struct Text {
    ids: Vec<i64>,
    token_bytes: Vec<u16>,
}

impl Text {
    fn read(data: &Path, part: Part, campaign: &Campaign, config: &ModelConfig) -> Result<Self> {
        let corpus = Corpus::open(&data.join("text"))?;
        let tokens = corpus.part(part)?;
        tokens.verify()?;
        let token_bytes = corpus.token_bytes()?;
        let evaluation = &campaign.evaluation;
        let most = evaluation.max_tokens.unwrap_or(usize::MAX) as u64;
        let mut ids = vec![0; tokens.len().min(most) as usize];
        tokens.copy(0, &mut ids);
        ensure!(ids.len() >= 2, "the part has fewer than two tokens: give it more text in [data]");
        let vocabulary = config.vocab_size.min(token_bytes.len()) as i64;
        ensure!(
            ids.iter().all(|id| (0..vocabulary).contains(id)),
            "the text was tokenized for another model: run `prepare` for this campaign again"
        );
        Ok(Self { ids, token_bytes })
    }
}

/// Bits that the projections of the base model take in its own file, per weight.
fn stored_bits(config: &ModelConfig, weights: &Weights) -> Result<f64> {
    let (mut bits, mut count) = (0, 0);
    for name in config.projection_names() {
        let tensor = weights.get(&name)?;
        bits += tensor.numel() * tensor.kind().elt_size_in_bytes() * 8;
        count += tensor.numel();
    }
    Ok(bits as f64 / count.max(1) as f64)
}

fn device(choice: DeviceChoice) -> Result<Device> {
    Ok(match choice {
        DeviceChoice::Cpu => Device::Cpu,
        DeviceChoice::Cuda => {
            ensure!(Cuda::is_available(), "no CUDA device: leave out --device or use --device cpu");
            Device::Cuda(0)
        }
        DeviceChoice::Mps => {
            ensure!(tch::utils::has_mps(), "no MPS device: leave out --device or use --device cpu");
            Device::Mps
        }
        DeviceChoice::Auto if Cuda::is_available() => Device::Cuda(0),
        DeviceChoice::Auto if tch::utils::has_mps() => Device::Mps,
        DeviceChoice::Auto => Device::Cpu,
    })
}
