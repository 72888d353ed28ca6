//! Keys of endpoints: where they may come from, and that they go nowhere else.
//!
//! A key is never read from a campaign file, and no form of output shows it. Taking the variable out of the environment of
//! child processes is the caller's part.

use std::ffi::OsString;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use serde_json::Value;

/// Most bytes of a key. Those of today have about a hundred.
const LONGEST: u64 = 4096;
/// A shorter key is a placeholder (`EMPTY`, `none`) as local servers want it, and such words occur in any text.
const SHORTEST_SECRET: usize = 8;
/// Most bytes of another program's file of credentials.
const LONGEST_FILE: u64 = 4 << 20;
/// A shorter value there, or one without a digit, is a word: a setting that is named like a key.
const SHORTEST_FOUND: usize = 16;
/// What the name of a key speaks of, in such files.
const NAMES: [&str; 4] = ["key", "token", "secret", "password"];
/// What stands where a key stood.
const REDACTED: &str = "[key]";

/// Where a key is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeySource {
    /// An environment variable, by its name.
    Environment(String),
    /// A file that only its owner may touch; white space around the key is no part of it.
    File(PathBuf),
}

/// Why there is no key. The message says what to do.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The variable is not set.
    #[error("no key: the variable {0} is not set; export {0}=… before the start, or name a key file")]
    Missing(String),
    /// Nothing but white space.
    #[error("no key: {0} is empty; put the endpoint's key there")]
    Empty(String),
    /// The file could not be read.
    #[error("cannot read the key file {path}: {source}")]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Others may read or change the file.
    #[error(
        "others may touch the key file {path} (mode {mode:o}); run `chmod 600 {path}`, and renew the key if they did"
    )]
    Mode {
        /// Which file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The file is another user's.
    #[error(
        "the key file {path} belongs to user {owner}, not to the one who runs this; copy the key to a file of your own"
    )]
    Owner {
        /// Which file.
        path: PathBuf,
        /// Numeric id of its owner.
        owner: u32,
    },
    /// Not a key.
    #[error(
        "what is in {0} is no key: a key is one word of at most {LONGEST} letters, digits and ASCII signs without quotes"
    )]
    NoKey(String),
}

/// A key. It can be sent and nothing else: neither `Debug` nor any other form of output shows it.
#[derive(Clone)]
pub struct Secret {
    value: String,
    origin: String,
}

impl Secret {
    /// Reads a key from where it is kept.
    ///
    /// # Errors
    /// When it is missing, malformed, or others could have read it.
    pub fn read(source: &KeySource) -> Result<Self, KeyError> {
        match source {
            KeySource::Environment(variable) => Self::from_variable(variable, std::env::var_os(variable)),
            KeySource::File(path) => Self::from_file(path),
        }
    }

    fn from_variable(variable: &str, value: Option<OsString>) -> Result<Self, KeyError> {
        let value = value.ok_or_else(|| KeyError::Missing(variable.to_owned()))?;
        Self::new(value.as_encoded_bytes(), format!("the variable {variable}"))
    }

    fn from_file(path: &Path) -> Result<Self, KeyError> {
        let failed = |source| KeyError::Read { path: path.to_owned(), source };
        // The opened file is checked, not the path; a pipe would otherwise block.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = File::from(rustix::fs::open(path, flags, Mode::empty()).map_err(|e| failed(e.into()))?);
        let metadata = file.metadata().map_err(failed)?;
        if !metadata.is_file() {
            return Err(failed(io::Error::other("it is no regular file")));
        }
        let mode = metadata.mode() & 0o7777;
        if mode & 0o077 != 0 {
            return Err(KeyError::Mode { path: path.to_owned(), mode });
        }
        if metadata.uid() != rustix::process::geteuid().as_raw() {
            return Err(KeyError::Owner { path: path.to_owned(), owner: metadata.uid() });
        }
        let mut bytes = Vec::new();
        file.take(LONGEST + 1).read_to_end(&mut bytes).map_err(failed)?;
        Self::new(&bytes, format!("the file {}", path.display()))
    }

    /// What looks like a key in another program's JSON file of credentials: values whose names speak of one. There is none
    /// in a file of another form, or that is not there.
    pub fn in_json(path: &Path) -> Vec<Self> {
        let mut bytes = Vec::new();
        // A pipe would be waited for.
        let is_file = std::fs::metadata(path).is_ok_and(|metadata| metadata.is_file());
        let opened = if is_file { File::open(path) } else { Err(std::io::ErrorKind::InvalidInput.into()) };
        let read = opened.and_then(|file| file.take(LONGEST_FILE).read_to_end(&mut bytes));
        let mut found = Vec::new();
        if let (Ok(_), Ok(value)) = (read, serde_json::from_slice(&bytes)) {
            collect(&value, &format!("the file {}", path.display()), &mut found);
        }
        found
    }

    fn new(bytes: &[u8], origin: String) -> Result<Self, KeyError> {
        let bytes = bytes.trim_ascii();
        if bytes.is_empty() {
            return Err(KeyError::Empty(origin));
        }
        // What a header can carry; without quotes and backslashes a key looks the same inside of JSON.
        let plain = |byte: &u8| byte.is_ascii_graphic() && !matches!(byte, b'"' | b'\\');
        match std::str::from_utf8(bytes) {
            Ok(value) if bytes.len() as u64 <= LONGEST && bytes.iter().all(plain) => {
                Ok(Self { value: value.to_owned(), origin })
            }
            _ => Err(KeyError::NoKey(origin)),
        }
    }

    /// A key for tests.
    #[cfg(test)]
    pub(crate) fn of(value: &str) -> Self {
        Self { value: value.to_owned(), origin: "a test".to_owned() }
    }

    /// Where it was read: `the variable OPENAI_API_KEY`.
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// The key itself, for the one header that carries it.
    pub(crate) fn expose(&self) -> &str {
        &self.value
    }

    /// Whether a text holds the key. Placeholders of a few letters are not looked for.
    pub fn occurs_in(&self, text: &str) -> bool {
        self.value.len() >= SHORTEST_SECRET && text.contains(&self.value)
    }

    /// The text with every occurrence of the key replaced.
    pub fn redact(&self, text: String) -> String {
        if self.occurs_in(&text) { text.replace(&self.value, REDACTED) } else { text }
    }
}

fn collect(value: &Value, origin: &str, found: &mut Vec<Secret>) {
    match value {
        Value::Object(entries) => {
            for (name, value) in entries {
                let name = name.to_lowercase();
                match value.as_str() {
                    Some(text) if NAMES.iter().any(|part| name.contains(part)) => {
                        let looks_random = text.len() >= SHORTEST_FOUND && text.contains(|c: char| c.is_ascii_digit());
                        found.extend(Secret::new(text.as_bytes(), origin.to_owned()).ok().filter(|_| looks_random));
                    }
                    _ => collect(value, origin, found),
                }
            }
        }
        Value::Array(values) => values.iter().for_each(|value| collect(value, origin, found)),
        _ => {}
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secret(from {})", self.origin)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const KEY: &str = "sk-0123456789abcdef";

    fn file(contents: &str, mode: u32) -> (tempfile::TempDir, KeySource) {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("key");
        fs::write(&path, contents).expect("a file");
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("a mode");
        (folder, KeySource::File(path))
    }

    #[test]
    fn a_missing_key_names_the_variable() {
        let error = Secret::read(&KeySource::Environment("NO_SUCH_KEY_ANYWHERE".into())).expect_err("no key");
        assert!(error.to_string().contains("NO_SUCH_KEY_ANYWHERE"), "{error}");
        let error = Secret::from_variable("A_KEY", Some(" \n".into())).expect_err("no key");
        assert!(matches!(&error, KeyError::Empty(origin) if origin == "the variable A_KEY"));
    }

    #[test]
    fn a_key_is_read_from_a_variable_and_from_a_private_file() {
        // cargo sets this one for tests; setting one here would be unsafe beside other threads.
        let secret = Secret::read(&KeySource::Environment("CARGO_PKG_NAME".into())).expect("a value");
        assert_eq!((secret.expose(), secret.origin()), ("language-model", "the variable CARGO_PKG_NAME"));
        for mode in [0o600, 0o400] {
            let (_folder, source) = file(&format!("  {KEY}\n"), mode);
            assert_eq!(Secret::read(&source).expect("a key").expose(), KEY);
        }
    }

    #[test]
    fn a_file_that_others_may_touch_is_refused() {
        for mode in [0o644, 0o640, 0o606, 0o620, 0o610] {
            let (_folder, source) = file(KEY, mode);
            let error = Secret::read(&source).expect_err("too open");
            assert!(matches!(error, KeyError::Mode { mode: found, .. } if found == mode), "{error}");
            assert!(error.to_string().contains("chmod 600") && !error.to_string().contains(KEY));
        }
        let folder = tempfile::tempdir().expect("a folder");
        let none = KeySource::File(folder.path().join("none"));
        assert!(matches!(Secret::read(&none), Err(KeyError::Read { .. })));
        assert!(matches!(Secret::read(&KeySource::File(folder.path().into())), Err(KeyError::Read { .. })));
    }

    #[test]
    fn what_cannot_be_a_key_is_refused_without_being_shown() {
        for value in ["two words", "line\nline", "quo\"te", "back\\slash", "schlüssel", &"x".repeat(5000)] {
            let error = Secret::from_variable("A_KEY", Some(value.into())).expect_err("no key");
            assert!(matches!(error, KeyError::NoKey(_)) && !error.to_string().contains(value), "{error}");
        }
    }

    #[test]
    fn no_form_of_output_shows_it() {
        let secret = Secret::from_variable("A_KEY", Some(KEY.into())).expect("a key");
        assert_eq!(format!("{secret:?}"), "Secret(from the variable A_KEY)");
        assert_eq!(secret.redact(format!("a {KEY} and {KEY}b")), "a [key] and [key]b");
        assert!(secret.occurs_in(KEY) && !secret.occurs_in("sk-"));
        let placeholder = Secret::from_variable("A_KEY", Some("EMPTY".into())).expect("a key");
        assert_eq!(placeholder.redact("EMPTY".into()), "EMPTY");
    }

    #[test]
    fn keys_of_another_program_are_found_by_their_names() {
        let (_folder, source) = file(
            r#"{"tokens":{"access_token":"sk-0123456789abcdef","account":"me"},"list":[{"apiKey":"k-0123456789abcdef","keybindings":"standard"}],"mode":"chatgpt-login"}"#,
            0o600,
        );
        let KeySource::File(path) = source else { unreachable!("it is a file") };
        let found = Secret::in_json(&path);
        let values: Vec<&str> = found.iter().map(Secret::expose).collect();
        assert_eq!(values.len(), 2);
        assert!(values.contains(&KEY) && values.contains(&"k-0123456789abcdef"));
        assert!(Secret::in_json(Path::new("/no/such/file")).is_empty());
    }
}
