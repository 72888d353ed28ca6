//! How much of an outline is shown: a prompt is paid by its size, and some models read little.

/// What is said of each item.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detail {
    /// Signatures, the first paragraph of the documentation, errors and panics.
    Paragraphs,
    /// Signatures and the first sentence of the documentation.
    Sentences,
    /// Signatures.
    Signatures,
    /// Signatures, of the modules that a recipe names.
    Named,
    /// Nothing at all.
    Nothing,
}

/// What a recipe may call, by module.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Outline(pub(super) Vec<Part>);

/// A module of an outline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Part {
    /// Its path with the crate's name: `ternary::weight`.
    pub path: String,
    /// What it is for, a paragraph in one line.
    pub head: Option<String>,
    /// Its items. Each paragraph of their documentation is a line.
    pub code: String,
}

impl Outline {
    /// The outline in Markdown; `recipe` is the text whose modules count as named.
    pub fn text(&self, detail: Detail, recipe: &str) -> String {
        let is_shown = |part: &&Part| match detail {
            Detail::Nothing => false,
            Detail::Named => names(recipe, &part.path),
            _ => true,
        };
        self.0.iter().filter(is_shown).map(|part| part.text(detail)).collect()
    }
}

impl Part {
    fn text(&self, detail: Detail) -> String {
        let head = match (&self.head, detail) {
            (Some(head), Detail::Paragraphs) => format!("{head}\n\n"),
            (Some(head), Detail::Sentences) => format!("{}\n\n", first_sentence(head)),
            _ => String::new(),
        };
        let mut code = String::with_capacity(self.code.len());
        let mut documented = false;
        for line in self.code.lines() {
            let is_documentation = line.trim_start().starts_with("///");
            let line = match detail {
                Detail::Paragraphs => line,
                _ if !is_documentation => line,
                // What follows a first line is of errors and panics.
                Detail::Sentences if !documented => first_sentence(line),
                _ => continue,
            };
            documented = is_documentation;
            code.push_str(line);
            code.push('\n');
        }
        format!("## {}\n\n{head}```rust\n{code}```\n\n", self.path)
    }
}

/// Up to the first full stop that a capital follows; code and abbreviations go on in small letters.
fn first_sentence(text: &str) -> &str {
    let end = text.match_indices(". ").find(|(at, _)| text[at + 2..].starts_with(char::is_uppercase));
    end.map_or(text, |(at, _)| &text[..=at])
}

/// Whether some path of a recipe goes through the module: its last name followed by `::`.
fn names(recipe: &str, path: &str) -> bool {
    let name = path.rsplit("::").next().unwrap_or(path);
    let of_a_word = |c: char| c.is_alphanumeric() || c == '_';
    recipe
        .match_indices(name)
        .any(|(at, _)| !recipe[..at].ends_with(of_a_word) && recipe[at + name.len()..].starts_with("::"))
}
