//! Text of unknown origin made fit for one line, a table or a terminal.

/// Signs of a fence around a text that has none.
const SHORTEST_FENCE: usize = 3;

/// Whether a character shows nothing and can deceive: controls, marks that turn the direction of writing, zero-width
/// characters, and the tag block, in which whole sentences can hide. White space is none of them.
pub(crate) fn is_deceptive(character: char) -> bool {
    let harmless = matches!(character, '\n' | '\t');
    (character.is_control() && !harmless)
        || matches!(character,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
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
        assert_eq!(one_line("abcdef", 6), "abcdef");
        assert_eq!(one_line("abcdefg", 6), "abcde…");
        assert_eq!(one_line("ab cd", 3), "a…");
        assert_eq!(one_line("äöü", 2), "ä…");
        assert_eq!(one_line("a", 0), "");
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
