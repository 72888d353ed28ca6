//! What the sandbox costs a training run: tokens a second of `nano`'s baseline with it and without, by turns.

use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, ensure};
use formats::corpus::{Part, Writer, WriterOptions};
use sandbox::{Limits, Policy, Request, Scratch};

/// Pairs of runs; the median ratio counts.
const PAIRS: usize = 5;
const VOCABULARY: usize = 2048;

fn main() -> ExitCode {
    // This program is its own stage.
    if let Some(code) = sandbox::intercept() {
        return code;
    }
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let root =
        Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).context("this package lies in no repository")?;
    let folder = tempfile::tempdir()?;
    let campaign = std::fs::read_to_string(root.join("experiments/nano/campaign.toml"))?;
    let shortened = campaign.replace("seconds = 60.0 ", "seconds = 10.0 ");
    ensure!(shortened != campaign, "nano's budget is not the one that this benchmark shortens");
    std::fs::write(folder.path().join("campaign.toml"), shortened)?;
    write_text(&folder.path().join("data/text"))?;
    let mut ratios = Vec::new();
    for pair in 0..PAIRS {
        let plain = tokens_per_second(root, folder.path(), false)?;
        let confined = tokens_per_second(root, folder.path(), true)?;
        println!("pair {}: {plain:.0} tokens/s without, {confined:.0} with", pair + 1);
        ratios.push(confined / plain);
    }
    ratios.sort_by(f64::total_cmp);
    let median = ratios[PAIRS / 2];
    println!(
        "training speed in the sandbox: {median:.4} of the speed without, median of {PAIRS} ({:.4} to {:.4}; aim: above 0.98)",
        ratios[0],
        ratios[PAIRS - 1]
    );
    Ok(())
}

fn tokens_per_second(root: &Path, folder: &Path, confined: bool) -> Result<f64> {
    let (out, report) = (folder.join("out"), folder.join("report.json"));
    if out.exists() {
        std::fs::remove_dir_all(&out)?;
    }
    std::fs::create_dir(&out)?;
    let trainer = PathBuf::from(env!("CARGO_BIN_EXE_trainer"));
    let (campaign, data) = (folder.join("campaign.toml"), folder.join("data"));
    let options = [("--campaign", &campaign), ("--data", &data), ("--out", &out)];
    let arguments = options.iter().flat_map(|(name, path)| [(*name).into(), path.as_os_str().to_owned()]).collect();
    let mut command;
    // What it wrote in the sandbox is seen by its handle alone.
    let mut handles = Vec::new();
    if confined {
        // As the orchestrator does it for a training run.
        let mut read: Vec<PathBuf> =
            ["/usr", "/lib", "/lib64", "/bin", "/proc", "/etc/ld.so.cache", "/sys/devices/system"]
                .map(Into::into)
                .into();
        read.extend([root.join(".libtorch").canonicalize()?, trainer.clone(), campaign, data]);
        let devices = ["/dev/null", "/dev/zero", "/dev/random", "/dev/urandom"].map(Into::into).into();
        let limits = Limits {
            processes: Some(1024),
            open_files: Some(4096),
            file_bytes: Some(16 << 30),
            cpu_seconds: Some(3600),
            memory_bytes: Some(16 << 30),
            nice: None,
        };
        let scratch = vec![Scratch { folder: out.clone(), bytes: 1 << 30, over: false }];
        let policy = Policy { read, scratch, devices, limits, ..Policy::default() };
        let report = Some(report.clone());
        let request = Request { program: trainer.into(), arguments, input: None, policy, report, complete: true };
        let (ours, theirs) = UnixStream::pair()?;
        command = Command::new(std::env::current_exe()?);
        command.arg(sandbox::STAGE).stdin(OwnedFd::from(theirs)).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn()?;
        handles = sandbox::hand_over(&ours, &request)?;
        ensure!(child.wait()?.success(), "the trainer failed in the sandbox");
        let report = request.report.context("a report was asked for")?;
        let enforced: sandbox::Enforced = serde_json::from_slice(&std::fs::read(report)?)?;
        ensure!(enforced.is_complete(), "this machine does not enforce all of it: {}", enforced.summary());
    } else {
        command = Command::new(&trainer);
        let status = command.args(arguments).stdout(Stdio::null()).stderr(Stdio::null()).status()?;
        ensure!(status.success(), "the trainer failed");
    }
    let out = handles.first().map_or(out, |handle| PathBuf::from(format!("/proc/self/fd/{}", handle.as_raw_fd())));
    let summary: serde_json::Value = serde_json::from_slice(&std::fs::read(out.join("summary.json"))?)?;
    let number = |key: &str| summary[key].as_f64().with_context(|| format!("the summary has no {key}"));
    Ok(number("tokens")? / number("training_seconds")?)
}

/// Text without meaning, which costs as much as any other.
fn write_text(folder: &Path) -> Result<()> {
    let options = WriterOptions::new(VOCABULARY, 0, 0, "0".repeat(64));
    let mut writer = Writer::create(folder, options)?;
    let mut state = 1u64;
    for part in Part::ALL {
        for _ in 0..if part == Part::Train { 400 } else { 40 } {
            let ids: Vec<u32> = std::iter::repeat_with(|| {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                1 + ((state >> 33) as usize % (VOCABULARY - 1)) as u32
            })
            .take(1000)
            .collect();
            writer.document(part, &ids, ids.len() as u64)?;
        }
    }
    let mut token_bytes = vec![1u16; VOCABULARY];
    token_bytes[0] = 0;
    writer.finish(&token_bytes, Vec::new())?;
    Ok(())
}
