use super::*;

/// The outline of a crate named `parts` with these sources.
fn of(files: &[(&str, &str)]) -> Result<String> {
    of_shown(&Shown { name: "parts", items: &[], without: &[] }, files)
}

fn of_shown(shown: &Shown, files: &[(&str, &str)]) -> Result<String> {
    let folder = tempfile::tempdir().expect("a folder");
    for (name, text) in files {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().expect("a parent")).expect("a folder");
        std::fs::write(path, text).expect("a file");
    }
    Ok(Outline(of_crate(shown, folder.path())?).text(Detail::Paragraphs, ""))
}

#[test]
fn signatures_stay_and_bodies_and_private_things_go() {
    let source = r#"
        //! What it is
        //! for.
        //!
        //! More.

        use std::fmt;

        /// Doubles, in
        /// two lines.
        ///
        /// At length.
        ///
        /// # Errors
        /// When it is
        /// odd.
        ///
        /// # Panics
        /// Never.
        ///
        /// Really.
        pub fn double(mut x: u32) -> Result<u32, fmt::Error> { x *= 2; Ok(x) }
        pub(crate) fn inner() {}
        fn private() {}

        /// A limit.
        pub const LIMIT: f64 = 1e-5;
        const SECRET: u32 = 3;

        /// A point.
        #[derive(Debug, Clone, Copy, thiserror::Error)]
        #[error("{x}")]
        pub struct Point {
            /// Across.
            pub x: f32,
            id: u32,
        }

        pub struct Id(usize);

        struct Hidden;

        impl Hidden { pub fn new() -> Self { Self } }

        impl Point {
            /// None.
            pub const ZERO: Self = Self { x: 0.0, id: 0 };
            /// Moves it.
            pub fn shift(&mut self, by: f32) { self.x += by; }
            pub fn end(mut self) -> f32 { self.x += 1.0; self.x }
            fn check(&self) {}
        }

        impl Default for Point { fn default() -> Self { Self::ZERO } }
        impl Secret for Point { fn tell(&self) {} }
        trait Secret { fn tell(&self); }

        /// How.
        pub trait Shape {
            /// Its size.
            fn size(&self) -> f32;
            fn twice(&self) -> f32 { 2.0 * self.size() }
        }

        #[derive(PartialEq)]
        pub enum Kind {
            /// Flat.
            Flat,
            Bent {
                /// Radians.
                angle: f64,
            },
        }

        #[cfg(test)]
        mod tests { pub fn not_shown() {} }
    "#;
    let expected = r#"## parts

What it is for.

```rust
/// Doubles, in two lines.
/// Errors: When it is odd.
/// Panics: Never.
pub fn double(x: u32) -> Result<u32, fmt::Error>;
/// A limit.
pub const LIMIT: f64 = 1e-5;
/// A point.
#[derive(Clone, Copy)]
pub struct Point {
    /// Across.
    pub x: f32,
    ..
}
impl Point {
    /// None.
    pub const ZERO: Self = Self { x: 0.0, id: 0 };
    /// Moves it.
    pub fn shift(&mut self, by: f32);
    pub fn end(self) -> f32;
}
impl Default for Point;
pub struct Id(_);
/// How.
pub trait Shape {
    /// Its size.
    fn size(&self) -> f32;
    fn twice(&self) -> f32 {
        ..
    }
}
#[derive(PartialEq)]
pub enum Kind {
    /// Flat.
    Flat,
    Bent {
        /// Radians.
        angle: f64,
    },
}
```

"#;
    assert_eq!(of(&[("lib.rs", source)]).expect("an outline"), expected);
}

#[test]
fn modules_and_reexports_are_followed() {
    let files = [
        (
            "lib.rs",
            "pub mod open;\nmod closed;\npub use closed::{Shown, deep::Deep};\npub use other::Thing;\npub use open::free;",
        ),
        ("open.rs", "pub fn free() {}\npub mod inside { pub fn nested() {} }\nmod beside;\npub struct Options;"),
        ("open/beside.rs", "impl super::Options { pub fn from_beside() -> Self { Self } }\npub fn unreachable() {}"),
        (
            "closed/mod.rs",
            "pub mod deep;\npub struct Shown;\npub struct NotShown;\npub struct Options;\nimpl Options { pub fn other() {} }",
        ),
        ("closed/deep.rs", "pub struct Deep;"),
    ];
    let expected = r#"## parts

```rust
pub struct Shown;
pub struct Deep;
pub use other::Thing;
pub use open::free;
```

## parts::open

```rust
pub fn free();
pub struct Options;
impl super::Options {
    pub fn from_beside() -> Self;
}
```

## parts::open::inside

```rust
pub fn nested();
```

"#;
    assert_eq!(of(&files).expect("an outline"), expected);
}

#[test]
fn a_part_of_a_crate_is_shown_by_name() {
    let source = "//! Head.\npub struct Run;\nimpl Run { pub fn start() {} pub fn step(&self) {} }\npub fn other() {}\n\
                  pub mod more { pub fn start() {} }";
    let outline =
        |items, without| of_shown(&Shown { name: "parts", items, without }, &[("lib.rs", source)]).expect("an outline");
    let run = "pub struct Run;\nimpl Run {\n    pub fn step(&self);\n}\n";
    assert_eq!(outline(&["Run"], &["Run::start"]), format!("## parts\n\n```rust\n{run}```\n\n"));
    assert_eq!(outline(&[], &["Run::start", "more", "other"]), format!("## parts\n\nHead.\n\n```rust\n{run}```\n\n"));
}

#[test]
fn arguments_stand_on_one_line() {
    let source = "impl A { pub fn with_a_long_name(&self, first: &[Option<Tensor>], second: impl FnMut(usize) -> Result<(), \
                  Error>) -> Result<Tensor, NativeError> { body() } }\npub enum A { One }";
    let expected = "## parts\n\n```rust\npub enum A {\n    One,\n}\nimpl A {\n    pub fn with_a_long_name(&self, first: \
                    &[Option<Tensor>], second: impl FnMut(usize) -> Result<(), Error>) -> Result<Tensor, \
                    NativeError>;\n}\n```\n\n";
    assert_eq!(of(&[("lib.rs", source)]).expect("an outline"), expected);
}

#[test]
fn what_cannot_be_followed_is_an_error_that_names_it() {
    let error = |files: &[(&str, &str)]| format!("{:#}", of(files).expect_err("an error"));
    assert!(
        error(&[("lib.rs", "pub use inner::*;\nmod inner { pub fn f() {} }")]).contains("a public `use` of inner with")
    );
    assert!(
        error(&[("lib.rs", "pub use inner::f;\nmod inner { fn f() {} }")]).contains("`pub use inner::f` names nothing")
    );
    assert!(error(&[("lib.rs", "mod missing;")]).contains("cannot read"));
    assert!(error(&[("lib.rs", "pub fn {")]).contains("not valid Rust"));
}

#[test]
fn of_this_repository() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let shown = outline(&root).expect("an outline");
    let outline = shown.text(Detail::Paragraphs, "");
    for needed in [
        "    pub fn refresh(&mut self, blend: Blend);\n",
        "## ternary::weight\n",
        "pub enum Estimator {\n",
        "pub trait Linears {\n",
        "pub fn progress(&mut self) -> Option<f64>;\n",
        "pub struct TernaryMatrix {\n",
        "pub struct Batch {\n",
        "    pub max_bits_per_weight: f64,\n",
        "pub fn projection_shape(&self, kind: ProjectionKind) -> [usize; 2];\n",
    ] {
        assert!(outline.contains(needed), "{needed} is missing");
    }
    // A body, a private function, one of the crate's own, the frame's business.
    for hidden in [
        "tch::no_grad(",
        "fn chunk_rows",
        "fn snap",
        "fn quantize_on_device",
        "pub fn finish",
        "pub(crate)",
        "portable",
    ] {
        assert!(!outline.contains(hidden), "{hidden} is shown");
    }
    let (crates, frame) = outline.split_once("## trainer::").expect("the frame behind the crates");
    assert!(crates.len() < CRATES_LIMIT, "`ternary` takes {} bytes", crates.len());
    assert!(frame.len() < FRAME_LIMIT, "the rest takes {} bytes", frame.len());
    assert!(shown == super::outline(&root).expect("an outline"), "it is the same each time");

    let recipe = std::fs::read_to_string(root.join(crate::layout::RECIPE)).expect("the recipe");
    let of = |detail| shown.text(detail, &recipe);
    let (sentences, signatures, named) = (of(Detail::Sentences), of(Detail::Signatures), of(Detail::Named));
    assert!(sentences.len() < outline.len() && signatures.len() < sentences.len() && named.len() < signatures.len());
    for used in
        ["## ternary::weight\n", "## ternary::loss\n", "## ternary::model\n", "## trainer::frame\n", "pub fn objective"]
    {
        assert!(named.contains(used), "{used} is missing");
    }
    assert!(signatures.contains("## ternary::tequila\n") && !named.contains("## ternary::tequila\n"));
    assert!(!signatures.contains("///") && of(Detail::Nothing).is_empty());
}

#[test]
fn documentation_is_shortened_to_sentences_and_to_nothing() {
    let source = "//! Is for e.g. this. And that.\n/// Takes 0.5 of it. The rest stays.\n///\n/// # Errors\n/// Never.\n\
                  pub fn half() {}\npub struct Point {\n    /// Across. In metres.\n    pub x: f64,\n}\n";
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("lib.rs"), source).expect("a file");
    let parts = of_crate(&Shown { name: "parts", items: &[], without: &[] }, folder.path()).expect("an outline");
    let text = |detail| Outline(parts.clone()).text(detail, "use parts::half;");
    let item = "pub fn half();\n";
    let structure = |documentation| format!("pub struct Point {{\n{documentation}    pub x: f64,\n}}\n```\n\n");
    assert_eq!(
        text(Detail::Sentences),
        format!(
            "## parts\n\nIs for e.g. this.\n\n```rust\n/// Takes 0.5 of it.\n{item}{}",
            structure("    /// Across.\n")
        )
    );
    assert_eq!(text(Detail::Signatures), format!("## parts\n\n```rust\n{item}{}", structure("")));
    assert_eq!(text(Detail::Named), text(Detail::Signatures));
    assert_eq!(Outline(parts).text(Detail::Named, "use counterparts::half; // parts"), "");
}

/// Bytes: some 14,000 tokens. Low-rank adapters and activations per channel took 2,500 of them.
const CRATES_LIMIT: usize = 42_500;
/// Bytes: some 2,500 tokens.
const FRAME_LIMIT: usize = 7_500;
