//! From TOML to a [`Campaign`], with messages that name the key and the line.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::campaign::{Campaign, CampaignError};

/// Names below this similarity (Jaro-Winkler) are not proposed.
const SIMILAR: f64 = 0.75;

/// Most bytes of a campaign file.
const LARGEST: u64 = 1 << 20;

/// A regular file's text, or that of a link to one: a device or a pipe may never end.
fn read(path: &Path) -> std::io::Result<String> {
    if !std::fs::metadata(path)?.is_file() {
        return Err(std::io::Error::other("it is no regular file"));
    }
    let mut text = String::new();
    File::open(path)?.take(LARGEST + 1).read_to_string(&mut text)?;
    if text.len() as u64 > LARGEST {
        return Err(std::io::Error::other(format!("it has more than {LARGEST} bytes")));
    }
    Ok(text)
}

impl Campaign {
    /// Reads and checks a campaign file.
    ///
    /// # Errors
    /// When the file is missing, is not TOML, has an unknown key or contradicts itself.
    pub fn load(path: &Path) -> Result<Self, CampaignError> {
        let text = read(path).map_err(|source| CampaignError::Read { path: path.to_owned(), source })?;
        Self::parse(&text).map_err(|message| CampaignError::Parse { path: path.to_owned(), message })
    }

    /// Parses and checks a campaign; the error is a message for people.
    ///
    /// # Errors
    /// As [`Campaign::load`], without the path.
    pub fn parse(text: &str) -> Result<Self, String> {
        let input = toml::Deserializer::parse(text).map_err(|e| e.to_string())?;
        let mut campaign: Self = serde_path_to_error::deserialize(input).map_err(|e| {
            let line = e
                .inner()
                .span()
                .map_or(String::new(), |span| format!("line {}: ", text[..span.start].matches('\n').count() + 1));
            format!("{line}{}", explain(&e.path().to_string(), e.inner().message()))
        })?;
        campaign.agent.unmix()?;
        campaign.check()?;
        Ok(campaign)
    }
}

/// Rewrites serde's message about the value at `path`.
fn explain(path: &str, message: &str) -> String {
    // "unknown field `a`, expected one of `b`, `c`": every second piece is a name.
    let mut names = message.split('`').skip(1).step_by(2);
    let section = path.rsplit_once('.').map(|(section, _)| section);
    // The keys of `parts` are values of an enum to serde; their path ends in a question mark.
    let enum_key = message.starts_with("unknown variant") && path.ends_with(".?");
    if message.starts_with("unknown field") || enum_key {
        let name = names.next().unwrap_or_default();
        let known: Vec<&str> = names.collect();
        let path = if enum_key { &path.replacen(".?", &format!(".{name}"), 1) } else { path };
        let within = |key: &str| section.map_or(key.into(), |section| format!("{section}.{key}"));
        return match nearest(name, known.iter().copied()) {
            Some(key) => format!("unknown key {path}; did you mean {}?", within(key)),
            None => {
                let place = section.map_or("there".into(), |section| format!("in [{section}]"));
                format!("unknown key {path}; the keys {place} are {}", known.join(", "))
            }
        };
    }
    if message.starts_with("unknown variant") {
        let name = names.next().unwrap_or_default();
        let known: Vec<&str> = names.collect();
        return match nearest(name, known.iter().copied()) {
            Some(value) => format!("{path}: unknown value {name:?}; did you mean {value:?}?"),
            None => format!("{path}: unknown value {name:?}; use one of {}", known.join(", ")),
        };
    }
    match (message.strip_prefix("missing field "), names.next()) {
        (Some(_), Some(name)) if path == "." => format!("key {name} is missing; add it"),
        (Some(_), Some(name)) => format!("key {path}.{name} is missing; add it"),
        _ if path == "." => message.into(),
        _ => format!("{path}: {message}"),
    }
}

/// The most similar of `known`, if any is similar.
pub(crate) fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    known
        .map(|key| (strsim::jaro_winkler(name, key), key))
        .filter(|&(similarity, _)| similarity >= SIMILAR)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, key)| key)
}
