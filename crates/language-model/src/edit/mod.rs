//! Turns an answer into an edited file: a hypothesis, its expected effect, and SEARCH/REPLACE blocks or the whole file.
//!
//! Pure, and strict: what does not fit exactly is refused with a reason that the model can act on, because a guess would
//! cost a training run. Whether the result is Rust, and whether it was tried before, is for others to say.

mod apply;
mod nearest;
mod parse;
mod refusal;
#[cfg(test)]
mod tests;

use std::collections::HashSet;

pub use nearest::Excerpt;
pub(crate) use parse::after_thinking;
pub use refusal::Refusal;

use crate::text::is_deceptive;

/// A whole file of less than this share of the current one's bytes is taken for an excerpt.
const LEAST_WHOLE: f64 = 0.5;

/// How a model is asked to answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// SEARCH/REPLACE blocks.
    #[default]
    Blocks,
    /// The whole file, for models that cannot quote exactly. Blocks are understood as well.
    WholeFile,
}

/// What an edit may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules<'a> {
    /// Path of the one file that may be edited, from the repository's root.
    pub path: &'a str,
    /// Most bytes that it may have afterwards.
    pub most_bytes: usize,
    /// How the model was asked to answer.
    pub format: Format,
}

/// An answer that was understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Edit {
    /// What the model thinks, one line.
    pub hypothesis: String,
    /// What it expects to see, one line; empty when it does not say.
    pub expected: String,
    /// The file with the edit, never the same as before.
    pub source: String,
}

/// Reads an answer to a prompt that showed `current`. `cut_off` is [`Answer::cut_off`](crate::Answer::cut_off).
///
/// Blocks are matched against `current`, not against each other's results, so their order does not matter. Line endings
/// are those of `current`.
///
/// # Errors
/// With what the model did wrong, to be sent back to it.
pub fn read(answer: &str, cut_off: bool, current: &str, rules: &Rules) -> Result<Edit, Refusal> {
    let answer = if cut_off { None } else { parse::after_thinking(answer) }.ok_or(Refusal::CutOff)?;
    let parsed = parse::parse(answer, rules)?;
    let source = match &parsed.change {
        parse::Change::Blocks(blocks) => apply::blocks(current, blocks)?,
        parse::Change::Whole(lines) => whole(current, lines)?,
    };
    if source == current {
        return Err(Refusal::NoEffect);
    }
    if source.len() > rules.most_bytes {
        return Err(Refusal::TooLarge { bytes: source.len(), most: rules.most_bytes });
    }
    // What shows nothing could hide code from whoever reads the change.
    let old: HashSet<&str> = current.lines().collect();
    if let Some(line) = source.lines().position(|line| line.contains(is_deceptive) && !old.contains(line)) {
        return Err(Refusal::Invisible { line: line + 1 });
    }
    if parsed.hypothesis.is_empty() {
        return Err(Refusal::NoHypothesis);
    }
    Ok(Edit { hypothesis: parsed.hypothesis, expected: parsed.expected, source })
}

fn whole(current: &str, lines: &[&str]) -> Result<String, Refusal> {
    apply::refuse_elision(current, lines)?;
    let ending = apply::line_ending(current);
    let source: String = lines.iter().flat_map(|line| [*line, ending]).collect();
    if (source.len() as f64) < LEAST_WHOLE * current.len() as f64 {
        return Err(Refusal::Excerpt { lines: lines.len(), current: current.lines().count() });
    }
    Ok(source)
}

/// How to answer, for the prompt: the other side of [`read`].
pub fn instructions(rules: &Rules) -> String {
    let Rules { path, most_bytes, format } = rules;
    let start = format!(
        "Answer with a hypothesis, the effect that you expect, and one change of the file `{path}`, in this form:\n\n\
        HYPOTHESIS: one or two sentences: what you change, and why it should help\n\
        EXPECTED: one sentence: what you will see if you are right\n\n"
    );
    let form = match format {
        Format::Blocks => {
            "<<<<<<< SEARCH\nlines of the file as they are now\n=======\nthe lines that replace them\n\
            >>>>>>> REPLACE\n\n\
            As many blocks as the change needs. The SEARCH part is whole lines, copied exactly, with their indentation, and \
            enough of them to occur only once in the file. Every block is matched against the file as it is shown here, \
            not against the result of another block. To insert, repeat a line next to the place in both parts. To delete, \
            leave the REPLACE part empty.\n"
        }
        Format::WholeFile => {
            "```rust\nthe whole file, from its first line to its last\n```\n\n\
            Exactly one such fenced block, and in it all of the file: no part may be left out or replaced by a comment.\n"
        }
    };
    let end = format!(
        "No other file can be changed. The file may have at most {most_bytes} bytes afterwards. What stands outside of \
        these parts is not read."
    );
    start + form + &end
}
