//! What a command and everything that it started use, as the kernel counts it: nothing here is what they say of
//! themselves.
//!
//! While it runs, its tree of processes is read from `/proc` about twice a second; a cgroup that the sandbox made counts
//! what came and went in between as well. At the end `wait4` tells what the leader and all that was waited for used. The
//! largest of these counts. Where there is no `/proc`, the end alone does.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::param::clock_ticks_per_second;
use rustix::process::Pid;

/// Where control groups are.
const CGROUPS: &str = "/sys/fs/cgroup";
/// Begin of the names of those that the sandbox makes.
const OWN_CGROUP: &str = "ternary-autoresearch-";

/// What was used.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Usage {
    /// Time of the processor, of all threads and processes.
    pub processor: Duration,
    /// What of that was outside of the kernel.
    pub user: Duration,
    /// Time in which a thread was ready to compute and others did.
    pub delayed: Duration,
    /// Peak of resident bytes.
    pub memory: u64,
    /// Share of the cores' time that other programs, and other machines on the same host, took meanwhile.
    pub others: f64,
    /// Whether the kernel killed one of its processes for the limit of memory; `None` where nothing counts that.
    pub out_of_memory: Option<bool>,
}

/// Counts what a running command uses.
#[derive(Debug)]
pub(super) struct Meter {
    leader: Pid,
    started: Instant,
    /// Busy time of the cores at the start.
    busy: Option<Duration>,
    cgroups: Vec<PathBuf>,
    /// The tree as it was read last.
    tree: Tree,
    /// What processes used that ended without being waited for.
    lost: Ticks,
    /// By thread: nanoseconds that it waited for a core.
    delays: BTreeMap<i32, u64>,
    usage: Usage,
}

impl Meter {
    pub(super) fn start(leader: Pid) -> Self {
        Self {
            leader,
            started: Instant::now(),
            busy: busy(),
            cgroups: Vec::new(),
            tree: Tree::new(),
            lost: Ticks::default(),
            delays: BTreeMap::new(),
            usage: Usage::default(),
        }
    }

    /// Reads the tree as it is now; returns what it has used so far.
    pub(super) fn read(&mut self) -> Usage {
        if self.cgroups.is_empty() {
            self.cgroups = cgroups(self.leader);
        }
        let (mut tree, mut memory) = (Tree::new(), 0);
        let mut unread = vec![self.leader.as_raw_nonzero().get()];
        while let Some(pid) = unread.pop() {
            let folder = PathBuf::from(format!("/proc/{pid}"));
            let Some(process) = Process::read(&folder) else { continue };
            tree.insert((pid, process.started), (process.own, process.waited_for));
            memory += process.memory;
            for thread in entries(&folder.join("task")) {
                let Some(id) = thread.file_name().and_then(|name| name.to_str()?.parse().ok()) else { continue };
                if let Some(delay) = fields(&thread.join("schedstat")).get(1) {
                    self.delays.insert(id, *delay);
                }
                unread.extend(fields(&thread.join("children")).into_iter().filter_map(|pid| i32::try_from(pid).ok()));
            }
        }
        self.lost += lost(&self.tree, &tree);
        let ticks = tree.values().fold(self.lost, |sum, &(own, waited_for)| sum + own + waited_for);
        self.tree = tree;
        self.usage.compute(from_ticks(ticks.user + ticks.system), from_ticks(ticks.user));
        self.usage.delayed = self.usage.delayed.max(Duration::from_nanos(self.delays.values().sum()));
        self.usage.memory = self.usage.memory.max(memory);
        self.read_cgroups();
        self.usage
    }

    /// What it used altogether, when it is over: `processor`, `user` and `memory` come from the system, too.
    pub(super) fn end(mut self, processor: Duration, user: Duration, memory: u64) -> Usage {
        self.read_cgroups();
        self.usage.compute(processor, user);
        self.usage.memory = self.usage.memory.max(memory);
        let time = self.started.elapsed().as_secs_f64() * cores();
        if let (Some(before), Some(after)) = (self.busy, busy()) {
            let others = after.saturating_sub(before).saturating_sub(self.usage.processor);
            self.usage.others = (others.as_secs_f64() / time).clamp(0.0, 1.0);
        }
        self.usage
    }

    fn read_cgroups(&mut self) {
        for folder in &self.cgroups {
            let number = |file: &str| fields(&folder.join(file)).first().copied();
            let stat = fs::read_to_string(folder.join("cpu.stat")).unwrap_or_default();
            let time = |in_version_2: &str, in_version_1: &str| {
                let line = stat.lines().find_map(|line| line.strip_prefix(in_version_2)?.trim().parse().ok());
                let time = line.map(Duration::from_micros).or(number(in_version_1).map(Duration::from_nanos));
                time.unwrap_or_default()
            };
            self.usage.compute(time("usage_usec ", "cpuacct.usage"), time("user_usec ", "cpuacct.usage_user"));
            let memory = number("memory.peak").or(number("memory.max_usage_in_bytes"));
            self.usage.memory = self.usage.memory.max(memory.unwrap_or_default());
            let killed = ["memory.events", "memory.oom_control"].iter().find_map(|file| {
                let text = fs::read_to_string(folder.join(file)).ok()?;
                text.lines().find_map(|line| line.strip_prefix("oom_kill "))?.trim().parse::<u64>().ok()
            });
            self.usage.out_of_memory = killed.map(|killed| killed > 0).or(self.usage.out_of_memory);
        }
    }
}

impl Usage {
    /// What one of the ways to count says; the largest counts.
    fn compute(&mut self, processor: Duration, user: Duration) {
        self.processor = self.processor.max(processor);
        self.user = self.user.max(user);
    }
}

/// By process, with its start (one of the same number is another): what it used itself, and what children used that it
/// waited for.
type Tree = BTreeMap<(i32, u64), (Ticks, Ticks)>;

/// What the processes used that are in `before` and not in `now`, and that nothing in `now` has waited for.
fn lost(before: &Tree, now: &Tree) -> Ticks {
    let (mut gone, mut waited_for) = (Ticks::default(), Ticks::default());
    for (process, &(own, of_children)) in before {
        if now.contains_key(process) {
            waited_for = waited_for - of_children;
        } else {
            gone += own + of_children;
        }
    }
    // Signed, as the sums are complete only at the end.
    for &(_, of_children) in now.values() {
        waited_for += of_children;
    }
    let rest = gone - waited_for;
    Ticks { user: rest.user.max(0), system: rest.system.max(0) }
}

/// Time of the processor.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Ticks {
    user: i64,
    system: i64,
}

impl std::ops::Add for Ticks {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { user: self.user + other.user, system: self.system + other.system }
    }
}

impl std::ops::Sub for Ticks {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        Self { user: self.user - other.user, system: self.system - other.system }
    }
}

impl std::ops::AddAssign for Ticks {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

/// A line of `/proc/PID/stat`, and what it holds in memory.
struct Process {
    started: u64,
    /// What it computed itself.
    own: Ticks,
    /// What children did that it waited for.
    waited_for: Ticks,
    memory: u64,
}

impl Process {
    fn read(folder: &Path) -> Option<Self> {
        let stat = fs::read_to_string(folder.join("stat")).ok()?;
        // The name before it may hold anything.
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        // Numbers as in proc_pid_stat(5), which counts from 1; the first here is its third.
        let field = |number: usize| fields.get(number - 3)?.parse::<i64>().ok();
        let status = fs::read_to_string(folder.join("status")).unwrap_or_default();
        // Without what is a file's: children share that with their parent.
        let kibibytes = status.lines().filter_map(|line| {
            let size = line.strip_prefix("RssAnon:").or(line.strip_prefix("RssShmem:"))?;
            size.trim().strip_suffix(" kB")?.parse::<u64>().ok()
        });
        Some(Self {
            started: field(22)?.unsigned_abs(),
            own: Ticks { user: field(14)?, system: field(15)? },
            waited_for: Ticks { user: field(16)?, system: field(17)? },
            memory: kibibytes.sum::<u64>() * 1024,
        })
    }
}

/// The control groups of a command that are its own.
fn cgroups(leader: Pid) -> Vec<PathBuf> {
    let pid = leader.as_raw_nonzero();
    let own = format!("{OWN_CGROUP}{pid}");
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    text.lines()
        .filter_map(|line| {
            let mut parts = line.splitn(3, ':').skip(1);
            let (controllers, path) = (parts.next()?, Path::new(parts.next()?));
            (path.file_name()? == own.as_str())
                .then(|| Path::new(CGROUPS).join(controllers).join(path.strip_prefix("/").unwrap_or(path)))
        })
        .collect()
}

/// Time in which the cores that this process may use were busy, whoever kept them so, since the machine started.
fn busy() -> Option<Duration> {
    let stat = fs::read_to_string("/proc/stat").ok()?;
    let allowed = allowed();
    let ticks = stat.lines().filter_map(|line| {
        let (core, columns) = line.strip_prefix("cpu")?.split_once(' ')?;
        // The first line, of all cores, has no number.
        let core: usize = core.parse().ok()?;
        let columns: Vec<i64> = columns.split_whitespace().filter_map(|column| column.parse().ok()).collect();
        // user, nice, system, and what is no idling: interrupts, and what the host gave to others.
        let wanted = [0, 1, 2, 5, 6, 7].iter().filter_map(|&i| columns.get(i)).sum::<i64>();
        allowed(core).then_some(wanted)
    });
    Some(from_ticks(ticks.sum()))
}

#[cfg(target_os = "linux")]
fn allowed() -> impl Fn(usize) -> bool {
    use rustix::thread::{CpuSet, sched_getaffinity};
    let set = sched_getaffinity(None).ok();
    move |core| set.as_ref().is_none_or(|set| core < CpuSet::MAX_CPU && set.is_set(core))
}

#[cfg(not(target_os = "linux"))]
fn allowed() -> impl Fn(usize) -> bool {
    |_| true
}

fn cores() -> f64 {
    std::thread::available_parallelism().map_or(1.0, |n| n.get() as f64)
}

fn from_ticks(ticks: i64) -> Duration {
    Duration::from_secs_f64(ticks.max(0) as f64 / clock_ticks_per_second() as f64)
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    fs::read_dir(folder).map(|entries| entries.flatten().map(|entry| entry.path()).collect()).unwrap_or_default()
}

/// The numbers of a small file of the system's.
fn fields(file: &Path) -> Vec<u64> {
    let text = fs::read_to_string(file).unwrap_or_default();
    text.split_whitespace().map_while(|field| field.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ticks(user: i64, system: i64) -> Ticks {
        Ticks { user, system }
    }

    #[test]
    fn what_was_waited_for_counts_once_and_what_was_not_is_kept() {
        let none = Ticks::default();
        let before = Tree::from([((1, 1), (ticks(1, 1), none)), ((2, 5), (ticks(90, 10), ticks(5, 0)))]);
        // The second ended, and the first waited for it.
        let waited = Tree::from([((1, 1), (ticks(1, 1), ticks(97, 11)))]);
        assert_eq!(lost(&before, &waited), none);
        let ignored = Tree::from([((1, 1), (ticks(1, 1), none)), ((2, 6), (ticks(3, 3), none))]);
        assert_eq!(lost(&before, &ignored), ticks(95, 10), "another process has its number");
        assert_eq!(lost(&before, &before), none);
    }
}
