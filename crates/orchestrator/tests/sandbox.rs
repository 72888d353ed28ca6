//! The sandbox, entered as the orchestrator enters it: the real stage, with shell scripts that try to get out.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "the whole file is tests")]

use std::fs;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};
use sandbox::{Enforced, Limits, Memory, Policy, Request, STAGE, Scratch};

/// Bytes of a scratch folder.
const SCRATCH_BYTES: u64 = 8 << 20;

/// A folder that may be written, one that may not even be read, and what is enforced.
struct Cell {
    dir: tempfile::TempDir,
    limits: Limits,
    network: bool,
    complete: bool,
}

impl Cell {
    fn new(limits: Limits) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for folder in ["own", "secret", "scratch", "shared"] {
            fs::create_dir(dir.path().join(folder)).unwrap();
        }
        fs::write(dir.path().join("secret/key"), "the key").unwrap();
        fs::write(dir.path().join("readable"), "text").unwrap();
        fs::write(dir.path().join("shared/compiled"), "before").unwrap();
        fs::write(dir.path().join("input"), "a question\n").unwrap();
        Self { dir, limits, network: false, complete: false }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn own(&self, name: &str) -> String {
        fs::read_to_string(self.path("own").join(name)).unwrap_or_default()
    }

    fn start(&self, script: &str) -> (Child, Vec<OwnedFd>) {
        let system = ["/usr", "/bin", "/lib", "/lib64", "/etc/ld.so.cache", "/proc"];
        let request = Request {
            program: "/bin/bash".into(),
            arguments: vec!["-c".into(), script.into()],
            input: Some(self.path("input")),
            policy: Policy {
                read: system.iter().map(PathBuf::from).chain([self.path("readable")]).collect(),
                write: vec![self.path("own")],
                scratch: [("scratch", false), ("shared", true)]
                    .map(|(name, over)| Scratch { folder: self.path(name), bytes: SCRATCH_BYTES, over })
                    .to_vec(),
                devices: ["/dev/null", "/dev/zero"].map(PathBuf::from).to_vec(),
                network: self.network,
                limits: self.limits.clone(),
            },
            report: Some(self.path("report.json")),
            complete: self.complete,
        };
        let (ours, theirs) = UnixStream::pair().unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_orchestrator"))
            .arg(STAGE)
            .current_dir(self.path("own"))
            .stdin(OwnedFd::from(theirs))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .unwrap();
        let scratch = sandbox::hand_over(&ours, &request).unwrap();
        (child, scratch)
    }

    fn run(&self, script: &str) -> Output {
        self.run_and_look(script).0
    }

    /// The handles of its scratch folders, too.
    fn run_and_look(&self, script: &str) -> (Output, Vec<OwnedFd>) {
        let (child, scratch) = self.start(script);
        let output = child.wait_with_output().unwrap();
        sandbox::clean();
        (output, scratch)
    }

    /// Runs what must fail, and fail as a shell's last command does.
    fn refused(&self, script: &str) -> String {
        let output = self.run(script);
        assert!(!output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stdout));
        String::from_utf8(output.stderr).unwrap()
    }

    fn enforced(&self) -> Enforced {
        serde_json::from_slice(&fs::read(self.path("report.json")).unwrap()).unwrap()
    }
}

/// Whether this machine has user namespaces, asked of another program. Where it has none, what follows cannot hold.
fn has_namespaces() -> bool {
    let unshared = Command::new("unshare").args(["-U", "-r", "-p", "-f", "-n", "-m", "true"]).status();
    let has = unshared.is_ok_and(|status| status.success());
    if !has {
        println!("skipped: this machine has no user namespaces");
    }
    has
}

/// Whether this user is root outside of the namespace that the tests may run in.
fn is_the_kernels_root() -> bool {
    let me = u64::from(rustix::process::getuid().as_raw());
    let map = fs::read_to_string("/proc/self/uid_map").unwrap();
    map.lines().any(|line| {
        let numbers: Vec<u64> = line.split_whitespace().map(|number| number.parse().unwrap()).collect();
        numbers[1] == 0 && numbers[0] == me
    })
}

fn wait_for(file: &Path) {
    let until = Instant::now() + Duration::from_secs(20);
    while !file.exists() {
        assert!(Instant::now() < until, "waited in vain for {}", file.display());
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn the_report_says_that_all_is_enforced() {
    if !has_namespaces() {
        return;
    }
    let cell = Cell::new(Limits::default());
    let output = cell.run("exit 7");
    assert_eq!(output.status.code(), Some(7), "{}", String::from_utf8_lossy(&output.stderr));
    let enforced = cell.enforced();
    assert!(enforced.is_complete(), "{}", enforced.summary());
}

#[test]
fn files_are_out_of_reach() {
    if !has_namespaces() {
        return;
    }
    let cell = Cell::new(Limits::default());
    assert!(cell.run("cat ../readable > copy && echo x >> copy").status.success());
    assert_eq!(cell.own("copy"), "textx\n");
    for script in [
        "cat ../secret/key",
        "ln -s ../secret/key link; cat link",
        "ls ../secret",
        "echo x >> ../readable",
        "echo x > ../new",
        "mv ../own ../other",
        "ln ../secret/key hard && cat hard",
        "echo x > /dev/tty",
        "mknod node b 7 0",
        "mount -t tmpfs none .",
        "cat /etc/hostname",
        "echo 1 > /proc/sys/kernel/core_pattern",
    ] {
        cell.refused(script);
    }
    assert_eq!(fs::read_to_string(cell.path("readable")).unwrap(), "text");
    assert!(!cell.path("new").exists());
}

#[test]
fn there_is_no_network() {
    if !has_namespaces() {
        return;
    }
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let port = listener.local_addr().unwrap().port();
    let cell = Cell::new(Limits::default());
    cell.refused(&format!("exec 3<>/dev/tcp/127.0.0.1/{port}"));
    cell.refused(&format!("exec 3<>/dev/udp/127.0.0.1/{port}"));
    assert!(listener.accept().is_err());
}

#[test]
fn the_network_can_be_allowed_and_gives_nothing_else() {
    if !has_namespaces() {
        return;
    }
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let cell = Cell { network: true, ..Cell::new(Limits::default()) };
    let said = cell.run(&format!("exec 3<>/dev/tcp/127.0.0.1/{port} && echo connected"));
    assert_eq!(said.stdout, b"connected\n", "{}", String::from_utf8_lossy(&said.stderr));
    assert!(cell.enforced().is_complete(), "{}", cell.enforced().summary());
    // Files, other processes and what the system offers behind sockets of files stay out of reach.
    cell.refused("cat ../secret/key");
    cell.refused(&format!("kill -0 {}", std::process::id()));
    let made = |kind| format!("perl -MSocket -e 'socket(S, {kind}, SOCK_STREAM, 0) or die $!'");
    assert!(cell.run(&made("AF_INET")).status.success());
    let refused = cell.refused(&made("AF_UNIX"));
    assert!(refused.contains("Operation not permitted"), "{refused}");
}

#[test]
fn the_command_reads_its_input_from_a_file_that_it_may_not_open() {
    if !has_namespaces() {
        return;
    }
    let cell = Cell::new(Limits::default());
    assert_eq!(cell.run("cat").stdout, b"a question\n");
    cell.refused("cat ../input");
}

#[test]
fn no_other_process_is_seen_or_touched() {
    if !has_namespaces() {
        return;
    }
    let cell = Cell::new(Limits::default());
    let me = std::process::id();
    assert!(cell.run("ls -d /proc/[0-9]* | wc -l > count").status.success());
    // Process 1, the shell, and ls and wc.
    assert!(cell.own("count").trim().parse::<u32>().unwrap() <= 4, "{}", cell.own("count"));
    cell.refused(&format!("kill -0 {me}"));
    cell.refused("unshare -U true");
}

#[test]
fn nothing_outlives_the_command() {
    if !has_namespaces() {
        return;
    }
    let cell = Cell::new(Limits::default());
    let daemon = "trap '' TERM HUP INT; while :; do date +%N > beat; sleep 0.02; done";
    let script =
        format!("setsid bash -c \"(trap '' TERM; {daemon}) & disown\" & while [ ! -s beat ]; do sleep 0.01; done");
    assert!(cell.run(&script).status.success());
    std::thread::sleep(Duration::from_millis(100));
    let last = cell.own("beat");
    std::thread::sleep(Duration::from_millis(300));
    assert!(!last.is_empty());
    assert_eq!(cell.own("beat"), last);
}

#[test]
fn a_kill_of_the_group_takes_all_of_it() {
    if !has_namespaces() {
        return;
    }
    let cell = Cell::new(Limits::default());
    let (mut child, _) =
        cell.start("setsid bash -c \"trap '' TERM; while :; do date +%N > beat; sleep 0.02; done\" & sleep 1000");
    wait_for(&cell.path("own/beat"));
    kill_process_group(Pid::from_child(&child), Signal::KILL).unwrap();
    child.wait().unwrap();
    std::thread::sleep(Duration::from_millis(100));
    let last = cell.own("beat");
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(cell.own("beat"), last);
}

#[test]
fn signals_reach_the_command_and_its_end_is_told() {
    if !has_namespaces() {
        return;
    }
    let cell = Cell::new(Limits::default());
    let (child, _) = cell.start("trap 'echo done > ended; exit 3' TERM; echo > ready; while :; do sleep 0.02; done");
    wait_for(&cell.path("own/ready"));
    kill_process_group(Pid::from_child(&child), Signal::TERM).unwrap();
    assert_eq!(child.wait_with_output().unwrap().status.code(), Some(3));
    assert_eq!(cell.own("ended"), "done\n");
    assert_eq!(cell.run("kill -9 $$").status.signal(), Some(9));
    assert_eq!(cell.run("kill -TERM $$").status.signal(), Some(15));
}

#[test]
fn limits_hold() {
    if !has_namespaces() {
        return;
    }
    let limits = Limits {
        processes: Some(64),
        open_files: Some(32),
        file_bytes: Some(1 << 20),
        cpu_seconds: Some(2),
        memory_bytes: Some(256 << 20),
        nice: Some(7),
    };
    let cell = Cell::new(limits);
    assert!(cell.run("nice > niceness").status.success());
    let own = rustix::process::getpriority_process(None).unwrap();
    assert_eq!(cell.own("niceness").trim(), (own + 7).min(19).to_string());
    cell.refused("head -c 2000000 /dev/zero > big");
    assert!(fs::metadata(cell.path("own/big")).unwrap().len() <= 1 << 20);
    // A kill by the system, or an allocation that fails; either way it does not get there.
    cell.refused("x=$(head -c 900000000 /dev/zero | tr '\\0' x); echo ${#x} > size");
    assert_eq!(cell.own("size"), "");
    cell.refused("while :; do :; done");
    // The kernel exempts its root from the limit of processes, in every namespace; a cgroup does not.
    if cell.enforced().memory == Memory::Cgroup || !is_the_kernels_root() {
        cell.refused("perl -e 'for (1..200) { my $child = fork // die; sleep 1000 unless $child }'");
    }
    assert!(cell.run("true").status.success());
    cell.refused("for i in $(seq 3 40); do eval \"exec $i</dev/null\" || exit 1; done");
}

/// What a scratch folder holds, by the handle that was handed over.
fn held(handle: &OwnedFd, file: &str) -> Option<String> {
    use std::os::fd::AsRawFd;
    fs::read_to_string(format!("/proc/self/fd/{}/{file}", handle.as_raw_fd())).ok()
}

#[test]
fn what_is_written_to_scratch_is_seen_by_its_handle_alone() {
    if !has_namespaces() {
        return;
    }
    let cell = Cell::new(Limits::default());
    let (output, handles) =
        cell.run_and_look("echo new > ../scratch/file && echo after > ../shared/compiled && chmod 700 ../shared");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(held(&handles[0], "file").as_deref(), Some("new\n"));
    assert_eq!(held(&handles[1], "compiled").as_deref(), Some("after\n"));
    assert_eq!(fs::read_dir(cell.path("scratch")).unwrap().count(), 0);
    assert_eq!(fs::read_to_string(cell.path("shared/compiled")).unwrap(), "before");
    // The next command finds the folders as they were.
    assert!(cell.run("[ ! -e ../scratch/file ] && [ \"$(cat ../shared/compiled)\" = before ]").status.success());
    // Also what a killed command wrote.
    let (mut child, handles) = cell.start("echo half > ../scratch/file; echo > ready; sleep 1000");
    wait_for(&cell.path("own/ready"));
    kill_process_group(Pid::from_child(&child), Signal::KILL).unwrap();
    child.wait().unwrap();
    assert_eq!(held(&handles[0], "file").as_deref(), Some("half\n"));
}

#[test]
fn scratch_is_bounded_whatever_is_done_to_the_files() {
    if !has_namespaces() {
        return;
    }
    let cell = Cell::new(Limits::default());
    let much = "head -c 20000000 /dev/zero";
    for script in [
        format!("{much} > ../scratch/big"),
        format!("{much} > ../shared/big"),
        format!("exec 9> ../scratch/gone; rm ../scratch/gone; {much} >&9"),
        // Below a path that is longer than any that a call takes.
        format!(
            "d=$(printf '%0250d' 0); cd ../scratch; for i in $(seq 20); do mkdir $d && cd -P $d || exit 3; done; {much} > big"
        ),
        "cd ../scratch; for i in $(seq 200000); do : > $i || exit 3; done".to_owned(),
    ] {
        cell.refused(&script);
    }
}

#[test]
fn nothing_outside_changes_by_mode_time_owner_or_attribute() {
    if !has_namespaces() {
        return;
    }
    let cell = Cell::new(Limits::default());
    let before = fs::metadata(cell.path("readable")).unwrap();
    for script in [
        "chmod 666 ../readable",
        "chmod 4755 ../secret/key",
        "chmod 000 ../secret",
        "touch -d 2191-01-01 ../readable",
        "touch -c -d 2191-01-01 ../secret/key",
        "chown 0:0 ../readable && chown 1:1 ../readable",
        "perl -e 'require \"syscall.ph\" if 0; exit(syscall(188, $ARGV[0], \"user.s\", \"x\", 1, 0) ? 1 : 0)' ../readable",
        "mkdir ../made",
        "ln ../readable ../own/link",
    ] {
        cell.refused(script);
    }
    // Read, which some file systems write down.
    assert!(cell.run("cat ../readable").status.success());
    let after = fs::metadata(cell.path("readable")).unwrap();
    use std::os::unix::fs::MetadataExt;
    let seen = |m: &fs::Metadata| (m.mode(), m.uid(), m.gid(), m.mtime(), m.ctime(), m.ctime_nsec(), m.atime_nsec());
    assert_eq!(seen(&before), seen(&after));
}

#[test]
fn no_program_becomes_set_uid() {
    if !has_namespaces() {
        return;
    }
    let cell = Cell::new(Limits::default());
    for script in [
        "cp /bin/true t && chmod 4755 t",
        "cp /bin/true u && chmod g+s u",
        "mkdir -m 2755 d",
        "perl -e 'sysopen(F, \"made\", 0101, 04755) or die $!'",
    ] {
        cell.refused(script);
    }
    use std::os::unix::fs::PermissionsExt;
    for entry in fs::read_dir(cell.path("own")).unwrap() {
        assert_eq!(entry.unwrap().metadata().unwrap().permissions().mode() & 0o6000, 0);
    }
}

#[test]
fn cores_and_watches_are_refused() {
    if !has_namespaces() {
        return;
    }
    let cell = Cell::new(Limits::default());
    cell.refused("taskset -p 1 $$");
    // inotify_init1
    cell.refused("perl -e 'exit(syscall(294, 0) < 0 ? 1 : 0)'");
}

#[test]
fn a_limit_that_the_machine_does_not_give_costs_no_other() {
    if !has_namespaces() {
        return;
    }
    let limits = Limits { open_files: Some(1 << 20), file_bytes: Some(1 << 20), ..Limits::default() };
    let cell = Cell { complete: true, ..Cell::new(limits) };
    let hard = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum;
    assert!(cell.run("ulimit -Hn > files; ulimit -Hf > bytes").status.success());
    let expected = hard.map_or(1 << 20, |hard| hard.min(1 << 20));
    assert_eq!(cell.own("files").trim(), expected.to_string());
    assert_eq!(cell.own("bytes").trim(), "1024");
    assert!(cell.enforced().is_complete(), "{}", cell.enforced().summary());
}

#[test]
fn foreign_code_does_not_start_where_something_is_missing() {
    if !has_namespaces() {
        return;
    }
    // No file systems can be mounted on a folder that is not there.
    let cell = Cell { complete: true, ..Cell::new(Limits::default()) };
    fs::remove_dir(cell.path("scratch")).unwrap();
    let output = cell.run("echo ran > ran");
    assert_eq!(output.status.code(), Some(i32::from(sandbox::FAILED)));
    assert!(String::from_utf8_lossy(&output.stderr).contains("NOT enforced: attributes, disk"));
    assert_eq!(cell.own("ran"), "");
    let lenient = Cell { complete: false, ..cell };
    assert!(lenient.run("echo ran > ran").status.success());
}
