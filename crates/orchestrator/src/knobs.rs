//! The knobs of a recipe: fields of one `const` in train.rs that carry their search space in a trailing comment.
//!
//! ```text
//! const SCRATCH: Knobs = Knobs {
//!     learning_rate: 1e-3, // search: log 1e-5..1e-2
//!     batch: 16, // search: log 8..64; sequences a step
//!     warmup: Warmup::Cosine, // search: Linear | Cosine | Exponential
//! };
//! ```
//!
//! An annotation is `A..B`, `log A..B` or `X | Y | Z`; both ends of a range belong to it; a range of integers on an
//! integer literal gives integers; of an enum value only the variant is named; what follows a `;` is for people.
//! Values are replaced in place, so everything else in the file stays as it was, byte for byte.

mod domain;
mod literal;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::ops::Range;

use proc_macro2::{Delimiter, Group, TokenStream, TokenTree};
use sha2::{Digest, Sha256};
use syn::spanned::Spanned;

use crate::parsing::{self, Refusal};

pub use domain::Domain;
pub use literal::set;

/// What marks an annotation inside a comment.
const MARK: &str = "search:";
/// Most bytes of a recipe: about four times what the first one has.
pub const LARGEST_RECIPE: usize = 64 << 10;

/// Why a recipe's knobs could not be read or set.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum KnobError {
    /// The recipe is not Rust, or too long or too deep to be read.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The constant that holds the knobs is missing.
    #[error("there is no `const {name}: … = … {{ … }}` in the recipe: the knobs are looked for in that constant")]
    Missing {
        /// The name looked for.
        name: String,
    },
    /// The constant exists, but is no struct literal.
    #[error("line {line}: `{name}` is not a struct literal; write its knobs as `{name}: T = T {{ knob: value, … }}`")]
    NotLiteral {
        /// Line in the recipe, from 1.
        line: usize,
        /// The constant's name.
        name: String,
    },
    /// An annotation that cannot be understood or does not fit its value.
    #[error("line {line}: `{knob}`: {reason}")]
    Annotation {
        /// Line in the recipe, from 1.
        line: usize,
        /// The field's name, or the text of the comment when there is none.
        knob: String,
        /// What is wrong and what is right.
        reason: String,
    },
    /// A value was to be set that the knob's annotation does not allow.
    #[error("`{value}` is outside of what the recipe's annotation allows for `{knob}`: {domain}")]
    Outside {
        /// The field's name.
        knob: String,
        /// The value's text.
        value: String,
        /// The annotation.
        domain: String,
    },
    /// A value was to be set for a field that is not there.
    #[error("constant {constant} of the recipe has no field `{field}`; it has {known}")]
    NoField {
        /// The constant's name.
        constant: String,
        /// The field looked for.
        field: String,
        /// Those it has.
        known: String,
    },
    /// A value that was to be set is not Rust.
    #[error("`{value}` is no Rust expression for `{knob}`: {message}")]
    NoExpression {
        /// The field's name.
        knob: String,
        /// The value's text.
        value: String,
        /// The parser's reason.
        message: String,
    },
    /// A value was to be set for a field that is no knob.
    #[error("the recipe has no annotated knob `{0}`")]
    Unknown(String),
}

/// One annotated field.
#[derive(Debug, Clone, PartialEq)]
pub struct Knob {
    /// The field's name.
    pub name: String,
    /// What values are allowed.
    pub domain: Domain,
    /// The literal as it stands in the recipe; of an enum value the variant.
    pub value: String,
    /// Line in the recipe, from 1.
    pub line: usize,
    span: Range<usize>,
}

/// The annotated knobs of a recipe, in the order of the file, and the recipe they stand in.
#[derive(Debug, Clone, PartialEq)]
pub struct Space {
    /// The knobs; those without an annotation are not among them.
    pub knobs: Vec<Knob>,
    source: String,
}

/// Reads the annotated fields of the constant `name`.
///
/// # Errors
/// When the recipe does not parse, has no such constant, or an annotation is wrong; with the line.
pub fn parse(source: &str, name: &str) -> Result<Space, KnobError> {
    parsing::deep(|| read(source, name))
}

fn read(source: &str, name: &str) -> Result<Space, KnobError> {
    // Spans count from where the parser starts: behind a byte-order mark.
    let offset = if source.starts_with('\u{feff}') { '\u{feff}'.len_utf8() } else { 0 };
    let file = file(&source[offset..])?;
    let literal = constant(&file, name)?;
    let mut annotated = Vec::new();
    for field in &literal.fields {
        let syn::Member::Named(field_name) = &field.member else { continue };
        let end = field.expr.span().byte_range().end + offset;
        let Some(annotation) = annotation(&source[end..]) else { continue };
        let line = field.expr.span().end().line;
        let span = value_span(&field.expr).map(|span| span.start + offset..span.end + offset);
        annotated.push((field_name.to_string(), annotation, span, line));
    }
    // A comment on a line of its own would otherwise be passed over in silence.
    let (first, last) = (literal.span().start().line, literal.span().end().line);
    for (index, text) in source.lines().enumerate().take(last).skip(first.saturating_sub(1)) {
        let comment = text.trim_start().strip_prefix("//").map(str::trim_start);
        if comment.is_some_and(|c| c.starts_with(MARK)) && annotated.iter().all(|(.., line)| *line != index + 1) {
            return Err(KnobError::Annotation {
                line: index + 1,
                knob: text.trim().to_owned(),
                reason: "an annotation belongs behind its field, on the same line".to_owned(),
            });
        }
    }
    let knob = |(name, annotation, span, line): (String, &str, Option<Range<usize>>, usize)| {
        let error = |reason| KnobError::Annotation { line, knob: name.clone(), reason };
        let span = span.ok_or_else(|| {
            error("only a literal or an enum value can be searched; leave the annotation out".to_owned())
        })?;
        let value = source[span.clone()].to_owned();
        let domain = Domain::parse(annotation, &value).map_err(error)?;
        Ok(Knob { name, domain, value, line, span })
    };
    let knobs = annotated.into_iter().map(knob).collect::<Result<_, KnobError>>()?;
    Ok(Space { knobs, source: source.to_owned() })
}

/// A recipe's tree, for a thread of [`parsing::deep`].
fn file(source: &str) -> Result<syn::File, KnobError> {
    let tokens = parsing::tokens(source, LARGEST_RECIPE)?;
    Ok(syn::parse2(tokens).map_err(Refusal::from)?)
}

/// The struct literal of the constant `name`.
fn constant<'a>(file: &'a syn::File, name: &str) -> Result<&'a syn::ExprStruct, KnobError> {
    let constant = file
        .items
        .iter()
        .find_map(|item| match item {
            syn::Item::Const(item) if item.ident == name => Some(item),
            _ => None,
        })
        .ok_or_else(|| KnobError::Missing { name: name.to_owned() })?;
    match &*constant.expr {
        syn::Expr::Struct(literal) => Ok(literal),
        _ => Err(KnobError::NotLiteral { line: constant.span().start().line, name: name.to_owned() }),
    }
}

impl Space {
    /// The value of every knob as it stands in the recipe.
    pub fn values(&self) -> BTreeMap<String, String> {
        self.knobs.iter().map(|k| (k.name.clone(), k.value.clone())).collect()
    }

    /// The recipe with the given knobs set; the others keep their values.
    ///
    /// # Errors
    /// When a name is no knob or a value lies outside of its annotation.
    pub fn apply(&self, values: &BTreeMap<String, String>) -> Result<String, KnobError> {
        if let Some(name) = values.keys().find(|name| self.knobs.iter().all(|k| k.name != **name)) {
            return Err(KnobError::Unknown(name.clone()));
        }
        let mut out = String::with_capacity(self.source.len() + 64);
        let mut copied = 0;
        for knob in &self.knobs {
            let Some(value) = values.get(&knob.name) else { continue };
            if !knob.domain.allows(value) {
                return Err(KnobError::Outside {
                    knob: knob.name.clone(),
                    value: value.clone(),
                    domain: knob.domain.to_string(),
                });
            }
            out.push_str(&self.source[copied..knob.span.start]);
            out.push_str(value);
            copied = knob.span.end;
        }
        out.push_str(&self.source[copied..]);
        Ok(out)
    }
}

/// sha256 of a recipe's tokens, 64 hexadecimal digits: comments, documentation and formatting do not count.
///
/// # Errors
/// When the recipe does not parse, or is too long or too deep.
pub fn token_hash(source: &str) -> Result<String, KnobError> {
    parsing::deep(|| {
        let tokens = without_docs(parsing::tokens(source, LARGEST_RECIPE)?);
        let file = syn::parse2::<syn::File>(tokens.clone()).map_err(Refusal::from)?;
        // Trailing commas, braces and the spacing of operators have one form once a parsed file is printed again. The
        // printer panics where it does not know a form; then they count.
        let printed = parsing::contained(|| prettyplease::unparse(&file)).unwrap_or_else(|_| tokens.to_string());
        Ok(Sha256::digest(printed).iter().map(|byte| format!("{byte:02x}")).collect())
    })
}

/// Drops `#[doc = …]` and `#![doc = …]`, the form that documentation comments have among the tokens.
fn without_docs(tokens: TokenStream) -> TokenStream {
    let mut out: Vec<TokenTree> = Vec::new();
    for tree in tokens {
        match tree {
            TokenTree::Group(group) if is_doc(&group) => {
                if matches!(out.last(), Some(TokenTree::Punct(p)) if p.as_char() == '!') {
                    out.pop();
                }
                out.pop();
            }
            TokenTree::Group(group) => {
                let inner = Group::new(group.delimiter(), without_docs(group.stream()));
                out.push(TokenTree::Group(inner));
            }
            other => out.push(other),
        }
    }
    out.into_iter().collect()
}

fn is_doc(group: &Group) -> bool {
    let mut tokens = group.stream().into_iter();
    group.delimiter() == Delimiter::Bracket
        && matches!(tokens.next(), Some(TokenTree::Ident(name)) if name == "doc")
        && matches!(tokens.next(), Some(TokenTree::Punct(p)) if p.as_char() == '=')
}

/// The annotation in what follows a field's value on its line, without the mark and without the remark behind `;`.
fn annotation(rest: &str) -> Option<&str> {
    let line = rest.lines().next()?.trim_start();
    let comment = line.strip_prefix(',').unwrap_or(line).trim_start().strip_prefix("//")?;
    let spec = comment.trim_start().strip_prefix(MARK)?;
    Some(spec.split(';').next().unwrap_or(spec).trim())
}

/// Where the text to replace stands: a literal with its sign, or the last segment of a path.
fn value_span(expr: &syn::Expr) -> Option<Range<usize>> {
    match expr {
        syn::Expr::Lit(literal) => Some(literal.span().byte_range()),
        syn::Expr::Unary(unary) if matches!(unary.op, syn::UnOp::Neg(_)) => match &*unary.expr {
            syn::Expr::Lit(literal) => Some(unary.op.span().byte_range().start..literal.span().byte_range().end),
            _ => None,
        },
        syn::Expr::Path(path) => Some(path.path.segments.last()?.ident.span().byte_range()),
        _ => None,
    }
}
