//! Finds the parts of an answer: labels, blocks, the fenced file. What it finds is not yet compared with any file.

use super::{Format, Refusal, Rules};
use crate::text::one_line;

/// Most blocks of an answer.
const MOST_BLOCKS: usize = 64;
/// Most characters of the hypothesis and of the expected effect; they become a row of a table.
const MOST_CHARACTERS: usize = 600;
/// How many signs make a mark: models miscount, by a little.
const SIGNS: std::ops::RangeInclusive<usize> = 5..=9;
/// Fewest signs of a fence.
const FENCE: usize = 3;
/// What a model may write before a path.
const PATH_LABELS: [&str; 3] = ["FILE:", "File:", "file:"];
/// Endings that make a word without slashes a file's name.
const EXTENSIONS: [&str; 12] = ["rs", "toml", "lock", "md", "txt", "json", "py", "sh", "c", "h", "cpp", "cu"];

/// The parts of an answer.
#[derive(Debug)]
pub(super) struct Parsed<'a> {
    pub hypothesis: String,
    pub expected: String,
    pub change: Change<'a>,
}

/// What is to be changed.
#[derive(Debug)]
pub(super) enum Change<'a> {
    /// At least one.
    Blocks(Vec<Block<'a>>),
    /// The lines of the whole file.
    Whole(Vec<&'a str>),
}

/// Lines to search for and lines to put in their place, without line endings.
#[derive(Debug, Default)]
pub(super) struct Block<'a> {
    /// Line of the answer on which it begins, from 1.
    pub line: usize,
    pub search: Vec<&'a str>,
    pub replace: Vec<&'a str>,
}

/// A line that means something.
enum Mark<'a> {
    /// With what follows it on the line.
    Search(&'a str),
    Divider,
    Replace,
}

/// Which part of a block is being read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Search,
    Replace,
}

/// Which label the prose belongs to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Label {
    Hypothesis,
    Expected,
}

/// A fenced block outside of any SEARCH/REPLACE block.
struct Fence<'a> {
    sign: char,
    length: usize,
    lines: Vec<&'a str>,
    /// What stands beside and before it, which may name a file.
    names: [&'a str; 2],
    /// Whether there are SEARCH/REPLACE blocks in it, so that it is mere packing.
    packing: bool,
}

/// What follows a model's thinking, where a server leaves that in the text. `None` when nothing does.
pub(crate) fn after_thinking(answer: &str) -> Option<&str> {
    match answer.rsplit_once("</think>") {
        Some((_, rest)) => Some(rest),
        None => (!answer.trim_start().starts_with("<think>")).then_some(answer),
    }
}

pub(super) fn parse<'a>(answer: &'a str, rules: &Rules) -> Result<Parsed<'a>, Refusal> {
    let mut reader = Reader::new(rules);
    for (index, line) in answer.lines().enumerate() {
        reader.line(index + 1, line)?;
    }
    reader.finish()
}

/// The hypothesis and the expected effect of a message, as far as they are labelled.
pub(super) fn labels(message: &str, rules: &Rules) -> (String, String) {
    let mut reader = Reader::new(rules);
    for line in message.lines() {
        // Whatever else it says, it changes nothing.
        let _ = reader.prose(line);
    }
    (reader.hypothesis, reader.expected)
}

struct Reader<'a, 'r> {
    rules: &'r Rules<'r>,
    hypothesis: String,
    expected: String,
    /// The label that the next line of prose would continue.
    label: Option<Label>,
    blocks: Vec<Block<'a>>,
    /// The block that is open.
    open: Option<(Block<'a>, Part)>,
    fence: Option<Fence<'a>>,
    /// Complete fenced blocks that hold no SEARCH/REPLACE block.
    files: Vec<Fence<'a>>,
    /// The last line of prose, which may name a file.
    last: &'a str,
}

impl<'a, 'r> Reader<'a, 'r> {
    fn new(rules: &'r Rules<'r>) -> Self {
        Self {
            rules,
            hypothesis: String::new(),
            expected: String::new(),
            label: None,
            blocks: Vec::new(),
            open: None,
            fence: None,
            files: Vec::new(),
            last: "",
        }
    }

    fn line(&mut self, number: usize, line: &'a str) -> Result<(), Refusal> {
        let Some((mut block, part)) = self.open.take() else { return self.outside(number, line) };
        let unfinished = |missing| Err(Refusal::Unfinished { block: self.blocks.len() + 1, line: block.line, missing });
        self.open = Some(match (mark(line), part) {
            (Some(Mark::Divider), Part::Search) => (block, Part::Replace),
            (Some(Mark::Replace), Part::Replace) => {
                self.blocks.push(block);
                if self.blocks.len() > MOST_BLOCKS {
                    return Err(Refusal::TooManyBlocks(MOST_BLOCKS));
                }
                return Ok(());
            }
            (Some(_), Part::Search) => return unfinished("======="),
            (Some(_), Part::Replace) => return unfinished(">>>>>>> REPLACE"),
            (None, Part::Search) => {
                block.search.push(line);
                (block, part)
            }
            (None, Part::Replace) => {
                block.replace.push(line);
                (block, part)
            }
        });
        Ok(())
    }

    /// A line outside of every block.
    fn outside(&mut self, number: usize, line: &'a str) -> Result<(), Refusal> {
        match (mark(line), self.fence.take()) {
            (Some(Mark::Search(rest)), fence) => {
                let names = fence.as_ref().map_or([""; 2], |fence| fence.names);
                [rest, self.last].iter().chain(&names).try_for_each(|name| self.check_path(name))?;
                (self.last, self.label) = ("", None);
                self.fence = fence.map(|fence| Fence { packing: true, ..fence });
                self.open = Some((Block { line: number, ..Block::default() }, Part::Search));
            }
            (Some(Mark::Replace), _) => return Err(Refusal::StrayMark { line: number, mark: ">>>>>>> REPLACE" }),
            // A row of `=` also underlines headings.
            (Some(Mark::Divider) | None, Some(fence)) if closes(line, &fence) => {
                (self.last, self.label) = ("", None);
                if !fence.packing {
                    self.files.push(fence);
                }
            }
            (Some(Mark::Divider) | None, Some(mut fence)) => {
                fence.lines.push(line);
                self.fence = Some(fence);
                // Some models pack all of their answer.
                if self.rules.format == Format::Blocks {
                    self.prose(line)?;
                }
            }
            (Some(Mark::Divider) | None, None) => match fence_of(line) {
                Some((sign, length, info)) => {
                    // Both `rust:src/x.rs` and a bare path are in use.
                    let path = info.rsplit_once(':').map_or(info, |(_, path)| path);
                    self.fence =
                        Some(Fence { sign, length, lines: Vec::new(), names: [path, self.last], packing: false });
                    self.label = None;
                }
                None => self.prose(line)?,
            },
        }
        Ok(())
    }

    fn prose(&mut self, line: &'a str) -> Result<(), Refusal> {
        let text = line.trim();
        if text.is_empty() {
            // A paragraph ends, but a heading may stand apart from its text.
            if self.label.is_some_and(|label| !self.text(label).is_empty()) {
                self.label = None;
            }
            return Ok(());
        }
        self.last = line;
        if let Some((label, rest)) = label(text) {
            // The first one counts: a second is an afterthought about something else.
            self.label = self.text(label).is_empty().then_some(label);
            self.add(rest);
        } else if PATH_LABELS.iter().any(|label| text.starts_with(label)) {
            self.check_path(text)?;
            self.label = None;
        } else {
            self.add(text);
        }
        Ok(())
    }

    fn text(&mut self, label: Label) -> &mut String {
        match label {
            Label::Hypothesis => &mut self.hypothesis,
            Label::Expected => &mut self.expected,
        }
    }

    /// Adds to the labelled text; prose without a label is not kept.
    fn add(&mut self, words: &str) {
        let Some(label) = self.label else { return };
        let text = self.text(label);
        let joined = one_line(&format!("{text} {words}"), MOST_CHARACTERS);
        *text = joined;
    }

    /// Refuses a text that is the path of another file; most are no paths.
    fn check_path(&self, text: &str) -> Result<(), Refusal> {
        match path_in(text) {
            Some(named) if !is_same_file(named, self.rules.path) => {
                Err(Refusal::OtherFile { named: one_line(named, MOST_CHARACTERS), path: self.rules.path.to_owned() })
            }
            _ => Ok(()),
        }
    }

    fn finish(mut self) -> Result<Parsed<'a>, Refusal> {
        if let Some((block, part)) = self.open.take() {
            let missing = if part == Part::Search { "=======" } else { ">>>>>>> REPLACE" };
            return Err(Refusal::Unfinished { block: self.blocks.len() + 1, line: block.line, missing });
        }
        let change = match (self.blocks.is_empty(), self.rules.format) {
            (false, _) => Change::Blocks(std::mem::take(&mut self.blocks)),
            (true, Format::Blocks) => return Err(Refusal::NoBlock),
            (true, Format::InPlace) => {
                // Messages quote code; the file is the one block that names it.
                let path = self.rules.path;
                self.files.retain(|file| path_in(file.names[0]).is_some_and(|named| is_same_file(named, path)));
                let file = self.files.pop().ok_or_else(|| Refusal::Untouched { path: path.to_owned() })?;
                Change::Whole(file.lines)
            }
            (true, Format::WholeFile) if self.fence.is_some() => return Err(Refusal::Truncated),
            (true, Format::WholeFile) => match (self.files.pop(), self.files.len()) {
                (Some(file), 0) => {
                    file.names.iter().try_for_each(|name| self.check_path(name))?;
                    Change::Whole(file.lines)
                }
                (file, others) => return Err(Refusal::NotOneFile(others + usize::from(file.is_some()))),
            },
        };
        Ok(Parsed { hypothesis: self.hypothesis, expected: self.expected, change })
    }
}

fn mark(line: &str) -> Option<Mark<'_>> {
    let sign = line.chars().next().filter(|sign| "<=>".contains(*sign))?;
    let rest = line.trim_start_matches(sign);
    if !SIGNS.contains(&(line.len() - rest.len())) {
        return None;
    }
    let rest = rest.trim();
    match sign {
        '<' => rest.strip_prefix("SEARCH").map(|rest| Mark::Search(rest.trim())),
        '=' => rest.is_empty().then_some(Mark::Divider),
        _ => (rest == "REPLACE").then_some(Mark::Replace),
    }
}

/// The sign, the length and the rest of a line that opens a fence.
fn fence_of(line: &str) -> Option<(char, usize, &str)> {
    let line = line.trim();
    let sign = line.chars().next().filter(|sign| matches!(sign, '`' | '~'))?;
    let info = line.trim_start_matches(sign);
    let length = line.len() - info.len();
    (length >= FENCE && !info.contains(sign)).then(|| (sign, length, info.trim()))
}

fn closes(line: &str, fence: &Fence) -> bool {
    fence_of(line).is_some_and(|(sign, length, info)| sign == fence.sign && length >= fence.length && info.is_empty())
}

/// A label at the beginning of a line, whatever emphasis it has, and what follows it.
fn label(text: &str) -> Option<(Label, &str)> {
    let text = text.trim_start_matches(['#', '*', '_', '-', '>', ' ']);
    let labels =
        [("hypothesis", Label::Hypothesis), ("expected effect", Label::Expected), ("expected", Label::Expected)];
    labels.into_iter().find_map(|(name, label)| {
        let (_, rest) = text.split_at_checked(name.len()).filter(|(head, _)| head.eq_ignore_ascii_case(name))?;
        let after = rest.trim_start_matches(['*', '_', ' ']);
        // `Expected losses fall` is a sentence; a heading of one word is not.
        let rest = if after.is_empty() { "" } else { after.strip_prefix(':')? };
        Some((label, rest.trim_start_matches(['*', '_', ' '])))
    })
}

/// The path that a line consists of, if it consists of one.
fn path_in(text: &str) -> Option<&str> {
    let text = text.trim();
    let text = PATH_LABELS.iter().find_map(|label| text.strip_prefix(label)).unwrap_or(text);
    let bare = text.trim_matches(|c: char| c.is_whitespace() || "`*#'\"():".contains(c));
    let plain = |c: char| c.is_alphanumeric() || "/\\._-+@~".contains(c);
    let is_name = bare.rsplit_once('.').is_some_and(|(_, extension)| EXTENSIONS.contains(&extension));
    let is_path = is_name || bare.contains(['/', '\\']);
    (is_path && bare.contains(char::is_alphanumeric) && bare.chars().all(plain)).then_some(bare)
}

/// Whether a path means the file, written shorter or longer. Nothing is opened by it.
fn is_same_file(named: &str, path: &str) -> bool {
    let named = named.replace('\\', "/");
    let mut named: Vec<&str> = named.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
    // Diffs put a letter in front.
    if matches!(named.first(), Some(&"a" | &"b")) && named.len() > 1 {
        named.remove(0);
    }
    let path: Vec<&str> = path.split('/').collect();
    path.ends_with(&named) || named.ends_with(&path)
}
