//! What is sent to a model. Putting its parts together from the state of a search is the caller's.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Bytes of a token where nobody counts them. English has about four and code about three and a half; fewer is dearer,
/// and a cap is better met early than passed.
const BYTES_PER_TOKEN: u64 = 3;

/// Tokens that an endpoint puts around a prompt: roles and marks of its chat template. SmolLM2's takes 20.
const ENVELOPE: u64 = 32;

/// A titled piece of a prompt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Section {
    /// Its heading, one line.
    pub title: String,
    /// Its text, Markdown.
    pub text: String,
}

impl Section {
    /// A section.
    pub fn new(title: impl Into<String>, text: impl Into<String>) -> Self {
        Self { title: title.into(), text: text.into() }
    }

    /// As the model reads it.
    pub(crate) fn render(&self) -> String {
        format!("# {}\n\n{}\n", self.title, self.text.trim_end())
    }
}

/// An answer that did not do, and what the model is told of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Turn {
    /// What the model answered.
    pub answer: String,
    /// Why that did not do.
    pub reply: String,
}

/// One request.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Prompt {
    /// What is the same in every request of a campaign, or changes seldom, most lasting first: endpoints cache it.
    pub stable: Vec<Section>,
    /// What is new each time.
    pub changing: Vec<Section>,
    /// The conversation since, oldest first; empty for a first question.
    pub turns: Vec<Turn>,
}

impl Prompt {
    /// sha256 over all of it, 64 hexadecimal digits: equal prompts have equal ones.
    pub fn sha256(&self) -> String {
        let mut hasher = Sha256::new();
        self.texts(|text| {
            // The length keeps apart what would otherwise run together.
            hasher.update((text.len() as u64).to_le_bytes());
            hasher.update(text);
        });
        hasher.update((self.stable.len() as u64).to_le_bytes());
        hasher.update((self.changing.len() as u64).to_le_bytes());
        hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Estimated tokens of all of it, rather too many than too few.
    pub fn tokens(&self) -> u64 {
        ENVELOPE + estimated_tokens(&self.text())
    }

    /// All of it as one text: for a program that takes a prompt on its input, and for people.
    pub fn text(&self) -> String {
        let mut sections = [self.stable.as_slice(), self.changing.as_slice()].concat();
        for turn in &self.turns {
            sections.push(Section::new("Your earlier answer", turn.answer.as_str()));
            sections.push(Section::new("What is wrong with it", turn.reply.as_str()));
        }
        render(&sections)
    }

    /// Hands every text in it to `each`, in order.
    pub(crate) fn texts(&self, mut each: impl FnMut(&str)) {
        for section in self.stable.iter().chain(&self.changing) {
            each(&section.title);
            each(&section.text);
        }
        for turn in &self.turns {
            each(&turn.answer);
            each(&turn.reply);
        }
    }
}

/// Sections as one text.
pub(crate) fn render(sections: &[Section]) -> String {
    sections.iter().map(Section::render).collect::<Vec<_>>().join("\n")
}

/// Estimated tokens of a text, rather too many than too few.
pub fn estimated_tokens(text: &str) -> u64 {
    (text.len() as u64).div_ceil(BYTES_PER_TOKEN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_tells_every_prompt_from_every_other() {
        let section = Section::new("a", "b");
        let turn = Turn { answer: "a".into(), reply: "b".into() };
        let prompts = [
            Prompt::default(),
            Prompt { stable: vec![section.clone()], ..Prompt::default() },
            Prompt { changing: vec![section], ..Prompt::default() },
            Prompt { stable: vec![Section::new("ab", "")], ..Prompt::default() },
            Prompt { turns: vec![turn], ..Prompt::default() },
        ];
        let hashes: std::collections::BTreeSet<_> = prompts.iter().map(Prompt::sha256).collect();
        assert_eq!(hashes.len(), prompts.len());
        assert!(hashes.iter().all(|hash| hash.len() == 64));
        assert_eq!(prompts[1].sha256(), prompts[1].clone().sha256());
    }

    #[test]
    fn a_prompt_is_one_text_in_the_order_of_its_parts() {
        let prompt = Prompt {
            stable: vec![Section::new("Task", "Lower the loss.\n\n")],
            changing: vec![Section::new("History", "None.")],
            turns: vec![Turn { answer: "x".into(), reply: "It misses.".into() }],
        };
        let expected = "# Task\n\nLower the loss.\n\n# History\n\nNone.\n\n# Your earlier answer\n\nx\n\n\
            # What is wrong with it\n\nIt misses.\n";
        assert_eq!(prompt.text(), expected);
    }

    #[test]
    fn tokens_are_rather_too_many() {
        assert_eq!((estimated_tokens(""), estimated_tokens("a"), estimated_tokens("abcd")), (0, 1, 2));
        let prompt = Prompt { stable: vec![Section::new("abc", "abcdef")], ..Prompt::default() };
        assert_eq!(prompt.tokens(), ENVELOPE + estimated_tokens("# abc\n\nabcdef\n"));
    }
}
