//! What a command may do, and what of that was enforced.

use std::ffi::OsString;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// What a command may do. Paths that do not exist grant nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// Files, and folders with all that is below them, that it may read and execute.
    pub read: Vec<PathBuf>,
    /// Folders in which it may make, change and remove files and folders.
    pub write: Vec<PathBuf>,
    /// Device nodes that it may read, write and control.
    pub devices: Vec<PathBuf>,
    /// Whether it may use the network: the Internet's protocols, of this machine too, and no sockets of files.
    pub network: bool,
    /// Limits.
    pub limits: Limits,
}

/// Limits of a command and of all that it starts. Absent ones are not set.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Processes and threads.
    pub processes: Option<u64>,
    /// Open files of one process.
    pub open_files: Option<u64>,
    /// Bytes of one file.
    pub file_bytes: Option<u64>,
    /// Processor seconds of one process.
    pub cpu_seconds: Option<u64>,
    /// Bytes of memory: of everything together in a cgroup, else of each process.
    pub memory_bytes: Option<u64>,
    /// Niceness that is added: 19 leaves it what nobody else wants of the processor.
    pub nice: Option<i32>,
}

/// A command and how it is confined; the line that the stage reads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// The program, by absolute path or by its name in `PATH`.
    pub program: OsString,
    /// Its arguments.
    pub arguments: Vec<OsString>,
    /// The file that it reads on standard input; nothing when absent. It need not be one that it may open.
    pub input: Option<PathBuf>,
    /// What it may do.
    pub policy: Policy,
    /// Where [`Enforced`] is written, outside of what it may write.
    pub report: Option<PathBuf>,
}

/// Which limit of memory holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Memory {
    /// None.
    #[default]
    None,
    /// Of each process, by the system's limit of writable memory.
    Process,
    /// Of everything together, by a cgroup.
    Cgroup,
}

/// What is really enforced.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Enforced {
    /// It has no rights over anything outside: user namespace, no capabilities, no new privileges.
    pub privileges: bool,
    /// It sees no other process, and nothing that it starts outlives it.
    pub processes: bool,
    /// It has no network but what the policy allows, and no shared memory with others.
    pub network: bool,
    /// It reads and writes nothing but what the policy names.
    pub files: bool,
    /// System calls that it does not need fail.
    pub syscalls: bool,
    /// The limits of processes, files and processor time.
    pub limits: bool,
    /// The limit of memory.
    pub memory: Memory,
    /// Why something above is missing.
    pub missing: Vec<String>,
}

impl Enforced {
    /// Whether nothing is missing that code of unknown origin could use.
    pub fn is_complete(&self) -> bool {
        self.privileges && self.processes && self.network && self.files && self.syscalls && self.limits
    }

    /// For people, in one line.
    pub fn summary(&self) -> String {
        let parts = [
            ("privileges", self.privileges),
            ("processes", self.processes),
            ("network", self.network),
            ("files", self.files),
            ("system calls", self.syscalls),
            ("limits", self.limits),
        ];
        let list = |wanted: bool| {
            let names: Vec<&str> = parts.iter().filter(|part| part.1 == wanted).map(|part| part.0).collect();
            names.join(", ")
        };
        let memory = match self.memory {
            Memory::None => "no limit of memory",
            Memory::Process => "memory of each process",
            Memory::Cgroup => "memory of all together",
        };
        let mut text = format!("{}; {memory}", list(true));
        if !self.is_complete() {
            text.push_str(&format!("; NOT enforced: {} ({})", list(false), self.missing.join("; ")));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_says_what_is_missing() {
        let mut enforced = Enforced {
            privileges: true,
            processes: true,
            network: true,
            files: true,
            syscalls: true,
            limits: true,
            memory: Memory::Cgroup,
            missing: vec![],
        };
        assert!(enforced.is_complete());
        assert!(!enforced.summary().contains("NOT"));
        enforced.files = false;
        enforced.missing.push("Landlock is switched off in this kernel".into());
        assert!(!enforced.is_complete());
        assert!(enforced.summary().ends_with("NOT enforced: files (Landlock is switched off in this kernel)"));
    }
}
