//! Limits of everything together, where this user may make cgroups: version 2, or version 1's memory and pids. What they
//! count is read by whoever started the stage, so version 1's cpuacct is entered as well.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::policy::Limits;

/// Begin of the names of our cgroups; the rest is the stage's process id.
const PREFIX: &str = "ternary-autoresearch-";
const MOUNT: &str = "/sys/fs/cgroup";

/// A folder below which cgroups of ours are made, and the files that hold their limits there.
struct Parent {
    folder: PathBuf,
    memory: Option<&'static str>,
    processes: Option<&'static str>,
}

/// Where this process is, in each hierarchy that limits memory or processes.
fn parents() -> Vec<Parent> {
    let Ok(text) = fs::read_to_string("/proc/self/cgroup") else { return Vec::new() };
    text.lines()
        .filter_map(|line| {
            let mut fields = line.splitn(3, ':').skip(1);
            let (controllers, path) = (fields.next()?, fields.next()?);
            // A cgroup of our own, when one stage starts below another, would not have the right to make more.
            let below = |mount: PathBuf| mount.join(path.trim_start_matches('/'));
            match controllers {
                "" => {
                    let folder = below(PathBuf::from(MOUNT));
                    let there = fs::read_to_string(folder.join("cgroup.controllers")).unwrap_or_default();
                    let has = |name: &str| there.split_whitespace().any(|controller| controller == name);
                    has("memory").then_some(Parent {
                        folder,
                        memory: Some("memory.max"),
                        processes: has("pids").then_some("pids.max"),
                    })
                }
                "memory" => Some(Parent {
                    folder: below(Path::new(MOUNT).join("memory")),
                    memory: Some("memory.limit_in_bytes"),
                    processes: None,
                }),
                // Nothing is limited there, but processor time is counted.
                _ if controllers.split(',').any(|controller| controller == "cpuacct") => {
                    Some(Parent { folder: below(Path::new(MOUNT).join(controllers)), memory: None, processes: None })
                }
                "pids" => Some(Parent {
                    folder: below(Path::new(MOUNT).join("pids")),
                    memory: None,
                    processes: Some("pids.max"),
                }),
                _ => None,
            }
        })
        .collect()
}

/// Moves this process into a cgroup with these limits; whether memory is limited by it.
pub fn join(limits: &Limits) -> Result<bool> {
    let mut memory = false;
    for parent in parents() {
        let wanted = [(parent.memory, limits.memory_bytes), (parent.processes, limits.processes)];
        let wanted: Vec<_> = wanted.into_iter().filter_map(|(file, most)| Some((file?, most?))).collect();
        let counts = parent.memory.is_none() && parent.processes.is_none();
        if wanted.is_empty() && !counts {
            continue;
        }
        let folder = parent.folder.join(format!("{PREFIX}{}", std::process::id()));
        if counts {
            // Without it, what a process that is gone had used is counted by whoever waited for it.
            let entered = fs::create_dir(&folder).and_then(|()| fs::write(folder.join("cgroup.procs"), "0"));
            if entered.is_err() {
                let _ = fs::remove_dir(&folder);
            }
            continue;
        }
        fs::create_dir(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let enter = || -> Result<()> {
            for (file, most) in &wanted {
                let path = folder.join(file);
                fs::write(&path, most.to_string()).with_context(|| format!("cannot write {}", path.display()))?;
            }
            fs::write(folder.join("cgroup.procs"), "0").context("cannot enter it")
        };
        if let Err(error) = enter() {
            let _ = fs::remove_dir(&folder);
            return Err(error);
        }
        memory |= parent.memory.is_some() && limits.memory_bytes.is_some();
    }
    if limits.memory_bytes.is_some() && !memory {
        bail!("none may be made here");
    }
    Ok(memory)
}

/// Removes the cgroups whose processes are all gone.
pub fn remove_empty() {
    for parent in parents() {
        let Ok(entries) = fs::read_dir(&parent.folder) else { continue };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let Some(stage) = name.to_str().and_then(|name| name.strip_prefix(PREFIX)) else { continue };
            // Another stage may be about to enter the one that it made. One that is in use stays: the system refuses.
            if !Path::new("/proc").join(stage).exists() {
                let _ = fs::remove_dir(entry.path());
            }
        }
    }
}
