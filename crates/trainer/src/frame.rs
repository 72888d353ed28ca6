//! [`Run`]: what a recipe sees of the frame, and how a run begins and ends.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use formats::artifact::ModelConfig;
use formats::campaign;
use formats::campaign::{Campaign, Part};
use formats::contract::{self, Ended, Summary};
use formats::corpus::Corpus;
use indicatif::{ProgressBar, ProgressStyle};
use sha2::{Digest, Sha256};
use tch::{Device, Kind, Tensor};
use ternary::model::Weights;

use crate::args::{self, Args};
use crate::batches::{Batch, Batches};
use crate::clock::{Budget, Clock, Meter, Span};
use crate::dev::Dev;
use crate::handover::{self, Origin};
use crate::log::{Line, Log};
use crate::speed::Speed;
use crate::summary;
pub use crate::trained::{TernaryMatrix, Trained};

/// A loss above this is a run gone wrong (nats a token; a uniform guess over 10⁶ tokens is 13.8).
const LARGEST_LOSS: f64 = 100.0;

/// Training went wrong: exit code 3.
#[derive(Debug, thiserror::Error)]
#[error("diverged at step {step}: the loss is {loss} (the limit is {LARGEST_LOSS}); lower the learning rate")]
pub struct Diverged {
    /// Step, from 1.
    pub step: u64,
    /// Its loss, nats a token.
    pub loss: f64,
}

/// What a recipe reports of a step.
#[derive(Debug)]
pub struct Step<'a> {
    /// Share of the quantized weights in the forward pass.
    pub lambda: f64,
    /// Learning rate.
    pub lr: f64,
    /// Mean cross entropy of the batch with its true tokens, a 0-dim tensor, nats a token.
    pub loss: &'a Tensor,
    /// Global norm of the gradient before clipping, a 0-dim tensor, for the log; the frame reads it when it reads the loss.
    pub gradient_norm: Option<&'a Tensor>,
}

/// A step that is over for the host, with what it has not read yet.
struct Pending {
    line: Line,
    loss: Tensor,
    gradient_norm: Option<Tensor>,
}

impl Pending {
    /// Waits until the device has the figures.
    fn read(self) -> Line {
        let value = |tensor: &Tensor| tensor.double_value(&[]);
        Line { train_loss: value(&self.loss), gradient_norm: self.gradient_norm.as_ref().map(value), ..self.line }
    }
}

/// What [`Run::observe`] calls.
type Observer = Box<dyn FnMut(Span)>;

/// A training run.
pub struct Run {
    campaign: Campaign,
    config: ModelConfig,
    device: Device,
    seed: u64,
    threads: usize,
    out: PathBuf,
    base: Option<Base>,
    /// The base model's tensors that no artifact of this campaign may replace; they are not stored in it.
    untrained: Weights,
    data_sha256: String,
    batches: Batches,
    dev: Dev,
    next_dev: f64,
    clock: Clock,
    /// For a budget in seconds of [`formats::campaign::Clock::Work`].
    speed: Option<Speed>,
    observer: Option<Observer>,
    log: Log,
    bar: ProgressBar,
    stop: Arc<AtomicBool>,
    process_started: Instant,
    in_step: bool,
    step_tokens: u64,
    pending: Option<Pending>,
    best_ppl: Option<f64>,
    last_loss: Option<f64>,
}

/// A pretrained model on disk.
struct Base {
    folder: PathBuf,
    sha256: String,
}

impl Run {
    /// Reads the campaign and the prepared data, seeds, and gets everything ready for the first step.
    ///
    /// # Errors
    /// When something is missing or does not fit together; the message says what to do.
    pub fn start(args: &Args, process_started: Instant) -> Result<Self> {
        let campaign = Campaign::load(&args.campaign)?;
        let device = args.device.resolve()?;
        let threads = args::threads(args.threads);
        tch::set_num_threads(i32::try_from(threads).context("--threads is too large")?);
        tch::manual_seed(args.seed as i64);
        let stop = Arc::new(AtomicBool::new(false));
        for signal in [signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT] {
            signal_hook::flag::register(signal, Arc::clone(&stop)).context("cannot listen to signals")?;
        }

        let (config, base) = model_source(&campaign, &args.data)?;
        let untrained = match &base {
            Some(base) if !campaign.constraints.train_unquantized => {
                Weights::load(&base.folder, Some(Kind::Float), device)?.unquantized(&config)?
            }
            _ => Weights::default(),
        };
        let text = args.data.join("text");
        let corpus = Corpus::open(&text)
            .with_context(|| format!("cannot open the text in {}; run `prepare` for this campaign", text.display()))?;
        let vocabulary = corpus.manifest().vocab_size;
        ensure!(
            vocabulary <= config.vocab_size,
            "the text has {vocabulary} token ids, the model only {}: run `prepare` again",
            config.vocab_size
        );
        let manifest = std::fs::read(text.join("manifest.json")).context("cannot read the text's manifest.json")?;
        let train = corpus.part(Part::Train).context("cannot open the train part; run `prepare` again")?;
        let dev = Dev::open(&corpus, &campaign.evaluation, device)?;

        std::fs::create_dir_all(&args.out).with_context(|| format!("cannot make {}", args.out.display()))?;
        let log = Log::create(&args.out.join(contract::LOG))?;
        let budget = budget(args, &campaign);
        let meter = meter(&campaign, device, threads)?;
        let by_work = matches!((meter, budget), (Meter::Work { .. }, Budget::Seconds(_)));
        let speed = by_work.then(|| Speed::new(args.probe_seconds));
        let mut clock = Clock::new(budget, meter, campaign.budget.warmup_steps);
        if let Some(speed) = &speed {
            clock.set_rate(speed.rate());
        }
        println!(
            "{} weights in {} blocks on {device:?} with {threads} threads, seed {}, budget {budget:?}",
            parameters(&config),
            config.num_hidden_layers,
            args.seed
        );
        Ok(Self {
            clock,
            speed,
            next_dev: 1.0 / f64::from(campaign.evaluation.dev_evals),
            campaign,
            config,
            device,
            seed: args.seed,
            threads,
            out: args.out.clone(),
            base,
            untrained,
            data_sha256: hex(&Sha256::digest(&manifest)),
            batches: Batches::new(train, args.seed),
            dev,
            observer: None,
            log,
            bar: progress_bar(),
            stop,
            process_started,
            in_step: false,
            step_tokens: 0,
            pending: None,
            best_ppl: None,
            last_loss: None,
        })
    }

    /// The campaign.
    pub fn campaign(&self) -> &Campaign {
        &self.campaign
    }

    /// Shape of the model.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Where to train.
    pub fn device(&self) -> Device {
        self.device
    }

    /// Whether the model starts from pretrained weights.
    pub fn is_pretrained(&self) -> bool {
        self.base.is_some()
    }

    /// Initial weights: the base model's in `kind`, or random ones of the run's seed.
    ///
    /// # Errors
    /// When the base model cannot be read.
    pub fn initial_weights(&self, kind: Kind) -> Result<Weights> {
        let weights = match &self.base {
            Some(base) => Weights::load(&base.folder, Some(kind), self.device)?,
            None => Weights::init(&self.config, self.seed, self.device)?,
        };
        weights.check(&self.config)?;
        Ok(weights)
    }

    /// The next `rows` windows of `window` tokens; see [`Batches`].
    ///
    /// # Errors
    /// When a window is longer than the text.
    pub fn batch(&mut self, rows: usize, window: usize) -> Result<Batch> {
        self.step_tokens += (rows * window) as u64;
        self.batches.next(rows, window, self.device)
    }

    /// Share of the budget that is spent, in [0, 1); `None` when training is over. Call it at the start of each step.
    pub fn progress(&mut self) -> Option<f64> {
        if !self.in_step {
            self.in_step = true;
            self.clock.resume();
        }
        let progress = self.clock.progress();
        (progress < 1.0 && !self.stopped()).then_some(progress)
    }

    /// Ends a step: clock, log, and where it is due the dev evaluation of `snapshot`, the model at λ = 1.
    ///
    /// On an accelerator the host reads the loss of the step before, so it never waits for the step it just queued.
    ///
    /// # Errors
    /// [`Diverged`] when a loss is not a number or above 100; else when the log cannot be written.
    pub fn end_step(&mut self, step: Step, snapshot: impl FnOnce() -> Result<Trained>) -> Result<()> {
        let tokens = std::mem::take(&mut self.step_tokens);
        ensure!(tokens > 0, "a step ended without a batch: call Run::batch in each step");
        let span = self.clock.step_done(tokens);
        if let Some(observer) = &mut self.observer {
            observer(span);
            self.clock.resume();
        }
        if let Some(rate) = self.speed.as_mut().and_then(|speed| speed.after(self.clock.counted_seconds())) {
            self.clock.set_rate(rate);
            self.clock.resume();
        }
        let line = Line {
            step: self.clock.steps(),
            lambda: step.lambda,
            train_loss: f64::NAN,
            dev: None,
            lr: step.lr,
            time_s: self.clock.counted_seconds(),
            best_ppl: self.best_ppl,
            tokens_per_s: tokens as f64 / span.wall.as_secs_f64().max(1e-9),
            gradient_norm: None,
        };
        // Copies: a recipe may go on writing into its tensors.
        let own = |tensor: &Tensor| tensor.detach().copy();
        let pending = Pending { line, loss: own(step.loss), gradient_norm: step.gradient_norm.map(own) };
        let before = self.pending.replace(pending);
        self.write(before)?;
        let progress = self.clock.progress();
        self.bar.set_position((progress * 1000.0) as u64);
        let dev_due = progress >= self.next_dev && !self.stopped();
        if self.device == Device::Cpu || dev_due || progress >= 1.0 {
            self.settle(dev_due, snapshot)?;
        }
        Ok(())
    }

    /// Calls this with what each step took, outside of the clock: benchmarks compare clocks with it.
    pub fn observe(&mut self, observer: impl FnMut(Span) + 'static) {
        self.observer = Some(Box::new(observer));
    }

    /// Whether a signal asked for an early end.
    pub fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Waits for the device, counts the wait as training, and writes the last step with the dev columns if `dev_due`.
    fn settle(&mut self, dev_due: bool, snapshot: impl FnOnce() -> Result<Trained>) -> Result<()> {
        if let Device::Cuda(index) = self.device {
            tch::Cuda::synchronize(index as i64);
        }
        let Some(pending) = self.pending.take() else { return Ok(()) };
        let mut line = pending.read();
        self.clock.waited();
        if dev_due && line.train_loss.is_finite() {
            line.dev = self.dev.score(&self.config, &snapshot()?, &self.untrained, &self.stop)?;
            let evals = f64::from(self.campaign.evaluation.dev_evals);
            self.next_dev = ((self.clock.progress() * evals).floor() + 1.0) / evals;
            if let Some(dev) = line.dev {
                self.best_ppl = Some(self.best_ppl.map_or(dev.ppl, |best| best.min(dev.ppl)));
                line.best_ppl = self.best_ppl;
                let (step, ppl, bpb) = (line.step, dev.ppl, dev.bpb);
                self.bar.suspend(|| println!("step {step}: dev perplexity {ppl:.3}, {bpb:.4} bits per byte"));
            }
            self.clock.resume();
        }
        self.record(line)
    }

    /// Writes a step whose figures the device has finished, or nearly.
    fn write(&mut self, pending: Option<Pending>) -> Result<()> {
        pending.map_or(Ok(()), |pending| self.record(pending.read()))
    }

    fn record(&mut self, line: Line) -> Result<()> {
        self.log.write(&line)?;
        let (step, loss) = (line.step, line.train_loss);
        if loss.is_nan() || loss > LARGEST_LOSS {
            return Err(Diverged { step, loss }.into());
        }
        self.bar.set_message(format!("step {step}, loss {loss:.3}, {:.0} tokens/s", line.tokens_per_s));
        self.last_loss = Some(loss);
        Ok(())
    }

    /// Writes and checks the artifact, then the summary.
    ///
    /// # Errors
    /// When the artifact is not what training used, or a file cannot be written.
    pub fn finish(mut self, trained: &Trained) -> Result<Summary> {
        let pending = self.pending.take();
        self.write(pending)?;
        self.bar.finish_and_clear();
        let base_sha256 = self.base.as_ref().map(|base| base.sha256.clone());
        let mut provenance = BTreeMap::new();
        for (key, value) in [
            ("trainer", env!("CARGO_PKG_VERSION").to_owned()),
            ("seed", self.seed.to_string()),
            ("device", format!("{:?}", self.device)),
            ("threads", self.threads.to_string()),
            ("steps", self.clock.steps().to_string()),
            ("tokens", self.clock.tokens().to_string()),
            ("data_sha256", self.data_sha256.clone()),
        ] {
            provenance.insert(key.to_owned(), value);
        }
        let origin = Origin { config: &self.config, base_sha256: base_sha256.as_deref(), provenance };
        let artifact = handover::write(&self.out.join(contract::ARTIFACT), origin, trained)?;
        let [q_neg1, q_zero, q_pos1] = artifact.shares();
        let summary = Summary {
            status: match self.clock.progress() < 1.0 {
                false => Ended::Completed,
                true if self.stopped() => Ended::Terminated,
                true => Ended::Returned,
            },
            training_seconds: self.clock.counted_seconds(),
            processor_seconds: Some(self.clock.processor_seconds()),
            probe_seconds: self.speed.as_ref().map(Speed::mean),
            total_seconds: self.process_started.elapsed().as_secs_f64(),
            num_steps: self.clock.steps(),
            tokens: self.clock.tokens(),
            tokens_per_s: self.clock.tokens() as f64 / self.clock.trained_seconds().max(1e-9),
            epochs: self.batches.epochs(),
            train_loss: self.last_loss,
            peak_memory_mb: summary::peak_memory_mb(),
            num_params: parameters(&self.config),
            depth: self.config.num_hidden_layers,
            bits_per_weight: artifact.bits_per_weight(),
            q_neg1,
            q_zero,
            q_pos1,
            seed: self.seed,
            device: format!("{:?}", self.device),
            threads: self.threads,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            data_sha256: self.data_sha256,
            base_sha256,
        };
        summary::write(&summary, &self.out.join(contract::SUMMARY))?;
        Ok(summary)
    }
}

/// What counts. Where the device computes, the processor's time says nothing of it.
fn meter(campaign: &Campaign, device: Device, threads: usize) -> Result<Meter> {
    let threads = u32::try_from(threads).context("--threads is too large")?;
    Ok(match (campaign.budget.clock, device) {
        (campaign::Clock::Processor, Device::Cpu) => Meter::Processor { threads },
        (campaign::Clock::Work, Device::Cpu) => Meter::Work { threads },
        _ => Meter::Wall,
    })
}

fn budget(args: &Args, campaign: &Campaign) -> Budget {
    let chosen = &args.budget;
    let given = chosen
        .max_steps
        .map(Budget::Steps)
        .or(chosen.max_tokens.map(Budget::Tokens))
        .or(chosen.max_seconds.map(Budget::Seconds));
    let campaigns = campaign.budget.tokens.map(Budget::Tokens).or(campaign.budget.seconds.map(Budget::Seconds));
    given.or(campaigns).unwrap_or(Budget::Steps(0))
}

/// Shape of the model, and where its pretrained weights are.
fn model_source(campaign: &Campaign, data: &Path) -> Result<(ModelConfig, Option<Base>)> {
    if let Some(scratch) = campaign.model.scratch.as_ref().filter(|_| !campaign.model.has_parent()) {
        return Ok((scratch.clone(), None));
    }
    let folder = data.join("base");
    let config = Weights::config(&folder)?;
    #[derive(serde::Deserialize)]
    struct Stamp {
        sha256: String,
    }
    let path = folder.join("base.json");
    let text = std::fs::read_to_string(&path)
        .with_context(|| format!("cannot read {}; run `prepare` for this campaign", path.display()))?;
    let stamp: Stamp = serde_json::from_str(&text)
        .with_context(|| format!("{} is damaged; run `prepare` for this campaign again", path.display()))?;
    Ok((config, Some(Base { folder, sha256: stamp.sha256 })))
}

fn parameters(config: &ModelConfig) -> u64 {
    config.tensors().iter().map(|(_, shape)| shape.iter().product::<usize>() as u64).sum()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Drawn only on a terminal.
fn progress_bar() -> ProgressBar {
    let style = ProgressStyle::with_template("{wide_bar} {percent}% {msg} [{elapsed}]");
    ProgressBar::new(1000).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}
