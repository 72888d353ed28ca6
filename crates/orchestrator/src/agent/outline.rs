//! What a recipe may call, as a language model is shown it: public signatures with short documentation, generated from
//! the sources of the checkout and so never stale.
//!
//! It follows `mod` declarations from `lib.rs`, and re-exports at the crate root into private modules. It expands no
//! macro, evaluates no `cfg` but drops what is for tests, and knows nothing of the crates that these are built on.

mod detail;
mod signatures;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use syn::{Attribute, Item, UseTree, Visibility};

use detail::Part;
pub use detail::{Detail, Outline};

use crate::parsing;

/// Most bytes of a source file.
const LARGEST_SOURCE: usize = 1 << 20;

/// A crate to show, and what of it.
struct Shown {
    name: &'static str,
    /// Its items by name; none is all.
    items: &'static [&'static str],
    /// Modules, items and members (`Type::member`) that are public and yet not for a recipe: a prompt is paid by its size.
    without: &'static [&'static str],
}

/// Of `ternary`. Grids and rotations cannot be exported, nor can a projection that stays dense. The frame reads files, scores
/// texts and times the machine. No artifact holds a norm inside a block.
const NOT_FOR_RECIPES: &[&str] = &[
    "grid",
    "probe",
    "Hadamard",
    "Kronecker",
    "Candidate",
    "exceptions",
    "UnknownSchedule",
    "weight_quant",
    "Score",
    "score",
    "Rope",
    "HeadNorm",
    "rotate",
    "model::ops::portable",
    "ops::portable",
    "SubLayerNorm",
    "ModelError",
    "Weights::config",
    "Weights::load",
];

/// The crates that a recipe uses, in the order in which they are shown.
const SHOWN: [Shown; 3] = [
    Shown { name: "ternary", items: &[], without: NOT_FOR_RECIPES },
    // `main` starts and finishes a run.
    Shown {
        name: "trainer",
        items: &["Run", "Step", "Trained", "TernaryMatrix", "Batch"],
        without: &["Run::start", "Run::finish", "Run::stopped", "Run::observe"],
    },
    Shown {
        name: "formats",
        items: &["Architecture", "Grouping", "ModelConfig", "ProjectionKind", "Constraints"],
        without: &["ModelConfig::check", "ModelConfig::tensor_count"],
    },
];

/// Crates that have since been merged into others, for searches that started from an older checkout.
const FORMERLY: [Shown; 3] = [
    Shown { name: "model", items: &[], without: NOT_FOR_RECIPES },
    Shown {
        name: "artifact",
        items: &["Architecture", "Grouping", "ModelConfig", "ProjectionKind"],
        without: &["ModelConfig::check", "ModelConfig::tensor_count"],
    },
    Shown { name: "campaign", items: &["Constraints"], without: &[] },
];

/// The outline of the crates in the checkout at `root`.
///
/// # Errors
/// When a source file is missing or does not parse, or a re-export cannot be followed.
pub fn outline(root: &Path) -> Result<Outline> {
    parsing::deep(|| {
        let mut out = Outline::default();
        let sources = |shown: &Shown| root.join("crates").join(shown.name).join("src");
        let former = FORMERLY.iter().filter(|shown| sources(shown).exists());
        let shown = SHOWN.iter().filter(|shown| shown.name != "formats" || sources(shown).exists());
        for shown in shown.chain(former) {
            out.0.extend(of_crate(shown, &sources(shown))?);
        }
        Ok(out)
    })
}

/// A module of a crate, whatever its visibility.
struct Module {
    /// Names from the crate root, which has none.
    path: Vec<String>,
    /// Whether every module on the path is public.
    public: bool,
    attributes: Vec<Attribute>,
    items: Vec<Item>,
}

fn of_crate(shown: &Shown, sources: &Path) -> Result<Vec<Part>> {
    let file = parse(&sources.join("lib.rs"))?;
    let root = Module { path: Vec::new(), public: true, attributes: file.attrs, items: file.items };
    let mut modules = Vec::new();
    collect(root, sources, &mut modules)?;
    let wanted = |name: &str| (shown.items.is_empty() || shown.items.contains(&name)) && !shown.without.contains(&name);
    let mut out = Vec::new();
    for module in modules.iter().filter(|module| module.public) {
        if shown.without.contains(&module.path.join("::").as_str()) {
            continue;
        }
        let mut items = Vec::new();
        for item in &module.items {
            match item {
                Item::Use(item) if is_public(&item.vis) => {
                    reexported(&modules, module, item, &wanted, &mut items)
                        .with_context(|| format!("in {}", sources.display()))?;
                }
                item => items.extend(own(&modules, module, item, &wanted)),
            }
        }
        if items.is_empty() {
            continue;
        }
        let path: Vec<&str> = [shown.name].into_iter().chain(module.path.iter().map(String::as_str)).collect();
        out.push(Part {
            path: path.join("::"),
            // Of a crate shown in part, the head would speak of the rest.
            head: signatures::first_paragraph(&module.attributes).filter(|_| shown.items.is_empty()),
            code: signatures::print(items, shown.without, &hidden_traits(&modules)),
        });
    }
    Ok(out)
}

fn parse(path: &Path) -> Result<syn::File> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let parsed = parsing::tokens(&text, LARGEST_SOURCE).and_then(|tokens| Ok(syn::parse2(tokens)?));
    parsed.with_context(|| format!("cannot parse {}", path.display()))
}

/// Puts `module` and all below it into `modules`, in the order of their declarations; `folder` is where the files of the
/// modules below it lie.
fn collect(module: Module, folder: &Path, modules: &mut Vec<Module>) -> Result<()> {
    let mut below: Vec<(Module, PathBuf)> = Vec::new();
    for item in &module.items {
        let Item::Mod(item) = item else { continue };
        if signatures::is_for_tests(&item.attrs) {
            continue;
        }
        let name = item.ident.to_string();
        let inner = folder.join(&name);
        let (attributes, items) = match &item.content {
            Some((_, items)) => (item.attrs.clone(), items.clone()),
            None => {
                let beside = folder.join(format!("{name}.rs"));
                let file = parse(&if beside.exists() { beside } else { inner.join("mod.rs") })?;
                (file.attrs, file.items)
            }
        };
        let mut path = module.path.clone();
        path.push(name);
        below.push((Module { path, public: module.public && is_public(&item.vis), attributes, items }, inner));
    }
    modules.push(module);
    below.into_iter().try_for_each(|(module, folder)| collect(module, &folder, modules))
}

fn is_public(visibility: &Visibility) -> bool {
    matches!(visibility, Visibility::Public(_))
}

/// A public item of `module` with its impl blocks, those in the modules below it included.
fn own(modules: &[Module], module: &Module, item: &Item, wanted: &dyn Fn(&str) -> bool) -> Vec<Item> {
    let Some(name) = signatures::public_name(item).filter(|name| wanted(name)) else { return Vec::new() };
    let mut items = vec![item.clone()];
    if !matches!(item, Item::Struct(_) | Item::Enum(_)) {
        return items;
    }
    for other in modules.iter().filter(|other| other.path.starts_with(&module.path)) {
        // A type of the same name nearer to the impl block is the one that it is about.
        let nearer = |between: &Module| {
            between.path.len() > module.path.len()
                && other.path.starts_with(&between.path)
                && between.items.iter().any(|item| signatures::type_name(item).is_some_and(|found| *found == name))
        };
        if !modules.iter().any(nearer) {
            let blocks =
                other.items.iter().filter(|item| signatures::implements_for(item).is_some_and(|to| *to == name));
            items.extend(blocks.cloned());
        }
    }
    items
}

/// What a `pub use` gives: the items themselves where their module is private, else the line.
fn reexported(
    modules: &[Module],
    module: &Module,
    item: &syn::ItemUse,
    wanted: &dyn Fn(&str) -> bool,
    items: &mut Vec<Item>,
) -> Result<()> {
    let mut paths = Vec::new();
    flatten(&item.tree, &mut Vec::new(), &mut paths)?;
    for path in paths {
        let Some((name, from)) = path.split_last().filter(|(name, _)| wanted(name)) else { continue };
        let from: Vec<String> = from.iter().filter(|part| *part != "crate" && *part != "self").cloned().collect();
        let source = modules.iter().find(|candidate| candidate.path == [module.path.as_slice(), &from].concat());
        match source.filter(|source| !source.public) {
            None => {
                let line = syn::parse_str(&format!("pub use {};", path.join("::")))?;
                items.push(Item::Use(line));
            }
            Some(source) => {
                let found: Vec<Item> =
                    source.items.iter().flat_map(|item| own(modules, source, item, &|found| found == name)).collect();
                if found.is_empty() {
                    bail!("`pub use {}` names nothing public that the outline can show", path.join("::"));
                }
                items.extend(found);
            }
        }
    }
    Ok(())
}

/// The paths of a `use`, one a name.
fn flatten(tree: &UseTree, prefix: &mut Vec<String>, paths: &mut Vec<Vec<String>>) -> Result<()> {
    match tree {
        UseTree::Path(path) => {
            prefix.push(path.ident.to_string());
            flatten(&path.tree, prefix, paths)?;
            prefix.pop();
        }
        UseTree::Name(name) => paths.push([prefix.as_slice(), &[name.ident.to_string()]].concat()),
        UseTree::Group(group) => group.items.iter().try_for_each(|tree| flatten(tree, prefix, paths))?,
        UseTree::Glob(_) | UseTree::Rename(_) => {
            bail!("a public `use` of {} with `*` or `as`: name what is re-exported", prefix.join("::"))
        }
    }
    Ok(())
}

/// Traits of the crate that are not public: what implements them concerns nobody outside.
fn hidden_traits(modules: &[Module]) -> BTreeSet<String> {
    let traits = modules.iter().flat_map(|module| &module.items).filter_map(|item| match item {
        Item::Trait(item) if !is_public(&item.vis) => Some(item.ident.to_string()),
        _ => None,
    });
    traits.collect()
}
