//! Text that documents share, by sequences of 13 words (as GPT-3's appendix C does).
//!
//! Words are runs of letters and digits, lower-cased, so punctuation and spacing make no difference. Documents of fewer
//! words are only caught as whole duplicates, elsewhere.

use std::collections::HashSet;

/// Words in a sequence.
pub const WORDS: usize = 13;

/// The 13-word sequences of some documents, as 64-bit hashes: 8 bytes a word of text.
#[derive(Debug, Default)]
pub struct Sequences(HashSet<u64>);

impl Sequences {
    /// Takes in a document.
    pub fn insert(&mut self, text: &str) {
        self.0.extend(hashes(text));
    }

    /// Whether a document shares a sequence with any of these.
    pub fn shares(&self, text: &str) -> bool {
        !self.0.is_empty() && hashes(text).any(|hash| self.0.contains(&hash))
    }
}

/// Base of the rolling polynomial: any odd number that mixes well.
const BASE: u64 = 0x9e37_79b9_7f4a_7c15;

/// Hash of every 13 words in a row.
pub fn hashes(text: &str) -> impl Iterator<Item = u64> {
    let oldest_weight = (1..WORDS).fold(1u64, |product, _| product.wrapping_mul(BASE));
    let mut window = [0u64; WORDS];
    let mut rolling = 0u64;
    words(text).enumerate().filter_map(move |(i, word)| {
        let slot = i % WORDS;
        rolling = rolling.wrapping_sub(window[slot].wrapping_mul(oldest_weight));
        rolling = rolling.wrapping_mul(BASE).wrapping_add(word);
        window[slot] = word;
        // The polynomial's low bits depend on few words' low bits only; stir before it is used.
        (i + 1 >= WORDS).then(|| stir(rolling))
    })
}

/// The 13 words in a row that have a hash.
pub fn sequence(text: &str, hash: u64) -> Option<String> {
    let at = hashes(text).position(|found| found == hash)?;
    Some(split(text).skip(at).take(WORDS).collect::<Vec<_>>().join(" "))
}

/// The words of a text: runs of letters and digits.
pub(crate) fn split(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty())
}

/// Hash of every word.
fn words(text: &str) -> impl Iterator<Item = u64> {
    split(text).map(|word| {
        let lower = word.chars().flat_map(char::to_lowercase);
        // FNV-1a over code points.
        stir(
            lower.fold(0xcbf2_9ce4_8422_2325, |hash: u64, c| {
                (hash ^ u64::from(u32::from(c))).wrapping_mul(0x100_0000_01b3)
            }),
        )
    })
}

/// SplitMix64's finalizer.
pub(crate) fn stir(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(range: std::ops::Range<u32>) -> String {
        range.map(|i| format!("word{i} ")).collect()
    }

    #[test]
    fn thirteen_words_count_and_twelve_do_not() {
        let mut measured = Sequences::default();
        measured.insert(&text(100..140));
        let around = |inner: &str| format!("{} {inner} {}", text(0..30), text(200..230));
        assert!(measured.shares(&around(&text(110..123))));
        assert!(!measured.shares(&around(&text(110..122))));
        assert!(measured.shares(&around(&text(127..140))), "the last sequence");
        assert!(measured.shares(&text(100..113)), "nothing around it");
    }

    #[test]
    fn case_and_punctuation_make_no_difference() {
        let mut measured = Sequences::default();
        measured.insert("One two, three four: five six. Seven eight nine ten eleven twelve thirteen!");
        assert!(measured.shares("ONE two three four five-six (seven) eight nine ten eleven Twelve thirteen"));
        assert!(!measured.shares("two one three four five six seven eight nine ten eleven twelve thirteen"));
    }

    #[test]
    fn rolling_equals_recomputing() {
        let text = text(0..50);
        let all: Vec<u64> = words(&text).collect();
        let direct: Vec<u64> = all
            .windows(WORDS)
            .map(|w| stir(w.iter().fold(0u64, |h, &x| h.wrapping_mul(BASE).wrapping_add(x))))
            .collect();
        assert_eq!(hashes(&text).collect::<Vec<_>>(), direct);
    }
}
