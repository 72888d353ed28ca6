//! How much of each part a question shows: all of it where there is room, and in fixed steps less.

use language_model::estimated_tokens;

use crate::agent::outline::Detail;

/// Tokens below which the table of experiments is not cut for the sake of the rest.
const SHORTEST_HISTORY: u64 = 300;
/// Lines of the incumbent's log, and how many are left without an outline.
const CURVE: usize = 16;
const SHORTEST_CURVE: usize = 4;
/// What begins a section of program.md.
const SECTION: &str = "## ";

/// What a question shows of the parts that may be shortened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Shown<'a> {
    /// Of what a recipe may call.
    pub outline: Detail,
    /// Most tokens of the table of experiments.
    pub history: u64,
    /// Most lines of the incumbent's log.
    pub curve: usize,
    /// Whether the change that is in training is shown, and not only what it tries.
    pub change: bool,
    /// Sections of program.md that are left out, the longest first.
    pub without: Vec<&'a str>,
}

/// From all to least. The recipe, the campaign and the way to answer always stay.
pub(super) fn steps(program: &str, history: u64) -> Vec<Shown<'_>> {
    let mut shown = Shown { outline: Detail::Paragraphs, history, curve: CURVE, change: true, without: Vec::new() };
    let mut steps = vec![shown.clone()];
    for outline in [Detail::Sentences, Detail::Signatures, Detail::Named] {
        shown.outline = outline;
        steps.push(shown.clone());
    }
    while shown.history > SHORTEST_HISTORY {
        shown.history = (shown.history / 2).max(SHORTEST_HISTORY);
        steps.push(shown.clone());
    }
    (shown.outline, shown.curve, shown.change) = (Detail::Nothing, SHORTEST_CURVE, false);
    steps.push(shown.clone());
    let mut sections = sections(program);
    sections.sort_by_key(|section| std::cmp::Reverse(section.len()));
    for section in sections {
        shown.without.push(section);
        steps.push(shown.clone());
    }
    steps
}

impl Shown<'_> {
    /// program.md without what is left out.
    pub fn program(&self, program: &str) -> String {
        self.without.iter().fold(program.to_owned(), |text, section| text.replacen(section, "", 1))
    }

    /// What is not shown, for the model and for the log; empty where all is.
    pub fn left_out(&self, history: u64) -> Vec<String> {
        let mut all = Vec::new();
        match self.outline {
            Detail::Paragraphs => {}
            Detail::Sentences => all.push("the documentation of what a recipe may call behind its first sentence".into()),
            Detail::Signatures => all.push("the documentation of what a recipe may call".into()),
            Detail::Named => all.push(
                "the documentation of what a recipe may call, and the signatures of modules that the file does not name"
                    .into(),
            ),
            Detail::Nothing => all.push("the outline of what a recipe may call: take the file as the example".into()),
        }
        if self.history < history {
            all.push(format!(
                "what of the experiments takes more than {} tokens (of {history} that the campaign allows)",
                self.history
            ));
        }
        if self.curve < CURVE {
            all.push(format!("all but {} lines of the incumbent's log", self.curve));
        }
        all.extend(self.without.iter().map(|section| {
            let title = section.lines().next().unwrap_or_default().trim_start_matches(SECTION);
            format!("the section \"{title}\" of the program ({} tokens)", estimated_tokens(section))
        }));
        all
    }
}

/// The sections of a Markdown text, each with its heading; what comes before the first is none.
fn sections(program: &str) -> Vec<&str> {
    let mut starts: Vec<usize> = program.match_indices(SECTION).map(|(at, _)| at).collect();
    starts.retain(|&at| at == 0 || program[..at].ends_with('\n'));
    let ends = starts.iter().skip(1).copied().chain([program.len()]);
    starts.iter().zip(ends).map(|(&start, end)| &program[start..end]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_go_from_all_to_least_and_name_what_they_leave_out() {
        let program = "# Task\n\nDo.\n\n## Rules\n\nNone. ## no heading\n\n### Deeper\n\n## Ideas\n\nMany, many, many more of them.\n";
        assert_eq!(sections(program).len(), 2);
        let steps = steps(program, 4000);
        assert_eq!(steps[0].program(program), program);
        assert!(steps[0].left_out(4000).is_empty());
        let rooms: Vec<u64> = steps.iter().map(|shown| shown.history).collect();
        assert_eq!(rooms, [4000, 4000, 4000, 4000, 2000, 1000, 500, 300, 300, 300, 300]);
        // Every step leaves out more than the one before, and says so.
        for pair in steps.windows(2) {
            assert_ne!(pair[0].left_out(4000), pair[1].left_out(4000));
        }
        let last = steps.last().expect("steps");
        assert_eq!(last.program(program), "# Task\n\nDo.\n\n");
        let said = last.left_out(4000).join("; ");
        for part in ["the outline", "300 tokens (of 4000", "all but 4 lines", "\"Ideas\"", "\"Rules\""] {
            assert!(said.contains(part), "{part}: {said}");
        }
    }

    #[test]
    fn a_small_history_and_no_program_stay_as_they_are() {
        let steps = steps("", 100);
        assert!(steps.iter().all(|shown| shown.history == 100 && shown.without.is_empty()));
        assert_eq!(steps.len(), 5);
    }
}
