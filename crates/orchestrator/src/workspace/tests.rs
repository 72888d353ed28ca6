//! On real repositories in temporary folders.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::*;

fn git(dir: &Path, arguments: &[&str]) -> String {
    let out = Command::new("git")
        .args(["-c", "user.name=t", "-c", "user.email=t@localhost", "-c", "core.hooksPath=/dev/null"])
        .args(arguments)
        .current_dir(dir)
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .output()
        .unwrap();
    assert!(out.status.success(), "git {arguments:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap().trim().to_owned()
}

struct Fixture {
    dir: tempfile::TempDir,
    workspace: Workspace,
    start: Oid,
}

impl Fixture {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        git(root, &["init", "-q", "-b", "main"]);
        for (file, text) in [
            (RECIPE, "fn one() {}\n"),
            ("crates/trainer/src/main.rs", "mod train;\r\n"),
            ("Cargo.toml", "[workspace]\n"),
            (".gitignore", "/runs\n"),
        ] {
            fs::create_dir_all(root.join(file).parent().unwrap()).unwrap();
            fs::write(root.join(file), text).unwrap();
        }
        git(root, &["add", "."]);
        git(root, &["commit", "-q", "-m", "start"]);
        let workspace = Workspace::open(root).unwrap();
        let start = workspace.head().unwrap();
        Self { dir, workspace, start }
    }

    fn root(&self) -> &Path {
        self.dir.path()
    }

    fn worktree(&self) -> Worktree<'_> {
        self.workspace.prepare("t", &self.root().join("runs/t/worktree"), self.start).unwrap()
    }
}

#[test]
fn a_candidate_is_built_in_the_worktree_and_the_checkout_sees_nothing() {
    let f = Fixture::new();
    let index = fs::read(f.root().join(".git/index")).unwrap();
    let worktree = f.worktree();
    let commit = f.workspace.commit(f.start, "fn two() {}\n", "search", "x = 2").unwrap();
    f.workspace.record("t", 2, commit).unwrap();
    worktree.show(commit).unwrap();
    assert_eq!(fs::read_to_string(worktree.folder().join(RECIPE)).unwrap(), "fn two() {}\n");
    assert_eq!(fs::read_to_string(f.root().join(RECIPE)).unwrap(), "fn one() {}\n");
    assert_eq!(fs::read(f.root().join(".git/index")).unwrap(), index);
    assert_eq!(git(f.root(), &["status", "--porcelain"]), "");
    assert_eq!(git(f.root(), &["symbolic-ref", "HEAD"]), "refs/heads/main");
    assert_eq!(git(f.root(), &["rev-parse", "refs/autoresearch/t/2"]), commit.to_string());
    assert_eq!(git(worktree.folder(), &["symbolic-ref", "HEAD"]), "refs/heads/autoresearch/t");
    assert_eq!(f.workspace.branch("t").unwrap(), Some(f.start), "only a keep moves the branch");
}

#[test]
fn more_than_the_recipe_is_refused() {
    let f = Fixture::new();
    git(f.root(), &["checkout", "-q", "-b", "other"]);
    fs::write(f.root().join(RECIPE), "fn two() {}\n").unwrap();
    git(f.root(), &["commit", "-q", "-a", "-m", "recipe"]);
    let recipe = f.workspace.head().unwrap();
    fs::write(f.root().join("crates/trainer/src/main.rs"), "mod train; // and more\n").unwrap();
    git(f.root(), &["commit", "-q", "-a", "-m", "frame"]);
    let frame = f.workspace.head().unwrap();
    fs::write(f.root().join("crates/trainer/build.rs"), "fn main() {}\n").unwrap();
    git(f.root(), &["add", "."]);
    git(f.root(), &["commit", "-q", "-m", "new"]);
    let new = f.workspace.head().unwrap();
    git(f.root(), &["rm", "-q", RECIPE]);
    git(f.root(), &["commit", "-q", "-m", "removed"]);
    let removed = f.workspace.head().unwrap();

    f.workspace.check_one_file(recipe, f.start).unwrap();
    for (candidate, parent, path) in
        [(frame, f.start, "main.rs"), (new, recipe, "build.rs"), (f.start, f.start, RECIPE), (removed, new, RECIPE)]
    {
        let error = f.workspace.check_one_file(candidate, parent).unwrap_err().to_string();
        assert!(error.contains(path), "{error}");
    }
    assert!(f.workspace.commit(f.start, "fn one() {}\n", "search", "nothing").is_err());
}

#[test]
fn a_keep_moves_the_branch_once_and_only_from_the_incumbent() {
    let f = Fixture::new();
    f.worktree();
    let two = f.workspace.commit(f.start, "fn two() {}\n", "search", "2").unwrap();
    let three = f.workspace.commit(two, "fn three() {}\n", "search", "3").unwrap();
    f.workspace.advance("t", f.start, two).unwrap();
    f.workspace.advance("t", f.start, two).unwrap();
    assert_eq!(f.workspace.branch("t").unwrap(), Some(two));
    let error = f.workspace.advance("t", f.start, three).unwrap_err();
    assert_eq!(error.code(), 4);
    assert!(error.to_string().contains("somebody moved it"), "{error}");
    assert_eq!(f.workspace.branch("t").unwrap(), Some(two));
    f.workspace.advance("t", two, three).unwrap();
    assert_eq!(f.workspace.branch("t").unwrap(), Some(three));
}

#[test]
fn showing_repairs_whatever_happened_to_the_files() {
    let f = Fixture::new();
    let worktree = f.worktree();
    let at = |path: &str| worktree.folder().join(path);
    let frame = at("crates/trainer/src/main.rs");
    let untouched = fs::metadata(at("Cargo.toml")).unwrap().modified().unwrap();
    // Same size, and a time that is older than git's index.
    let before = fs::metadata(&frame).unwrap().modified().unwrap();
    fs::write(&frame, "mod tra1n;\r\n").unwrap();
    fs::File::options().write(true).open(&frame).unwrap().set_modified(before).unwrap();
    fs::write(at("crates/trainer/build.rs"), "fn main() {}\n").unwrap();
    fs::create_dir_all(at(".cargo")).unwrap();
    fs::write(at(".cargo/config.toml"), "[build]\n").unwrap();
    fs::remove_file(at(RECIPE)).unwrap();
    fs::create_dir(at(RECIPE)).unwrap();
    worktree.show(f.start).unwrap();
    assert_eq!(fs::read_to_string(&frame).unwrap(), "mod train;\r\n");
    assert_eq!(fs::read_to_string(at(RECIPE)).unwrap(), "fn one() {}\n");
    assert!(!at("crates/trainer/build.rs").exists() && !at(".cargo").exists());
    assert_eq!(fs::metadata(at("Cargo.toml")).unwrap().modified().unwrap(), untouched, "right files are left alone");
    assert_eq!(git(worktree.folder(), &["status", "--porcelain"]), "");
}

#[test]
fn a_lost_worktree_is_made_again() {
    let f = Fixture::new();
    let folder = f.worktree().folder().to_owned();
    let two = f.workspace.commit(f.start, "fn two() {}\n", "search", "2").unwrap();
    f.workspace.advance("t", f.start, two).unwrap();
    f.worktree();
    fs::remove_dir_all(&folder).unwrap();
    let worktree = f.worktree();
    worktree.show(two).unwrap();
    assert_eq!(fs::read_to_string(folder.join(RECIPE)).unwrap(), "fn two() {}\n");
    assert_eq!(f.workspace.branch("t").unwrap(), Some(two));
    // A folder that git does not know of, as after a crash in between.
    git(f.root(), &["worktree", "remove", "--force", folder.to_str().unwrap()]);
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("left"), "over").unwrap();
    f.worktree().show(two).unwrap();
    assert!(!folder.join("left").exists());
}

#[test]
fn what_a_kill_leaves_in_git_does_not_block_the_search() {
    let f = Fixture::new();
    f.worktree();
    let candidate = f.workspace.commit(f.start, "fn two() {}\n", "test", "two").unwrap();
    f.workspace.record("t", 1, candidate).unwrap();
    let git_folder = f.root().join(".git");
    for lock in [
        "refs/heads/autoresearch/t.lock",
        "refs/autoresearch/t/1.lock",
        "refs/autoresearch/t/2.lock",
        "worktrees/autoresearch-t/index.lock",
    ] {
        fs::write(git_folder.join(lock), "").unwrap();
    }
    assert!(f.workspace.record("t", 1, candidate).is_err());
    let worktree = f.worktree();
    f.workspace.record("t", 1, candidate).unwrap();
    f.workspace.record("t", 2, candidate).unwrap();
    f.workspace.advance("t", f.start, candidate).unwrap();
    worktree.show(candidate).unwrap();
    drop(worktree);

    // Killed while git's side of the worktree was being made.
    fs::remove_file(git_folder.join("worktrees/autoresearch-t/HEAD")).unwrap();
    f.worktree().show(candidate).unwrap();
    assert_eq!(fs::read_to_string(f.root().join("runs/t/worktree").join(RECIPE)).unwrap(), "fn two() {}\n");
}

#[test]
fn uncommitted_sources_are_refused_and_other_files_are_not() {
    let f = Fixture::new();
    fs::write(f.root().join("notes.txt"), "mine").unwrap();
    fs::create_dir_all(f.root().join("runs")).unwrap();
    f.workspace.check_committed().unwrap();
    fs::write(f.root().join("crates/new.rs"), "").unwrap();
    let error = f.workspace.check_committed().unwrap_err();
    assert!(error.to_string().contains("crates/new.rs"), "{error}");
    fs::remove_file(f.root().join("crates/new.rs")).unwrap();
    fs::write(f.root().join(RECIPE), "fn mine() {}\n").unwrap();
    assert!(f.workspace.check_committed().unwrap_err().to_string().contains(RECIPE));
}

#[test]
fn a_change_is_put_onto_another_one_unless_both_change_the_same_lines() {
    let f = Fixture::new();
    let lines = |first: &str, last: &str| format!("{first}\n{}{last}\n", "// between\n".repeat(8));
    let commit = |recipe: &str, parent| f.workspace.commit(parent, recipe, "t", "t\n").unwrap();
    let base = commit(&lines("a", "z"), f.start);
    let onto = commit(&lines("A", "z"), base);
    let merged = |recipe: &str| f.workspace.reapply(recipe, base, onto).unwrap();
    assert_eq!(merged(&lines("a", "Z")), Some(lines("A", "Z")));
    assert_eq!(merged(&lines("b", "z")), None);
    // What is there already changes nothing.
    assert_eq!(merged(&lines("A", "z")), Some(lines("A", "z")));
}

#[test]
fn a_submodule_is_refused_where_a_build_needs_it_and_left_out_elsewhere() {
    let f = Fixture::new();
    let head = f.start.to_string();
    git(f.root(), &["update-index", "--add", "--cacheinfo", &format!("160000,{head},notes")]);
    git(f.root(), &["commit", "-q", "-m", "a submodule"]);
    f.workspace.check_committed().unwrap();
    let tip = f.workspace.head().unwrap();
    let worktree = f.workspace.prepare("t", &f.root().join("runs/t/worktree"), tip).unwrap();
    worktree.show(tip).unwrap();
    assert!(worktree.folder().join(RECIPE).is_file() && !worktree.folder().join("notes").exists());
    git(f.root(), &["update-index", "--add", "--cacheinfo", &format!("160000,{head},crates/other")]);
    git(f.root(), &["commit", "-q", "-m", "one in the sources"]);
    let refused = f.workspace.check_committed().unwrap_err();
    assert!(refused.to_string().contains("crates/other is a git submodule"), "{refused}");
}
