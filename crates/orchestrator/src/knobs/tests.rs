//! Reading, setting and comparing recipes.

use proptest::prelude::*;

use super::*;

const RECIPE: &str = "\
//! A recipe with ünïcode.
use x::Warmup;

const PRETRAINED: Knobs = Knobs { learning_rate: 1e-4, batch: 4 };

/// From random weights.
const SCRATCH: Knobs = Knobs {
    learning_rate: 1e-3,    // search: log 1e-5..1e-2; the peak
    batch: 1_6,             // search: log 8..64
    shift: -0.5,            // search: -1.0..1.0
    layers: 3,              // search: 1..4
    warmup: Warmup::Cosine, // search: Linear | Cosine | Exponential
    clip: true,             // search: true | false
    steps: 100,             // no annotation
    plain: 0.1,
};

fn other() {}
";

fn space() -> Space {
    parse(RECIPE, "SCRATCH").expect("knobs")
}

fn values(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

/// The error of a constant with one field.
fn refused(field: &str) -> String {
    let error = parse(&format!("\nconst K: T = T {{\n    {field}\n}};\n"), "K").expect_err(field);
    error.to_string()
}

#[test]
fn annotated_fields_are_found_with_value_line_and_domain() {
    let space = space();
    let found: Vec<(&str, &str, usize)> =
        space.knobs.iter().map(|k| (k.name.as_str(), k.value.as_str(), k.line)).collect();
    assert_eq!(
        found,
        [
            ("learning_rate", "1e-3", 8),
            ("batch", "1_6", 9),
            ("shift", "-0.5", 10),
            ("layers", "3", 11),
            ("warmup", "Cosine", 12),
            ("clip", "true", 13),
        ]
    );
    assert_eq!(space.knobs[0].domain, Domain::Float { low: 1e-5, high: 1e-2, log: true });
    assert_eq!(space.knobs[1].domain, Domain::Integer { low: 8, high: 64, log: true });
    assert_eq!(space.knobs[2].domain, Domain::Float { low: -1.0, high: 1.0, log: false });
    assert_eq!(space.knobs[3].domain, Domain::Integer { low: 1, high: 4, log: false });
    assert_eq!(space.knobs[5].domain.to_string(), "true | false");
    assert!(parse(RECIPE, "PRETRAINED").is_ok_and(|space| space.knobs.is_empty()));
}

#[test]
fn setting_values_changes_nothing_else() {
    let set = values(&[("learning_rate", "2.13e-3"), ("warmup", "Linear"), ("shift", "0.25")]);
    let expected = RECIPE
        .replace("learning_rate: 1e-3, ", "learning_rate: 2.13e-3, ")
        .replace("Warmup::Cosine", "Warmup::Linear")
        .replace("shift: -0.5", "shift: 0.25");
    assert_eq!(space().apply(&set), Ok(expected));
    assert_eq!(space().apply(&BTreeMap::new()).as_deref(), Ok(RECIPE));
}

#[test]
fn a_byte_order_mark_shifts_nothing() {
    let marked = format!("\u{feff}{RECIPE}");
    let set = parse(&marked, "SCRATCH").and_then(|space| space.apply(&values(&[("layers", "4")])));
    assert_eq!(set, Ok(marked.replace("layers: 3", "layers: 4")));
}

#[test]
fn values_outside_of_the_annotation_are_refused() {
    for (knob, value) in [
        ("learning_rate", "0.5"),
        ("learning_rate", "1"),
        ("learning_rate", "f64::NAN"),
        ("batch", "65"),
        ("batch", "16.0"),
        ("warmup", "Step"),
        ("warmup", "Linear, steps: 1"),
        ("clip", "1"),
    ] {
        let error = space().apply(&values(&[(knob, value)])).expect_err(value);
        assert!(matches!(error, KnobError::Outside { .. }), "{knob} = {value}: {error}");
    }
    assert_eq!(space().apply(&values(&[("plain", "0.2")])), Err(KnobError::Unknown("plain".into())));
}

#[test]
fn wrong_annotations_are_errors_with_line_and_advice() {
    for (field, part) in [
        ("a: 1, // search: log 0..8", "line 3: `a`: a logarithmic range begins above 0"),
        ("a: 1, // search: 8..1", "empty"),
        ("a: 1, // search: 1,8", "write `A..B`, `log A..B` or `X | Y | Z`"),
        ("a: 1, // search: x..8", "`x` is no number"),
        ("a: 1, // search: 0.5..8.0", "write integer ends"),
        ("a: 9, // search: 1..8", "the value 9 lies outside of its own annotation, 1..8"),
        ("a: true, // search: 0..1", "write `X | Y | Z`"),
        ("a: 1, // search: 1 | 2.0", "`2.0` is not of the value's kind"),
        ("a: 1, // search: 1 | 1", "twice"),
        ("a: W::C, // search: A | B", "lies outside"),
        ("a: 1 + 1, // search: 1..8", "only a literal or an enum value"),
        ("// search: 1..8\n    a: 1,", "line 3: `// search: 1..8`: an annotation belongs behind its field"),
    ] {
        let message = refused(field);
        assert!(message.contains(part), "{field}: {message}");
    }
}

#[test]
fn a_missing_constant_and_broken_rust_say_so() {
    assert!(parse(RECIPE, "OTHER").is_err_and(|e| e.to_string().contains("`const OTHER")));
    assert_eq!(parse("const K: u8 = 3;", "K"), Err(KnobError::NotLiteral { line: 1, name: "K".into() }));
    assert!(parse("const K: T = T {\n a: 1\n", "K").is_err());
    assert!(matches!(parse("fn f() {}\n\nfn 3() {}", "K"), Err(KnobError::Refused(Refusal::Syntax { line: 3, .. }))));
}

#[test]
fn comments_documentation_and_formatting_are_no_new_recipe() {
    let hash = |source: &str| token_hash(source).expect("Rust");
    let plain = "#[derive(Debug)]\nstruct S { a: f64 }\nfn f(x: f64) -> f64 { if x < -1.0 { g(x, 1.0) } else { x } }";
    let same = "//! Head.\n#![doc = \"Head.\"]\n\n/// A struct.\n#[derive(Debug)]\nstruct S {\n    /// A field.\n    a: f64, // why\n}\n\n\
                /* a comment */\nfn f(x: f64) -> f64 {\n    if x<-1.0 {\n        g(\n            x,\n            1.0,\n        )\n    } else {\n        x\n    }\n}\n";
    assert_eq!(hash(plain), hash(same));
    assert_eq!(hash(plain).len(), 64);
    for other in [plain.replace("-1.0", "-1.5"), plain.replace("x <", "x >"), plain.replace("Debug", "Clone")] {
        assert_ne!(hash(plain), hash(&other), "{other}");
    }
    assert!(token_hash("fn f( {").is_err());
}

#[test]
fn float_literals_are_short_and_as_rustfmt_leaves_them() {
    let log = Domain::Float { low: 1e-5, high: 1e4, log: true };
    assert_eq!((log.at(0.0), log.at(1.0)), ("1e-5".into(), "1e4".into()));
    assert_eq!(log.at(log.position("2.13e-3").expect("inside")), "2.13e-3");
    let fine = Domain::Float { low: 0.9, high: 0.999, log: false };
    assert_eq!((fine.at(0.5), fine.at(1.0), fine.at(2.0)), ("0.9495".into(), "0.999".into(), "0.999".into()));
    let wide = Domain::Float { low: 0.0, high: 1.0, log: false };
    assert_eq!((wide.at(0.0), wide.at(0.123_456), wide.at(1.0)), ("0.0".into(), "0.12".into(), "1.0".into()));
}

fn domains() -> impl Strategy<Value = Domain> {
    prop_oneof![
        (-1e3..1e3_f64, 1e-3..1e3_f64).prop_map(|(low, width)| Domain::Float { low, high: low + width, log: false }),
        (1e-8..1e2_f64, 1.01..1e6_f64).prop_map(|(low, ratio)| Domain::Float { low, high: low * ratio, log: true }),
        (-500..500_i64, 1..1000_i64).prop_map(|(low, width)| Domain::Integer { low, high: low + width, log: false }),
        (1..500_i64, 1..100_000_i64).prop_map(|(low, width)| Domain::Integer { low, high: low + width, log: true }),
        (2..6_usize).prop_map(|n| Domain::Choice((0..n).map(|i| format!("V{i}")).collect())),
    ]
}

proptest! {
    #[test]
    fn every_position_gives_an_allowed_value_at_that_position(domain in domains(), unit in 0.0..1.0_f64) {
        let position = domain.choices().map_or(unit, |n| (unit * n as f64).floor());
        let text = domain.at(position);
        prop_assert!(domain.allows(&text), "{text} in {domain}");
        let back = domain.position(&text).expect("allowed");
        prop_assert_eq!(domain.at(back), text.clone());
        if let Domain::Float { .. } = domain {
            prop_assert!((back - position).abs() < 0.51, "{text}: {position} became {back}");
        }
    }

    #[test]
    fn what_is_applied_is_what_is_read(units in proptest::collection::vec(0.0..1.0_f64, 6)) {
        let space = space();
        let set: BTreeMap<String, String> = space
            .knobs
            .iter()
            .zip(&units)
            .map(|(k, u)| (k.name.clone(), k.domain.at(u * k.domain.choices().map_or(1.0, |n| n as f64))))
            .collect();
        let recipe = space.apply(&set).expect("allowed values");
        let again = parse(&recipe, "SCRATCH").expect("knobs");
        prop_assert_eq!(again.values(), set);
        prop_assert_eq!(recipe.matches("// search:").count(), 6);
        // Back to the start: nothing but the values was touched.
        prop_assert_eq!(again.apply(&space.values()).expect("allowed values"), RECIPE);
    }

    #[test]
    fn no_text_makes_the_reader_panic(text in "[ -~\n]{0,200}") {
        let _ = parse(&text, "K");
        let _ = parse(&format!("const K: T = T {{ a: 1, // search: {text}\n}};"), "K");
        let _ = token_hash(&text);
    }
}
