//! An answer while it arrives, in the terms that both protocols share.

use crate::Usage;
use crate::prompt::estimated_tokens;

/// Why a model stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Finish {
    /// It said all it wanted to.
    End,
    /// It reached the most tokens.
    Length,
    /// It, or a filter, declines.
    Refused,
}

/// What has arrived so far.
#[derive(Debug, Default)]
pub(super) struct Partial {
    pub text: String,
    /// Estimated tokens of thinking that the endpoint shows apart from the text.
    pub thinking: u64,
    pub model: Option<String>,
    pub finish: Option<Finish>,
    /// What a refusing model says in place of an answer.
    pub refusal: String,
    /// Nothing follows.
    pub over: bool,
    /// Tokens by the endpoint's own count; those of the answer once it is complete.
    pub input: Option<u64>,
    pub cached_input: u64,
    pub cache_write: u64,
    pub output: Option<u64>,
}

impl Partial {
    /// Tokens so far; what the endpoint did not count is estimated.
    pub fn usage(&self, prompt_tokens: u64) -> Usage {
        Usage {
            input: self.input.unwrap_or(prompt_tokens),
            cached_input: self.cached_input,
            cache_write: self.cache_write,
            output: self.output.unwrap_or_else(|| estimated_tokens(&self.text) + self.thinking),
            estimated: self.input.is_none() || self.output.is_none(),
        }
    }
}
