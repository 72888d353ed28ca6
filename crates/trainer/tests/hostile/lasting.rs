//! Recipes that try to leave something behind for the next one: in times, modes, attributes, compiled files and folders.
//! And builds that never end.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use super::{Case, Expected, MEASURED, fails};

/// What is there to be changed.
pub struct Targets<'a> {
    pub root: &'a str,
    pub run: &'a str,
    pub build: &'a str,
}

/// Runs a shell script that must fail; the trainer ends with a code of its own when it succeeds. Its folder is `$out`.
fn refused(name: &'static str, script: &str) -> Case {
    Case::attack(name, format!("if {}.success() {{ std::process::exit(60) }}\n", shell(script)), MEASURED)
}

/// Runs a shell script, whatever comes of it.
fn tried(name: &'static str, script: &str, expected: Expected) -> Case {
    Case::attack(name, format!("let _ = {};\n", shell(script)), expected)
}

fn shell(script: &str) -> String {
    let out = "std::env::args().skip_while(|a| a != \"--out\").nth(1).unwrap()";
    format!("std::process::Command::new(\"/bin/sh\").args([\"-c\", {script:?}]).env(\"out\", {out}).status().unwrap()")
}

pub fn cases(Targets { root, run, build }: &Targets) -> Vec<Case> {
    let any = |parts: &[String]| parts.join(" || ");
    vec![
        refused(
            "sets times of what is compiled",
            &any(&[
                format!("touch -d 2191-01-01 {build}/release/.fingerprint/trainer-*/*"),
                format!("touch -d 2191-01-01 {build}/release/.fingerprint {build}/release/deps"),
                format!("touch -d 2191-01-01 {root}/crates/trainer/src/train.rs"),
            ]),
        ),
        // The next recipe is compiled, not taken from what the last one left.
        Case::attack("is the one that runs", "std::process::exit(61);\n".into(), fails("code 61")),
        refused(
            "changes modes, times and attributes",
            &any(&[
                format!("chmod 666 {run}/journal.jsonl"),
                format!("touch -d 2191-01-01 {run}/campaign.toml"),
                format!("chmod o+w {run}/bin/evaluator"),
                format!("chmod 000 {run}"),
                format!("perl -e 'exit(syscall(188, $ARGV[0], \"user.s\", \"x\", 1, 0) ? 1 : 0)' {run}/campaign.toml"),
                format!("touch -a -d 2191-01-01 {root}/experiments/tiny/data/prepared.json"),
            ]),
        ),
        refused("leaves its cores", "taskset -p ffff $$"),
        refused("reads what may hold the text", "ls /usr/share /usr/lib /opt /usr/local/lib >&2"),
        tried(
            "leaves a set-uid program as its log",
            "cp /usr/bin/id $out/train.tsv; chmod 755 $out/train.tsv; chmod 4755 $out/train.tsv && exit 0; exit 1",
            MEASURED,
        ),
        tried("leaves 3000 nested folders", "cd $out; for i in $(seq 3000); do mkdir d && cd d || exit; done", MEASURED),
        tried("leaves folders that are closed", "mkdir -p $out/a/b/c; chmod 000 $out/a/b; chmod 000 $out/a", MEASURED),
        tried("leaves odd names", "cd $out; touch \"$(printf 'a\\nb')\" -- -rf; ln -s / root; mkfifo pipe", MEASURED),
        Case::attack(
            "leaves a folder as its log",
            "let out = std::path::PathBuf::from(std::env::args().skip_while(|a| a != \"--out\").nth(1).unwrap());
             std::fs::remove_file(out.join(\"train.tsv\"))?; std::fs::create_dir(out.join(\"train.tsv\"))?;
             std::fs::write(out.join(\"train.tsv/big\"), vec![1u8; 90 << 20])?;\n"
                .into(),
            MEASURED,
        ),
        Case::attack(
            "fills the disk with a file that has no name",
            "let out = std::path::PathBuf::from(std::env::args().skip_while(|a| a != \"--out\").nth(1).unwrap());
             for i in 0..12 { use std::io::Write; let p = out.join(i.to_string()); let mut f = std::fs::File::create(&p)?;
             std::fs::remove_file(&p)?; for _ in 0..64 { f.write_all(&vec![1u8; 1 << 20])?; } std::mem::forget(f); }\n"
                .into(),
            fails("No space left on device"),
        ),
        Case::edit(
            "is compiled for ever",
            (
                "use anyhow::Result;",
                "use anyhow::Result;\n#[allow(long_running_const_eval)]\nconst fn f() -> u64 { let mut i = 0u64; \
                 while i < u64::MAX { i += 1; } i }\n#[allow(long_running_const_eval)]\nconst LOOP: u64 = f();",
            ),
            Expected { status: "timeout", says: "processor time" },
        ),
        Case::attack(
            "is compiled to more than the disk",
            "static BIG: [u8; 400 << 20] = [1; 400 << 20]; std::hint::black_box(&BIG);\n".into(),
            fails("does not build"),
        ),
    ]
}

/// What is left of a run's folder: known files, of ours.
pub fn check(out: &str, name: &str) {
    for entry in fs::read_dir(out).unwrap() {
        let entry = entry.unwrap();
        let known = ["artifact.ternary", "summary.json", "train.tsv"];
        assert!(known.contains(&entry.file_name().to_str().unwrap()), "{name}: {:?}", entry.file_name());
        let metadata = fs::symlink_metadata(entry.path()).unwrap();
        assert!(metadata.is_file(), "{name}: {:?}", entry.file_name());
        assert_eq!(metadata.permissions().mode() & 0o7111, 0, "{name}: {:?}", entry.file_name());
    }
}
