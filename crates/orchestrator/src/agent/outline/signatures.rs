//! Items cut down to what a caller needs: no bodies, nothing private, the first paragraph of the documentation and what
//! it says of errors and panics. It reads no file.

use std::collections::BTreeSet;

use syn::punctuated::Punctuated;
use syn::{
    Attribute, Block, Expr, Fields, FnArg, Ident, ImplItem, Item, Meta, Pat, Path, Signature, Token, TraitItem, Type,
    Visibility, parse_quote,
};

/// Derived traits that decide whether a caller's code compiles.
const DERIVES: [&str; 4] = ["Clone", "Copy", "Default", "PartialEq"];
/// Line that a struct's private fields are printed as before it becomes `..`.
const PRIVATE: &str = "_: _,";

/// Rust text of `items` without what is private or named in `without`.
pub(super) fn print(items: Vec<Item>, without: &[&str], hidden_traits: &BTreeSet<String>) -> String {
    let items = items.into_iter().filter_map(|item| cut(item, without, hidden_traits)).collect();
    let text = prettyplease::unparse(&syn::File { shebang: None, attrs: Vec::new(), items });
    let mut out = String::with_capacity(text.len());
    for line in lines(&text) {
        // A doc comment that happens to end so stays as it is.
        let code = line.trim_start();
        match line.strip_suffix(" {}") {
            Some(signature) if !code.starts_with("///") => out.extend([signature, ";"]),
            _ if code == PRIVATE => out.extend([&line[..line.len() - PRIVATE.len()], ".."]),
            _ => out.push_str(&line),
        }
        out.push('\n');
    }
    out
}

/// The lines of `text`, a function's arguments on one.
fn lines(text: &str) -> Vec<String> {
    let mut out: Vec<String> = Vec::new();
    let mut in_arguments = false;
    for line in text.lines() {
        let code = line.trim_start();
        match out.last_mut().filter(|_| in_arguments) {
            Some(signature) if code.starts_with(')') => {
                signature.truncate(signature.trim_end_matches(',').len());
                signature.push_str(code);
                in_arguments = false;
            }
            Some(signature) => {
                if !signature.ends_with('(') {
                    signature.push(' ');
                }
                signature.push_str(code);
            }
            None => {
                in_arguments = code.ends_with('(') && (code.starts_with("pub fn ") || code.starts_with("fn "));
                out.push(line.to_owned());
            }
        }
    }
    out
}

/// The first paragraph of the documentation in one line.
pub(super) fn first_paragraph(attributes: &[Attribute]) -> Option<String> {
    short(&documentation(attributes)).into_iter().next()
}

/// Whether something is compiled for tests only.
pub(super) fn is_for_tests(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| match &attribute.meta {
        Meta::List(list) => list.path.is_ident("cfg") && list.tokens.to_string() == "test",
        _ => false,
    })
}

/// Name of a public item that is shown.
pub(super) fn public_name(item: &Item) -> Option<String> {
    let (ident, visibility, attributes) = match item {
        Item::Const(item) => (&item.ident, &item.vis, &item.attrs),
        Item::Enum(item) => (&item.ident, &item.vis, &item.attrs),
        Item::Fn(item) => (&item.sig.ident, &item.vis, &item.attrs),
        Item::Struct(item) => (&item.ident, &item.vis, &item.attrs),
        Item::Trait(item) => (&item.ident, &item.vis, &item.attrs),
        Item::Type(item) => (&item.ident, &item.vis, &item.attrs),
        _ => return None,
    };
    (matches!(visibility, Visibility::Public(_)) && !is_for_tests(attributes)).then(|| ident.to_string())
}

/// Name of a struct or enum, public or not.
pub(super) fn type_name(item: &Item) -> Option<&Ident> {
    match item {
        Item::Struct(item) => Some(&item.ident),
        Item::Enum(item) => Some(&item.ident),
        _ => None,
    }
}

/// Name of the type that an impl block is about.
pub(super) fn implements_for(item: &Item) -> Option<&Ident> {
    match item {
        Item::Impl(block) if !is_for_tests(&block.attrs) => match &*block.self_ty {
            Type::Path(path) => Some(&path.path.segments.last()?.ident),
            _ => None,
        },
        _ => None,
    }
}

fn cut(mut item: Item, without: &[&str], hidden_traits: &BTreeSet<String>) -> Option<Item> {
    let of = implements_for(&item).map(Ident::to_string).unwrap_or_default();
    match &mut item {
        Item::Const(item) => item.attrs = brief(&item.attrs),
        Item::Type(item) => item.attrs = brief(&item.attrs),
        Item::Enum(item) => {
            item.attrs = brief(&item.attrs);
            for variant in &mut item.variants {
                variant.attrs = brief(&variant.attrs);
                variant.fields.iter_mut().for_each(|field| field.attrs = brief(&field.attrs));
            }
        }
        Item::Fn(item) => {
            item.attrs = brief(&item.attrs);
            *item.block = empty();
            plain_arguments(&mut item.sig);
        }
        Item::Struct(item) => {
            item.attrs = brief(&item.attrs);
            public_fields(&mut item.fields);
        }
        Item::Trait(item) => {
            item.attrs = brief(&item.attrs);
            for member in &mut item.items {
                if let TraitItem::Fn(function) = member {
                    function.attrs = brief(&function.attrs);
                    plain_arguments(&mut function.sig);
                    // What need not be written again.
                    function.default = function.default.is_some().then(|| parse_quote!({ .. }));
                }
            }
        }
        Item::Impl(block) => {
            let of_trait = block.trait_.as_ref().and_then(|(_, path, _)| path.segments.last());
            if of_trait.is_some_and(|segment| hidden_traits.contains(&segment.ident.to_string())) {
                return None;
            }
            block.attrs.clear();
            block.items.retain(|member| is_shown(&of, member, without));
            if block.trait_.is_some() {
                block.items.clear();
            } else if block.items.is_empty() {
                return None;
            }
            for member in &mut block.items {
                match member {
                    ImplItem::Const(constant) => constant.attrs = brief(&constant.attrs),
                    ImplItem::Fn(function) => {
                        function.attrs = brief(&function.attrs);
                        function.block = empty();
                        plain_arguments(&mut function.sig);
                    }
                    _ => {}
                }
            }
        }
        _ => {}
    }
    Some(item)
}

fn empty() -> Block {
    parse_quote!({})
}

/// Whether a member of the inherent impl block of `of` is shown.
fn is_shown(of: &str, member: &ImplItem, without: &[&str]) -> bool {
    let (visibility, attributes, ident) = match member {
        ImplItem::Const(member) => (&member.vis, &member.attrs, &member.ident),
        ImplItem::Fn(member) => (&member.vis, &member.attrs, &member.sig.ident),
        _ => return false,
    };
    matches!(visibility, Visibility::Public(_))
        && !is_for_tests(attributes)
        && !without.contains(&format!("{of}::{ident}").as_str())
}

/// Drops private fields; `..` stands for all of them.
fn public_fields(fields: &mut Fields) {
    let is_public = |field: &syn::Field| matches!(field.vis, Visibility::Public(_));
    match fields {
        Fields::Named(named) => {
            let all = named.named.len();
            let mut shown: Punctuated<syn::Field, Token![,]> =
                named.named.iter().filter(|field| is_public(field)).cloned().collect();
            shown.iter_mut().for_each(|field| field.attrs = brief(&field.attrs));
            if shown.len() < all {
                let hidden: syn::FieldsNamed = parse_quote!({ _: _ });
                shown.extend(hidden.named);
            }
            named.named = shown;
        }
        Fields::Unnamed(unnamed) => {
            for field in &mut unnamed.unnamed {
                field.attrs = brief(&field.attrs);
                if !is_public(field) {
                    field.ty = parse_quote!(_);
                }
            }
        }
        Fields::Unit => {}
    }
}

/// Drops `mut` in front of arguments, which is the callee's business.
fn plain_arguments(signature: &mut Signature) {
    for argument in &mut signature.inputs {
        match argument {
            FnArg::Typed(argument) => {
                if let Pat::Ident(name) = &mut *argument.pat {
                    name.mutability = None;
                }
            }
            FnArg::Receiver(receiver) if receiver.reference.is_none() => receiver.mutability = None,
            FnArg::Receiver(_) => {}
        }
    }
}

/// Short documentation and the derived traits that matter.
fn brief(attributes: &[Attribute]) -> Vec<Attribute> {
    let lines = short(&documentation(attributes));
    let mut out: Vec<Attribute> = lines
        .into_iter()
        .map(|line| {
            let line = format!(" {line}");
            parse_quote!(#[doc = #line])
        })
        .collect();
    let derived: Vec<Path> = attributes
        .iter()
        .filter(|attribute| attribute.path().is_ident("derive"))
        .filter_map(|attribute| attribute.parse_args_with(Punctuated::<Path, Token![,]>::parse_terminated).ok())
        .flatten()
        .filter(|path| DERIVES.iter().any(|name| path.is_ident(name)))
        .collect();
    if !derived.is_empty() {
        out.push(parse_quote!(#[derive(#(#derived),*)]));
    }
    out
}

fn documentation(attributes: &[Attribute]) -> Vec<String> {
    let lines = attributes.iter().filter_map(|attribute| match &attribute.meta {
        Meta::NameValue(pair) if pair.path.is_ident("doc") => match &pair.value {
            Expr::Lit(literal) => match &literal.lit {
                syn::Lit::Str(text) => Some(text.value().trim().to_owned()),
                _ => None,
            },
            _ => None,
        },
        _ => None,
    });
    lines.collect()
}

/// The first paragraph, and that of each section on errors and panics behind its title; each in one line.
fn short(documentation: &[String]) -> Vec<String> {
    let mut out = Vec::new();
    let mut title = "";
    for paragraph in documentation.split(|line| line.is_empty()).filter(|paragraph| !paragraph.is_empty()) {
        let mut lines = paragraph;
        if let Some(section) = lines[0].strip_prefix("# ") {
            title = section;
            lines = &lines[1..];
        }
        if lines.is_empty() {
            continue;
        }
        match title {
            "" if out.is_empty() => out.push(lines.join(" ")),
            "Errors" | "Panics" => {
                out.push(format!("{title}: {}", lines.join(" ")));
                title = "shown";
            }
            _ => {}
        }
    }
    out
}
