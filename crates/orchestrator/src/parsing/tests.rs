//! That no text ends the process, and that what people write is let through.

use super::*;
use crate::knobs::{KnobError, LARGEST_RECIPE, token_hash};

/// Nestings and chains of about `n` tokens, in all places of a recipe that have them.
fn hostile(n: usize) -> Vec<String> {
    let nested = |open: &str, close: &str| {
        let n = n / (open.len() + close.len()).div_ceil(2);
        format!("{}1{}", open.repeat(n), close.repeat(n))
    };
    let chain = |link: &str| link.repeat(n / link.split_whitespace().count().max(1));
    let expression = |text: String| format!("fn f() {{\n    let _x = {text};\n}}\n");
    let kind = |text: String| format!("\ntype X = {};\n", text.replace('1', "u8"));
    let pattern = |text: String| format!("fn f() {{\n    let {} = 1;\n}}\n", text.replace('1', "a"));
    let mut texts: Vec<String> =
        [("(", ")"), ("[", "]"), ("{", "}"), ("f(", ")"), ("S{a:", "}"), ("async {", "}"), ("unsafe {", "}")]
            .into_iter()
            .chain([("loop {", "}"), ("match a { _ => ", "}"), ("A::<", ">()"), ("if a { ", "}"), ("m!(", ")")])
            .chain([("|| {", "}"), ("for a in b {", "}"), ("let a = { ", "};"), ("if ", " {}"), ("match ", " {}")])
            .chain([("while ", " {}"), ("for a in ", " {}"), ("[1; ", "]"), ("(1, ", ")"), ("a[", "]"), ("a(", ")?")])
            .map(|(open, close)| expression(nested(open, close)))
            .collect();
    texts.extend(
        ["!", "-", "- ", "*", "&", "& ", "&mut ", "&&", "1+", "1 - ", "a=", "a += ", "a && ", "||", "|a| ", "return "]
            .into_iter()
            .chain(["break ", "move || ", "if a {} else ", "if a {} else if b {} else ", "&raw const ", "1.."])
            .map(|link| expression(chain(link) + if link.ends_with("else ") { "{}" } else { "1" })),
    );
    texts.extend(
        ["?", ".a", ".a()", ".await", "()", "[1]", " as u8", " + 1", " == 1"]
            .into_iter()
            .map(|link| expression(format!("a{}", chain(link)))),
    );
    texts.extend(
        [("[", "]"), ("(", ",)"), ("A<", ">"), ("A<B,", ">"), ("<", " as T>::U"), ("[", "; 1]"), ("dyn A<B=", ">")]
            .map(|(open, close)| kind(nested(open, close))),
    );
    texts.extend(["&", "*const ", "fn() -> ", "&'a mut "].map(|link| kind(chain(link) + "1")));
    texts.extend([("[", "]"), ("A(", ")"), ("(", ",)"), ("A { a: ", "}")].map(|(a, b)| pattern(nested(a, b))));
    texts.push(pattern(chain("&") + "a"));
    texts.extend(
        [("mod a {", "}"), ("fn a() {", "}"), ("use a::{", "};"), ("impl A { fn a() {", "}}"), ("m! {", "}")]
            .map(|(open, close)| nested(open, close).replace('1', "")),
    );
    // What goes on behind a comma.
    texts.extend(["<", "&"].map(|sign| kind(("A<B,".to_owned() + &sign.repeat(n / 16)).repeat(16))));
    texts.push(expression(chain("|a,| ") + "1"));
    texts.push(expression("|a,| if ".repeat(n / 4) + "1"));
    texts.push(format!("#[a{}] fn f() {{}}", nested("(", ")")));
    texts.push(format!("const K: T = T {{\n    a: {}1, // search: 1..2\n}};\n", "!".repeat(n)));
    texts
}

#[test]
fn whatever_is_nested_is_refused_with_its_line_and_ends_nothing() {
    // The issue's own, cut to what a recipe may have.
    for (text, too_deep) in [
        // Deep, and not too deep for the stack.
        ("(".repeat(3000) + "1" + &")".repeat(3000), false),
        ("(".repeat(9000) + "1" + &")".repeat(9000), true),
        ("!".repeat(50_000) + "1", true),
        ("1+".repeat(30_000) + "1", true),
    ] {
        match token_hash(&format!("fn main() {{}}\nconst X: u8 =\n    {text};\n")) {
            Ok(_) => assert!(!too_deep),
            Err(refused) => assert!(too_deep && matches!(refused, KnobError::Refused(Refusal::TooDeep { line: 3 }))),
        }
    }
    let mut refused = 0;
    for text in hostile(6 * DEEPEST) {
        let shown: String = text.chars().take(40).collect();
        match token_hash(&text) {
            Err(KnobError::Refused(Refusal::TooDeep { line })) => refused += usize::from(line > 0),
            Err(KnobError::Refused(Refusal::TooLong { .. } | Refusal::Syntax { .. })) => {}
            other => panic!("{shown}: {other:?}"),
        }
    }
    assert!(refused > 40, "{refused}");
}

#[test]
fn what_is_just_not_too_deep_fits_the_stack() {
    for n in [DEEPEST - 100, 2 * DEEPEST - 100] {
        for text in hostile(n) {
            let shown: String = text.chars().take(40).collect();
            let outcome = token_hash(&text);
            assert!(!matches!(outcome, Err(KnobError::Refused(Refusal::Fault(_)))), "{shown}: {outcome:?}");
            let _ = crate::knobs::parse(&text, "K");
        }
    }
}

#[test]
fn a_long_text_is_not_looked_at_and_an_annotation_cannot_nest_either() {
    let long = "!".repeat(200_000);
    assert_eq!(token_hash(&long), Err(KnobError::Refused(Refusal::TooLong { bytes: 200_000, most: LARGEST_RECIPE })));
    for open in ["(", "[", "{"] {
        let choice = open.repeat(20_000);
        let recipe = format!("const K: T = T {{\n    a: A, // search: A | {choice}\n}};\n");
        assert!(matches!(crate::knobs::parse(&recipe, "K"), Err(KnobError::Annotation { line: 2, .. })));
    }
    let deep = format!("{}1{}", "(".repeat(20_000), ")".repeat(20_000));
    let values = std::collections::BTreeMap::from([("a".to_owned(), deep)]);
    let recipe = "const K: T = T {\n    a: 1, // search: 1..3\n    b: B::C,\n};\n";
    assert!(matches!(crate::knobs::set(recipe, "K", &values), Err(KnobError::NoExpression { .. })));
    assert!(crate::knobs::parse(recipe, "K").unwrap().apply(&values).is_err());
}

#[test]
fn valid_rust_that_the_printer_does_not_know_is_a_recipe_as_any_other() {
    for form in [
        "#[allow(unsafe_code)] unsafe extern \"C\" { safe fn getpid() -> i32; }",
        "unsafe extern \"C\" { safe static X: i32; unsafe fn f(); }",
        "impl const Clone for S { fn clone(&self) -> Self { loop {} } }",
        "const trait T { fn f(); }",
        "pub macro m($a:expr) { $a }",
        "trait T { default fn f() {} }",
        "impl T for S { default fn f() {} default type A = u8; }",
        "fn f() -> impl use<'a, T> Sized {}",
        "fn f() -> impl Sized + use<'a, T> {}",
        "fn f<T: ~const A + async Fn()>() {}",
        "fn f(x: impl async Fn(u8)) {}",
        "auto trait A {}",
        "trait A = B + C;",
        "fn f() { let c = for<'a> |x: &'a u8| x; }",
        "fn f() { let c = static || {}; let d = const { 1 }; }",
        "fn f() { become g(); }",
        "fn f() { do yeet 1; }",
        "fn f() { builtin # offset_of(A, b); }",
        "fn f(a: u8, ...) {}",
        "static mut X: u8;",
        "type A where B: C = D;",
        "fn f() { let x: u8 is 1; }",
        "enum E { A = 1, pub B }",
        "struct S { a: u8 = 1 }",
        "fn f() { if let 1.. = x && let 2 = y {} }",
        "fn f() { match x { const { 1 } => {} box y => {} } }",
        "fn f() { let x = &raw mut y; let z = try { 1 }; }",
        "fn f() { yield 1; gen { 1 }; }",
        "fn f<const N: usize = { 1 }>(self: &Self) -> Foo<{ N + 1 }> {}",
    ] {
        // The macro's own parts are parsed by the printer again.
        for text in [form.to_owned(), format!("/// Documented.\n{form}\nfn main() {{ assert!(a as u8 < (1)); }}\n")] {
            match token_hash(&text) {
                Ok(hash) => assert_ne!(hash, token_hash(&format!("{text}\nfn another() {{}}")).unwrap(), "{form}"),
                Err(KnobError::Refused(Refusal::Syntax { .. })) => {}
                Err(other) => panic!("{form}: {other}"),
            }
        }
    }
    assert!(token_hash("unsafe extern \"C\" { safe fn getpid() -> i32; }").is_ok());
    assert!(token_hash("impl const Clone for S { fn clone(&self) -> Self { loop {} } }").is_ok());
}

#[test]
fn what_people_write_is_far_from_too_deep() {
    let items = "/// What it does.\n#[inline]\nfn f(a: u8) -> u8 { if a > 1 { 2 } else { 3 } }\n\n".repeat(600);
    assert!(token_hash(&items).is_ok());
    let table = format!("const T: [f32; 10000] = [{}];", "1.5, ".repeat(10_000));
    assert!(token_hash(&table).is_ok());
    let arms = format!("fn f(a: A) {{ match a {{ {} }} }}", "A::B { x, .. } => { g(x) }\n".repeat(1000));
    assert!(token_hash(&arms).is_ok());
}

#[test]
fn a_panic_is_a_message_on_any_thread() {
    let failed: Result<(), Refusal> = deep(|| panic!("first\u{1b}[31m line\nand {}", "more"));
    assert_eq!(failed, Err(Refusal::Fault("first line and more".into())));
    assert_eq!(contained(|| 1), Ok(1));
    assert_eq!(contained(|| -> u8 { std::panic::panic_any(7) }), Err("it panicked".into()));
}
