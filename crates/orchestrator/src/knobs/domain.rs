//! What values one knob may take, and how they map to the unit interval that samplers work in.
//!
//! Values stay text: the literal as it is written into the recipe.

use std::fmt;

use proc_macro2::{TokenStream, TokenTree};

/// Significant digits of a value drawn from a logarithmic range.
const DIGITS: usize = 3;
/// Values are drawn on a grid of at least this many steps a linear range.
const STEPS: f64 = 100.0;

/// The values that a knob may take.
#[derive(Debug, Clone, PartialEq)]
pub enum Domain {
    /// A range of real numbers, both ends included.
    Float {
        /// Lower end.
        low: f64,
        /// Upper end.
        high: f64,
        /// Whether equal ratios count as equal steps.
        log: bool,
    },
    /// A range of integers, both ends included.
    Integer {
        /// Lower end.
        low: i64,
        /// Upper end.
        high: i64,
        /// Whether equal ratios count as equal steps.
        log: bool,
    },
    /// One of some literals or enum variants, without order.
    Choice(Vec<String>),
}

/// The kinds of value that are told apart, since the compiler would.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Integer,
    Float,
    Bool,
    Text,
    Variant,
}

/// What `read` makes of the tokens of a text that has no brackets: on those the parser recurses, and an annotation may
/// hold any.
fn flat<T>(text: &str, read: impl FnOnce(TokenStream) -> Option<T>) -> Option<T> {
    let tokens = text.parse::<TokenStream>().ok();
    let is_flat = |tokens: &TokenStream| !tokens.clone().into_iter().any(|token| matches!(token, TokenTree::Group(_)));
    let found = tokens.filter(is_flat).and_then(read);
    // The parser keeps every text it has seen for the sake of spans; this process lives for weeks.
    proc_macro2::extra::invalidate_current_thread_spans();
    found
}

/// The kind of a value's text; `None` when it is neither a literal nor a name.
fn kind(text: &str) -> Option<Kind> {
    flat(text, |tokens| match syn::parse2(tokens.clone()) {
        Ok(syn::Lit::Int(_)) => Some(Kind::Integer),
        Ok(syn::Lit::Float(_)) => Some(Kind::Float),
        Ok(syn::Lit::Bool(_)) => Some(Kind::Bool),
        Ok(syn::Lit::Str(_) | syn::Lit::Char(_)) => Some(Kind::Text),
        Ok(_) => None,
        Err(_) => syn::parse2::<syn::Ident>(tokens).is_ok().then_some(Kind::Variant),
    })
}

/// The number that a literal stands for, without underscores and suffix.
fn number(text: &str) -> Option<f64> {
    let (sign, digits) = match text.strip_prefix('-') {
        Some(rest) => (-1.0, rest.trim_start()),
        None => (1.0, text),
    };
    let value: f64 = flat(digits, |tokens| match syn::parse2(tokens).ok()? {
        syn::Lit::Int(lit) => lit.base10_parse().ok(),
        syn::Lit::Float(lit) => lit.base10_parse().ok(),
        _ => None,
    })?;
    (value.is_finite()).then_some(sign * value)
}

impl Domain {
    /// Reads an annotation (without its mark) that stands behind `value`.
    ///
    /// # Errors
    /// What is wrong with it, for people.
    pub(super) fn parse(annotation: &str, value: &str) -> Result<Self, String> {
        let value_kind = kind(value).ok_or_else(|| format!("`{value}` is neither a literal nor an enum value"))?;
        let domain = if annotation.contains('|') {
            Self::parse_choice(annotation, value_kind)?
        } else {
            Self::parse_range(annotation, value_kind)?
        };
        if domain.allows(value) {
            Ok(domain)
        } else {
            Err(format!("the value {value} lies outside of its own annotation, {domain}"))
        }
    }

    fn parse_choice(annotation: &str, value_kind: Kind) -> Result<Self, String> {
        let choices: Vec<String> = annotation.split('|').map(|c| c.trim().to_owned()).collect();
        for (index, choice) in choices.iter().enumerate() {
            if kind(choice) != Some(value_kind) {
                return Err(format!("the choice `{choice}` is not of the value's kind"));
            }
            if choices[..index].contains(choice) {
                return Err(format!("the choice `{choice}` stands there twice"));
            }
        }
        Ok(Self::Choice(choices))
    }

    fn parse_range(annotation: &str, value_kind: Kind) -> Result<Self, String> {
        const FORMS: &str = "write `A..B`, `log A..B` or `X | Y | Z`";
        let (log, range) = match annotation.strip_prefix("log ") {
            Some(rest) => (true, rest.trim()),
            None => (false, annotation),
        };
        let (low_text, high_text) =
            range.split_once("..").ok_or_else(|| format!("`{annotation}` is no range: {FORMS}"))?;
        let (low_text, high_text) = (low_text.trim(), high_text.trim());
        let end = |text| number(text).ok_or_else(|| format!("`{text}` is no number: {FORMS}"));
        let (low, high) = (end(low_text)?, end(high_text)?);
        if low >= high {
            return Err(format!("the range {range} is empty: its lower end comes first"));
        }
        if log && low <= 0.0 {
            return Err(format!("a logarithmic range begins above 0, not at {low_text}"));
        }
        let integers = kind(low_text) == Some(Kind::Integer) && kind(high_text) == Some(Kind::Integer);
        match value_kind {
            Kind::Float => Ok(Self::Float { low, high, log }),
            // Up to 2^53, far beyond any knob, an integer is exact as f64.
            Kind::Integer if integers => Ok(Self::Integer { low: low as i64, high: high as i64, log }),
            Kind::Integer => Err(format!("the value is an integer, but {range} is not: write integer ends")),
            _ => Err(format!("the value is not a number, but {range} is a range: write `X | Y | Z`")),
        }
    }

    /// Whether a value's text may stand there.
    pub fn allows(&self, text: &str) -> bool {
        match self {
            Self::Float { low, high, .. } => {
                kind(text) == Some(Kind::Float) && number(text).is_some_and(|v| (*low..=*high).contains(&v))
            }
            Self::Integer { low, high, .. } => {
                kind(text) == Some(Kind::Integer)
                    && number(text).is_some_and(|v| (*low as f64..=*high as f64).contains(&v))
            }
            Self::Choice(choices) => choices.iter().any(|c| c == text),
        }
    }

    /// Number of choices; `None` for a range.
    pub fn choices(&self) -> Option<usize> {
        match self {
            Self::Choice(choices) => Some(choices.len()),
            _ => None,
        }
    }

    /// The text of the value at `position`: in `0.0..1.0` for a range, the index of a choice otherwise.
    ///
    /// Positions beyond the ends give the ends.
    pub fn at(&self, position: f64) -> String {
        match self {
            Self::Float { low, high, log } => {
                let unit = position.clamp(0.0, 1.0);
                let exact =
                    if *log { (low.ln() + unit * (high.ln() - low.ln())).exp() } else { low + unit * (high - low) };
                let rounded = if *log { significant(exact) } else { on_grid(exact, high - low) };
                float_text(rounded.clamp(*low, *high))
            }
            Self::Integer { low, high, log } => {
                let (start, end) = integer_ends(*low, *high, *log);
                let inner = start + position.clamp(0.0, 1.0) * (end - start);
                let exact = if *log { inner.exp() } else { inner };
                (exact.round() as i64).clamp(*low, *high).to_string()
            }
            Self::Choice(choices) => {
                let index = (position.max(0.0) as usize).min(choices.len().saturating_sub(1));
                choices[index].clone()
            }
        }
    }

    /// The position that [`Domain::at`] has the value for; `None` for a value that is not allowed here.
    pub fn position(&self, text: &str) -> Option<f64> {
        if !self.allows(text) {
            return None;
        }
        match self {
            Self::Float { low, high, log } => {
                let value = number(text)?;
                Some(if *log { (value.ln() - low.ln()) / (high.ln() - low.ln()) } else { (value - low) / (high - low) })
            }
            Self::Integer { low, high, log } => {
                let (start, end) = integer_ends(*low, *high, *log);
                let value = number(text)?;
                Some((if *log { value.ln() } else { value } - start) / (end - start))
            }
            Self::Choice(choices) => choices.iter().position(|c| c == text).map(|index| index as f64),
        }
    }
}

impl fmt::Display for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scale = |log: bool| if log { "log " } else { "" };
        match self {
            Self::Float { low, high, log } => {
                write!(f, "{}{}..{}", scale(*log), float_text(*low), float_text(*high))
            }
            Self::Integer { low, high, log } => write!(f, "{}{low}..{high}", scale(*log)),
            Self::Choice(choices) => f.write_str(&choices.join(" | ")),
        }
    }
}

/// The interval in which every integer has a cell of its own, half a step beyond both ends.
fn integer_ends(low: i64, high: i64, log: bool) -> (f64, f64) {
    let (start, end) = (low as f64 - 0.5, high as f64 + 0.5);
    if log { (start.ln(), end.ln()) } else { (start, end) }
}

/// Rounded to [`DIGITS`] significant digits.
fn significant(value: f64) -> f64 {
    format!("{value:.precision$e}", precision = DIGITS - 1).parse().unwrap_or(value)
}

/// Rounded to the coarsest power of ten that still cuts `width` into [`STEPS`] or more.
fn on_grid(value: f64, width: f64) -> f64 {
    let decimals = (STEPS / width).log10().ceil().max(0.0) as usize;
    // -0 is 0, which has one text.
    format!("{value:.decimals$}").parse().unwrap_or(value) + 0.0
}

/// The shortest float literal, always with a point or an exponent, as rustfmt leaves it.
fn float_text(value: f64) -> String {
    let size = value.abs();
    if size != 0.0 && !(1e-2..1e4).contains(&size) { format!("{value:e}") } else { format!("{value:?}") }
}
