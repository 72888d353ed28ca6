//! Landlock: files, TCP ports, abstract sockets and signals.

use anyhow::{Context, Result, bail};
use landlock::{
    ABI, Access, AccessFs, AccessNet, Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetStatus, Scope,
    path_beneath_rules,
};

use crate::policy::Policy;

/// The newest that is asked for; older kernels enforce what they know, and files since Linux 5.13.
const NEWEST: ABI = ABI::V6;

/// Leaves this process and its children what the policy names.
pub fn restrict(policy: &Policy) -> Result<()> {
    let read = AccessFs::from_read(NEWEST);
    // No device nodes and no sockets.
    let special = AccessFs::MakeChar | AccessFs::MakeBlock | AccessFs::MakeSock | AccessFs::IoctlDev;
    let write = AccessFs::from_all(NEWEST) & !special;
    let device = AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::IoctlDev;
    let mut rules = Ruleset::default().handle_access(AccessFs::from_all(NEWEST))?.scope(Scope::from_all(NEWEST))?;
    if !policy.network {
        rules = rules.handle_access(AccessNet::from_all(NEWEST))?;
    }
    let status = rules
        .create()?
        .add_rules(path_beneath_rules(&policy.read, read))?
        .add_rules(path_beneath_rules(&policy.write, write))?
        .add_rules(path_beneath_rules(policy.scratch.iter().map(|scratch| &scratch.folder), write))?
        .add_rules(path_beneath_rules(&policy.devices, device))?
        .restrict_self()
        .context("Landlock")?;
    if status.ruleset == RulesetStatus::NotEnforced {
        bail!("this kernel has no Landlock, or it is switched off (lsm=…,landlock)");
    }
    Ok(())
}
