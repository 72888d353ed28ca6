//! Where Rust text that others wrote is parsed: its length and depth are checked first, then all that walks its tree runs
//! on a thread whose stack holds the deepest one that was let through, and a panic there is one refused text.
//!
//! The parser, the printer and the tree's own destructor recurse. A stack that overflows ends the process, at every start
//! again, and cannot be caught.

use std::any::Any;
use std::cell::Cell;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Once;
use std::thread;

use proc_macro2::{Delimiter, TokenStream, TokenTree};

/// Most tokens on the way to any token of a text: those before it in its statement or its element of a list, and in those
/// around it. Each may be a level of the tree.
const DEEPEST: usize = 4096;
/// Bytes of the parser's stack; what is never touched takes no memory. A level takes up to 5.4 kB of it, 37 kB without
/// optimization (measured over 60 forms of nesting, syn 2.0.119).
const STACK: usize = 256 << 20;
/// Most characters of a panic's message that are told.
const LONGEST_MESSAGE: usize = 200;
/// Words that continue an expression after a block.
const CONTINUING: [&str; 3] = ["else", "as", "in"];

/// Why a text is not parsed.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Refusal {
    /// It is too long.
    #[error("it has {bytes} bytes; at most {most} are read")]
    TooLong {
        /// Its length.
        bytes: usize,
        /// The most that are read.
        most: usize,
    },
    /// It is nested too deeply.
    #[error("line {line}: nested too deeply, or more than {DEEPEST} tokens in one expression; split it")]
    TooDeep {
        /// Line, from 1.
        line: usize,
    },
    /// It is not Rust.
    #[error("line {line}: not valid Rust: {message}")]
    Syntax {
        /// Line, from 1.
        line: usize,
        /// The parser's reason.
        message: String,
    },
    /// The parser failed.
    #[error("the parser cannot read it: {0}")]
    Fault(String),
}

impl From<syn::Error> for Refusal {
    fn from(error: syn::Error) -> Self {
        Self::Syntax { line: error.span().start().line, message: error.to_string() }
    }
}

/// Runs `work`, which may parse what [`tokens`] let through, on the parser's stack.
///
/// # Errors
/// Its own, and [`Refusal::Fault`] when it panics.
pub fn deep<T: Send, E: From<Refusal> + Send>(work: impl FnOnce() -> Result<T, E> + Send) -> Result<T, E> {
    let parser = || contained(work).unwrap_or_else(|message| Err(Refusal::Fault(message).into()));
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("parser".into()).stack_size(STACK);
        match thread.spawn_scoped(scope, parser).map(thread::ScopedJoinHandle::join) {
            Ok(Ok(result)) => result,
            Ok(Err(panic)) => Err(Refusal::Fault(message(&*panic)).into()),
            Err(error) => Err(Refusal::Fault(format!("no thread for it: {error}")).into()),
        }
    })
}

/// The tokens of a text that [`deep`] can parse.
///
/// # Errors
/// When the text is too long, too deep, or does not consist of Rust's tokens.
pub fn tokens(text: &str, most: usize) -> Result<TokenStream, Refusal> {
    if text.len() > most {
        return Err(Refusal::TooLong { bytes: text.len(), most });
    }
    // This neither recurses nor do streams when they are dropped.
    let tokens = text
        .parse::<TokenStream>()
        .map_err(|error| Refusal::Syntax { line: error.span().start().line, message: error.to_string() })?;
    check_depth(&tokens)?;
    Ok(tokens)
}

fn check_depth(tokens: &TokenStream) -> Result<(), Refusal> {
    let mut around = Vec::new();
    let mut at = tokens.clone().into_iter();
    // Tokens of the statement so far, those of the statements around it included, and what those alone are.
    let (mut depth, mut outer) = (0, 0);
    let mut after_block = false;
    // After `<` or `|` a comma may separate generic or closure arguments, and the tree keeps growing past it.
    let mut inside = false;
    loop {
        let Some(token) = at.next() else {
            let Some(left) = around.pop() else { return Ok(()) };
            (at, depth, outer, inside, after_block) = left;
            continue;
        };
        let ends = match &token {
            TokenTree::Ident(word) => after_block && CONTINUING.iter().all(|known| word != known),
            TokenTree::Punct(sign) => match sign.as_char() {
                ';' => true,
                ',' => !inside,
                '#' => after_block,
                _ => false,
            },
            TokenTree::Group(_) | TokenTree::Literal(_) => false,
        };
        depth = if ends { outer } else { depth } + 1;
        if depth > DEEPEST {
            return Err(Refusal::TooDeep { line: token.span().start().line });
        }
        after_block = false;
        inside = (inside && !ends) || matches!(&token, TokenTree::Punct(sign) if matches!(sign.as_char(), '<' | '|'));
        if let TokenTree::Group(group) = token {
            let is_block = group.delimiter() == Delimiter::Brace;
            around.push((std::mem::replace(&mut at, group.stream().into_iter()), depth, outer, inside, is_block));
            (outer, inside) = (depth, false);
        }
    }
}

thread_local! {
    static CONTAINED: Cell<bool> = const { Cell::new(false) };
}

/// Runs `work`; when it panics, the message comes back, and nothing is printed.
///
/// # Errors
/// With the panic's message.
pub fn contained<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let usual = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !CONTAINED.get() {
                usual(info);
            }
        }));
    });
    let before = CONTAINED.replace(true);
    let result = panic::catch_unwind(AssertUnwindSafe(work));
    CONTAINED.set(before);
    result.map_err(|panic| message(&*panic))
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    let text = language_model::printable(text.unwrap_or("it panicked").as_bytes());
    language_model::one_line(&text, LONGEST_MESSAGE)
}

#[cfg(test)]
mod tests;
