//! Coding programs as the agent of a real search: shell scripts that edit well, answer in words, fail, hang, and try to get
//! out.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "the whole file is tests")]

#[allow(dead_code, reason = "other tests use the rest")]
mod stand_ins;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;
use stand_ins::Repository;

const RUN: [&str; 6] = ["run", "nano", "--tag", "t", "--experiments", "3"];
const KEY: &str = "sk-a-key-of-the-program-alone";
const OTHER_KEY: &str = "sk-a-key-of-somebody-else";
/// Answers the question for a lesson; otherwise the prompt is in `$prompt`.
const ASKED: &str = "#!/bin/sh
prompt=$(cat)
case $prompt in *'does this result teach'*) echo 'Rates near 1e-2 are best.'; exit ;; esac
";

/// A repository whose campaign asks a script; `FOLDER` in it is the one around the repository.
fn repository(script: &str, more: &str) -> Repository {
    let repository = Repository::new();
    let coder = coder(&repository);
    let script = script.replace("FOLDER", &repository.dir.path().display().to_string());
    fs::write(&coder, script).unwrap();
    fs::set_permissions(&coder, fs::Permissions::from_mode(0o755)).unwrap();
    let argv = if more.contains("prompt = ") { ", \"{prompt_file}\"" } else { "" };
    asking(
        &repository,
        &format!(
            "kind = \"command\"\ncommand = {{ argv = [{coder:?}{argv}], {more} }}\nrepairs = 1\nwait_seconds = 600.0\n"
        ),
    );
    repository
}

fn asking(repository: &Repository, agent: &str) {
    let campaign = repository.root().join("experiments/nano/campaign.toml");
    let text = fs::read_to_string(&campaign).unwrap();
    let text = text.replace("sandbox = \"off\"", "sandbox = \"best-effort\"");
    assert!(text.contains("kind = \"tpe\"\n"));
    fs::write(&campaign, text.replacen("kind = \"tpe\"\n", agent, 1)).unwrap();
    repository.git(&["commit", "-q", "-a", "-m", "a program"]);
}

fn coder(repository: &Repository) -> PathBuf {
    repository.dir.path().join("stand-ins/bin/coder")
}

fn run(repository: &Repository) -> (Vec<Value>, String) {
    let environment = [("THE_KEY", KEY), ("OTHER_KEY", OTHER_KEY)];
    let out = repository.command(&RUN).envs(environment).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let rows = repository.json(&["results", "--json"])["experiments"].as_array().unwrap().clone();
    assert_eq!(rows.len(), 3);
    // Nothing of where it worked is left, and nothing that it did there is anywhere else.
    assert!(!repository.run_folder().join("agent").exists());
    assert_eq!(repository.git(&["status", "--porcelain"]), "?? results.tsv");
    repository.check(3);
    (rows, String::from_utf8(out.stdout).unwrap())
}

fn of<'a>(row: &'a Value, key: &str) -> &'a str {
    row[key].as_str().unwrap_or_default()
}

/// The questions and answers that were recorded.
fn exchanges(repository: &Repository) -> Vec<Value> {
    let mut paths: Vec<PathBuf> =
        fs::read_dir(repository.run_folder().join("exchanges")).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.iter().map(|path| serde_json::from_slice(&fs::read(path).unwrap()).unwrap()).collect()
}

fn answer(exchange: &Value) -> &str {
    exchange["exchange"]["outcome"]["Ok"]["text"].as_str().unwrap_or_default()
}

/// Whether this machine has user namespaces, asked of another program.
fn has_namespaces() -> bool {
    let unshared = Command::new("unshare").args(["-U", "-r", "-p", "-f", "-n", "-m", "true"]).status();
    let has = unshared.is_ok_and(|status| status.success());
    if !has {
        println!("skipped: this machine has no user namespaces");
    }
    has
}

#[test]
fn a_good_edit_is_kept_and_nothing_else_is_taken() {
    let script = ASKED.to_owned()
        + r#"
case $prompt in *'Change the file `crates/trainer/src/train.rs`'*) ;; *) echo 'no such order'; exit 3 ;; esac
test -f Cargo.toml && test -d .git && grep -q 'learning_rate: ' crates/trainer/src/train.rs || exit 4
sed -i 's/learning_rate: [^,]*,/learning_rate: 9.5e-3,/' crates/trainer/src/train.rs
echo 'everything = "mine"' >> Cargo.toml
echo new > added.rs
rm .gitignore
printf 'Looking around.\n\nHYPOTHESIS: a higher rate\nEXPECTED: a lower loss\n'
"#;
    let repository = repository(&script, "");
    let (rows, said) = run(&repository);
    assert_eq!((of(&rows[1], "agent"), of(&rows[1], "status")), ("coder", "keep"), "{}", rows[1]);
    assert_eq!(of(&rows[1], "description"), "a higher rate");
    let commit = of(&rows[1], "commit");
    let changed = repository.git(&["diff", "--name-only", of(&rows[1], "parent"), commit]);
    assert_eq!(changed, "crates/trainer/src/train.rs");
    // The second time it makes the edit that is in training: it is told so once, and then the search goes on without it.
    assert_eq!(of(&rows[2], "agent"), "tpe");
    assert!(said.contains("no proposal of coder"), "{said}");

    let recorded = exchanges(&repository);
    assert!(answer(&recorded[0]).contains("not taken back: \"Cargo.toml\", \"added.rs\", \".gitignore\""));
    assert!(recorded.iter().any(|exchange| answer(exchange) == "Rates near 1e-2 are best.\n"), "{recorded:?}");
    let told = |exchange: &Value| exchange["prompt"]["turns"][0]["reply"].as_str().unwrap_or_default().to_owned();
    assert!(recorded.iter().any(|exchange| told(exchange).contains("This recipe was tried before")), "{recorded:?}");
    assert_eq!(recorded[0]["exchange"]["usage"]["estimated"], true, "it does not count");

    let again = Repository::new();
    let folder = repository.run_folder().join("exchanges").display().to_string();
    asking(&again, &format!("kind = \"replay\"\nreplay = {folder:?}\nformat = \"in-place\"\nrepairs = 1\n"));
    again.run(&RUN);
    assert_eq!(again.outcome()[..2], repository.outcome()[..2]);
}

#[test]
fn an_answer_in_words_will_do_and_what_does_not_build_goes_back() {
    let script = r#"#!/bin/sh
if grep -q 'does this result teach' "$1"; then echo NONE; exit; fi
test -z "$(cat)" || exit 3
rate=BROKEN
if grep -q 'cannot find value `BROKEN`' "$1"; then rate=9.5e-3; fi
cat <<END
HYPOTHESIS: rate $rate
<<<<<<< SEARCH
    learning_rate: 4e-3, // search: log 5e-4..2e-2
=======
    learning_rate: $rate, // search: log 5e-4..2e-2
>>>>>>> REPLACE
END
"#;
    let repository = repository(script, "prompt = \"file\"");
    let (rows, _) = run(&repository);
    assert_eq!((of(&rows[1], "agent"), of(&rows[1], "status")), ("coder", "keep"), "{}", rows[1]);
    assert_eq!(of(&rows[1], "description"), "rate 9.5e-3");
    let recorded = exchanges(&repository);
    assert!(answer(&recorded[0]).starts_with("HYPOTHESIS: rate BROKEN"));
    assert!(recorded[1]["prompt"]["turns"][0]["reply"].as_str().unwrap().contains("E0425"));
}

#[test]
fn a_program_that_fails_or_hangs_leaves_the_search_to_the_optimizer() {
    for (script, seconds, reason) in [
        ("#!/bin/sh\necho 'no credit left' >&2\nexit 9\n", 600, "exit code 9: no credit left"),
        ("#!/bin/sh\ntrap '' TERM\necho > half-done\nwhile :; do sleep 0.05; done\n", 1, "stopped after 1 s"),
        ("#!/bin/sh\nrm -r crates\nln -s FOLDER/elsewhere crates\n", 600, "no answer was an edit"),
    ] {
        let repository = repository(script, &format!("seconds = {seconds}.0"));
        let elsewhere = repository.dir.path().join("elsewhere/trainer/src");
        fs::create_dir_all(&elsewhere).unwrap();
        fs::write(elsewhere.join("train.rs"), stand_ins::RECIPE.replace("4e-3", "1e-2")).unwrap();
        let (rows, said) = run(&repository);
        assert_eq!([of(&rows[1], "agent"), of(&rows[2], "agent")], ["tpe"; 2], "{script}");
        assert!(said.contains(reason), "{reason}: {said}");
        repository.wait_for_silence();
        let text = answer(&exchanges(&repository)[0]).to_owned();
        assert_eq!(text.contains("cannot be taken back"), script.contains("ln -s"), "{text}");
    }
}

#[test]
fn it_reaches_nothing_but_its_folder_and_what_it_was_given() {
    if !has_namespaces() {
        return;
    }
    let script = ASKED.to_owned()
        + r#"
out=
for path in FOLDER/new FOLDER/clone/Cargo.toml "$PWD/../prompt.md" FOLDER/given/new; do
    (echo x >> "$path") 2>/dev/null && out="$out $path"
done
for path in FOLDER/secret FOLDER/clone/.git/HEAD FOLDER/clone/experiments/nano/runs/t/journal.jsonl; do
    cat "$path" >/dev/null 2>&1 && out="$out $path"
done
kill -0 TEST_PROCESS 2>/dev/null && out="$out signal"
env | grep -q OTHER_KEY && out="$out other-key"
bash -c 'exec 3<>/dev/tcp/127.0.0.1/TEST_PORT' 2>/dev/null && out="$out network"
# And what it was given.
[ "$(cat FOLDER/given/text)" = given ] && [ "$(nice)" = 19 ] && [ -w "$HOME" ] && [ -w "$TMPDIR" ] || out="$out missing"
sed -i 's/learning_rate: [^,]*,/learning_rate: 9.5e-3,/' crates/trainer/src/train.rs
sed -i "s/^};/}; \/\/ $THE_KEY/" crates/trainer/src/train.rs
echo "HYPOTHESIS: out:${out:- nothing}, with $THE_KEY"
"#;
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let script =
        script.replace("TEST_PROCESS", &std::process::id().to_string()).replace("TEST_PORT", &port.to_string());
    let given = tempfile::tempdir().unwrap();
    fs::write(given.path().join("text"), "given").unwrap();
    let more = format!("variables = [\"THE_KEY\"], read = [{:?}]", given.path());
    let repository = repository(&script.replace("FOLDER/given", &given.path().display().to_string()), &more);
    fs::write(repository.dir.path().join("secret"), "secret").unwrap();
    let (rows, _) = run(&repository);
    assert_eq!(of(&rows[1], "description"), "out: nothing, with [key]");
    assert_eq!(of(&rows[1], "agent"), "coder");
    assert!(!holds(repository.dir.path(), KEY.as_bytes()) && !holds(repository.dir.path(), OTHER_KEY.as_bytes()));
    assert!(!repository.git(&["show", of(&rows[1], "commit")]).contains(KEY));
    assert!(!given.path().join("new").exists());
}

#[test]
fn a_program_can_be_checked() {
    let check = |repository: &Repository, more: &[&str]| -> Output {
        repository.output(&[&["agent", "check", "nano"], more].concat())
    };
    let repository = repository("#!/bin/sh\ncat >/dev/null\necho ready\n", "");
    let out = check(&repository, &[]);
    let told = String::from_utf8_lossy(&out.stdout);
    assert!(out.status.success() && told.starts_with("coder answers \"ready"), "{out:?}");
    fs::remove_file(coder(&repository)).unwrap();
    let gone = check(&repository, &["--json"]);
    assert_eq!(gone.status.code(), Some(7));
    assert!(String::from_utf8_lossy(&gone.stderr).contains("coder is missing"), "{gone:?}");

    // The whole sandbox or none of it: a program is not run without.
    let campaign = repository.root().join("experiments/nano/campaign.toml");
    let text = fs::read_to_string(&campaign).unwrap();
    fs::write(&campaign, text.replace("sandbox = \"best-effort\"", "sandbox = \"off\"")).unwrap();
    let refused = check(&repository, &[]);
    assert!(!refused.status.success());
    assert!(String::from_utf8_lossy(&refused.stderr).contains("this campaign switches it off"), "{refused:?}");
}

/// Whether any file below a folder has these bytes.
fn holds(folder: &Path, bytes: &[u8]) -> bool {
    fs::read_dir(folder).unwrap().flatten().any(|entry| {
        let path = entry.path();
        match entry.file_type().unwrap() {
            kind if kind.is_dir() => holds(&path, bytes),
            kind if kind.is_file() => fs::read(&path).unwrap().windows(bytes.len()).any(|window| window == bytes),
            _ => false,
        }
    })
}
