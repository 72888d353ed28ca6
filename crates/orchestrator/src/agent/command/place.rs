//! Where a coding program works: a throw-away folder with a checkout, a home and a file with the prompt. Nothing that it
//! leaves there is trusted: no link is followed, no length believed, and all of it is removed.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder};
use std::io::Read;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, Result, bail};
use git2::{IndexAddOption, Oid, Repository, Signature};

use crate::files;
use crate::knobs::LARGEST_RECIPE;
use crate::layout::RECIPE;
use crate::workspace;

/// Most bytes that are copied into the home.
const HOME_BYTES: u64 = 64 << 20;
/// Most files that are looked at to see which changed.
const MOST_FILES: usize = 20_000;

/// Size and time of every file, by path.
type Files = BTreeMap<PathBuf, (u64, Option<SystemTime>)>;

/// The folder; gone when this is dropped.
pub(super) struct Place {
    folder: PathBuf,
    /// The mutable file as the program finds it.
    recipe: Option<String>,
    before: Files,
}

/// What became of the mutable file.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Taken {
    Unchanged,
    Changed(String),
    /// It is gone, or is nothing that can be read.
    Unusable(String),
}

impl Place {
    /// Makes the folder, in which whatever was there before is removed: the files of a commit in a git repository of their
    /// own, with the mutable file as it is shown in the prompt, if it is; and a home with copies of what is in the user's.
    ///
    /// # Errors
    /// When it cannot be made.
    pub(super) fn make(
        folder: &Path,
        (root, commit): (&Path, Oid),
        recipe: Option<&str>,
        prompt: &str,
        home: &[PathBuf],
    ) -> Result<Self> {
        files::remove_tree(folder).with_context(|| format!("cannot empty {}", folder.display()))?;
        let mut place = Self { folder: folder.to_owned(), recipe: recipe.map(str::to_owned), before: Files::new() };
        // Nobody else's: there may be credentials in the home.
        DirBuilder::new().recursive(true).mode(0o700).create(folder).with_context(|| folder.display().to_string())?;
        for part in [place.work(), place.home(), place.temporary()] {
            fs::create_dir(&part).with_context(|| format!("cannot make {}", part.display()))?;
        }
        workspace::export(root, commit, &place.work())?;
        if let Some(recipe) = recipe {
            fs::write(place.work().join(RECIPE), recipe).with_context(|| format!("cannot write {RECIPE}"))?;
        }
        own_repository(&place.work()).context("cannot make a repository of it")?;
        fs::write(place.prompt(), prompt).context("cannot write the prompt")?;
        if let Some(users) = std::env::home_dir() {
            let mut left = HOME_BYTES;
            for path in home {
                copy(&users.join(path), &place.home().join(path), &mut left)
                    .with_context(|| format!("cannot copy {} of your home (agent.command.home)", path.display()))?;
            }
        }
        place.before = files_below(&place.work());
        Ok(place)
    }

    /// The checkout.
    pub(super) fn work(&self) -> PathBuf {
        self.folder.join("work")
    }

    /// The home.
    pub(super) fn home(&self) -> PathBuf {
        self.folder.join("home")
    }

    /// For temporary files.
    pub(super) fn temporary(&self) -> PathBuf {
        self.folder.join("tmp")
    }

    /// The file with the prompt, out of reach for changes.
    pub(super) fn prompt(&self) -> PathBuf {
        self.folder.join("prompt.md")
    }

    /// Files for what the program prints, out of its reach.
    pub(super) fn printed(&self) -> [PathBuf; 2] {
        ["stdout", "stderr"].map(|name| self.folder.join(name))
    }

    /// All of it.
    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// The mutable file, if it was changed.
    pub(super) fn take_back(&self) -> Taken {
        let mut bytes = Vec::new();
        // One byte more than allowed is enough to be refused.
        let most = LARGEST_RECIPE as u64 + 1;
        let read = files::open_untrusted_below(&self.work(), Path::new(RECIPE))
            .and_then(|file| file.take(most).read_to_end(&mut bytes));
        match (read, String::from_utf8(bytes)) {
            (Err(e), _) => Taken::Unusable(e.to_string()),
            (Ok(_), Err(_)) => Taken::Unusable("it is no text".into()),
            (Ok(_), Ok(text)) if self.recipe.as_deref() == Some(&text) => Taken::Unchanged,
            (Ok(_), Ok(text)) => Taken::Changed(text),
        }
    }

    /// Other files that were written, changed or removed, by size and time.
    pub(super) fn others(&self) -> Vec<PathBuf> {
        let after = files_below(&self.work());
        let differs =
            |path: &&PathBuf| self.before.get(*path) != after.get(*path) && path.as_path() != Path::new(RECIPE);
        let gone = self.before.keys().filter(|path| !after.contains_key(*path));
        after.keys().chain(gone).filter(differs).cloned().collect()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Err(error) = files::remove_tree(&self.folder) {
            tracing::warn!(%error, folder = %self.folder.display(), "cannot remove what a program worked in");
        }
    }
}

/// One commit of all the files: programs look for a repository, in this folder and then in those above it.
fn own_repository(folder: &Path) -> Result<()> {
    let repository = Repository::init(folder)?;
    let mut index = repository.index()?;
    index.add_all(["*"], IndexAddOption::DEFAULT, None)?;
    index.write()?;
    let tree = repository.find_tree(index.write_tree()?)?;
    let author = Signature::now("autoresearch", "autoresearch@localhost")?;
    repository.commit(Some("HEAD"), &author, &author, "the incumbent", &tree, &[])?;
    Ok(())
}

/// Copies a file, or a folder with its files and folders; what is not there is left out. `left` bytes may be copied.
fn copy(from: &Path, to: &Path, left: &mut u64) -> Result<()> {
    let Ok(metadata) = fs::metadata(from) else { return Ok(()) };
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent)?;
    }
    if metadata.is_file() {
        *left = left.checked_sub(metadata.len()).with_context(|| {
            format!(
                "it is more than {} MiB with what comes before it: name files rather than folders",
                HOME_BYTES >> 20
            )
        })?;
        fs::copy(from, to)?;
    } else if metadata.is_dir() {
        fs::create_dir_all(to)?;
        for entry in fs::read_dir(from)? {
            let entry = entry?;
            // Links within a folder could lead anywhere.
            if !entry.file_type()?.is_symlink() {
                copy(&entry.path(), &to.join(entry.file_name()), left)?;
            }
        }
    } else {
        bail!("it is neither file nor folder");
    }
    Ok(())
}

/// The files below a folder, git's own left out.
fn files_below(folder: &Path) -> Files {
    let mut found = Files::new();
    let mut folders = vec![PathBuf::new()];
    while let Some(at) = folders.pop() {
        let Ok(entries) = fs::read_dir(folder.join(&at)) else { continue };
        for entry in entries.flatten() {
            let path = at.join(entry.file_name());
            match entry.metadata() {
                Ok(_) if path == Path::new(".git") => {}
                Ok(metadata) if metadata.is_dir() => folders.push(path),
                Ok(metadata) => {
                    found.insert(path, (metadata.len(), metadata.modified().ok()));
                }
                Err(_) => {}
            }
            if found.len() + folders.len() > MOST_FILES {
                return found;
            }
        }
    }
    found
}
