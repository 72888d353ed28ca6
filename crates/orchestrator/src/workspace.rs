//! The search's own git worktree, its candidates and its branch. The user's checkout, index and HEAD are only read.
//!
//! A candidate is a commit whose tree differs from its parent's in the recipe alone; it is reachable under
//! `refs/autoresearch/<tag>/<n>`, whatever becomes of it. The branch `autoresearch/<tag>` is moved by a keep and by
//! nothing else, in one atomic update that names the commit that it must be on.

mod checkout;

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use git2::build::TreeUpdateBuilder;
use git2::{
    BranchType, Delta, ErrorCode, FileMode, ObjectType, Oid, Repository, Signature, StatusOptions, WorktreeAddOptions,
};

use language_model::printable;

use crate::error::Failure;
use crate::layout::RECIPE;

/// What an experiment is built from; changes here that are not committed would not be in the search's worktree.
const SOURCES: [&str; 5] = ["crates", "prepare", ".cargo", "Cargo.toml", "Cargo.lock"];

/// Mode of a submodule in git's index.
const SUBMODULE: u32 = 0o160_000;

/// Branches of searches.
const BRANCHES: &str = "refs/heads/autoresearch/";

/// Candidates of searches.
const CANDIDATES: &str = "refs/autoresearch/";

/// The repository, as the search uses it.
pub struct Workspace {
    repository: Repository,
    root: PathBuf,
}

impl Workspace {
    /// Opens the repository whose checkout is `root`.
    ///
    /// # Errors
    /// When it is no git repository, or has no commit.
    pub fn open(root: &Path) -> Result<Self, Failure> {
        let repository = Repository::open(root).map_err(|e| Failure::Checkout {
            message: format!("{} is not a git repository that can be used: {}", root.display(), e.message()),
            hint: "the search commits what it tries: use a git clone rather than an unpacked archive".into(),
        })?;
        let searched = repository.head().is_ok_and(|head| head.name().is_some_and(|n| n.starts_with(BRANCHES)));
        if repository.is_worktree() && searched {
            return Err(Failure::Checkout {
                message: format!("{} is a search's own worktree", root.display()),
                hint: "change into the checkout that it belongs to".into(),
            });
        }
        Ok(Self { repository, root: root.to_owned() })
    }

    /// The commit that the user's checkout is on.
    ///
    /// # Errors
    /// When there is none.
    pub fn head(&self) -> Result<Oid, Failure> {
        let head = self.repository.head().and_then(|head| head.peel_to_commit());
        head.map(|commit| commit.id()).map_err(|e| Failure::Checkout {
            message: format!("the repository has no commit to start from: {}", e.message()),
            hint: "commit the sources first".into(),
        })
    }

    /// Refuses uncommitted changes of what experiments are built from, and submodules there.
    ///
    /// # Errors
    /// With the changed files.
    pub fn check_committed(&self) -> Result<(), Failure> {
        self.check_submodules()?;
        let mut options = StatusOptions::new();
        options.include_untracked(true).recurse_untracked_dirs(true).exclude_submodules(true);
        for path in SOURCES {
            options.pathspec(path);
        }
        let statuses = self.repository.statuses(Some(&mut options)).context("cannot compare the checkout with HEAD")?;
        let changed: Vec<String> =
            statuses.iter().map(|entry| String::from_utf8_lossy(entry.path_bytes()).into_owned()).collect();
        if changed.is_empty() {
            return Ok(());
        }
        let more = changed.len().saturating_sub(8);
        let mut shown = changed.into_iter().take(8).collect::<Vec<_>>().join(", ");
        if more > 0 {
            shown.push_str(&format!(" and {more} more"));
        }
        Err(Failure::Checkout {
            message: format!("the checkout has changes that are not committed: {shown}"),
            hint: "a search starts from a commit, so that its baseline can be named: commit them (or `git stash -u`) \
                   and run again"
                .into(),
        })
    }

    fn check_submodules(&self) -> Result<(), Failure> {
        let mut index = self.repository.index().context("cannot open the repository's index")?;
        index.read(false).context("cannot read the repository's index")?;
        let submodule = index.iter().find(|entry| {
            let path = String::from_utf8_lossy(&entry.path);
            entry.mode == SUBMODULE && SOURCES.iter().any(|source| Path::new(&*path).starts_with(source))
        });
        match submodule {
            None => Ok(()),
            Some(entry) => Err(Failure::Checkout {
                message: format!("{} is a git submodule", String::from_utf8_lossy(&entry.path)),
                hint: "a search builds from the files of one commit, which a submodule's are not: commit the files \
                       themselves, or keep the submodule outside of the sources"
                    .into(),
            }),
        }
    }

    /// Where the branch of a search is, if it exists.
    ///
    /// # Errors
    /// When git's files cannot be read.
    pub fn branch(&self, tag: &str) -> Result<Option<Oid>> {
        match self.repository.find_reference(&branch_ref(tag)) {
            Ok(reference) => Ok(Some(reference.peel_to_commit().context("the search's branch is no commit")?.id())),
            Err(e) if e.code() == ErrorCode::NotFound => Ok(None),
            Err(e) => Err(anyhow!(e).context(format!("cannot read branch autoresearch/{tag}"))),
        }
    }

    /// Makes branch and worktree of a search where they are missing. The branch starts at `start`. The caller holds
    /// the search's lock.
    ///
    /// # Errors
    /// When the folder cannot be written, or the branch is checked out elsewhere.
    pub fn prepare(&self, tag: &str, folder: &Path, start: Oid) -> Result<Worktree<'_>> {
        // One folder of git's own per worktree; '/' has no place in its name.
        let entry = format!("autoresearch-{tag}");
        self.break_locks(tag, &entry)?;
        let name = branch_name(tag);
        if self.branch(tag)?.is_none() {
            let commit = self.repository.find_commit(start).context("cannot find the commit to start from")?;
            self.repository.branch(&name, &commit, false).with_context(|| format!("cannot make branch {name}"))?;
            self.sync_ref(&branch_ref(tag));
        }
        if let Ok(known) = self.repository.find_worktree(&entry) {
            if known.validate().is_ok() && known.path().canonicalize().ok() == folder.canonicalize().ok() {
                return self.worktree(folder);
            }
            let mut options = git2::WorktreePruneOptions::new();
            known.prune(Some(options.valid(true))).with_context(|| format!("cannot forget the worktree {entry}"))?;
        }
        // What a crash left half made, on git's side or on ours. It holds nothing of its own.
        for half in [&self.repository.commondir().join("worktrees").join(&entry), folder] {
            if half.exists() {
                std::fs::remove_dir_all(half).with_context(|| format!("cannot remove {}", half.display()))?;
            }
        }
        if let Some(parent) = folder.parent() {
            std::fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
        }
        let branch = self.repository.find_branch(&name, BranchType::Local)?;
        let mut options = WorktreeAddOptions::new();
        options.reference(Some(branch.get()));
        self.repository
            .worktree(&entry, folder, Some(&options))
            .with_context(|| format!("cannot make the worktree {}", folder.display()))?;
        self.worktree(folder)
    }

    /// Removes what a killed search left of git's locks on its own refs and worktree. Nobody else writes there.
    fn break_locks(&self, tag: &str, entry: &str) -> Result<()> {
        let git = self.repository.commondir();
        let mut locks = vec![git.join(branch_ref(tag) + ".lock")];
        for folder in [git.join(CANDIDATES).join(tag), git.join("worktrees").join(entry)] {
            let Ok(entries) = std::fs::read_dir(folder) else { continue };
            locks.extend(entries.flatten().map(|e| e.path()).filter(|p| p.extension().is_some_and(|e| e == "lock")));
        }
        for lock in locks {
            match std::fs::remove_file(&lock) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                    return Err(e).with_context(|| format!("cannot remove the stale lock {}", lock.display()));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// A search's worktree, which [`Workspace::prepare`] has made.
    ///
    /// # Errors
    /// When it is not there.
    pub fn worktree(&self, folder: &Path) -> Result<Worktree<'_>> {
        let own = Repository::open(folder).with_context(|| format!("cannot open the worktree {}", folder.display()))?;
        Ok(Worktree { workspace: self, own, folder: folder.to_owned() })
    }

    /// The recipe as it is in a commit.
    ///
    /// # Errors
    /// When the commit has none.
    pub fn recipe(&self, commit: Oid) -> Result<String> {
        let tree = self.repository.find_commit(commit)?.tree()?;
        let entry = tree.get_path(Path::new(RECIPE)).with_context(|| format!("{commit} has no {RECIPE}"))?;
        let blob = self.repository.find_blob(entry.id())?;
        String::from_utf8(blob.content().to_vec()).with_context(|| format!("{RECIPE} of {commit} is not text"))
    }

    /// `recipe`, which changes `base`, as a change of `onto` instead, which changes it too: a merge of three. `None` where
    /// both change the same lines.
    ///
    /// # Errors
    /// When a commit is missing.
    pub fn reapply(&self, recipe: &str, base: Oid, onto: Oid) -> Result<Option<String>> {
        let tree = |id| self.repository.find_commit(id).and_then(|commit| commit.tree());
        let (base, onto) = (tree(base)?, tree(onto)?);
        let blob = self.repository.blob(recipe.as_bytes()).context("cannot store the recipe")?;
        let changed = TreeUpdateBuilder::new()
            .upsert(RECIPE, blob, FileMode::Blob)
            .create_updated(&self.repository, &base)
            .context("cannot store a tree")?;
        let changed = self.repository.find_tree(changed)?;
        let merged = self.repository.merge_trees(&base, &onto, &changed, None).context("cannot merge")?;
        if merged.has_conflicts() {
            return Ok(None);
        }
        let entry = merged.get_path(Path::new(RECIPE), 0).context("the recipe is gone")?;
        let blob = self.repository.find_blob(entry.id)?;
        Ok(Some(String::from_utf8(blob.content().to_vec()).context("the recipe is not text")?))
    }

    /// Whether a commit is there, with the recipe in it. After a power failure a new one may not be.
    pub fn has(&self, commit: Oid) -> bool {
        self.recipe(commit).is_ok()
    }

    /// Commits `parent` with another recipe, on no branch, and checks that it differs in nothing else.
    ///
    /// # Errors
    /// When nothing else than the recipe, or nothing at all, changed.
    pub fn commit(&self, parent: Oid, recipe: &str, author: &str, message: &str) -> Result<Oid> {
        let repository = &self.repository;
        let parent = repository.find_commit(parent).context("cannot find the incumbent")?;
        let blob = repository.blob(recipe.as_bytes()).context("cannot store the recipe")?;
        let tree = TreeUpdateBuilder::new()
            .upsert(RECIPE, blob, FileMode::Blob)
            .create_updated(repository, &parent.tree()?)
            .context("cannot store the candidate's tree")?;
        let tree = repository.find_tree(tree)?;
        let author =
            Signature::now(&format!("autoresearch {}", printable(author.as_bytes())), "autoresearch@localhost")?;
        let message = printable(message.as_bytes());
        let commit = repository
            .commit(None, &author, &author, &message, &tree, &[&parent])
            .context("cannot commit the candidate")?;
        self.check_one_file(commit, parent.id())?;
        self.sync_objects(commit, blob);
        Ok(commit)
    }

    /// Refuses a candidate whose tree differs from its parent's anywhere but in the recipe.
    ///
    /// # Errors
    /// With the other paths.
    pub fn check_one_file(&self, candidate: Oid, parent: Oid) -> Result<()> {
        let mut touched = self.touched(candidate, parent)?;
        if touched.len() == 1 && touched.get(RECIPE) == Some(&Delta::Modified) {
            return Ok(());
        }
        touched.remove(RECIPE);
        let others: Vec<String> = touched.into_keys().collect();
        if others.is_empty() {
            bail!("candidate {candidate} does not change {RECIPE}");
        }
        bail!("candidate {candidate} changes more than {RECIPE}: {}", others.join(", "));
    }

    /// Paths in which two commits differ.
    ///
    /// # Errors
    /// When one of them is missing.
    pub fn differences(&self, one: Oid, other: Oid) -> Result<Vec<String>> {
        Ok(self.touched(one, other)?.into_keys().collect())
    }

    /// How a commit's recipe differs from another's, as a unified diff.
    ///
    /// # Errors
    /// When one of them is missing.
    pub fn diff(&self, from: Oid, to: Oid) -> Result<String> {
        let tree = |id| self.repository.find_commit(id).and_then(|commit| commit.tree());
        let mut options = git2::DiffOptions::new();
        options.pathspec(RECIPE).context_lines(1);
        let difference = self.repository.diff_tree_to_tree(Some(&tree(from)?), Some(&tree(to)?), Some(&mut options))?;
        let mut text = String::new();
        difference.print(git2::DiffFormat::Patch, |_, _, line| {
            if matches!(line.origin(), '+' | '-' | ' ') {
                text.push(line.origin());
            }
            // Names of files and hashes say nothing here.
            if matches!(line.origin(), '+' | '-' | ' ' | 'H') {
                text.push_str(&String::from_utf8_lossy(line.content()));
            }
            true
        })?;
        Ok(text)
    }

    fn touched(&self, new: Oid, old: Oid) -> Result<BTreeMap<String, Delta>> {
        let tree = |id| self.repository.find_commit(id).and_then(|commit| commit.tree());
        let difference = self.repository.diff_tree_to_tree(Some(&tree(old)?), Some(&tree(new)?), None)?;
        let mut touched = BTreeMap::new();
        for delta in difference.deltas() {
            for file in [delta.old_file(), delta.new_file()] {
                let path = file.path_bytes().map(|p| String::from_utf8_lossy(p).into_owned()).unwrap_or_default();
                touched.insert(path, delta.status());
            }
        }
        Ok(touched)
    }

    /// Keeps a candidate reachable under its own ref.
    ///
    /// # Errors
    /// When git's files cannot be written.
    pub fn record(&self, tag: &str, experiment: u64, commit: Oid) -> Result<()> {
        let name = candidate_ref(tag, experiment);
        self.repository
            .reference(&name, commit, true, &format!("experiment {experiment}"))
            .with_context(|| format!("cannot write {name}"))?;
        self.sync_ref(&name);
        Ok(())
    }

    /// Where the ref of a candidate is.
    pub fn recorded(&self, tag: &str, experiment: u64) -> Option<Oid> {
        self.repository.refname_to_id(&candidate_ref(tag, experiment)).ok()
    }

    /// Puts the branch of a search on a commit, wherever it is.
    ///
    /// # Errors
    /// When git's files cannot be written.
    pub fn put_branch(&self, tag: &str, commit: Oid) -> Result<()> {
        let name = branch_ref(tag);
        self.repository.reference(&name, commit, true, "repair").with_context(|| format!("cannot write {name}"))?;
        self.sync_ref(&name);
        Ok(())
    }

    /// Moves the branch of a search from one commit to the next, atomically. Doing it twice is doing it once.
    ///
    /// # Errors
    /// [`Failure::Checkout`] when the branch is somewhere else: somebody moved it.
    pub fn advance(&self, tag: &str, from: Oid, to: Oid) -> Result<(), Failure> {
        let name = branch_ref(tag);
        let now = self.branch(tag)?;
        if now == Some(to) {
            return Ok(());
        }
        let moved = self.repository.reference_matching(&name, to, true, from, "keep");
        match moved {
            Ok(_) => {
                self.sync_ref(&name);
                Ok(())
            }
            Err(e) if now == Some(from) => Err(Failure::Other(anyhow!(e).context(format!("cannot move {name}")))),
            Err(_) => Err(Failure::Checkout {
                message: format!(
                    "branch autoresearch/{tag} is at {}, not at the incumbent {from}: somebody moved it",
                    now.map_or_else(|| "no commit".into(), |id| id.to_string())
                ),
                hint: "`orchestrator repair` puts it back".into(),
            }),
        }
    }

    /// The lock of the file at the root that several searches write.
    pub fn results_lock(&self) -> PathBuf {
        self.repository.commondir().join("autoresearch-results.lock")
    }

    /// The checkout's folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// libgit2 leaves it to the system when new objects reach the disk; the journal is about to rely on these.
    fn sync_objects(&self, commit: Oid, blob: Oid) {
        let mut ids = vec![commit, blob];
        if let Ok(tree) = self.repository.find_commit(commit).and_then(|commit| commit.tree()) {
            ids.push(tree.id());
            for parent in Path::new(RECIPE).ancestors().skip(1).filter(|path| !path.as_os_str().is_empty()) {
                ids.extend(tree.get_path(parent).ok().filter(|e| e.kind() == Some(ObjectType::Tree)).map(|e| e.id()));
            }
        }
        let objects = self.repository.commondir().join("objects");
        for id in ids {
            let name = id.to_string();
            let folder = objects.join(&name[..2]);
            sync(&folder.join(&name[2..]));
            sync(&folder);
        }
    }

    fn sync_ref(&self, name: &str) {
        let file = self.repository.commondir().join(name);
        sync(&file);
        if let Some(folder) = file.parent() {
            sync(folder);
        }
    }
}

/// Writes the files of a commit of the repository at `root` into a folder that is no checkout of it.
///
/// # Errors
/// When the commit is missing, or the folder cannot be written.
pub fn export(root: &Path, commit: Oid, folder: &Path) -> Result<()> {
    let repository = Repository::open(root).with_context(|| format!("cannot open {}", root.display()))?;
    let tree = repository.find_commit(commit)?.tree()?;
    checkout::exactly(&repository, &tree, folder)
        .map(drop)
        .with_context(|| format!("cannot write the files of {commit} to {}", folder.display()))
}

/// Best effort: what is packed or already gone needs none.
fn sync(path: &Path) {
    if let Ok(file) = File::open(path) {
        let _ = file.sync_all();
    }
}

fn branch_name(tag: &str) -> String {
    format!("autoresearch/{tag}")
}

fn branch_ref(tag: &str) -> String {
    format!("{BRANCHES}{tag}")
}

fn candidate_ref(tag: &str, experiment: u64) -> String {
    format!("{CANDIDATES}{tag}/{experiment}")
}

/// The search's own checkout.
pub struct Worktree<'a> {
    workspace: &'a Workspace,
    own: Repository,
    folder: PathBuf,
}

impl Worktree<'_> {
    /// Its folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Makes the files exactly those of a commit: contents by hash, nothing missing, nothing besides. HEAD stays on
    /// the search's branch. Returns the paths that were written or removed.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub fn show(&self, commit: Oid) -> Result<Vec<String>> {
        let tree = self.workspace.repository.find_commit(commit)?.tree()?;
        let changed = checkout::exactly(&self.workspace.repository, &tree, &self.folder)
            .with_context(|| format!("cannot check out {commit} in {}", self.folder.display()))?;
        let mut index = self.own.index()?;
        index.read_tree(&tree)?;
        index.write().context("cannot write the worktree's index")?;
        Ok(changed.into_iter().map(|path| path.to_string_lossy().into_owned()).collect())
    }
}

#[cfg(test)]
mod tests;
