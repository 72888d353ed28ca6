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
    /// The same, but what it writes there vanishes with it. Where no file systems can be mounted, these are folders like
    /// those of `write`, and [`Enforced::disk`] is false.
    pub scratch: Vec<Scratch>,
    /// Device nodes that it may read, write and control.
    pub devices: Vec<PathBuf>,
    /// Whether it may use the network: the Internet's protocols, of this machine too, and no sockets of files.
    pub network: bool,
    /// Limits.
    pub limits: Limits,
}

/// A folder in memory of bounded size. It must exist; nothing is written to what lies below it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scratch {
    /// Where the command sees it.
    pub folder: PathBuf,
    /// Bytes of all that is written there.
    pub bytes: u64,
    /// Whether the command sees what lies in the folder; otherwise it finds it empty.
    pub over: bool,
}

/// Limits of a command and of all that it starts. Absent ones are not set. Where the system allows less, less holds.
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
    /// Whether the command must not start unless [`Enforced::is_complete`].
    pub complete: bool,
}

/// Which limit of memory holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Memory {
    /// None.
    #[default]
    None,
    /// Of each process, by the system's limit of private writable memory. Shared memory does not count.
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
    /// It changes nothing but what the policy lets it write: no mode, owner, time or attribute either.
    #[serde(default)]
    pub attributes: bool,
    /// What it writes to scratch folders is bounded by a file system of their own, and vanishes with it.
    #[serde(default)]
    pub disk: bool,
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
        self.parts().iter().all(|part| part.1)
    }

    fn parts(&self) -> [(&'static str, bool); 8] {
        [
            ("privileges", self.privileges),
            ("processes", self.processes),
            ("network", self.network),
            ("files", self.files),
            ("attributes", self.attributes),
            ("disk", self.disk),
            ("system calls", self.syscalls),
            ("limits", self.limits),
        ]
    }

    /// For people, in one line.
    pub fn summary(&self) -> String {
        let parts = self.parts();
        let list = |wanted: bool| {
            let names: Vec<&str> = parts.iter().filter(|part| part.1 == wanted).map(|part| part.0).collect();
            names.join(", ")
        };
        let memory = match self.memory {
            Memory::None => "no limit of memory",
            Memory::Process => "private memory of each process",
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
            attributes: true,
            disk: true,
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
