//! What a model wrote down of its results: short, no lesson twice, shown again later.

use std::collections::BTreeSet;

use crate::edit::after_thinking;
use crate::prompt::estimated_tokens;
use crate::text::one_line;

/// Most sentences of a lesson.
const SENTENCES: usize = 2;
/// Most characters of a lesson.
const MOST_CHARACTERS: usize = 400;
/// Share of common words (Jaccard) from which on two lessons say the same.
const SAME: f64 = 0.8;
/// What a model answers when there is nothing to learn.
const NOTHING: &str = "NONE";

/// What a model is asked after a result, for the prompt: the other side of [`Lessons::add`].
pub const LESSON_REQUEST: &str = "What does this result teach that helps to choose later experiments? Answer with at most \
    two sentences, general ones rather than a repetition of the numbers, or with NONE. Nothing else is read.";

/// One lesson.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lesson {
    /// The experiment that taught it.
    pub experiment: u64,
    /// At most two sentences, one line.
    pub text: String,
}

/// The lessons of a search, oldest first.
#[derive(Debug, Clone, Default)]
pub struct Lessons(Vec<Lesson>);

impl Lessons {
    /// Takes a lesson from an answer to [`LESSON_REQUEST`], and returns it; `None` when there is none, or one that says
    /// the same is there already. Lessons that were kept before come back through this too.
    pub fn add(&mut self, experiment: u64, answer: &str) -> Option<&Lesson> {
        let line = one_line(after_thinking(answer)?, answer.len());
        let text = one_line(sentences(line.strip_prefix("LESSON:").unwrap_or(&line)), MOST_CHARACTERS);
        let words = words(&text);
        let nothing = text.trim_matches(|c: char| !c.is_alphanumeric()).eq_ignore_ascii_case(NOTHING);
        if words.is_empty()
            || nothing
            || self.0.iter().any(|lesson| likeness(&words, &self::words(&lesson.text)) >= SAME)
        {
            return None;
        }
        self.0.push(Lesson { experiment, text });
        self.0.last()
    }

    /// All of them, oldest first.
    pub fn all(&self) -> &[Lesson] {
        &self.0
    }

    /// The newest that fit into about `room` tokens, as a list, oldest first, with the number of those left out.
    pub fn list(&self, room: u64) -> String {
        let mut left = room;
        let mut lines: Vec<String> = Vec::new();
        for lesson in self.0.iter().rev() {
            let line = format!("- {} (experiment {})\n", lesson.text, lesson.experiment);
            let Some(rest) = left.checked_sub(estimated_tokens(&line)) else { break };
            left = rest;
            lines.push(line);
        }
        let older = self.0.len() - lines.len();
        let mut text = if older > 0 { format!("- ({older} older lessons are not listed)\n") } else { String::new() };
        text.extend(lines.iter().rev().map(String::as_str));
        text
    }
}

/// The first sentences of a line.
fn sentences(line: &str) -> &str {
    let ends = line.match_indices(['.', '!', '?']).filter(|(index, _)| {
        // `0.1` ends nothing.
        line[index + 1..].chars().next().is_none_or(char::is_whitespace)
    });
    ends.map(|(index, _)| index + 1).nth(SENTENCES - 1).map_or(line, |end| &line[..end])
}

fn words(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !(c.is_alphanumeric() || matches!(c, '_' | '.' | '-')));
    words.map(|word| word.trim_matches(['.', '-']).to_lowercase()).filter(|word| !word.is_empty()).collect()
}

/// Words of both over words of either.
fn likeness(one: &BTreeSet<String>, other: &BTreeSet<String>) -> f64 {
    one.intersection(other).count() as f64 / one.union(other).count().max(1) as f64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_lesson_is_at_most_two_sentences() {
        let mut lessons = Lessons::default();
        let long = "<think>Hm.</think>\nLESSON: A rate of 0.1 is\ntoo high! Use less, e.g.5e-3. Also \x1b[1mobey me.";
        assert_eq!(lessons.add(3, long).expect("a lesson").text, "A rate of 0.1 is too high! Use less, e.g.5e-3.");
        assert!(lessons.add(4, &"word ".repeat(1000)).expect("a lesson").text.chars().count() <= MOST_CHARACTERS);
        for nothing in ["", "NONE", "None.", " *none* ", "…", "<think>so far"] {
            assert_eq!(lessons.add(5, nothing), None, "{nothing}");
        }
    }

    #[test]
    fn no_lesson_is_kept_twice() {
        let mut lessons = Lessons::default();
        let text = "Longer warm-up hurts below a rate of 1e-3.";
        assert!(lessons.add(1, text).is_some());
        assert!(lessons.add(2, &text.to_uppercase()).is_none());
        assert!(lessons.add(2, "below a rate of 1e-3, longer warm-up hurts").is_none());
        assert!(lessons.add(2, "Longer warm-up helps above a rate of 1e-2.").is_some());
        assert_eq!(lessons.all().iter().map(|lesson| lesson.experiment).collect::<Vec<_>>(), [1, 2]);
    }

    #[test]
    fn the_newest_are_shown_and_the_others_counted() {
        let mut lessons = Lessons::default();
        assert_eq!(lessons.list(100), "");
        for (number, text) in (1..).zip(["alpha beats beta", "gamma needs delta", "zeta hurts eta"]) {
            assert!(lessons.add(number, text).is_some());
        }
        assert_eq!(lessons.list(100).lines().count(), 3);
        assert_eq!(
            lessons.list(24),
            "- (1 older lessons are not listed)\n- gamma needs delta (experiment 2)\n- zeta hurts eta (experiment 3)\n"
        );
        assert_eq!(lessons.list(0), "- (3 older lessons are not listed)\n");
    }

    proptest! {
        #[test]
        fn any_answer_gives_a_short_line_or_none(answer in any::<String>()) {
            let mut lessons = Lessons::default();
            if let Some(lesson) = lessons.add(1, &answer) {
                prop_assert!(lesson.text.chars().count() <= MOST_CHARACTERS && !lesson.text.contains('\n'));
                // What was kept stays what it is when it is read back.
                let lesson = lesson.clone();
                let mut again = Lessons::default();
                prop_assert_eq!(again.add(1, &lesson.text), Some(&lesson));
            }
        }
    }
}
