//! Text of unknown origin made fit for one line, a table or a terminal. This is the one cleaner: whatever people see passes
//! [`one_line`], [`cell`] or [`crate::printable`].

use unicode_general_category::{GeneralCategory, get_general_category};

/// Signs of a fence around a text that has none.
const SHORTEST_FENCE: usize = 3;

/// Whether a character shows nothing and can deceive: controls, marks that turn the direction of writing, zero-width and
/// filling characters, and the plane of tags, in which whole sentences can hide. White space is none of them.
pub fn is_deceptive(character: char) -> bool {
    use GeneralCategory::{Control, Format, LineSeparator, ParagraphSeparator};
    if matches!(character, '\n' | '\t') {
        return false;
    }
    matches!(get_general_category(character), Control | Format | LineSeparator | ParagraphSeparator)
        // Letters and marks that have no shape, and tags, assigned or not.
        || matches!(character,
            '\u{34f}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}' | '\u{180b}'..='\u{180f}' | '\u{3164}'
            | '\u{fe00}'..='\u{fe0f}' | '\u{ffa0}' | '\u{e0000}'..='\u{e0fff}')
}

/// The text as one line of at most `most` characters, words apart by one space; `…` stands where it was cut.
pub fn one_line(text: &str, most: usize) -> String {
    let mut line = String::new();
    let mut length = 0;
    // A control character may have stood for a space.
    for word in text.split(|c: char| c.is_whitespace() || c.is_control()) {
        for (index, character) in word.chars().filter(|c| !is_deceptive(*c)).enumerate() {
            let space = index == 0 && length > 0;
            if length + 1 + usize::from(space) > most {
                if line.pop().is_some() {
                    line.push('…');
                }
                return line;
            }
            if space {
                line.push(' ');
                length += 1;
            }
            line.push(character);
            length += 1;
        }
    }
    line
}

/// The text as [`one_line`], for a table that a spreadsheet may open: what would begin a formula there stands behind an
/// apostrophe.
pub fn cell(text: &str, most: usize) -> String {
    let line = one_line(text, most);
    if line.starts_with(['=', '+', '-', '@']) { format!("'{line}") } else { line }
}

/// The longest beginning of a text that has at most `most` bytes and ends between characters.
pub(crate) fn head(text: &str, most: usize) -> &str {
    &text[..text.floor_char_boundary(most)]
}

/// The longest end of a text that has at most `most` bytes and begins between characters.
pub(crate) fn tail(text: &str, most: usize) -> &str {
    &text[text.ceil_char_boundary(text.len().saturating_sub(most))..]
}

/// A text in a fence that no line of it can close.
pub(crate) fn fenced(text: &str, info: &str) -> String {
    let longest = text.split(|c| c != '`').map(str::len).max().unwrap_or_default();
    let fence = "`".repeat(longest.max(SHORTEST_FENCE - 1) + 1);
    format!("{fence}{info}\n{}\n{fence}\n", text.trim_end_matches('\n'))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_line_is_one_line() {
        assert_eq!(one_line(" a\r\n\tb  c\u{7}d ", 99), "a b c d");
        assert_eq!(one_line("a\u{202e}b\u{200b}c\u{e0041}", 99), "abc");
        for hidden in [
            '\u{ad}',
            '\u{180e}',
            '\u{202e}',
            '\u{2066}',
            '\u{3164}',
            '\u{fff9}',
            '\u{1d173}',
            '\u{e0020}',
            '\u{e0fff}',
        ] {
            assert_eq!(one_line(&format!("a{hidden}b"), 99), "ab", "{hidden:?}");
        }
        assert_eq!(one_line("→ λ₁ × naïve 模型", 99), "→ λ₁ × naïve 模型");
        assert_eq!(one_line("abcdef", 6), "abcdef");
        assert_eq!(one_line("abcdefg", 6), "abcde…");
        assert_eq!(one_line("ab cd", 3), "a…");
        assert_eq!(one_line("äöü", 2), "ä…");
        assert_eq!(one_line("a", 0), "");
    }

    #[test]
    fn a_cell_is_no_formula() {
        assert_eq!(cell("=HYPERLINK(\"x\")", 99), "'=HYPERLINK(\"x\")");
        assert_eq!(cell(" \u{202e}+1", 99), "'+1");
        assert_eq!(cell("learning_rate 1e-3 → 2e-3", 99), "learning_rate 1e-3 → 2e-3");
    }

    #[test]
    fn cuts_fall_between_characters() {
        assert_eq!((head("aé", 2), tail("éa", 2)), ("a", "a"));
        assert_eq!((head("aé", 9), tail("éa", 9)), ("aé", "éa"));
    }

    #[test]
    fn a_fence_is_longer_than_any_in_the_text() {
        assert_eq!(fenced("a\n", "rust"), "```rust\na\n```\n");
        assert_eq!(fenced("`a``\n````\nb", ""), "`````\n`a``\n````\nb\n`````\n");
    }

    proptest! {
        #[test]
        fn no_line_is_longer_than_it_may_be(text in any::<String>(), most in 0usize..40) {
            let line = one_line(&text, most);
            prop_assert!(line.chars().count() <= most);
            prop_assert!(!line.chars().any(|c| is_deceptive(c) || c == '\n' || c == '\t'));
        }
    }
}
