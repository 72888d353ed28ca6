//! Puts blocks into a file. Lines are matched exactly, then without white space at their ends, then with one change of
//! indentation for all of them; each block must match once at the first of these that matches at all.

use std::collections::HashSet;
use std::ops::Range;

use super::nearest;
use super::parse::Block;
use super::refusal::Refusal;
use crate::text::one_line;

/// Most comparisons of two lines in all. A recipe of 500 lines and ten blocks of 20 takes some thousands.
const MOST_COMPARISONS: usize = 10_000_000;
/// Matches that are told of a block that has too many.
const TOLD: usize = 5;
/// Characters that are quoted of a line.
const QUOTED: usize = 120;
/// What a comment says that stands for code.
const ELISIONS: [&str; 10] = [
    "existing",
    "unchanged",
    "rest of",
    "remain",
    "same as",
    "omitted",
    "as before",
    "stays the same",
    "other code",
    "previous code",
];

/// How a block's indentation differs from the file's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Indent<'a> {
    /// The file has this much more.
    Add(&'a str),
    /// The file has this much less.
    Remove(&'a str),
}

/// The file with every block replaced.
pub(super) fn blocks(current: &str, blocks: &[Block]) -> Result<String, Refusal> {
    let lines: Vec<&str> = current.lines().collect();
    let mut left = MOST_COMPARISONS;
    let mut edits: Vec<(Range<usize>, usize, Vec<String>)> = Vec::new();
    for (index, block) in blocks.iter().enumerate() {
        if block.search.iter().all(|line| line.trim().is_empty()) {
            return Err(Refusal::EmptySearch { block: index + 1 });
        }
        refuse_elision(current, &block.replace)?;
        let (start, indent) = find(&lines, index + 1, &block.search, &mut left)?;
        let replacement = block.replace.iter().map(|line| reindent(line, indent)).collect();
        edits.push((start..start + block.search.len(), index + 1, replacement));
    }
    edits.sort_by_key(|(range, ..)| range.start);
    for pair in edits.windows(2) {
        let ((first, one, _), (second, other, _)) = (&pair[0], &pair[1]);
        if second.start < first.end {
            return Err(Refusal::Overlap { first: *one, second: *other });
        }
    }
    Ok(replaced(current, &edits))
}

/// The file with ranges of its lines replaced, in order. Lines outside of them stay as they are, byte for byte.
fn replaced(current: &str, edits: &[(Range<usize>, usize, Vec<String>)]) -> String {
    let ending = line_ending(current);
    let lines: Vec<&str> = current.split_inclusive('\n').collect();
    let mut out = String::with_capacity(current.len() + 1024);
    let mut copied = 0;
    for (range, _, replacement) in edits {
        out.extend(lines[copied..range.start].iter().copied());
        for line in replacement {
            out.push_str(line);
            out.push_str(ending);
        }
        copied = range.end;
    }
    out.extend(lines[copied..].iter().copied());
    // A file without a last line ending keeps that, unless its end was deleted.
    let replaced_end = edits.last().is_some_and(|(range, _, new)| range.end == lines.len() && !new.is_empty());
    if replaced_end && !current.ends_with('\n') {
        out.truncate(out.len() - ending.len());
    }
    out
}

/// What most lines of a file end with.
pub(super) fn line_ending(text: &str) -> &'static str {
    let windows = text.matches("\r\n").count();
    if 2 * windows > text.matches('\n').count() { "\r\n" } else { "\n" }
}

/// The one place at which the lines match.
fn find<'a>(
    lines: &[&'a str],
    block: usize,
    search: &[&'a str],
    left: &mut usize,
) -> Result<(usize, Option<Indent<'a>>), Refusal> {
    let ends: Vec<&str> = lines.iter().map(|line| line.trim_end()).collect();
    let search_ends: Vec<&str> = search.iter().map(|line| line.trim_end()).collect();
    let same = |file: &[&'a str], search: &[&'a str], left: &mut usize| {
        matches(file, search.len(), left, |window, left| same_lines(window, search, left).then_some(None))
    };
    let mut found = same(lines, search, left)?;
    if found.is_empty() {
        found = same(&ends, &search_ends, left)?;
    }
    if found.is_empty() {
        found = matches(&ends, search.len(), left, |window, left| indent_of(window, &search_ends, left).map(Some))?;
    }
    match found[..] {
        [] => Err(Refusal::NotFound { block, nearest: nearest::nearest(lines, search) }),
        [one] => Ok(one),
        _ => Err(Refusal::Ambiguous { block, lines: found.iter().take(TOLD).map(|(start, _)| start + 1).collect() }),
    }
}

/// The first few windows of `length` lines for which `test` gives something.
fn matches<'a, T>(
    lines: &[&'a str],
    length: usize,
    left: &mut usize,
    test: impl Fn(&[&'a str], &mut usize) -> Option<T>,
) -> Result<Vec<(usize, T)>, Refusal> {
    let mut found = Vec::new();
    for (start, window) in lines.windows(length).enumerate() {
        found.extend(test(window, left).map(|value| (start, value)));
        if *left == 0 {
            return Err(Refusal::TooRepetitive);
        }
        if found.len() > TOLD {
            break;
        }
    }
    Ok(found)
}

fn same_lines(window: &[&str], search: &[&str], left: &mut usize) -> bool {
    window.iter().zip(search).all(|(line, wanted)| {
        *left = left.saturating_sub(1);
        line == wanted
    })
}

/// The one change of indentation that makes the search's lines the window's, if there is one. Neither side has white
/// space at the ends of lines; blank lines match blank lines.
fn indent_of<'a>(window: &[&'a str], search: &[&'a str], left: &mut usize) -> Option<Indent<'a>> {
    let mut indent = None;
    for (line, wanted) in window.iter().zip(search) {
        *left = left.saturating_sub(1);
        if line.is_empty() && wanted.is_empty() {
            continue;
        }
        let change = match indent {
            Some(change) => change,
            None if line.len() >= wanted.len() => Indent::Add(blank(line.strip_suffix(wanted)?)?),
            None => Indent::Remove(blank(wanted.strip_suffix(line)?)?),
        };
        let fits = match change {
            Indent::Add(more) => line.strip_prefix(more) == Some(wanted),
            Indent::Remove(less) => wanted.strip_prefix(less) == Some(line),
        };
        if !fits || line.is_empty() || wanted.is_empty() {
            return None;
        }
        indent = Some(change);
    }
    indent
}

fn blank(text: &str) -> Option<&str> {
    text.trim().is_empty().then_some(text)
}

/// A line of the replacement, with the change of indentation that its search part needed.
fn reindent(line: &str, indent: Option<Indent>) -> String {
    match indent.filter(|_| !line.trim().is_empty()) {
        None => line.to_owned(),
        Some(Indent::Add(more)) => format!("{more}{line}"),
        // A line with less than that loses what it has.
        Some(Indent::Remove(less)) => line.strip_prefix(less).unwrap_or_else(|| line.trim_start()).to_owned(),
    }
}

/// Refuses a comment that stands for code, unless the file has that line already.
pub(super) fn refuse_elision(current: &str, lines: &[&str]) -> Result<(), Refusal> {
    let old: HashSet<&str> = current.lines().map(str::trim).filter(|line| is_elision(line)).collect();
    match lines.iter().find(|line| is_elision(line) && !old.contains(line.trim())) {
        Some(line) => Err(Refusal::Elided(one_line(line, QUOTED))),
        None => Ok(()),
    }
}

fn is_elision(line: &str) -> bool {
    let text = line.trim();
    let comment = text.strip_prefix("//").or_else(|| text.strip_prefix("/*"));
    let words = comment.unwrap_or(text).trim_matches(|c: char| c.is_whitespace() || "/*!()[]{}<>".contains(c));
    if !words.contains("...") && !words.contains('…') {
        return false;
    }
    let says_nothing = words.chars().all(|c| matches!(c, '.' | '…' | ' '));
    let lower = words.to_lowercase();
    says_nothing || comment.is_some() && ELISIONS.iter().any(|elision| lower.contains(elision))
}
