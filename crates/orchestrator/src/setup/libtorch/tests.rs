//! The requirements files under deploy/, and what a failed pip is turned into. The real fetch runs before every test
//! run, as a step of `cargo xtask test`.

use super::*;

fn deploy(file: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy").join(file);
    fs::read_to_string(&path).expect("a requirements file")
}

fn python() -> Python {
    Python { version: "3.11".to_owned(), other: Vec::new() }
}

#[test]
fn every_requirement_is_pinned_by_version_and_hash() {
    for (file, count) in
        [("requirements-cpu.txt", 3), ("requirements-cuda.txt", 29), ("requirements-macos-arm64.txt", 1)]
    {
        let pieces = split(&deploy(file));
        assert_eq!(pieces.len(), count, "{file}");
        assert_eq!(pieces[0].0, "torch==2.11.0");
        for (name, piece) in &pieces {
            assert_eq!(name.split("==").count(), 2, "{file}: {name}");
            let hashes: Vec<&str> = piece.split("--hash=sha256:").skip(1).collect();
            assert!(!hashes.is_empty(), "{file}: {name} has no hash");
            for hash in hashes {
                let digits = hash.trim_end_matches([' ', '\\', '\n']);
                assert!(digits.len() == 64 && digits.bytes().all(|b| b.is_ascii_hexdigit()), "{file}: {name} {hash}");
            }
        }
    }
}

#[test]
fn both_linux_sets_have_the_same_torch() {
    assert_eq!(split(&deploy("requirements-cpu.txt"))[0], split(&deploy("requirements-cuda.txt"))[0]);
    let cuda = split(&deploy("requirements-cuda.txt"));
    for needed in split(&deploy("requirements-cpu.txt")) {
        assert!(cuda.contains(&needed), "{}", needed.0);
    }
}

#[test]
fn failures_of_pip_say_what_to_do() {
    for (output, advice) in [
        ("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE.", "pinned by hash"),
        ("OSError: [Errno 28] No space left on device", "make room"),
        // What pip says without a network: both, so the network goes first.
        ("WARNING: NewConnectionError\nERROR: No matching distribution found for torch==2.11.0", "check the network"),
        ("ERROR: No matching distribution found for torch==2.11.0", "update pip"),
        ("something else", "running this again goes on"),
    ] {
        assert!(explain(output, &python()).contains(advice), "{output}");
    }
}

#[test]
fn the_new_libtorch_takes_the_place_of_the_old_one() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let [new, target, old] = ["new", "target", "old"].map(|name| folder.path().join(name));
    for (generation, leftover) in [("first", false), ("second", false), ("third", true)] {
        fresh_folder(&new).expect("a folder");
        fs::write(new.join("generation"), generation).expect("a file");
        if leftover {
            // A run that was killed between the two renames.
            fs::create_dir_all(old.join("x")).expect("a folder");
        }
        replace(&new, &target, &old).expect("replaced");
        assert_eq!(fs::read_to_string(target.join("generation")).expect("the file"), generation);
        assert!(!old.exists() && !new.exists());
    }
}

#[test]
fn a_full_disk_is_said_before_anything_is_fetched() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let set = Set {
        file: "requirements-cpu.txt",
        title: "libtorch",
        space: u64::MAX,
        platforms: Vec::new(),
        library: "lib/libtorch_cpu.so",
    };
    let error = check_space(folder.path(), &set).expect_err("no disk is that large");
    assert!(error.to_string().contains("make room"), "{error}");
    assert!(check_space(folder.path(), &Set { space: 1, ..set }).is_ok());
}
