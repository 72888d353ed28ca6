//! The lines of a file that a SEARCH part may have meant, to be shown to the model that missed.

use std::collections::HashMap;

/// Lines that are shown before and after.
const CONTEXT: usize = 2;
/// Most lines that are shown.
const MOST_LINES: usize = 40;
/// Most bytes that are shown.
const MOST_BYTES: usize = 4096;
/// Places that one line votes for: beyond it a line says nothing (`}`).
const MOST_PLACES: usize = 32;
/// Lines of the search that are compared by their letters when none is in the file.
const COMPARED: usize = 3;
/// Longest lines that are compared so, bytes.
const LONGEST: usize = 400;
/// Share of letter pairs (Sørensen–Dice) from which on two lines are alike.
const ALIKE: f64 = 0.5;

/// Successive lines of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Excerpt {
    /// Number of the first, from 1.
    pub first_line: usize,
    /// The lines, never none.
    pub lines: Vec<String>,
}

/// The lines most like the search, when any are.
pub(super) fn nearest(lines: &[&str], search: &[&str]) -> Option<Excerpt> {
    let start = by_equal_lines(lines, search).or_else(|| by_letters(lines, search))?;
    let first = start.saturating_sub(CONTEXT);
    let end = start.saturating_add(search.len()).saturating_add(CONTEXT).min(lines.len());
    let mut bytes = 0;
    let shown = lines.get(first..end)?.iter().take(MOST_LINES).take_while(|line| {
        bytes += line.len();
        bytes <= MOST_BYTES
    });
    let lines: Vec<String> = shown.map(|line| (*line).to_owned()).collect();
    (!lines.is_empty()).then_some(Excerpt { first_line: first + 1, lines })
}

/// Where the search would begin if most of its text stood where it stands in the file.
fn by_equal_lines(lines: &[&str], search: &[&str]) -> Option<usize> {
    let mut places: HashMap<&str, Vec<usize>> = HashMap::new();
    for (index, line) in lines.iter().enumerate() {
        let places = places.entry(line.trim()).or_default();
        if places.len() < MOST_PLACES {
            places.push(index);
        }
    }
    let mut votes: HashMap<usize, usize> = HashMap::new();
    for (offset, line) in search.iter().enumerate() {
        let line = line.trim();
        for place in places.get(line).into_iter().flatten() {
            // Long lines say more.
            *votes.entry(place.saturating_sub(offset)).or_default() += line.len();
        }
    }
    let best = votes.into_iter().filter(|(_, weight)| *weight > 0);
    best.max_by_key(|(start, weight)| (*weight, usize::MAX - start)).map(|(start, _)| start)
}

/// Where the search would begin if its longest lines stood at those of the file that look most like them.
fn by_letters(lines: &[&str], search: &[&str]) -> Option<usize> {
    let mut wanted: Vec<(usize, &str)> = search.iter().map(|line| line.trim()).enumerate().collect();
    wanted.retain(|(_, line)| !line.is_empty() && line.len() <= LONGEST);
    wanted.sort_by_key(|(offset, line)| (usize::MAX - line.len(), *offset));
    let mut best = (ALIKE, None);
    for (offset, wanted) in wanted.into_iter().take(COMPARED) {
        for (index, line) in lines.iter().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.len() > LONGEST {
                continue;
            }
            let likeness = strsim::sorensen_dice(wanted, line);
            if likeness > best.0 {
                best = (likeness, Some(index.saturating_sub(offset)));
            }
        }
    }
    best.1
}
