//! seccomp: system calls that neither a compiler nor a trainer needs fail with EPERM.
//!
//! A list of what is refused, not of what is allowed: drivers and allocators change what they call, and an experiment
//! that dies of a new library is worse than a call that the other layers stop anyway.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
};

/// Other processes, the kernel, the clock, the machine, namespaces, and keys.
const REFUSED: &[i64] = &[
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_fsopen,
    libc::SYS_fsmount,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_open_by_handle_at,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_clock_adjtime,
    libc::SYS_adjtimex,
    libc::SYS_acct,
    libc::SYS_quotactl,
    libc::SYS_syslog,
    libc::SYS_vhangup,
    libc::SYS_mount_setattr,
];

/// Calls that a program without the network does not need either: the cores are chosen for it, and what others do with
/// files is not its business.
const CONFINED: &[i64] =
    &[libc::SYS_sched_setaffinity, libc::SYS_inotify_init1, libc::SYS_fanotify_init, libc::SYS_name_to_handle_at];

/// Calls with a mode among their arguments, and where.
const MODES: &[(i64, u8)] = &[
    (libc::SYS_fchmod, 1),
    (libc::SYS_fchmodat, 2),
    (FCHMODAT2, 2),
    (libc::SYS_mkdirat, 2),
    (libc::SYS_mknodat, 2),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_chmod, 1),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_creat, 1),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_mkdir, 1),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_mknod, 1),
];

/// Calls that open a file: where the flags are, and behind them the mode, which is there when a file may be made.
const OPENS: &[(i64, u8)] = &[
    (libc::SYS_openat, 2),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_open, 1),
];

/// Of Linux 6.6; the number is the same for every processor.
const FCHMODAT2: i64 = 452;

/// Modes of a program that runs with its owner's or its group's rights.
const SET_ID: &[libc::mode_t] = &[libc::S_ISUID, libc::S_ISGID];

/// Calls that make and use sockets. A pair of connected ones may still be made; there is nobody else to connect to.
const NETWORK: &[i64] = &[libc::SYS_socket, libc::SYS_connect, libc::SYS_bind];

/// Kinds of sockets where the network is allowed: the Internet's, and the kernel's list of addresses, which name resolution
/// asks for. Not those of files, behind which are the system's own services.
const INTERNET: &[i32] = &[libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK];

/// Flags of `clone` that make namespaces.
const NAMESPACES: &[i32] = &[
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWNS,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWNET,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWUTS,
    libc::CLONE_NEWCGROUP,
];

/// Refuses them to this process and its children; the network as well, unless it is allowed.
pub fn restrict(network: bool) -> Result<()> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = REFUSED.iter().map(|&call| (call, Vec::new())).collect();
    let condition = |index, test, value: u64| SeccompCondition::new(index, SeccompCmpArgLen::Dword, test, value);
    let argument =
        |index, test, value| -> Result<SeccompRule> { Ok(SeccompRule::new(vec![condition(index, test, value)?])?) };
    if network {
        // All conditions of a rule must hold: a socket of none of these kinds.
        let others = INTERNET.iter().map(|&kind| condition(0, SeccompCmpOp::Ne, kind as u64));
        rules.insert(libc::SYS_socket, vec![SeccompRule::new(others.collect::<Result<_, _>>()?)?]);
    } else {
        rules.extend(NETWORK.iter().chain(CONFINED).map(|&call| (call, Vec::new())));
    }
    let set_id =
        |index| SET_ID.iter().map(move |&bit| condition(index, SeccompCmpOp::MaskedEq(u64::from(bit)), u64::from(bit)));
    for &(call, index) in MODES {
        let alone = set_id(index).map(|bit| Ok(SeccompRule::new(vec![bit?])?));
        rules.insert(call, alone.collect::<Result<_>>()?);
    }
    for &(call, index) in OPENS {
        // The one bit that every flag for making a file has.
        let makes = [libc::O_CREAT, libc::O_TMPFILE & !libc::O_DIRECTORY].map(|flag| flag as u64);
        let made = makes.into_iter().flat_map(|flag| {
            set_id(index + 1).map(move |bit| {
                Ok(SeccompRule::new(vec![condition(index, SeccompCmpOp::MaskedEq(flag), flag)?, bit?])?)
            })
        });
        rules.insert(call, made.collect::<Result<_>>()?);
    }
    let clones = NAMESPACES.iter().map(|&flag| argument(0, SeccompCmpOp::MaskedEq(flag as u64), flag as u64));
    rules.insert(libc::SYS_clone, clones.collect::<Result<_>>()?);
    // Typing into the terminal that the orchestrator was started from.
    let terminal = argument(1, SeccompCmpOp::Eq, libc::TIOCSTI)?;
    rules.insert(libc::SYS_ioctl, vec![terminal]);
    apply(rules, libc::EPERM)?;
    // What they are asked lies in memory, where a filter cannot look; libraries fall back to `clone` and `openat`.
    let opaque = [libc::SYS_clone3, libc::SYS_openat2].map(|call| (call, Vec::new()));
    apply(BTreeMap::from(opaque), libc::ENOSYS)
}

fn apply(rules: BTreeMap<i64, Vec<SeccompRule>>, error: i32) -> Result<()> {
    let architecture = TargetArch::try_from(std::env::consts::ARCH).context("no filter for this processor")?;
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, SeccompAction::Errno(error as u32), architecture)?;
    let program = BpfProgram::try_from(filter)?;
    seccompiler::apply_filter(&program).context("seccomp")
}
