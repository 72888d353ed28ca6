//! `pretrain`: the full-precision parent of a scratch shape, by the campaign's `[model.pretrain]`.
//!
//! Products are in bf16 where the processor has them and masters in f32, as in the recipe. The budget is in tokens, so a
//! run repeats exactly on one processor with one number of threads, and so does one that was broken off and gone on with:
//! a checkpoint holds masters and optimizer, and the order of the text follows from seed and step.

mod checkpoint;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use formats::artifact::{ModelConfig, ProjectionKind};
use formats::campaign::{Campaign, Part, Pretrain};
use formats::corpus::Corpus;
use indicatif::{ProgressBar, ProgressStyle};
use sha2::{Digest, Sha256};
use tch::{Device, Tensor};
use ternary::loss::objective;
use ternary::model::{Decoder, Linears, Weights};
use ternary::optim::{AdamW, Group, Options};
use ternary::schedule::{Decay, LearningRate};
use ternary::weight::CastWeight;
use trainer::args::{self, DeviceName};
use trainer::batches::Batches;
use trainer::dev::Dev;
use trainer::frame::Trained;

/// Ended by a signal; what is done is in the checkpoint.
const INTERRUPTED: u8 = 130;
/// Time between checkpoints.
const CHECKPOINT: Duration = Duration::from_secs(60);
/// Times that dev is measured, for the log.
const DEV_EVALS: u64 = 10;
/// AdamW's decays of the moments.
const BETAS: (f64, f64) = (0.9, 0.95);
/// The learning rate: a short linear rise, then linearly to zero.
const LEARNING_RATE: LearningRate = LearningRate { warmup: 0.02, decay: Decay::Linear, cooldown: 1.0, last: 0.0 };

/// Trains the full-precision parent of a campaign with [model.pretrain].
///
/// `prepare` runs it. Writes OUT/model.safetensors, f32 by Hugging Face's names; until then OUT/checkpoint.safetensors
/// once a minute and when SIGTERM or Ctrl-C ends it, and goes on from there the next time.
///
/// Exit codes: 0 trained; 1 error; 130 interrupted, run it again.
#[derive(Debug, Parser)]
#[command(
    name = "pretrain",
    version,
    after_help = "\
Example:
  pretrain --campaign experiments/methods/campaign.toml --data experiments/methods/data --out /tmp/parent"
)]
struct Arguments {
    /// The campaign file.
    #[arg(long, value_name = "FILE")]
    campaign: PathBuf,
    /// The folder that `prepare` made; its text is used.
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// Where weights and checkpoints go; made when missing.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Where to train; `auto` takes CUDA, else MPS, else the CPU.
    #[arg(long, value_enum, default_value_t = DeviceName::Auto)]
    device: DeviceName,
    /// CPU threads; all cores when absent.
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// No progress and no notes.
    #[arg(long)]
    quiet: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => {
            eprintln!("pretrain: interrupted; run it again to go on from here");
            ExitCode::from(INTERRUPTED)
        }
        Err(error) => {
            eprintln!("pretrain: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// False when a signal ended it.
fn run(arguments: &Arguments) -> Result<bool> {
    let campaign = Campaign::load(&arguments.campaign)?;
    let (Some(config), Some(settings)) = (&campaign.model.scratch, campaign.model.pretrain) else {
        bail!("{} has no [model.pretrain]: there is nothing to train", arguments.campaign.display());
    };
    let device = arguments.device.resolve()?;
    let threads = args::threads(arguments.threads);
    tch::set_num_threads(i32::try_from(threads).context("--threads is too large")?);
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT] {
        signal_hook::flag::register(signal, Arc::clone(&stop)).context("cannot listen to signals")?;
    }
    let text = arguments.data.join("text");
    let corpus = Corpus::open(&text)
        .with_context(|| format!("cannot open the text in {}; run `prepare` for this campaign", text.display()))?;
    let vocabulary = corpus.manifest().vocab_size;
    ensure!(vocabulary <= config.vocab_size, "the text has {vocabulary} token ids: run `prepare` again");
    let train = corpus.part(Part::Train).context("cannot open the train part; run `prepare` again")?;
    let dev = Dev::open(&corpus, &campaign.evaluation, device)?;
    let manifest = std::fs::read(text.join("manifest.json")).context("cannot read the text's manifest.json")?;
    std::fs::create_dir_all(&arguments.out).with_context(|| format!("cannot make {}", arguments.out.display()))?;

    let mut parent = Parent::new(config, &settings, device)?;
    let mut batches = Batches::new(train, settings.seed);
    let origin = serde_json::json!({"model": campaign.model, "text": hex(&manifest)}).to_string();
    let file = arguments.out.join("checkpoint.safetensors");
    let steps = settings.steps();
    let mut done = parent.restore(&file, &origin)?.unwrap_or(0);
    for _ in 0..done {
        batches.next(settings.batch, settings.window, Device::Cpu)?;
    }

    let bar = progress_bar(steps, arguments.quiet);
    let note = |line: String| {
        if !arguments.quiet {
            bar.suspend(|| eprintln!("{line}"));
        }
    };
    note(match done {
        0 => format!("pretraining the parent: {steps} steps of {} tokens", settings.batch * settings.window),
        _ => format!("pretraining the parent: going on at step {done} of {steps}"),
    });
    bar.set_position(done);
    bar.reset_eta();
    let mut saved = Instant::now();
    while done < steps {
        let loss = parent.step(&mut batches, &settings, done as f64 / steps as f64)?;
        done += 1;
        ensure!(loss.is_finite(), "diverged at step {done}: lower model.pretrain.learning_rate");
        bar.set_position(done);
        bar.set_message(format!("loss {loss:.3}"));
        if done < steps && (stop.load(Ordering::Relaxed) || saved.elapsed() >= CHECKPOINT) {
            parent.save(&file, &origin, done)?;
            saved = Instant::now();
        }
        if stop.load(Ordering::Relaxed) && done < steps {
            bar.finish_and_clear();
            return Ok(false);
        }
        if done * DEV_EVALS / steps > (done - 1) * DEV_EVALS / steps
            && let Some(measured) = dev.score(config, &parent.snapshot(), &Weights::default(), &stop)?
        {
            note(format!("step {done} of {steps}: loss {loss:.3}, dev perplexity {:.3}", measured.ppl));
        }
    }
    bar.finish_and_clear();
    checkpoint::write(&arguments.out.join("model.safetensors"), parent.tensors(), None)?;
    Ok(true)
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Drawn only on a terminal.
fn progress_bar(steps: u64, quiet: bool) -> ProgressBar {
    if quiet {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("pretraining {wide_bar} {percent}% {msg} {eta} left");
    ProgressBar::new(steps).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

/// The projections of the blocks: f32 masters and copies in the type of the products.
struct Projections {
    blocks: Vec<Vec<CastWeight>>,
}

impl Linears for Projections {
    fn project(&self, layer: usize, kinds: &[ProjectionKind], x: &Tensor) -> Vec<Tensor> {
        let weights: Vec<&Tensor> = kinds.iter().map(|&kind| self.blocks[layer][kind as usize].leaf()).collect();
        ternary::model::ops::linears(x, &weights)
    }
}

/// The model in training.
struct Parent {
    projections: Projections,
    decoder: Decoder,
    /// Embedding, norms and an untied head by name, f32.
    dense: Vec<(String, Tensor)>,
    head: CastWeight,
    head_name: &'static str,
    optimizer: AdamW,
}

impl Parent {
    fn new(config: &ModelConfig, settings: &Pretrain, device: Device) -> Result<Self> {
        let compute = ternary::model::ops::preferred_kind(device);
        let weights = Weights::init(config, settings.seed, device)?;
        let mut optimizer = AdamW::new(Options { betas: BETAS, ..Options::default() });
        let mut group = |learning_rate, weight_decay| optimizer.group(Group { learning_rate, weight_decay });
        let matrices = group(settings.learning_rate, settings.weight_decay);
        let tables = group(settings.dense_learning_rate, settings.weight_decay);
        let norms = group(settings.dense_learning_rate, 0.0);
        let mut blocks = Vec::with_capacity(config.num_hidden_layers);
        for layer in 0..config.num_hidden_layers {
            let mut block = Vec::with_capacity(ProjectionKind::ALL.len());
            for kind in ProjectionKind::ALL {
                let weight = CastWeight::new(weights.projection(layer, kind)?.shallow_clone(), compute);
                optimizer.add(matrices, weight.master());
                block.push(weight);
            }
            blocks.push(block);
        }
        let dense: Weights = (weights.unquantized(config)?.iter())
            .map(|(name, tensor)| (name.to_owned(), tensor.detach().set_requires_grad(true)))
            .collect();
        for (_, tensor) in dense.iter() {
            optimizer.add(if tensor.dim() == 1 { norms } else { tables }, tensor);
        }
        let head_name = if config.tie_word_embeddings { "model.embed_tokens.weight" } else { "lm_head.weight" };
        Ok(Self {
            decoder: Decoder::new(config, &dense, compute)?,
            head: CastWeight::new(dense.get(head_name)?.detach(), compute),
            head_name,
            dense: dense.iter().map(|(name, tensor)| (name.to_owned(), tensor.shallow_clone())).collect(),
            projections: Projections { blocks },
            optimizer,
        })
    }

    /// One step; the batch's cross entropy in nats a token.
    fn step(&mut self, batches: &mut Batches, settings: &Pretrain, progress: f64) -> Result<f64> {
        self.projections.blocks.iter_mut().flatten().for_each(CastWeight::refresh);
        self.head.refresh();
        self.dense.iter_mut().for_each(|(_, tensor)| tensor.zero_grad());
        let device = self.head.master().device();
        let batch = batches.next(settings.batch, settings.window, device)?;
        let hidden = self.decoder.hidden(&self.projections, &batch.inputs);
        let objective = objective(&hidden, self.head.leaf(), &batch.targets.reshape([-1]), None);
        let loss = objective.cross_entropy.shallow_clone();
        objective.backward()?;
        let gradients = self.gradients();
        let _norm = self.optimizer.step(&gradients, LEARNING_RATE.at(progress))?;
        Ok(loss.double_value(&[]))
    }

    /// In the order of the optimizer's parameters.
    fn gradients(&self) -> Vec<Option<Tensor>> {
        let mut all: Vec<_> = self.projections.blocks.iter().flatten().map(CastWeight::gradient).collect();
        for (name, tensor) in &self.dense {
            let own = Some(tensor.grad()).filter(Tensor::defined);
            let head = (name == self.head_name).then(|| self.head.gradient()).flatten();
            all.push(match (own, head) {
                // A tied embedding is used at both ends.
                (Some(own), Some(head)) => Some(own + head),
                (own, head) => own.or(head),
            });
        }
        all
    }

    /// Masters by name, in the order of the optimizer's parameters.
    fn tensors(&self) -> Vec<(String, Tensor)> {
        let blocks = self.projections.blocks.iter().enumerate().flat_map(|(layer, block)| {
            ProjectionKind::ALL.into_iter().zip(block).map(move |(kind, w)| (kind.tensor(layer), w.master().detach()))
        });
        blocks.chain(self.dense.iter().map(|(name, tensor)| (name.clone(), tensor.detach()))).collect()
    }

    /// What dev is measured on.
    fn snapshot(&self) -> Trained {
        Trained { activation_bits: 16, ternary: Vec::new(), dense: self.tensors() }
    }

    fn save(&self, file: &std::path::Path, origin: &str, steps: u64) -> Result<()> {
        let mut tensors = Vec::new();
        for ((name, master), state) in self.tensors().into_iter().zip(self.optimizer.state()) {
            tensors.push((format!("first.{name}"), state.first.shallow_clone()));
            tensors.push((format!("second.{name}"), state.second.shallow_clone()));
            tensors.push((format!("master.{name}"), master));
        }
        checkpoint::write(file, tensors, Some(checkpoint::Header { origin: origin.to_owned(), steps }))
    }

    /// Goes back to a checkpoint of the same campaign and text; its steps.
    fn restore(&mut self, file: &std::path::Path, origin: &str) -> Result<Option<u64>> {
        let device = self.head.master().device();
        let Some((steps, tensors)) = checkpoint::read(file, origin, device)? else { return Ok(None) };
        for (index, (name, mut master)) in self.tensors().into_iter().enumerate() {
            let part = |what: &str| {
                tensors
                    .get(&format!("{what}.{name}"))
                    .with_context(|| format!("{} lacks {what}.{name}; delete it and run again", file.display()))
            };
            master.copy_(part("master")?);
            let (first, second) = (part("first")?, part("second")?);
            self.optimizer.set_state(index, ternary::optim::Moments { first, second, steps });
        }
        Ok(Some(steps))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_learning_rate_rises_and_falls_to_zero() {
        assert!(LEARNING_RATE.at(0.001) < 0.1);
        assert!((LEARNING_RATE.at(0.02) - 1.0).abs() < 1e-6);
        assert!(LEARNING_RATE.at(0.999) < 2e-3 && LEARNING_RATE.at(0.5) > 0.5);
    }
}
