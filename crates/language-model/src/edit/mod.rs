//! Turns an answer into an edited file: a hypothesis, its expected effect, and SEARCH/REPLACE blocks or the whole file.
//! What a program did to the file itself is put into the same words ([`in_place`]).
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

use crate::text::{fenced, is_deceptive, one_line};

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
    /// By a change of the file itself, for programs that work in a folder; [`in_place`] makes the answer. Blocks are
    /// understood as well.
    InPlace,
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
        // Whoever edits a file leaves nothing out of it.
        parse::Change::Whole(lines) if rules.format == Format::InPlace => joined(current, lines),
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
    let source = joined(current, lines);
    if (source.len() as f64) < LEAST_WHOLE * current.len() as f64 {
        return Err(Refusal::Excerpt { lines: lines.len(), current: current.lines().count() });
    }
    Ok(source)
}

fn joined(current: &str, lines: &[&str]) -> String {
    let ending = apply::line_ending(current);
    lines.iter().flat_map(|line| [*line, ending]).collect()
}

/// The answer of a program that changed the file itself to `source` and `said` something, as [`read`] takes it. Where it
/// labelled no hypothesis, the first line that it said is one.
pub fn in_place(said: &str, source: &str, rules: &Rules) -> String {
    let said = parse::after_thinking(said).unwrap_or_default();
    let (mut hypothesis, expected) = parse::labels(said, rules);
    if hypothesis.is_empty() {
        let words = |line: &str| one_line(line.trim_start_matches(['#', '*', '-', '>', '`', ' ']), said.len());
        hypothesis = said.lines().map(words).find(|line| !line.is_empty()).unwrap_or_default();
    }
    let file = fenced(source, &format!("rust:{}", rules.path));
    format!("HYPOTHESIS: {hypothesis}\nEXPECTED: {expected}\n\n{file}")
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
        Format::InPlace => return in_place_instructions(rules),
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

fn in_place_instructions(Rules { path, most_bytes, .. }: &Rules) -> String {
    format!(
        "Change the file `{path}` in the folder that you were started in, directly. The folder is a throw-away copy of \
        the repository: read in it what helps; when you end, this one file is taken back and all else is forgotten. \
        The file in it is always the one shown here, also after an earlier answer of yours, so make the whole change \
        again when you are told what was wrong with it.\n\n\
        Do not compile, run or test anything: there is no toolchain, and a measurement runs beside you that every \
        busy core would spoil. What does not build comes back to you with the compiler's words.\n\n\
        End with a message that holds these two lines:\n\n\
        HYPOTHESIS: one or two sentences: what you changed, and why it should help\n\
        EXPECTED: one sentence: what will be seen if you are right\n\n\
        The file may have at most {most_bytes} bytes afterwards. Nobody answers questions; decide for yourself."
    )
}
