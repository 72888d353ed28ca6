//! Keys of `config.json`, read by type: one that is present and of another type is refused.

use anyhow::{Context, Result, ensure};
use serde_json::{Map, Value};

/// The keys of one object of config.json.
#[derive(Debug, Clone, Copy)]
pub(super) struct Keys<'a> {
    /// Name of the object in messages.
    pub place: &'a str,
    /// The object.
    pub map: &'a Map<String, Value>,
}

impl<'a> Keys<'a> {
    fn wrong(&self, key: &str, value: &Value, wanted: &str) -> anyhow::Error {
        anyhow::anyhow!("`{key}` in {} is {value}, which is not {wanted}; correct it there", self.place)
    }

    /// A finite number; `None` when the key is absent.
    pub fn number(&self, key: &str) -> Result<Option<f64>> {
        let Some(value) = self.map.get(key) else { return Ok(None) };
        let number = value.as_f64().filter(|n| n.is_finite());
        number.map(Some).ok_or_else(|| self.wrong(key, value, "a number"))
    }

    /// A whole number from 0; `None` when the key is absent.
    pub fn size(&self, key: &str) -> Result<Option<usize>> {
        let Some(value) = self.map.get(key) else { return Ok(None) };
        let size = value.as_u64().and_then(|n| usize::try_from(n).ok());
        size.map(Some).ok_or_else(|| self.wrong(key, value, "a whole number"))
    }

    /// The same, where null stands for absent.
    pub fn size_or_null(&self, key: &str) -> Result<Option<usize>> {
        if self.map.get(key).is_some_and(Value::is_null) { Ok(None) } else { self.size(key) }
    }

    /// A whole number that must be there.
    pub fn required(&self, key: &str) -> Result<usize> {
        self.size(key)?.with_context(|| format!("{} has no `{key}`", self.place))
    }

    /// True or false; `None` when the key is absent.
    pub fn flag(&self, key: &str) -> Result<Option<bool>> {
        let Some(value) = self.map.get(key) else { return Ok(None) };
        value.as_bool().map(Some).ok_or_else(|| self.wrong(key, value, "true or false"))
    }

    /// A string; `None` when the key is absent.
    pub fn text(&self, key: &str) -> Result<Option<&'a str>> {
        let Some(value) = self.map.get(key) else { return Ok(None) };
        value.as_str().map(Some).ok_or_else(|| self.wrong(key, value, "a string"))
    }

    /// A list of strings; `None` when the key is absent or null.
    pub fn texts(&self, key: &str) -> Result<Option<Vec<&'a str>>> {
        let Some(value) = self.map.get(key).filter(|v| !v.is_null()) else { return Ok(None) };
        let texts = value.as_array().and_then(|all| all.iter().map(Value::as_str).collect());
        texts.map(Some).ok_or_else(|| self.wrong(key, value, "a list of strings"))
    }

    /// An object with keys; `None` when the key is absent, null or `{}`.
    pub fn object(&self, key: &'a str) -> Result<Option<Keys<'a>>> {
        let Some(value) = self.map.get(key).filter(|v| !v.is_null()) else { return Ok(None) };
        let map = value.as_object().ok_or_else(|| self.wrong(key, value, "an object"))?;
        Ok((!map.is_empty()).then_some(Keys { place: key, map }))
    }

    /// Refuses a factor that is there and not 1.
    pub fn one(&self, key: &str) -> Result<()> {
        let factor = self.number(key)?.unwrap_or(1.0);
        ensure!(factor == 1.0, "{} sets `{key}` to {factor}, which the decoder does not have", self.place);
        Ok(())
    }
}
