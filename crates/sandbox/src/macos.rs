//! `sandbox-exec` with a profile that says the same. Written from Apple's documentation of the profile language; it has
//! not been run.

use std::fs;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, bail};

use crate::policy::{Enforced, Policy, Request};

/// Becomes the command under `sandbox-exec`.
pub fn stage() -> Result<ExitCode> {
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text).context("cannot read the request")?;
    let request: Request = serde_json::from_str(&text).context("the request is not understood")?;
    if let Some(report) = &request.report {
        let enforced = Enforced {
            privileges: true,
            network: true,
            files: true,
            missing: vec![
                "processes: macOS has no process namespaces; the group is killed".into(),
                "attributes, disk, system calls and limits: not limited on macOS".into(),
            ],
            ..Enforced::default()
        };
        fs::write(report, serde_json::to_vec(&enforced)?)
            .with_context(|| format!("cannot write {}", report.display()))?;
    }
    if request.complete {
        bail!("it is not complete on macOS, and this command may only run in a complete one");
    }
    let input = match &request.input {
        Some(path) => Stdio::from(fs::File::open(path).with_context(|| format!("cannot read {}", path.display()))?),
        None => Stdio::null(),
    };
    let more = request.policy.limits.nice.unwrap_or_default();
    let error = Command::new("/usr/bin/nice")
        .args(["-n", &more.to_string(), "/usr/bin/sandbox-exec", "-p", &profile(&request.policy)])
        .arg(&request.program)
        .args(&request.arguments)
        .stdin(input)
        .exec();
    Err(error).context("cannot start sandbox-exec")
}

fn profile(policy: &Policy) -> String {
    let mut text = String::from(
        "(version 1)\n(deny default)\n(allow process-fork)\n(allow sysctl-read)\n(allow mach-lookup)\n\
         (allow iokit-open)\n(allow file-read-metadata)\n",
    );
    text.push_str(if policy.network { "(allow network*)\n" } else { "(deny network*)\n" });
    let path = |path: &Path| {
        let resolved = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        resolved.display().to_string().replace('\\', "\\\\").replace('"', "\\\"")
    };
    for read in &policy.read {
        let path = path(read);
        text.push_str(&format!("(allow file-read* process-exec (subpath \"{path}\"))\n"));
    }
    let scratch = policy.scratch.iter().map(|scratch| &scratch.folder);
    for write in policy.write.iter().chain(scratch).chain(&policy.devices) {
        let path = path(write);
        text.push_str(&format!("(allow file-read* file-write* (subpath \"{path}\"))\n"));
    }
    text
}
