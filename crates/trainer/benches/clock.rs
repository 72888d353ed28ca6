//! By which clock to count a budget: how far apart runs of `nano`'s baseline are by each, on a free machine and beside
//! other programs.
//!
//! Every run does the same steps and reads all clocks at each, so one run says of each clock how many steps a budget of
//! seconds would have allowed. Differences are given in nats, by how the loss falls with the number of steps. The
//! machine has to be free: the other programs are made here. `-- --help` says how to run a part of it.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::{Parser, ValueEnum};
use formats::corpus::{Part, Writer, WriterOptions};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};
use ternary::probe::Probe;
use trainer::args::{Args, BudgetOverride, DeviceName};
use trainer::clock::Span;
use trainer::frame::Run;

#[path = "../src/train.rs"]
mod train;

const VOCABULARY: usize = 2048;
/// First steps that are not looked at.
const WARMUP: u64 = 10;
/// How often the fixed piece of work is timed.
const PROBE_EVERY: Duration = Duration::from_millis(250);
/// Of so many probes the clock that probes seldom uses one.
const SELDOM: u64 = 4;
/// Bytes that a busy loop reads over and over: more than a core's own caches.
const BUSY_BYTES: usize = 4 << 20;
/// Shortest and longest time, in seconds, between two changes of a changing load.
const CHANGES: (f64, f64) = (0.5, 4.0);

#[derive(Parser)]
#[command(name = "clock", about = "Compares the clocks that a budget can be counted by.")]
struct Arguments {
    /// Runs of each kind.
    #[arg(long, default_value_t = 10)]
    runs: u64,
    /// Steps of a run.
    #[arg(long, default_value_t = 100)]
    steps: u64,
    /// Other programs beside the run.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Load::ALL)]
    loads: Vec<Load>,
    /// GOMP_SPINCOUNT of the run: rounds that a thread looks for work before it sleeps; "default" leaves it to libgomp.
    #[arg(long, value_delimiter = ',', default_values_t = ["default", "0"].map(String::from))]
    spins: Vec<String>,
    /// Threads of the run; as many as there are cores when absent.
    #[arg(long)]
    threads: Option<usize>,
    /// Nats by which the loss falls when a run has e times as many steps.
    #[arg(long, default_value_t = 0.37)]
    slope: f64,
    /// Given by cargo.
    #[arg(long, hide = true)]
    bench: bool,
    /// This process is a busy loop.
    #[arg(long, hide = true)]
    busy: bool,
    /// This process is a run, in that folder.
    #[arg(long, hide = true)]
    worker: Option<std::path::PathBuf>,
}

/// What runs beside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
enum Load {
    Idle,
    One,
    Two,
    /// Two that stop and go on at random.
    Changing,
}

impl Load {
    const ALL: [Self; 4] = [Self::Idle, Self::One, Self::Two, Self::Changing];
}

impl std::fmt::Display for Load {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str(match self {
            Self::Idle => "idle",
            Self::One => "one",
            Self::Two => "two",
            Self::Changing => "changing",
        })
    }
}

/// Seconds that passed by every way to count them.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
struct Times {
    wall: f64,
    /// Processor time of all threads, over their number.
    all: f64,
    /// Processor time of the thread that steps.
    own: f64,
    /// Of `all`, what was spent outside of the kernel.
    user: f64,
}

impl Times {
    fn larger(self) -> f64 {
        self.all.max(self.own)
    }
}

impl std::ops::AddAssign for Times {
    fn add_assign(&mut self, other: Self) {
        self.wall += other.wall;
        self.all += other.all;
        self.own += other.own;
        self.user += other.user;
    }
}

impl std::ops::Div<f64> for Times {
    type Output = Self;

    fn div(self, by: f64) -> Self {
        Self { wall: self.wall / by, all: self.all / by, own: self.own / by, user: self.user / by }
    }
}

/// What a run took.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
struct Readings {
    /// The steps that count.
    steps: Times,
    /// A probe, on average.
    probe: Times,
    /// The same of every [`SELDOM`]th only.
    seldom: Times,
}

/// A clock: its name and the length of a run by it, in seconds or in pieces of work.
type Clock = (&'static str, fn(Readings) -> f64);

const CLOCKS: [Clock; 10] = [
    ("wall", |run| run.steps.wall),
    ("processor, all threads", |run| run.steps.all),
    ("processor, thread that steps", |run| run.steps.own),
    ("processor, larger of both", |run| run.steps.larger()),
    ("user, all threads", |run| run.steps.user),
    ("work, wall", |run| run.steps.wall / run.probe.wall),
    ("work, processor, all threads", |run| run.steps.all / run.probe.all),
    ("work, processor, larger of both", |run| run.steps.larger() / run.probe.all),
    ("work, user", |run| run.steps.user / run.probe.all),
    ("work, processor, seldom", |run| run.steps.all / run.seldom.all),
];

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    if arguments.busy {
        return busy();
    }
    let threads = trainer::args::threads(arguments.threads);
    match &arguments.worker {
        Some(folder) => worker(folder, threads, arguments.steps),
        None => compare(&arguments, threads),
    }
}

fn compare(arguments: &Arguments, threads: usize) -> Result<()> {
    let folder = tempfile::tempdir()?;
    write_text(&folder.path().join("data/text"))?;
    let nano =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../experiments/nano/campaign.toml"))?;
    // Dev is scored at the end alone: not every clock here leaves it out.
    let once = nano.replace("dev_evals = 4 ", "dev_evals = 1 ");
    ensure!(once != nano, "nano scores dev another number of times than this benchmark knows");
    std::fs::write(folder.path().join("campaign.toml"), once)?;
    let mut all: BTreeMap<(&str, Load), Vec<Readings>> = BTreeMap::new();
    // By turns, so that what drifts in the machine is no difference between them.
    for number in 0..arguments.runs {
        for spin in &arguments.spins {
            for &load in &arguments.loads {
                let _others = Others::start(load, number)?;
                let readings = run(folder.path(), spin, threads, arguments.steps)?;
                println!("run {number} spin {spin} {load}: {}", serde_json::to_string(&readings)?);
                all.entry((spin, load)).or_default().push(readings);
            }
        }
    }
    let counted = arguments.steps.saturating_sub(WARMUP) as f64;
    println!("\nms a step by the wall clock, mean (idle first), with {threads} threads:");
    for ((spin, load), runs) in &all {
        let mean = runs.iter().map(|run| run.steps.wall).sum::<f64>() / runs.len() as f64;
        println!("  spin {spin} {load}: {:.1}", 1000.0 * mean / counted);
    }
    println!("\nnats (slope {}): shift of the mean against idle, ± standard deviation of a run", arguments.slope);
    for spin in &arguments.spins {
        for (name, clock) in CLOCKS {
            let logs = |load| -> Option<Vec<f64>> {
                Some(all.get(&(spin.as_str(), load))?.iter().map(|&run| clock(run).ln()).collect())
            };
            let idle = logs(Load::Idle).map(|logs| moments(&logs).0);
            let cells = arguments.loads.iter().filter_map(|&load| {
                let (mean, sd) = moments(&logs(load)?);
                let shift = idle.map_or(0.0, |idle| mean - idle);
                Some(format!("{load} {:+.4} ± {:.4}", arguments.slope * shift, arguments.slope * sd))
            });
            println!("| spin {spin} | {name} | {} |", cells.collect::<Vec<_>>().join(" | "));
        }
    }
    Ok(())
}

/// Mean and standard deviation.
fn moments(values: &[f64]) -> (f64, f64) {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let squares = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>();
    (mean, (squares / (n - 1.0).max(1.0)).sqrt())
}

/// One run in a process of its own: libgomp reads its settings once.
fn run(folder: &Path, spin: &str, threads: usize, steps: u64) -> Result<Readings> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("--worker").arg(folder).args(["--threads", &threads.to_string(), "--steps", &steps.to_string()]);
    command.env_remove("OMP_WAIT_POLICY").env_remove("GOMP_SPINCOUNT");
    if spin != "default" {
        command.env("GOMP_SPINCOUNT", spin);
    }
    let output = command.stderr(Stdio::inherit()).output()?;
    ensure!(output.status.success(), "the run failed");
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().last().context("the run said nothing")?;
    Ok(serde_json::from_str(line)?)
}

#[derive(Default)]
struct Sums {
    readings: Readings,
    steps: u64,
    probes: u64,
}

fn worker(folder: &Path, threads: usize, steps: u64) -> Result<()> {
    let args = Args {
        campaign: folder.join("campaign.toml"),
        data: folder.join("data"),
        out: folder.join("out"),
        seed: 0,
        device: DeviceName::Cpu,
        threads: Some(threads),
        probe_seconds: None,
        budget: BudgetOverride { max_steps: Some(steps), ..BudgetOverride::default() },
    };
    let mut run = Run::start(&args, Instant::now())?;
    let sums = Arc::new(Mutex::new(Sums::default()));
    let shared = Arc::clone(&sums);
    let probe = Probe::new();
    probe.time();
    let mut probed = Instant::now();
    run.observe(move |span| {
        let took = times(span, threads);
        let Ok(mut sums) = shared.lock() else { return };
        sums.steps += 1;
        if sums.steps > WARMUP {
            sums.readings.steps += took;
        }
        if probed.elapsed() >= PROBE_EVERY {
            let wall = Instant::now();
            let all = probe.time().as_secs_f64() / threads as f64;
            let took = Times { wall: wall.elapsed().as_secs_f64(), all, ..Times::default() };
            sums.readings.probe += took;
            if sums.probes.is_multiple_of(SELDOM) {
                sums.readings.seldom += took;
            }
            sums.probes += 1;
            probed = Instant::now();
        }
    });
    train::train(&mut run)?;
    let sums = sums.lock().map_err(|_| anyhow::anyhow!("the observer panicked"))?;
    let Sums { readings, probes, .. } = *sums;
    ensure!(probes > 0, "the run is too short for a probe");
    let readings = Readings {
        probe: readings.probe / probes as f64,
        seldom: readings.seldom / probes.div_ceil(SELDOM) as f64,
        ..readings
    };
    println!("{}", serde_json::to_string(&readings)?);
    Ok(())
}

fn times(span: Span, threads: usize) -> Times {
    Times {
        wall: span.wall.as_secs_f64(),
        all: span.process.as_secs_f64() / threads as f64,
        own: span.thread.as_secs_f64(),
        user: span.user.as_secs_f64() / threads as f64,
    }
}

/// Other programs, which end with this.
struct Others {
    loops: Vec<Child>,
    /// Set to end the changes.
    over: Arc<AtomicBool>,
    changer: Option<std::thread::JoinHandle<()>>,
}

impl Others {
    fn start(load: Load, seed: u64) -> Result<Self> {
        let count = match load {
            Load::Idle => 0,
            Load::One => 1,
            Load::Two | Load::Changing => 2,
        };
        let mut loops = Vec::new();
        for _ in 0..count {
            // It ends when its input does.
            let child = Command::new(std::env::current_exe()?).arg("--busy").stdin(Stdio::piped()).spawn()?;
            loops.push(child);
        }
        let over = Arc::new(AtomicBool::new(false));
        let changer = (load == Load::Changing).then(|| {
            let (pids, over) = (loops.iter().map(Pid::from_child).collect::<Vec<_>>(), Arc::clone(&over));
            std::thread::spawn(move || change(&pids, seed, &over))
        });
        Ok(Self { loops, over, changer })
    }
}

/// Stops and continues each loop at random times.
fn change(loops: &[Pid], seed: u64, over: &AtomicBool) {
    let mut random = SmallRng::seed_from_u64(seed);
    let wait =
        |random: &mut SmallRng| Instant::now() + Duration::from_secs_f64(random.random_range(CHANGES.0..CHANGES.1));
    let mut next: Vec<(Instant, bool)> = loops.iter().map(|_| (wait(&mut random), true)).collect();
    while !over.load(Ordering::Relaxed) {
        for (&pid, (at, runs)) in loops.iter().zip(&mut next) {
            if Instant::now() >= *at {
                *runs = !*runs;
                let _ = kill_process(pid, if *runs { Signal::CONT } else { Signal::STOP });
                *at = wait(&mut random);
            }
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

impl Drop for Others {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(changer) = self.changer.take() {
            let _ = changer.join();
        }
        for child in &mut self.loops {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Computes until whoever started it is gone.
fn busy() -> Result<()> {
    std::thread::spawn(|| {
        let mut rest = Vec::new();
        let _ = std::io::stdin().read_to_end(&mut rest);
        std::process::exit(0);
    });
    let mut bytes = vec![1_u64; BUSY_BYTES / 8];
    loop {
        for value in &mut bytes {
            *value = value.wrapping_mul(6364136223846793005).wrapping_add(1);
        }
        std::hint::black_box(&bytes);
    }
}

/// Text without meaning, which costs as much as any other.
fn write_text(folder: &Path) -> Result<()> {
    let options = WriterOptions::new(VOCABULARY, 0, 0, "0".repeat(64));
    let mut writer = Writer::create(folder, options)?;
    let mut random = SmallRng::seed_from_u64(1);
    for part in Part::ALL {
        for _ in 0..if part == Part::Train { 400 } else { 40 } {
            let ids: Vec<u32> =
                (0..1000).map(|_| 1 + random.random_range(0..u32::try_from(VOCABULARY - 1).unwrap_or(1))).collect();
            writer.document(part, &ids, ids.len() as u64)?;
        }
    }
    let mut token_bytes = vec![1u16; VOCABULARY];
    token_bytes[0] = 0;
    writer.finish(&token_bytes, Vec::new())?;
    Ok(())
}
