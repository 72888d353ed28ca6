//! Why an edit was refused, in words for the model that proposed it.

use super::Excerpt;
use crate::text::fenced;

/// Why an answer gives no edit. The message is written for the model; it quotes the file, and the model's own words.
/// Blocks are counted from 1.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The answer ended too early.
    #[error("Your answer was cut off before its end. Think and write less: propose a smaller change.")]
    CutOff,
    /// There is no hypothesis.
    #[error("Your answer has no hypothesis. Begin with a line `HYPOTHESIS: …` that says what you change and why.")]
    NoHypothesis,
    /// There is no block.
    #[error(
        "Your answer changes nothing: it has no SEARCH/REPLACE block. Give at least one: a line `<<<<<<< SEARCH`, lines \
        of the file, a line `=======`, the new lines, a line `>>>>>>> REPLACE`."
    )]
    NoBlock,
    /// There is no whole file, or there are several.
    #[error("Your answer has {0} fenced blocks. Give exactly one, between ``` and ```, with all of the file in it.")]
    NotOneFile(usize),
    /// The file was to be changed in place, and was not.
    #[error("You did not change `{path}`. Change that file itself, in the folder that you are started in.")]
    Untouched {
        /// The file.
        path: String,
    },
    /// The fence around the whole file is not closed.
    #[error("The file in your answer is truncated: its fence is never closed. Give all of the file, or change less.")]
    Truncated,
    /// The whole file is much shorter than before.
    #[error(
        "The file in your answer has {lines} lines and the current one has {current}: it looks like an excerpt. Give all \
        of the file, from its first line to its last."
    )]
    Excerpt {
        /// Lines given.
        lines: usize,
        /// Lines of the current file.
        current: usize,
    },
    /// A block without its end.
    #[error(
        "Block {block} (line {line} of your answer) is not finished: the line `{missing}` is missing. A block is \
        `<<<<<<< SEARCH`, old lines, `=======`, new lines, `>>>>>>> REPLACE`, each mark on a line of its own."
    )]
    Unfinished {
        /// Which block.
        block: usize,
        /// Line of the answer on which it begins.
        line: usize,
        /// The mark that should have come.
        missing: &'static str,
    },
    /// A mark where none belongs.
    #[error("Line {line} of your answer is `{mark}`, but no block is open there that it could belong to.")]
    StrayMark {
        /// Line of the answer.
        line: usize,
        /// The mark.
        mark: &'static str,
    },
    /// An edit of another file.
    #[error("Your answer names the file `{named}`. Only `{path}` can be changed; express your idea in that file.")]
    OtherFile {
        /// What was named.
        named: String,
        /// The one that may be edited.
        path: String,
    },
    /// Too many blocks.
    #[error("Your answer has more than {0} blocks. Propose one idea, with fewer and larger blocks.")]
    TooManyBlocks(usize),
    /// Nothing to search for.
    #[error("The SEARCH part of block {block} is empty. To insert, repeat a line next to the place in both parts.")]
    EmptySearch {
        /// Which block.
        block: usize,
    },
    /// No match.
    #[error(
        "The SEARCH part of block {block} does not occur in the file.{}\nCopy the lines to be replaced exactly from the \
        file as it was shown.",
        shown(.nearest)
    )]
    NotFound {
        /// Which block.
        block: usize,
        /// What it may have meant.
        nearest: Option<Excerpt>,
    },
    /// More than one match.
    #[error(
        "The SEARCH part of block {block} occurs more than once in the file, on lines {}. Add lines before or after it \
        until it occurs once.",
        joined(.lines)
    )]
    Ambiguous {
        /// Which block.
        block: usize,
        /// Lines of the file on which the first few matches begin.
        lines: Vec<usize>,
    },
    /// Two blocks replace the same lines.
    #[error("Blocks {first} and {second} replace the same lines of the file. Join them into one block.")]
    Overlap {
        /// The one that comes first in the file.
        first: usize,
        /// The other.
        second: usize,
    },
    /// The search would take too long.
    #[error("The SEARCH parts repeat themselves too much to be searched for. Quote fewer, more distinctive lines.")]
    TooRepetitive,
    /// A comment in the place of code.
    #[error(
        "`{0}` in your answer stands for code that you left out. Every line that you write is taken as it is, so that code \
        would be lost. Write it in full."
    )]
    Elided(String),
    /// The file stays as it is.
    #[error("Your change leaves the file exactly as it is. Propose one that changes something.")]
    NoEffect,
    /// The file becomes too large.
    #[error("The file would have {bytes} bytes with your change, and {most} is the limit. Make it simpler.")]
    TooLarge {
        /// Bytes that it would have.
        bytes: usize,
        /// Bytes that it may have.
        most: usize,
    },
    /// A control character or the like.
    #[error(
        "Line {line} of the changed file has a character that shows nothing. Write it as an escape, or leave it out."
    )]
    Invisible {
        /// Line of the file as it would be.
        line: usize,
    },
}

fn shown(excerpt: &Option<Excerpt>) -> String {
    excerpt.as_ref().map_or_else(String::new, |excerpt| {
        let (first, last) = (excerpt.first_line, excerpt.first_line + excerpt.lines.len() - 1);
        format!(" The nearest lines, {first} to {last}, are:\n{}", fenced(&excerpt.lines.join("\n"), "").trim_end())
    })
}

fn joined(lines: &[usize]) -> String {
    lines.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
