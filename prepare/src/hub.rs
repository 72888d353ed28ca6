//! Repositories of the Hugging Face Hub through the hf-hub crate, honouring HF_HOME, HF_TOKEN and HF_ENDPOINT.
//!
//! Downloads go on where they stopped (the crate keeps partial files); large files are checked against the sha256 that
//! the Hub names them by.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, anyhow, bail, ensure};
use hf_hub::api::sync::{ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Repo, RepoType};
use serde::{Deserialize, Serialize};

use crate::files::{sha256_file, write_bytes};
use crate::sources::Fetcher;

/// How often an interrupted download is taken up again before giving up.
const RETRIES: usize = 3;

/// One repository at one commit.
#[derive(Debug)]
pub struct HubRepo {
    api: ApiRepo,
    name: String,
    /// Commit that the revision resolved to.
    pub commit: String,
    /// Files in it, sorted.
    pub names: Vec<String>,
}

/// What a repository holds, kept in the cache for commits, which never change.
#[derive(Serialize, Deserialize)]
struct Listing {
    commit: String,
    names: Vec<String>,
}

impl HubRepo {
    /// Looks a repository up and lists its files.
    ///
    /// # Errors
    /// When it is not there, not allowed, or the Hub cannot be reached.
    pub fn open(name: &str, dataset: bool, revision: Option<&str>, fetcher: &Fetcher) -> Result<Self> {
        ensure!(
            name.split('/').count() <= 2 && !name.is_empty() && !name.contains(".."),
            "write a Hub repository as OWNER/NAME, not {name:?}"
        );
        let revision = revision.unwrap_or("main");
        let mut builder = ApiBuilder::from_env().with_progress(!fetcher.progress.quiet).with_retries(RETRIES);
        // The crate reads the token that `hf auth login` stored; the variable goes first, as in Python.
        if let Some(token) = std::env::var("HF_TOKEN").ok().filter(|t| !t.trim().is_empty()) {
            builder = builder.with_token(Some(token.trim().to_owned()));
        }
        let kind = if dataset { RepoType::Dataset } else { RepoType::Model };
        let at = |revision: &str| Repo::with_revision(name.to_owned(), kind, revision.to_owned());
        let api = builder.build().context("cannot set up the Hub client")?;

        let pinned = revision.len() == 40 && revision.bytes().all(|c| c.is_ascii_hexdigit());
        let label = if dataset { "dataset" } else { "model" };
        let kept = format!("{label}--{}--{revision}.json", name.replace('/', "--"));
        let kept = fetcher.cache.join("hub").join(kept);
        let known = pinned.then(|| fs::read(&kept).ok()).flatten();
        let listing = match known.and_then(|bytes| serde_json::from_slice::<Listing>(&bytes).ok()) {
            Some(listing) => listing,
            None => {
                let info = api.repo(at(revision)).info().map_err(|e| explain(e, name, None))?;
                let mut names: Vec<String> = info.siblings.into_iter().map(|s| s.rfilename).collect();
                names.sort();
                let listing = Listing { commit: info.sha, names };
                if !pinned {
                    fetcher.progress.note(&format!(
                        "{name} is not pinned and may change; to repeat this exactly, set revision = \"{}\"",
                        listing.commit
                    ));
                }
                if pinned {
                    write_bytes(&kept, &serde_json::to_vec(&listing)?)?;
                }
                listing
            }
        };
        // Files are asked for by commit, so that a branch that moves meanwhile cannot mix two versions.
        let api = api.repo(at(&listing.commit));
        Ok(Self { api, name: name.to_owned(), commit: listing.commit, names: listing.names })
    }

    /// The path of a file in the Hub's cache, downloaded when it is not there.
    ///
    /// # Errors
    /// When it cannot be downloaded or its hash differs.
    pub fn fetch(&self, file: &str) -> Result<PathBuf> {
        let before = std::time::SystemTime::now();
        let path = match self.api.get(file) {
            // A partial file that does not fit the size announced now: start it again.
            Err(ApiError::InvalidResume) => bail!(
                "the partial download of {file} is damaged; delete the *.part files of {} below HF_HOME and run again",
                self.name
            ),
            other => other.map_err(|e| explain(e, &self.name, Some(file)))?,
        };
        let blob = fs::canonicalize(&path).with_context(|| format!("cannot find {}", path.display()))?;
        let etag = blob.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let is_sha256 = etag.len() == 64 && etag.bytes().all(|c| c.is_ascii_hexdigit());
        // What came in an earlier run was checked then.
        let fresh = fs::metadata(&blob)?.modified().is_ok_and(|modified| modified >= before);
        if is_sha256 && fresh && sha256_file(&blob)? != etag {
            fs::remove_file(&blob).ok();
            fs::remove_file(&path).ok();
            bail!("{file} of {} came with a wrong hash and was removed; run again", self.name);
        }
        Ok(path)
    }
}

/// The Hub's answers in words.
fn explain(error: ApiError, repo: &str, file: Option<&str>) -> anyhow::Error {
    let what = file.map_or(format!("{repo} on the Hub"), |file| format!("{file} of {repo} on the Hub"));
    let text = error.to_string();
    let hint = if text.contains("401") || text.contains("403") {
        "access is refused: accept the model's licence on its page and set HF_TOKEN to a token that may read it"
    } else if text.contains("404") {
        "it is not there: check name, path and revision in campaign.toml (private repositories need HF_TOKEN)"
    } else if text.contains("No space left") {
        "the disk of HF_HOME is full: free some space and run again"
    } else if matches!(error, ApiError::LockAcquisition(_)) {
        "another process is downloading it: wait for it, or stop it, and run again"
    } else {
        "check the network (and HF_ENDPOINT, if it is set) and run again; what was downloaded is kept"
    };
    anyhow!("{error}").context(format!("{what}: {hint}"))
}
