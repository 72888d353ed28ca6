//! The public interface of a crate as text for a prompt: signatures and documentation out of its source, so that they are
//! never stale. It reads the files that `src/lib.rs` leads to and compiles nothing; what macros make is not seen.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use syn::{Attribute, Fields, ImplItem, Item, TraitItem, UseTree, Visibility};

use crate::text::fenced;

/// Why an interface could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// A file is missing or unreadable.
    #[error("cannot read {path}: {source}")]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file is not Rust.
    #[error("{path}, line {line}: not valid Rust: {message}")]
    Syntax {
        /// Which file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// The parser's reason.
        message: String,
    },
}

/// The public interface of the crate in `folder` (the one with `Cargo.toml`), Markdown: one heading a module, with its
/// documentation and its public items without their bodies. What a private module has is shown where it is exported.
///
/// # Errors
/// When a source file is missing or does not parse.
pub fn digest(name: &str, folder: &Path) -> Result<String, ApiError> {
    let mut out = String::new();
    let outcome = module(name, &folder.join("src/lib.rs"), &folder.join("src"), &mut out);
    // The parser keeps every text that it has seen for the sake of its spans.
    proc_macro2::extra::invalidate_current_thread_spans();
    outcome.map(|()| out)
}

fn read(path: &Path) -> Result<syn::File, ApiError> {
    let text = std::fs::read_to_string(path).map_err(|source| ApiError::Read { path: path.to_owned(), source })?;
    syn::parse_file(&text).map_err(|error| ApiError::Syntax {
        path: path.to_owned(),
        line: error.span().start().line,
        message: error.to_string(),
    })
}

/// The file of a module that is declared in a file whose modules lie in `folder`.
fn file_of(folder: &Path, name: &str) -> PathBuf {
    let file = folder.join(format!("{name}.rs"));
    if file.is_file() { file } else { folder.join(name).join("mod.rs") }
}

fn module(name: &str, path: &Path, folder: &Path, out: &mut String) -> Result<(), ApiError> {
    let mut file = read(path)?;
    let private = |item: &Item| match item {
        Item::Mod(item) if item.content.is_none() && !is_public(&item.vis) => Some(item.ident.to_string()),
        _ => None,
    };
    let hidden: BTreeSet<String> = file.items.iter().filter_map(private).collect();
    // What is exported out of private modules belongs here; `None` stands for all of it.
    let mut exported: BTreeMap<String, Option<BTreeSet<String>>> = BTreeMap::new();
    let mut public = Vec::new();
    let mut children = Vec::new();
    for item in std::mem::take(&mut file.items) {
        match item {
            Item::Use(item) if is_public(&item.vis) => match source_of(&item.tree, &hidden) {
                Some((module, names)) => match (exported.entry(module).or_insert_with(|| Some(BTreeSet::new())), names)
                {
                    (Some(known), Some(names)) => known.extend(names),
                    (known, _) => *known = None,
                },
                None => public.push(Item::Use(item)),
            },
            Item::Mod(item) if is_public(&item.vis) && item.content.is_none() && !is_for_tests(&item.attrs) => {
                children.push(item.ident.to_string());
            }
            other => public.push(other),
        }
    }
    let mut items = shown(public, None);
    for (module, names) in &exported {
        items.extend(shown(read(&file_of(folder, module))?.items, names.as_ref()));
    }
    let attrs: Vec<Attribute> = file.attrs.into_iter().filter(is_doc).collect();
    let text = prettyplease::unparse(&syn::File { shebang: None, attrs, items });
    let text: Vec<String> = text.lines().filter(|line| line.trim() != "{}").map(without_braces).collect();
    out.push_str(&format!("## {name}\n\n{}\n", fenced(&text.join("\n"), "rust")));
    for child in children {
        module(&format!("{name}::{child}"), &file_of(folder, &child), &folder.join(&child), out)?;
    }
    Ok(())
}

/// A line without the braces that a body leaves behind when it is taken away.
fn without_braces(line: &str) -> String {
    match line.strip_suffix(" {}") {
        Some(_) if line.trim_start().starts_with("//") => line.to_owned(),
        Some(head) if head.starts_with("pub struct ") => format!("{head} {{ /* private */ }}"),
        Some(head) => format!("{head};"),
        None => line.to_owned(),
    }
}

/// The private module that an export takes from, and which names; `None` for all of them.
fn source_of(tree: &UseTree, hidden: &BTreeSet<String>) -> Option<(String, Option<BTreeSet<String>>)> {
    let UseTree::Path(path) = tree else { return None };
    let module = path.ident.to_string();
    if matches!(module.as_str(), "self" | "crate") {
        return source_of(&path.tree, hidden);
    }
    hidden.contains(&module).then(|| (module, names_of(&path.tree)))
}

fn names_of(tree: &UseTree) -> Option<BTreeSet<String>> {
    match tree {
        UseTree::Name(name) => Some(BTreeSet::from([name.ident.to_string()])),
        UseTree::Rename(name) => Some(BTreeSet::from([name.ident.to_string()])),
        UseTree::Group(group) => group.items.iter().map(names_of).try_fold(BTreeSet::new(), |mut all, names| {
            all.extend(names?);
            Some(all)
        }),
        UseTree::Path(_) | UseTree::Glob(_) => None,
    }
}

/// The public items without their insides; only those in `names` where that is given.
fn shown(items: Vec<Item>, names: Option<&BTreeSet<String>>) -> Vec<Item> {
    let is_meant = |name: &syn::Ident| names.is_none_or(|names| names.contains(&name.to_string()));
    let types: BTreeSet<String> =
        items.iter().filter_map(type_name).filter(|name| is_meant(name)).map(ToString::to_string).collect();
    items
        .into_iter()
        .filter_map(|mut item| {
            let keep = match &mut item {
                Item::Fn(item) => {
                    item.block.stmts.clear();
                    is_public(&item.vis) && is_meant(&item.sig.ident)
                }
                Item::Struct(item) => {
                    keep_public(&mut item.fields);
                    is_public(&item.vis) && is_meant(&item.ident)
                }
                Item::Enum(item) => {
                    for variant in &mut item.variants {
                        keep_docs(&mut variant.attrs);
                        variant.fields.iter_mut().for_each(|field| keep_docs(&mut field.attrs));
                    }
                    is_public(&item.vis) && is_meant(&item.ident)
                }
                Item::Trait(item) => {
                    for member in &mut item.items {
                        if let TraitItem::Fn(function) = member {
                            function.default = None;
                            keep_docs(&mut function.attrs);
                        }
                    }
                    is_public(&item.vis) && is_meant(&item.ident)
                }
                Item::Type(item) => is_public(&item.vis) && is_meant(&item.ident),
                Item::Const(item) => is_public(&item.vis) && is_meant(&item.ident),
                Item::Static(item) => is_public(&item.vis) && is_meant(&item.ident),
                // Names that a private module imports for itself are no export of this one.
                Item::Use(item) => is_public(&item.vis) && names.is_none(),
                Item::Impl(item) => keep_methods(item) && self_name(item).is_some_and(|name| types.contains(&name)),
                _ => false,
            };
            let attrs = attributes(&mut item)?;
            let keep = keep && !is_for_tests(attrs) && !is_hidden(attrs);
            // What a type derives, its users may rely on.
            attrs.retain(|attribute| is_doc(attribute) || attribute.path().is_ident("derive"));
            keep.then_some(item)
        })
        .collect()
}

/// Name of a public type or trait.
fn type_name(item: &Item) -> Option<&syn::Ident> {
    let (visibility, name) = match item {
        Item::Struct(item) => (&item.vis, &item.ident),
        Item::Enum(item) => (&item.vis, &item.ident),
        Item::Trait(item) => (&item.vis, &item.ident),
        Item::Type(item) => (&item.vis, &item.ident),
        _ => return None,
    };
    is_public(visibility).then_some(name)
}

fn self_name(item: &syn::ItemImpl) -> Option<String> {
    match &*item.self_ty {
        syn::Type::Path(path) => path.path.segments.last().map(|segment| segment.ident.to_string()),
        _ => None,
    }
}

/// Leaves the public functions and constants of a type's own block, and nothing of a trait's; whether anything is told.
fn keep_methods(item: &mut syn::ItemImpl) -> bool {
    let of_trait = item.trait_.is_some();
    item.items.retain_mut(|member| match member {
        ImplItem::Fn(function) => {
            function.block.stmts.clear();
            let keep = is_public(&function.vis) && !is_hidden(&function.attrs) && !is_for_tests(&function.attrs);
            keep_docs(&mut function.attrs);
            keep && !of_trait
        }
        ImplItem::Const(constant) => {
            keep_docs(&mut constant.attrs);
            is_public(&constant.vis) && !of_trait
        }
        _ => false,
    });
    of_trait || !item.items.is_empty()
}

fn keep_public(fields: &mut Fields) {
    if let Fields::Named(named) = fields {
        let public = std::mem::take(&mut named.named).into_iter().filter(|field| is_public(&field.vis));
        named.named = public.collect();
    }
    fields.iter_mut().for_each(|field| keep_docs(&mut field.attrs));
}

fn attributes(item: &mut Item) -> Option<&mut Vec<Attribute>> {
    Some(match item {
        Item::Fn(item) => &mut item.attrs,
        Item::Struct(item) => &mut item.attrs,
        Item::Enum(item) => &mut item.attrs,
        Item::Trait(item) => &mut item.attrs,
        Item::Type(item) => &mut item.attrs,
        Item::Const(item) => &mut item.attrs,
        Item::Static(item) => &mut item.attrs,
        Item::Use(item) => &mut item.attrs,
        Item::Impl(item) => &mut item.attrs,
        _ => return None,
    })
}

fn keep_docs(attrs: &mut Vec<Attribute>) {
    attrs.retain(is_doc);
}

fn is_public(visibility: &Visibility) -> bool {
    matches!(visibility, Visibility::Public(_))
}

fn is_doc(attribute: &Attribute) -> bool {
    attribute.path().is_ident("doc") && attribute.meta.require_name_value().is_ok()
}

fn is_hidden(attrs: &[Attribute]) -> bool {
    attrs.iter().any(|attribute| attribute.path().is_ident("doc") && attribute.meta.require_list().is_ok())
}

fn is_for_tests(attrs: &[Attribute]) -> bool {
    attrs.iter().any(|attribute| {
        attribute.path().is_ident("cfg") && attribute.parse_args::<syn::Ident>().is_ok_and(|name| name == "test")
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn digest_of(files: &[(&str, &str)]) -> Result<String, ApiError> {
        let folder = tempfile::tempdir().expect("a folder");
        for (name, text) in files {
            let path = folder.path().join("src").join(name);
            fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
            fs::write(path, text).expect("a file");
        }
        digest("parts", folder.path())
    }

    #[test]
    fn what_is_public_is_told_and_nothing_else() {
        let lib = "\
//! The parts.
pub mod schedule;
mod weight;
mod inner;
use std::fmt::Debug;
pub use std::time::Duration;
pub use weight::{Weight, refresh as renew};
pub use inner::*;
/// Largest.
pub const MOST: usize = 7;
pub(crate) fn ours() {}
#[cfg(test)]
mod tests;
";
        let weight = "\
/// A weight.
#[derive(Debug, Clone)]
#[must_use]
pub struct Weight {
    /// Its scale.
    pub scale: f64,
    secret: f64,
}
impl Weight {
    /// Sets it.
    pub fn set(&mut self, scale: f64) { self.scale = scale; }
    fn private(&self) {}
}
impl Drop for Weight { fn drop(&mut self) {} }
/// Not exported.
pub struct Other;
/// Refreshes.
pub fn refresh<T: Debug>(of: &T) -> u8 where T: Clone { 1 }
";
        let inner = "/// By glob.\npub struct Opaque { a: u8 }\nstruct Hidden;\nimpl Hidden { pub fn f() {} }\n";
        let schedule = "\
//! Schedules.
/// A shape.
pub enum Shape {
    /// Straight.
    Linear,
    /// With a rate.
    Exponential { rate: f64 },
}
/// Something that changes.
pub trait Schedule {
    /// At a time.
    fn at(&self, time: f64) -> f64 { time }
}
#[doc(hidden)]
pub fn internal() {}
#[cfg(test)]
pub fn only_here() {}
";
        let files = [("lib.rs", lib), ("weight.rs", weight), ("inner/mod.rs", inner), ("schedule/mod.rs", schedule)];
        let expected = "\
## parts

```rust
//! The parts.
pub use std::time::Duration;
/// Largest.
pub const MOST: usize = 7;
/// By glob.
pub struct Opaque { /* private */ }
/// A weight.
#[derive(Debug, Clone)]
pub struct Weight {
    /// Its scale.
    pub scale: f64,
}
impl Weight {
    /// Sets it.
    pub fn set(&mut self, scale: f64);
}
impl Drop for Weight;
/// Refreshes.
pub fn refresh<T: Debug>(of: &T) -> u8
where
    T: Clone,
```

## parts::schedule

```rust
//! Schedules.
/// A shape.
pub enum Shape {
    /// Straight.
    Linear,
    /// With a rate.
    Exponential { rate: f64 },
}
/// Something that changes.
pub trait Schedule {
    /// At a time.
    fn at(&self, time: f64) -> f64;
}
```

";
        assert_eq!(digest_of(&files).expect("an interface"), expected);
    }

    #[test]
    fn what_cannot_be_read_is_told_with_its_place() {
        let missing = digest_of(&[("lib.rs", "pub mod gone;")]).expect_err("no file");
        assert!(matches!(&missing, ApiError::Read { path, .. } if path.ends_with("src/gone/mod.rs")), "{missing}");
        let broken = digest_of(&[("lib.rs", "\npub fn f( {}")]).expect_err("no Rust");
        assert!(matches!(&broken, ApiError::Syntax { line: 2, .. }), "{broken}");
    }

    #[test]
    fn this_crates_own_interface_is_told() {
        let text = digest("language_model", Path::new(env!("CARGO_MANIFEST_DIR"))).expect("an interface");
        for told in ["pub struct Budget { /* private */ }", "## language_model::edit", "pub fn instructions("] {
            assert!(text.contains(told), "{told}");
        }
        assert!(!text.contains("fn is_elision") && !text.contains("#[test]"));
    }
}
