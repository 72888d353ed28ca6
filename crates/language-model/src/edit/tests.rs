//! What is understood, what is refused, and that edits do what they say whatever the file.

use std::time::{Duration, Instant};

use proptest::prelude::*;
use proptest::sample::Index;

use super::*;

const FILE: &str = "\
//! A recipe.

const KNOBS: Knobs = Knobs {
    learning_rate: 1e-3, // search: log 1e-5..1e-2
    batch: 16,
};

fn main() {
    let mut run = Run::start();
    while run.step() {
        run.train();
    }
    run.finish();
}
";

const BLOCKS: Rules = Rules { path: "crates/trainer/src/train.rs", most_bytes: 10_000, format: Format::Blocks };
const WHOLE: Rules = Rules { format: Format::WholeFile, ..BLOCKS };

fn block(search: &str, replace: &str) -> String {
    format!("<<<<<<< SEARCH\n{search}=======\n{replace}>>>>>>> REPLACE\n")
}

fn answer(changes: &str) -> String {
    format!("HYPOTHESIS: it helps\nEXPECTED: lower loss\n\n{changes}")
}

fn edit(changes: &str) -> Result<String, Refusal> {
    read(&answer(changes), false, FILE, &BLOCKS).map(|edit| edit.source)
}

fn refusal(changes: &str) -> Refusal {
    edit(changes).expect_err("a refusal")
}

#[test]
fn an_answer_is_a_hypothesis_an_expectation_and_blocks() {
    let text =
        "Let me think.\n\nHYPOTHESIS: A higher rate\nlearns faster.\n\nEXPECTED: The loss falls \x1b[1mby 0.1.\n\n"
            .to_owned()
            + &block("    batch: 16,\n", "    batch: 32,\n    accumulate: 2,\n")
            + "and\n\n"
            + &block("        run.train();\n", "");
    let edit = read(&text, false, FILE, &BLOCKS).expect("an edit");
    assert_eq!(edit.hypothesis, "A higher rate learns faster.");
    assert_eq!(edit.expected, "The loss falls [1mby 0.1.");
    let expected =
        FILE.replace("batch: 16,\n", "batch: 32,\n    accumulate: 2,\n").replace("        run.train();\n", "");
    assert_eq!(edit.source, expected);
}

#[test]
fn labels_may_be_dressed_up() {
    let change = block("    batch: 16,\n", "    batch: 8,\n");
    for start in [
        "**Hypothesis:** it helps\n**Expected effect:** lower loss\n",
        "## Hypothesis\n\nit helps\n\n## Expected effect\nlower loss\n\n",
        "- hypothesis: it\n  helps\n- EXPECTED: lower\n  loss\n",
        "<think>HYPOTHESIS: no\n<<<<<<< SEARCH\n</think>\n__HYPOTHESIS__: it helps\nExpected: lower loss\nFILE: train.rs\n",
        "HYPOTHESIS: it helps\nEXPECTED: lower loss\n\nHypothesis: another one\n",
    ] {
        let edit = read(&format!("{start}{change}"), false, FILE, &BLOCKS).expect(start);
        assert_eq!((edit.hypothesis.as_str(), edit.expected.as_str()), ("it helps", "lower loss"), "{start}");
    }
    let bare = read(&change, false, FILE, &BLOCKS);
    assert_eq!(bare, Err(Refusal::NoHypothesis));
    let silent = read(&format!("HYPOTHESIS: it helps\n{change}"), false, FILE, &BLOCKS).expect("an edit");
    assert_eq!(silent.expected, "");
    let endless = format!("HYPOTHESIS: {}\n{change}", "long ".repeat(10_000));
    assert!(read(&endless, false, FILE, &BLOCKS).expect("an edit").hypothesis.chars().count() <= 600);
}

#[test]
fn blocks_may_be_packed_and_may_name_the_file() {
    let change = block("    batch: 16,\n", "    batch: 8,\n");
    let expected = FILE.replace("batch: 16", "batch: 8");
    for packed in [
        format!("```rust\n{change}```\n"),
        format!("```\n{change}"),
        format!("~~~~ crates/trainer/src/train.rs\n{change}~~~~\n"),
        format!("```rust:src/train.rs\n{change}```\n"),
        format!("crates/trainer/src/train.rs\n```rust\n{change}```\n"),
        format!("**`./crates/trainer/src/train.rs`**:\n{change}"),
        format!("FILE: /somewhere/crates/trainer/src/train.rs\n\n{change}"),
        change.replace("SEARCH", "SEARCH train.rs"),
        change.replace("<<<<<<<", "<<<<<<").replace("=======", "========").replace('\n', "\r\n"),
        format!("As `crates/ternary/src/lib.rs` shows:\n```rust\nfn f() {{}}\n```\nso\n\n{change}"),
        format!("A heading\n=======\n{change}"),
    ] {
        assert_eq!(edit(&packed).as_ref(), Ok(&expected), "{packed}");
    }
    let all = format!("```\n{}```\n", answer(&change));
    assert_eq!(read(&all, false, FILE, &BLOCKS).map(|edit| edit.hypothesis), Ok("it helps".to_owned()));
}

#[test]
fn another_file_is_refused() {
    let change = block("    batch: 16,\n", "    batch: 8,\n");
    for (named, packed) in [
        ("crates/trainer/src/frame.rs", format!("crates/trainer/src/frame.rs\n```rust\n{change}```\n")),
        ("prepare/evaluator/src/main.rs", format!("### `prepare/evaluator/src/main.rs`\n\n{change}")),
        ("Cargo.toml", format!("FILE: Cargo.toml\n{change}")),
        ("../train.py", change.replace("SEARCH", "SEARCH ../train.py")),
        ("other/train.rs", format!("```rust:other/train.rs\n{change}```\n")),
        ("b/src/lib.rs", format!("b/src/lib.rs\n{change}")),
        ("main.rs", format!("{change}\nmain.rs\n{change}")),
    ] {
        let refusal = refusal(&packed);
        let expected = Refusal::OtherFile { named: named.to_owned(), path: BLOCKS.path.to_owned() };
        assert_eq!(refusal, expected, "{packed}");
        assert!(refusal.to_string().contains(BLOCKS.path));
    }
}

#[test]
fn white_space_at_line_ends_and_uniform_indentation_do_not_matter() {
    let expected = FILE.replace(
        "        run.train();\n",
        "        run.train();\n\n        if run.lost() {\n            break;\n        }\n",
    );
    // As it is; with white space behind; with less indentation; with more.
    let body = [
        "    while run.step() {\n        run.train();\n    }\n",
        "    while run.step() {\n        run.train();\n\n        if run.lost() {\n            break;\n        }\n    }\n",
    ];
    let shift = |text: &str, by: &str| {
        text.lines().map(|l| if l.is_empty() { "\n".into() } else { format!("{by}{l}\n") }).collect::<String>()
    };
    let less =
        |text: &str| text.lines().map(|l| format!("{}\n", l.strip_prefix("    ").unwrap_or(l))).collect::<String>();
    for (search, replace) in [
        (body[0].to_owned(), body[1].to_owned()),
        (body[0].replace(" {\n", " { \t\n"), body[1].to_owned()),
        (less(body[0]), less(body[1])),
        (shift(body[0], "\t"), shift(body[1], "\t")),
        (shift(body[0], "  "), shift(body[1], "  ")),
    ] {
        assert_eq!(edit(&block(&search, &replace)).as_ref(), Ok(&expected), "{search}");
    }
    // Indentation that is changed in one line and not in another is another text.
    let uneven = body[0].replace("        run.train", "      run.train");
    assert!(matches!(refusal(&block(&uneven, body[1])), Refusal::NotFound { block: 1, .. }));
    // An exact match makes a similar one elsewhere irrelevant.
    let twice = "fn a() {\n    go();\n}\ngo();\n";
    let edit = read(&answer(&block("go();\n", "stop();\n")), false, twice, &BLOCKS).expect("an edit");
    assert_eq!(edit.source, "fn a() {\n    go();\n}\nstop();\n");
}

#[test]
fn a_miss_is_told_with_the_nearest_lines() {
    let search = "    while run.step() {\n        run.train(1);\n    }\n    run.finish();\n";
    let refused = refusal(&block(search, "x\n")).to_string();
    assert!(refused.contains("block 1 does not occur"), "{refused}");
    assert!(refused.contains("lines, 8 to 14, are:\n```\nfn main() {\n"), "{refused}");
    assert!(refused.contains("\n        run.train();\n"), "{refused}");
    let one_line = refusal(&block("    learning_rate: 2e-3, // search: log 1e-5..1e-2\n", "x\n")).to_string();
    assert!(one_line.contains("learning_rate: 1e-3"), "{one_line}");
    let nothing_like_it = refusal(&block("qqqq zzzz xxxx\n", "x\n"));
    assert_eq!(nothing_like_it, Refusal::NotFound { block: 1, nearest: None });
    // Parts of lines do not match.
    assert!(matches!(refusal(&block("batch\n", "size\n")), Refusal::NotFound { .. }));
}

#[test]
fn a_block_must_match_once() {
    let file = "a\nb\nc\na\nb\nd\n";
    let ambiguous = read(&answer(&block("a\nb\n", "x\n")), false, file, &BLOCKS).expect_err("a refusal");
    assert_eq!(ambiguous, Refusal::Ambiguous { block: 1, lines: vec![1, 4] });
    assert!(ambiguous.to_string().contains("on lines 1, 4."));
    let edit = read(&answer(&block("a\nb\nd\n", "x\n")), false, file, &BLOCKS).expect("an edit");
    assert_eq!(edit.source, "a\nb\nc\nx\n");
    let many = "same\n".repeat(50);
    let ambiguous = read(&answer(&block("same\n", "x\n")), false, &many, &BLOCKS).expect_err("a refusal");
    assert_eq!(ambiguous, Refusal::Ambiguous { block: 1, lines: vec![1, 2, 3, 4, 5] });
}

#[test]
fn blocks_may_not_overlap() {
    let one = block("    let mut run = Run::start();\n    while run.step() {\n", "x\n");
    let other = block("    while run.step() {\n        run.train();\n", "y\n");
    assert_eq!(refusal(&format!("{one}{other}")), Refusal::Overlap { first: 1, second: 2 });
    assert_eq!(refusal(&format!("{other}{one}")), Refusal::Overlap { first: 2, second: 1 });
}

#[test]
fn unfinished_and_stray_marks_are_told_with_their_line() {
    let whole = block("    batch: 16,\n", "    batch: 8,\n");
    for cut in [1, 3, 12] {
        // At the end of the answer, and before the next block.
        for rest in ["", whole.as_str()] {
            let lines = whole.lines().collect::<Vec<_>>();
            let kept = lines[..cut.min(4)].join("\n") + "\n";
            let missing = if cut < 3 { "=======" } else { ">>>>>>> REPLACE" };
            assert_eq!(refusal(&format!("{kept}{rest}")), Refusal::Unfinished { block: 1, line: 4, missing }, "{kept}");
        }
    }
    let no_divider = whole.replace("=======\n", "");
    assert!(matches!(refusal(&no_divider), Refusal::Unfinished { missing: "=======", .. }));
    let two_dividers = whole.replace("=======\n", "=======\nx\n=======\n");
    assert!(matches!(refusal(&two_dividers), Refusal::Unfinished { missing: ">>>>>>> REPLACE", .. }));
    assert_eq!(refusal(&format!("{whole}>>>>>>> REPLACE\n")), Refusal::StrayMark { line: 9, mark: ">>>>>>> REPLACE" });
    assert_eq!(refusal("I have no idea.\n"), Refusal::NoBlock);
    assert_eq!(refusal("```diff\n--- a/train.rs\n+++ b/train.rs\n```\n"), Refusal::NoBlock);
    assert_eq!(read(&answer(&whole), true, FILE, &BLOCKS), Err(Refusal::CutOff));
    assert_eq!(read("<think>\nHm, HYPOTHESIS: ", false, FILE, &BLOCKS), Err(Refusal::CutOff));
    assert_eq!(refusal(&whole.repeat(65)), Refusal::TooManyBlocks(64));
}

#[test]
fn edits_without_effect_and_beyond_the_limit_are_refused() {
    assert_eq!(refusal(&block("", "x\n")), Refusal::EmptySearch { block: 1 });
    assert_eq!(refusal(&block("\n  \n", "x\n")), Refusal::EmptySearch { block: 1 });
    assert_eq!(refusal(&block("    batch: 16,\n", "    batch: 16,\n")), Refusal::NoEffect);
    let large = "    x,\n".repeat(2000);
    let bytes = FILE.len() + large.len() - "    batch: 16,\n".len();
    assert_eq!(refusal(&block("    batch: 16,\n", &large)), Refusal::TooLarge { bytes, most: 10_000 });
    for hidden in ["\u{202e}", "\0", "\x1b[1m", "\u{200b}", "\r"] {
        assert_eq!(
            refusal(&block("    batch: 16,\n", &format!("    batch: {hidden}1,\n"))),
            Refusal::Invisible { line: 5 }
        );
    }
}

#[test]
fn comments_in_the_place_of_code_are_refused() {
    for elision in
        ["// ...", "    // ... rest of the function ...", "// … unchanged …", "...", "/* ... existing code ... */"]
    {
        let refused = refusal(&block("    batch: 16,\n", &format!("    batch: 8,\n{elision}\n")));
        assert_eq!(refused, Refusal::Elided(elision.trim().to_owned()));
    }
    for fine in ["// warm up, then decay...", "let (a, .., b) = c;", "for i in 0..=3 {", "// see 1..5", "foo(..)"] {
        assert!(edit(&block("    batch: 16,\n", &format!("{fine}\n"))).is_ok(), "{fine}");
    }
    let had_it = format!("// ... existing code ...\n{FILE}");
    let change = block("// ... existing code ...\n", "// ... existing code ...\nconst A: u8 = 1;\n");
    assert!(read(&answer(&change), false, &had_it, &BLOCKS).is_ok());
}

#[test]
fn a_file_that_was_changed_in_place_is_taken_as_it_is() {
    let rules = Rules { format: Format::InPlace, ..BLOCKS };
    let changed = FILE.replace("batch: 16", "batch: 8");
    let said = "I looked around.\n\n**HYPOTHESIS:** smaller batches\nmake more steps\n\nEXPECTED: a lower loss\n";
    let edit = read(&in_place(said, &changed, &rules), false, FILE, &rules).expect("an edit");
    assert_eq!((edit.source.as_str(), edit.hypothesis.as_str()), (changed.as_str(), "smaller batches make more steps"));
    assert_eq!(edit.expected, "a lower loss");
    // Without a label the first words are the hypothesis; comments that look like elisions are the file's own; what is
    // short is short.
    let short = "// ... the rest of it is gone\n";
    let edit = read(&in_place("\n# Less code\nDone.", short, &rules), false, FILE, &rules).expect("an edit");
    assert_eq!((edit.source.as_str(), edit.hypothesis.as_str()), (short, "Less code"));
    assert_eq!(read(&in_place("", &changed, &rules), false, FILE, &rules), Err(Refusal::NoHypothesis));
    assert_eq!(read(&in_place("x", FILE, &rules), false, FILE, &rules), Err(Refusal::NoEffect));
    let fences = changed.replace("batch", "````\nbatch");
    assert_eq!(read(&in_place("x", &fences, &rules), false, FILE, &rules).map(|edit| edit.source), Ok(fences));
    // A program that says what it would do has changed nothing, and one that gives blocks has.
    let untouched = Refusal::Untouched { path: rules.path.into() };
    assert_eq!(read("HYPOTHESIS: x\n```rust\nfn f() {}\n```\n", false, FILE, &rules), Err(untouched));
    let blocks = answer(&block("    batch: 16,\n", "    batch: 8,\n"));
    assert_eq!(read(&blocks, false, FILE, &rules).map(|edit| edit.source), Ok(changed));
}

#[test]
fn line_endings_stay_those_of_the_file() {
    let windows = FILE.replace('\n', "\r\n");
    let change = answer(&block("    batch: 16,\n};\n", "    batch: 8,\n};\n"));
    let expected = windows.replace("batch: 16", "batch: 8");
    assert_eq!(read(&change, false, &windows, &BLOCKS).map(|edit| edit.source), Ok(expected.clone()));
    let whole = answer(&format!("```rust\n{}```\n", FILE.replace("batch: 16", "batch: 8")));
    assert_eq!(read(&whole, false, &windows, &WHOLE).map(|edit| edit.source), Ok(expected));
    // A file whose last line has no ending keeps it so.
    let open = "a\nb";
    let replaced =
        |search, replace| read(&answer(&block(search, replace)), false, open, &BLOCKS).map(|edit| edit.source);
    assert_eq!(replaced("b\n", "c\nd\n"), Ok("a\nc\nd".to_owned()));
    assert_eq!(replaced("b\n", ""), Ok("a\n".to_owned()));
    assert_eq!(replaced("a\n", "é\n"), Ok("é\nb".to_owned()));
}

#[test]
fn a_whole_file_is_taken_when_it_is_whole() {
    let new = FILE.replace("batch: 16", "batch: 8");
    let read = |text: &str| read(&answer(text), false, FILE, &WHOLE).map(|edit| edit.source);
    for fenced in
        [format!("```rust\n{new}```\n"), format!("train.rs\n````\n{new}````"), format!("~~~\n{new}~~~\nDone.")]
    {
        assert_eq!(read(&fenced).as_ref(), Ok(&new), "{fenced}");
    }
    assert_eq!(read(&block("    batch: 16,\n", "    batch: 8,\n")), Ok(new.clone()));
    assert_eq!(read(&format!("```rust\n{new}")), Err(Refusal::Truncated));
    assert_eq!(read(&format!("````rust\n{new}```\n")), Err(Refusal::Truncated));
    assert_eq!(read("Nothing.\n"), Err(Refusal::NotOneFile(0)));
    assert_eq!(read(&format!("```\na\n```\n```rust\n{new}```\n")), Err(Refusal::NotOneFile(2)));
    assert_eq!(read("```rust\nbatch: 8,\n```\n"), Err(Refusal::Excerpt { lines: 1, current: 14 }));
    assert_eq!(read(&format!("```rust\n{FILE}```\n")), Err(Refusal::NoEffect));
    let elided = new.replace("        run.train();\n", "        // ... rest unchanged ...\n");
    assert!(matches!(read(&format!("```rust\n{elided}```\n")), Err(Refusal::Elided(_))));
    let other = format!("crates/trainer/src/frame.rs\n```rust\n{new}```\n");
    assert!(matches!(read(&other), Err(Refusal::OtherFile { .. })));
}

#[test]
fn the_instructions_describe_what_is_understood() {
    for rules in [BLOCKS, WHOLE] {
        let text = instructions(&rules);
        assert!(text.contains(rules.path) && text.contains("at most 10000 bytes"), "{text}");
        let filled = text
            .replace("lines of the file as they are now\n", "    batch: 16,\n")
            .replace("the lines that replace them\n", "    batch: 8,\n")
            .replace("the whole file, from its first line to its last\n", &FILE.replace("batch: 16", "batch: 8"));
        let edit = read(&filled, false, FILE, &rules).expect("the form itself is understood");
        assert_eq!(edit.hypothesis, "one or two sentences: what you change, and why it should help");
        assert!(edit.source.contains("batch: 8"));
    }
}

#[test]
fn hostile_repetition_ends_in_time() {
    let started = Instant::now();
    let file = "\n".repeat(200_000) + "x\n";
    let search = "\n".repeat(100_000) + "y\n";
    let refused = read(&answer(&block(&search, "z\n")), false, &file, &BLOCKS).expect_err("a refusal");
    assert_eq!(refused, Refusal::TooRepetitive);
    let file = "    }\n".repeat(50_000);
    for search in ["}\n".repeat(1000), "    }\n".repeat(1000) + "z\n", "// ...\n".repeat(1000)] {
        assert!(read(&answer(&block(&search, &search)), false, &file, &BLOCKS).is_err());
    }
    let deep = "<<<<<<< SEARCH\n".repeat(50_000) + &"```\n".repeat(50_000) + &"=".repeat(100_000);
    assert!(read(&deep, false, &file, &BLOCKS).is_err());
    let wide = format!("HYPOTHESIS: {}\n{}", "a".repeat(1 << 20), "HYPOTHESIS: b\n".repeat(50_000));
    assert!(read(&wide, false, &file, &BLOCKS).is_err());
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
}

/// Lines as they occur in files, few enough to repeat.
fn line() -> impl Strategy<Value = String> {
    prop_oneof![
        prop::sample::select(vec!["", "}", "    }", "    let a = 1;", "\tlet a = 1;", "é🦀", "  // ü", "a ", "let b;"])
            .prop_map(str::to_owned),
        "[ -;?-~]{0,12}",
    ]
    .prop_filter("no comment that stands for code", |line| !line.contains("..."))
}

fn joined(lines: &[String]) -> String {
    lines.iter().map(|line| format!("{line}\n")).collect()
}

proptest! {
    #[test]
    fn one_block_replaces_its_lines_or_is_ambiguous(
        lines in prop::collection::vec(line(), 1..30),
        at in any::<(Index, Index)>(),
        replacement in prop::collection::vec(line(), 0..6),
    ) {
        let start = at.0.index(lines.len());
        let end = start + 1 + at.1.index(lines.len() - start);
        let file = joined(&lines);
        let expected = joined(&lines[..start]) + &joined(&replacement) + &joined(&lines[end..]);
        let occurs = lines.windows(end - start).filter(|window| *window == &lines[start..end]).count();
        let change = answer(&block(&joined(&lines[start..end]), &joined(&replacement)));
        match read(&change, false, &file, &BLOCKS) {
            Ok(edit) => {
                prop_assert_eq!(occurs, 1);
                prop_assert_eq!(edit.source, expected);
            }
            Err(Refusal::Ambiguous { lines, .. }) => prop_assert!(occurs > 1 && lines.contains(&(start + 1)) || occurs > 5),
            Err(Refusal::EmptySearch { .. }) => prop_assert!(lines[start..end].iter().all(|line| line.trim().is_empty())),
            Err(Refusal::NoEffect) => prop_assert_eq!(file, expected),
            Err(other) => prop_assert!(false, "{other}"),
        }
    }

    #[test]
    fn the_order_of_blocks_does_not_matter(
        contents in prop::collection::vec("[a-zé ]{0,8}", 4..40),
        replaced in prop::collection::vec(any::<bool>(), 40),
        crlf in any::<bool>(),
        indentation in "[ \t]{0,4}",
        seed in any::<Index>(),
    ) {
        // Numbered lines are unique.
        let lines: Vec<String> = contents.iter().enumerate().map(|(n, text)| format!("{indentation}{n} {text}")).collect();
        let ending = if crlf { "\r\n" } else { "\n" };
        let file: String = lines.iter().map(|line| format!("{line}{ending}")).collect();
        let mut expected = String::new();
        let mut blocks = Vec::new();
        for (n, line) in lines.iter().enumerate() {
            if replaced[n] {
                let bare = line.trim();
                // The model may leave the indentation out.
                blocks.push(block(&format!("{bare}\n"), &format!("new {n}\n\nnewer {n}\n")));
                let indent = if line.trim_end() == bare { "" } else { &indentation };
                expected += &format!("{indent}new {n}{ending}{ending}{indent}newer {n}{ending}");
            } else {
                expected += &format!("{line}{ending}");
            }
        }
        let middle = seed.index(blocks.len() + 1);
        blocks.rotate_left(middle);
        let result = read(&answer(&blocks.concat()), false, &file, &BLOCKS).map(|edit| edit.source);
        prop_assert_eq!(result, if blocks.is_empty() { Err(Refusal::NoBlock) } else { Ok(expected) });
    }

    #[test]
    fn any_answer_is_read_without_panic(text in any::<String>(), current in any::<String>(), whole in any::<bool>()) {
        let rules = if whole { WHOLE } else { BLOCKS };
        if let Ok(edit) = read(&text, false, &current, &rules) {
            prop_assert_ne!(edit.source, current);
        }
    }

    #[test]
    fn any_order_of_marks_is_read_without_panic(
        parts in prop::collection::vec(prop::sample::select(vec![
            "<<<<<<< SEARCH\n", "=======\n", ">>>>>>> REPLACE\n", "```\n", "```rust\n", "~~~~\n", "HYPOTHESIS: h\n", "EXPECTED: e\n",
            "train.rs\n", "x.rs\n", "a\n", "  a\n", "\ta \r\n", "b", "\n", "é\u{2028}\r", "</think>", "<think>", "...\n",
        ]), 0..40),
        current in prop::collection::vec(prop::sample::select(vec!["a", "  a", "\ta ", "b", "", "é", "\r"]), 0..20),
        whole in any::<bool>(),
    ) {
        let rules = if whole { WHOLE } else { BLOCKS };
        let current = current.join("\n");
        match read(&parts.concat(), false, &current, &rules) {
            Ok(edit) => prop_assert!(edit.source != current && edit.source.len() <= rules.most_bytes),
            Err(refusal) => prop_assert!(!refusal.to_string().is_empty()),
        }
    }
}
