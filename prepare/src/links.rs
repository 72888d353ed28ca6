//! Which documents belong together: those that share 13 words in a row, or have nearly the same title, and those that
//! are linked to them in turn.
//!
//! Titles are nearly the same when they have the same words, whatever their case, accents, punctuation, order and
//! numbers, and what stands in brackets: "Tropical Storm Ana (1979)" and "tropical storm Ana", "League 2004–05" and
//! "League 1998-99". Where a good part of the documents differ by numbers alone ("Chapter 1", "Chapter 2"), that is how
//! the source counts them, and their numbers make a difference.

use std::collections::HashMap;

use tokenizers::normalizers::StripAccents;
use tokenizers::{NormalizedString, Normalizer};

use crate::decontaminate::{WORDS, hashes, sequence, split, stir};

/// Text whose sequences are held at once, in bytes; they take some five times as much memory. More text is read again
/// for each further share of the sequences.
const BYTES_AT_ONCE: u64 = 64 << 20;

/// Share of the documents with one title but for its numbers, above which the numbers tell them apart.
const COUNTED: f64 = 0.2;

/// A document, as far as links are concerned.
#[derive(Debug, Clone, Copy)]
pub struct Linked<'a> {
    /// Its text.
    pub text: &'a str,
    /// Its title, where it has one.
    pub title: Option<Title>,
}

/// What is the same in titles that are nearly the same, as hashes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Title {
    /// Its words, each number being `#`.
    series: u64,
    /// Its words.
    words: u64,
}

/// The group of each document, numbered in the order of their first documents; `document` gives the `count` documents.
pub fn groups<'a>(count: usize, document: impl Fn(usize) -> Linked<'a>) -> Vec<usize> {
    groups_by(count, document, BYTES_AT_ONCE)
}

fn groups_by<'a>(count: usize, document: impl Fn(usize) -> Linked<'a>, bytes_at_once: u64) -> Vec<usize> {
    let bytes: u64 = (0..count).map(|i| document(i).text.len() as u64).sum();
    let passes = bytes / bytes_at_once + 1;
    let mut series: HashMap<u64, usize> = HashMap::new();
    (0..count).filter_map(|i| document(i).title).for_each(|title| *series.entry(title.series).or_default() += 1);
    series.retain(|_, documents| *documents as f64 > COUNTED * count as f64);
    let key_of = |title: Title| if series.contains_key(&title.series) { title.words } else { title.series };
    let mut sets = Sets((0..count).collect());
    for pass in 0..passes {
        let mut first: HashMap<u64, usize> = HashMap::new();
        for i in 0..count {
            let Linked { text, title } = document(i);
            for key in hashes(text).chain(title.map(key_of)).filter(|key| key % passes == pass) {
                sets.join(i, *first.entry(key).or_insert(i));
            }
        }
    }
    let mut numbers = HashMap::new();
    (0..count)
        .map(|i| {
            let next = numbers.len();
            *numbers.entry(sets.root(i)).or_insert(next)
        })
        .collect()
}

/// Disjoint sets: the parent of each member, a root being its own.
struct Sets(Vec<usize>);

impl Sets {
    fn root(&mut self, mut i: usize) -> usize {
        while self.0[i] != i {
            self.0[i] = self.0[self.0[i]];
            i = self.0[i];
        }
        i
    }

    fn join(&mut self, a: usize, b: usize) {
        let (a, b) = (self.root(a), self.root(b));
        self.0[a.max(b)] = a.min(b);
    }
}

impl Title {
    /// None for a title without words.
    pub fn new(title: &str) -> Option<Self> {
        let mut normalized = NormalizedString::from(outside_brackets(title));
        normalized.nfkd().lowercase();
        // It cannot fail, and a title with its accents is still a title.
        let _ = StripAccents.normalize(&mut normalized);
        let words: Vec<String> = split(normalized.get()).map(str::to_owned).collect();
        let series = words.iter().map(|word| without_numbers(word)).collect();
        (!words.is_empty()).then(|| Self { series: hash_of(series), words: hash_of(words) })
    }
}

/// Hash of a set of words: neither their order nor how often they occur makes a difference.
fn hash_of(mut words: Vec<String>) -> u64 {
    words.sort_unstable();
    words.dedup();
    let bytes = words.iter().flat_map(|word| word.bytes().chain([b' ']));
    stir(bytes.fold(TITLES, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)))
}

/// Start of the hashes of titles: FNV's, moved away from that of words.
const TITLES: u64 = !0xcbf2_9ce4_8422_2325;

/// A title without what stands in brackets; all of it when nothing else is there.
fn outside_brackets(title: &str) -> String {
    let mut depth = 0_usize;
    let outside: String = title
        .chars()
        .filter(|c| match c {
            '(' => {
                depth += 1;
                false
            }
            ')' => {
                depth = depth.saturating_sub(1);
                false
            }
            _ => depth == 0,
        })
        .collect();
    if split(&outside).next().is_some() { outside } else { title.to_owned() }
}

/// A word with `#` for each run of digits.
fn without_numbers(word: &str) -> String {
    let mut out = String::new();
    for c in word.chars() {
        match c {
            _ if !c.is_numeric() => out.push(c),
            _ if out.ends_with('#') => {}
            _ => out.push('#'),
        }
    }
    out
}

/// What links most documents of a group, in words.
pub fn reason<'a>(documents: impl Iterator<Item = Linked<'a>> + Clone) -> String {
    let mut counts: HashMap<u64, (usize, bool)> = HashMap::new();
    for Linked { text, title } in documents.clone() {
        let mut keys: Vec<(u64, bool)> = hashes(text).map(|hash| (hash, false)).collect();
        keys.extend(title.map(|title| (title.series, true)));
        keys.sort_unstable();
        keys.dedup();
        for (key, is_title) in keys {
            counts.entry(key).or_insert((0, is_title)).0 += 1;
        }
    }
    let most = counts.into_iter().max_by_key(|&(key, (count, _))| (count, key));
    match most {
        Some((_, (count, true))) => format!("{count} of them have nearly the same title"),
        Some((key, (count, false))) => {
            let words = documents.into_iter().find_map(|document| sequence(document.text, key)).unwrap_or_default();
            format!("{count} of them share the {WORDS} words \"{words}\"")
        }
        None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(range: std::ops::Range<u32>) -> String {
        range.map(|i| format!("word{i} ")).collect()
    }

    fn grouped(texts: &[String], bytes_at_once: u64) -> Vec<usize> {
        groups_by(texts.len(), |i| Linked { text: &texts[i], title: None }, bytes_at_once)
    }

    #[test]
    fn chains_of_shared_sequences_are_one_group() {
        let texts = [
            words(0..20),
            words(100..120),
            words(7..40),
            words(27..60),
            words(101..114),
            words(108..120),
            words(200..250),
        ];
        // 12 shared words (108..120) are no link: 5 has nothing but those.
        let expected = vec![0, 1, 0, 0, 1, 2, 3];
        assert_eq!(grouped(&texts, BYTES_AT_ONCE), expected);
        for bytes_at_once in [50, 100, 300] {
            assert_eq!(grouped(&texts, bytes_at_once), expected, "in several passes");
        }
        let first: Vec<Linked> = [0, 2, 3].iter().map(|&i: &usize| Linked { text: &texts[i], title: None }).collect();
        assert!(reason(first.into_iter()).starts_with("2 of them share the 13 words \"word"));
    }

    #[test]
    fn titles_that_are_nearly_the_same_have_one_key() {
        let series = |title| Title::new(title).map(|title| title.series);
        for (a, b) in [
            ("Low-ionization nuclear emission line region", "Low ionization nuclear emission-line region"),
            ("Sándor Kónya-Hamar", "Konya Hamar Sandor"),
            ("Lara Fabian (1999 album)", "Lara Fabian (2000)"),
            ("Belgian First Division 2004–05", "Belgian First Division 1899"),
            ("Lauren kessler", "Lauren Kessler"),
            ("1999", "2001"),
            ("(What's the Story?)", "what s the story"),
        ] {
            assert_eq!(series(a), series(b), "{a}, {b}");
        }
        for (a, b) in [("Peyton, Colorado", "Redvale, Colorado"), ("Thala", "Thala adamsi"), ("ab c", "a bc")] {
            assert_ne!(series(a), series(b), "{a}, {b}");
        }
        assert_eq!(Title::new(" – "), None);
    }

    #[test]
    fn numbers_count_where_they_tell_the_documents_apart() {
        let groups_of = |titles: &[&str]| {
            let texts: Vec<String> = (0..titles.len() as u32).map(|i| words(10 * i..10 * i + 5)).collect();
            groups(titles.len(), |i| Linked { text: &texts[i], title: Title::new(titles[i]) })
        };
        let others = ["a", "b", "c", "d", "e", "f", "g", "h", "i"];
        assert_eq!(
            groups_of(&[&["Storm 1 (x)"], &others[..], &["storm 2"]].concat()),
            [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0]
        );
        assert_eq!(groups_of(&["Chapter 1", "Chapter 2", "Chapter 3", "chapter 1 (draft)"]), [0, 1, 2, 0]);
    }
}
