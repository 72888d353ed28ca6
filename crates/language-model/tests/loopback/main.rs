//! Endpoints and recordings against a real server on loopback.

mod endpoint;
mod recording;
mod server;

use std::fs;
use std::os::unix::fs::PermissionsExt;

use language_model::{KeySource, Secret};

/// A key that was read from a file; its origin is the file, which is gone.
fn secret(key: &str) -> Secret {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("the-key");
    fs::write(&path, format!("{key}\n")).expect("a file");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("a mode");
    Secret::read(&KeySource::File(path)).expect("a key")
}
