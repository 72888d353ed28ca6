//! The stage on Linux, and process 1 of its namespace.

mod cgroup;
mod files;
mod handles;
mod mounts;
mod syscalls;

pub use cgroup::remove_empty;
pub use handles::receive;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::{Context, Result, anyhow, bail, ensure};
use rustix::io::{Errno, FdFlags};
use rustix::mount::{MountFlags, mount};
use rustix::process::{Pid, Resource, Rlimit, Signal, WaitOptions, getrlimit, setrlimit};
use rustix::thread::{CapabilitiesSecureBits, CapabilitySet, CapabilitySets, UnshareFlags};
use serde::{Deserialize, Serialize};

use crate::INIT;
use crate::policy::{Enforced, Limits, Memory, Request};

/// Exit codes above this one are signals, as shells have it.
const SIGNALLED: i32 = 128;
/// Most bytes of a request.
const LONGEST: u64 = 1 << 20;

/// What the stage tells process 1.
#[derive(Serialize, Deserialize)]
struct Inner {
    request: Request,
    enforced: Enforced,
    /// Whether the namespaces are there.
    apart: bool,
    /// Whether writable and scratch folders are mounts of their own.
    mounted: bool,
    /// The handle that [`Enforced`] is written to.
    report: Option<RawFd>,
}

/// Reads the request, leaves every namespace, starts process 1 and ends as it ends.
pub fn stage() -> Result<ExitCode> {
    let mut text = String::new();
    // The orchestrator closes its end behind the request; when it is gone before, the request is cut off.
    std::io::stdin().take(LONGEST).read_to_string(&mut text).context("cannot read the request")?;
    let request: Request = serde_json::from_str(&text).context("the request is not understood")?;
    close_inherited()?;
    survive_the_groups_signals()?;
    // Opened before the mounts are this process's own: they cannot be made read-only while one of their files is written.
    let report = match &request.report {
        Some(path) => Some(File::create(path).with_context(|| format!("cannot write {}", path.display()))?),
        None => None,
    };
    if let Some(report) = &report {
        rustix::io::fcntl_setfd(report, FdFlags::empty()).context("cannot hand the report on")?;
    }
    let mut enforced = Enforced::default();
    match cgroup::join(&request.policy.limits) {
        Ok(true) => enforced.memory = Memory::Cgroup,
        Ok(false) => {}
        Err(error) => enforced.missing.push(format!("no cgroup: {error:#}")),
    }
    let apart = match leave_namespaces(request.policy.network) {
        Ok(()) => true,
        Err(error) => {
            enforced.missing.push(format!("no namespaces: {error:#}"));
            false
        }
    };
    let mut handles = Vec::new();
    let mut mounted = false;
    if apart {
        match mounts::prepare(&request.policy) {
            Ok(scratch) => (handles, mounted) = (scratch, true),
            Err(error) => enforced.missing.push(format!("mounts: {error:#}")),
        }
        if let Err(error) = keep_capabilities() {
            enforced.missing.push(format!("capabilities of process 1: {error:#}"));
        }
    }
    handles::send(std::io::stdin(), &handles)?;
    drop(handles);
    let inner = serde_json::to_vec(&Inner {
        request,
        enforced,
        apart,
        mounted,
        report: report.as_ref().map(AsRawFd::as_raw_fd),
    })?;
    let mut child =
        Command::new("/proc/self/exe").arg(INIT).stdin(Stdio::piped()).spawn().context("cannot start process 1")?;
    let mut pipe = child.stdin.take().context("process 1 has no input")?;
    pipe.write_all(&inner).context("process 1 ended before it began")?;
    drop((pipe, report));
    let status = child.wait().context("cannot wait for process 1")?;
    let signal = status.signal().or(status.code().map(|code| code - SIGNALLED).filter(|&signal| signal > 0));
    if let Some(signal) = signal {
        // As the command ended, so that whoever waits sees the signal.
        let _ = signal_hook::low_level::emulate_default_handler(signal);
        bail!("the command was killed by signal {signal}");
    }
    Ok(ExitCode::from(status.code().unwrap_or_default() as u8))
}

/// Sets everything up that the command inherits, starts it, and reaps until it ends.
pub fn init() -> Result<ExitCode> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    survive_the_groups_signals()?;
    let mut text = String::new();
    std::io::stdin().take(2 * LONGEST).read_to_string(&mut text).context("the stage said nothing")?;
    let Inner { request, mut enforced, apart, mounted, report } =
        serde_json::from_str(&text).context("the stage is not understood")?;
    let policy = &request.policy;
    let report = report.map(inherited).transpose()?;
    // Opened before the files are out of reach.
    let input = match &request.input {
        Some(path) => Stdio::from(File::open(path).with_context(|| format!("cannot read {}", path.display()))?),
        None => Stdio::null(),
    };
    let missing = &mut enforced.missing;
    let mut holds = |what: &str, outcome: Result<()>| {
        if let Err(error) = &outcome {
            missing.push(format!("{what}: {error:#}"));
        }
        outcome.is_ok()
    };
    let own_proc = apart && holds("no /proc of its own", own_proc());
    let attributes = mounted && holds("attributes", mounts::seal(policy));
    let limits = holds("limits", set_limits(&policy.limits, apart));
    let process_memory = enforced.memory == Memory::None
        && policy.limits.memory_bytes.is_some_and(|bytes| holds("memory", limit(Resource::Data, bytes)));
    let privileges = holds("privileges", drop_privileges(apart));
    let files = holds("files", files::restrict(policy));
    let syscalls = holds("system calls", syscalls::restrict(policy.network));
    enforced.processes = own_proc;
    enforced.network = apart;
    enforced.privileges = privileges;
    enforced.files = files;
    enforced.attributes = attributes;
    enforced.disk = mounted;
    enforced.syscalls = syscalls;
    enforced.limits = limits;
    if process_memory {
        enforced.memory = Memory::Process;
    }
    if let Some(mut report) = report {
        serde_json::to_writer(&report, &enforced)?;
        report.flush()?;
    }
    if request.complete && !enforced.is_complete() {
        bail!("it is not complete, and this command may only run in a complete one: {}", enforced.summary());
    }
    let child = Command::new(&request.program).args(&request.arguments).stdin(input).spawn();
    let child = child.with_context(|| format!("cannot start {}", request.program.display()))?;
    let pid = Pid::from_child(&child);
    loop {
        // Whatever lost its parent is ours to reap, too.
        match rustix::process::wait(WaitOptions::empty()) {
            Ok(Some((ended, status))) if ended == pid => {
                let code = status.exit_status().or(status.terminating_signal().map(|signal| SIGNALLED + signal));
                return Ok(ExitCode::from(code.unwrap_or(SIGNALLED) as u8));
            }
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => bail!("cannot wait for the command: {error}"),
        }
    }
}

/// Whoever stops the command signals its whole group; these two wait for how the command takes it.
fn survive_the_groups_signals() -> Result<()> {
    let seen = Arc::new(AtomicBool::new(false));
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        signal_hook::flag::register(signal.as_raw(), seen.clone()).context("cannot set a signal handler")?;
    }
    Ok(())
}

/// Takes over the handle that the stage left open, and keeps it from the command.
#[allow(unsafe_code)]
fn inherited(report: RawFd) -> Result<File> {
    // SAFETY: the stage opened it for this process, in which nothing else owns it.
    let report = unsafe { File::from_raw_fd(report) };
    rustix::io::fcntl_setfd(&report, FdFlags::CLOEXEC).context("the stage handed over no report")?;
    Ok(report)
}

/// Closes every handle but the standard three; those that Rust opened close themselves when a program starts, others
/// may have come from whatever started the orchestrator.
#[allow(unsafe_code)]
fn close_inherited() -> Result<()> {
    let open: Vec<i32> = fs::read_dir("/proc/self/fd")
        .context("cannot list the open handles")?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|&fd| fd > 2)
        .collect();
    for fd in open {
        // SAFETY: this process is single-threaded and nothing in it owns a handle above 2 at this point (the folder
        // that was listed is closed already, which is the one error to expect).
        unsafe { libc::close(fd) };
    }
    Ok(())
}

#[allow(unsafe_code)]
fn leave_namespaces(keep_network: bool) -> Result<()> {
    let (user, group) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    let mut rest = UnshareFlags::NEWNS | UnshareFlags::NEWPID | UnshareFlags::NEWIPC;
    if !keep_network {
        rest |= UnshareFlags::NEWNET;
    }
    // SAFETY: the table of handles stays shared (no FILES).
    let with_user = unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWUSER | rest) };
    if let Err(error) = with_user {
        // Where user namespaces are switched off, root can do without.
        // SAFETY: as above.
        return unsafe { rustix::thread::unshare_unsafe(rest) }.map_err(|_| match error {
            // Its text is about disks.
            Errno::NOSPC => anyhow!("no more user namespaces are allowed (user.max_user_namespaces)"),
            Errno::PERM => {
                anyhow!("user namespaces are not allowed (kernel.unprivileged_userns_clone, AppArmor, a container)")
            }
            error => anyhow!(error).context("unshare"),
        });
    }
    // The same numbers inside as outside; nothing else is mapped.
    fs::write("/proc/self/setgroups", "deny").context("setgroups")?;
    fs::write("/proc/self/uid_map", format!("{user} {user} 1")).context("uid_map")?;
    fs::write("/proc/self/gid_map", format!("{group} {group} 1")).context("gid_map")
}

/// Lets process 1 mount and drop rights: starting a program takes the capabilities of every user but root.
fn keep_capabilities() -> Result<()> {
    let needed = CapabilitySet::SYS_ADMIN | CapabilitySet::SETPCAP;
    let sets = rustix::thread::capabilities(None).context("cannot read them")?;
    rustix::thread::set_capabilities(None, CapabilitySets { inheritable: needed, ..sets }).context("inheritable")?;
    for one in needed.iter() {
        rustix::thread::configure_capability_in_ambient_set(one, true).context("ambient")?;
    }
    Ok(())
}

fn own_proc() -> Result<()> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("proc", "/proc", "proc", flags, None).context("mount")
}

/// Sets a limit, or what this process may have where that is less.
fn limit(resource: Resource, most: u64) -> Result<()> {
    let most = getrlimit(resource).maximum.map_or(most, |allowed| allowed.min(most));
    let limit = Rlimit { current: Some(most), maximum: Some(most) };
    setrlimit(resource, limit).with_context(|| format!("{resource:?}"))
}

/// Sets every limit that can be set; the error names the others.
fn set_limits(limits: &Limits, apart: bool) -> Result<()> {
    let wanted = [
        (Resource::Core, Some(0)),
        // Outside of a user namespace this would count whatever else the user runs.
        (Resource::Nproc, limits.processes.filter(|_| apart)),
        (Resource::Nofile, limits.open_files),
        (Resource::Fsize, limits.file_bytes),
        (Resource::Cpu, limits.cpu_seconds),
    ];
    let outcomes = wanted.into_iter().filter_map(|(resource, most)| Some(limit(resource, most?)));
    let niceness = limits.nice.map(|more| rustix::process::nice(more).map(drop).context("niceness"));
    let failed: Vec<String> =
        outcomes.chain(niceness).filter_map(|outcome| Some(format!("{:#}", outcome.err()?))).collect();
    ensure!(failed.is_empty(), "{}", failed.join(", "));
    Ok(())
}

/// No capabilities, none by being root either, and none by starting a set-uid program.
fn drop_privileges(apart: bool) -> Result<()> {
    rustix::thread::set_no_new_privs(true).context("no_new_privs")?;
    if apart || rustix::process::getuid().is_root() {
        let bits = CapabilitiesSecureBits::NO_ROOT
            | CapabilitiesSecureBits::NO_ROOT_LOCKED
            | CapabilitiesSecureBits::NO_SETUID_FIXUP
            | CapabilitiesSecureBits::NO_SETUID_FIXUP_LOCKED
            | CapabilitiesSecureBits::NO_CAP_AMBIENT_RAISE;
        rustix::thread::set_capabilities_secure_bits(bits).context("secure bits")?;
    }
    rustix::thread::clear_ambient_capability_set().context("ambient capabilities")?;
    let none = CapabilitySet::empty();
    let sets = CapabilitySets { effective: none, permitted: none, inheritable: none };
    rustix::thread::set_capabilities(None, sets).context("capabilities")
}
