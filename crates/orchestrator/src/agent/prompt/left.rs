//! How much of a search is left, in words.

use std::fmt;

use formats::campaign::Caps;
use language_model::Spent;

/// What is done and spent, and what may still be.
#[derive(Debug, Clone, Copy)]
pub struct Left<'a> {
    /// Number of the experiment that is asked for.
    pub experiment: u64,
    /// Experiments that were kept.
    pub kept: usize,
    /// Most experiments, where the command line says so.
    pub experiments: Option<u64>,
    /// Hours until the search ends, where the command line says so.
    pub hours: Option<f64>,
    /// Spent on language models.
    pub spent: &'a Spent,
    /// What may be spent on them.
    pub caps: &'a Caps,
}

impl fmt::Display for Left<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "This is experiment {}", self.experiment)?;
        if let Some(most) = self.experiments {
            write!(out, " of at most {most}")?;
        }
        write!(out, "; {} were kept so far.", self.kept)?;
        if let Some(hours) = self.hours {
            write!(out, " {:.1} hours are left.", hours.max(0.0))?;
        }
        let (spent, caps) = (self.spent, self.caps);
        let dollars = caps.dollars.map(|cap| format!("{cap:.2}"));
        let of = |cap: Option<String>| cap.map_or_else(String::new, |cap| format!(" of {cap}"));
        write!(
            out,
            " Spent on language models: ${:.2}{}, {}{} tokens, {}{} calls.",
            spent.dollars,
            of(dollars),
            spent.usage.total(),
            of(caps.tokens.map(|cap| cap.to_string())),
            spent.calls,
            of(caps.calls.map(|cap| cap.to_string()))
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_told_where_there_are_any() {
        let (spent, caps) = (Spent { dollars: 1.234, calls: 7, ..Spent::default() }, Caps::default());
        let free = Left { experiment: 3, kept: 1, experiments: None, hours: None, spent: &spent, caps: &caps };
        let expected = "This is experiment 3; 1 were kept so far. Spent on language models: $1.23, 0 tokens, 7 calls.";
        assert_eq!(free.to_string(), expected);
        let caps = Caps { dollars: Some(5.0), tokens: Some(1000), calls: Some(9) };
        let limited = Left { experiments: Some(40), hours: Some(2.25), caps: &caps, ..free };
        assert_eq!(
            limited.to_string(),
            "This is experiment 3 of at most 40; 1 were kept so far. 2.2 hours are left. Spent on language models: \
             $1.23 of 5.00, 0 of 1000 tokens, 7 of 9 calls."
        );
    }
}
