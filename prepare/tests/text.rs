//! How text falls into parts, by the real program: sizes, documents that belong together, and tokenizers that do not keep
//! the text.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use formats::corpus::Part;
use serde_json::{Value, json};

#[path = "common/local.rs"]
mod common;
use common::{SCRATCH, campaign, campaign_of, document, documents, lines, prepare, prepare_with, source};

const SPLIT: &str = "{ train = 0.7, dev = 0.1, select = 0.1, report = 0.1 }";
const LINES: &str = r#"{ separator = "\n" }"#;

/// The parts that hold a document for which `wanted` says so.
fn parts_with(data: &Path, wanted: impl Fn(&str) -> bool) -> Vec<Part> {
    Part::ALL.into_iter().filter(|&part| documents(data, part).iter().any(|text| wanted(text))).collect()
}

#[test]
fn parts_are_cut_by_size() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    // 62 documents, the longest a hundred times the shortest.
    let long = |i: usize| (0..4 + i * i / 9).map(|j| format!("w{i}x{j}")).collect::<Vec<_>>().join(" ");
    let text = lines(folder, "a.txt", (0..62).map(long));
    campaign(folder, "", &source(&text, LINES, SPLIT));
    let run = prepare(folder, "data");
    assert!(run.ok, "{}", run.errors);
    let all: u64 = (0..62).map(|i| long(i).len() as u64).sum();
    let largest = long(61).len() as f64;
    let mut found = BTreeSet::new();
    for (part, share) in [(Part::Train, 0.7), (Part::Dev, 0.1), (Part::Select, 0.1), (Part::Report, 0.1)] {
        let bytes = run.json["text"]["parts"][part.name()]["bytes"].as_f64().unwrap();
        assert!((bytes - share * all as f64).abs() <= largest, "{part} has {bytes} of {all}");
        found.extend(documents(&folder.join("data"), part));
    }
    assert_eq!(found, (0..62).map(long).collect(), "no document is lost");
}

#[test]
fn a_part_that_is_too_small_says_what_it_needs() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let text = lines(folder, "a.txt", (0..62).map(document));
    let sources = source(&text, LINES, SPLIT);
    campaign_of(folder, SCRATCH, "", &sources, 240);
    let run = prepare(folder, "data");
    let wanted = "its figure needs at least 3840 (evaluation.window = 240, 16 of them): give report a larger share";
    assert!(!run.ok && run.errors.contains(wanted), "{}", run.errors);
    assert!(run.errors.starts_with("error: report has "), "{}", run.errors);
    assert!(run.errors.contains("shorten evaluation.window to at most"), "{}", run.errors);
    assert!(!folder.join("data/prepared.json").exists());

    // What the message says helps.
    let most = run.errors.rsplit(' ').next().unwrap().trim().parse::<usize>().unwrap();
    campaign_of(folder, SCRATCH, "", &sources, most - most / 8);
    assert!(prepare(folder, "data").ok);
    // Fewer windows may be asked for.
    campaign_of(folder, SCRATCH, "", &sources, 240);
    let file = folder.join("campaign.toml");
    let toml = fs::read_to_string(&file).unwrap();
    fs::write(&file, toml.replace("window = 240", "window = 240\nmax_tokens = 480\ndev_tokens = 480")).unwrap();
    let run = prepare(folder, "data");
    assert!(run.ok && run.json["made"]["text"] == false, "{}", run.errors);
    // And a longer window is refused when the text is there already.
    fs::write(&file, toml).unwrap();
    assert!(prepare(folder, "data").errors.contains("needs at least 3840"));
}

/// A template of 14 words around each of `0..count`.
fn templates(count: usize) -> impl Iterator<Item = String> {
    (0..count).map(|i| {
        format!(
            "{} is a small place in the far north of a country with a name {}",
            document(5000 + i),
            document(6000 + i)
        )
    })
}

#[test]
fn documents_that_share_text_or_titles_stay_together() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let template = |text: &str| text.contains("small place");
    let text = lines(folder, "a.txt", (0..300).map(document).chain(templates(12)));
    let article = |i: usize, title: &str| {
        format!("<doc id=\"{i}\" url=\"u\" title=\"{title}\">\n{title}\n\n{}\n\n</doc>\n", document(i))
    };
    let series =
        |i: usize| ["Season 19xx (East)", "season 19xx–20xx", "Seasón 18xx"][i % 3].replace("xx", &i.to_string());
    let articles: String = (1000..1200)
        .map(|i| article(i, &format!("w{i}")))
        .chain((2000..2010).map(|i| article(i, &series(i))))
        .collect();
    let wiki = folder.join("wiki.utf8");
    fs::write(&wiki, articles).unwrap();
    let halves = "{ train = 0.4, dev = 0.2, select = 0.2, report = 0.2 }";
    for seed in 0..6 {
        let sources = source(&text, LINES, SPLIT) + &source(&wiki, r#""wiki-docs""#, halves);
        campaign(folder, "", &sources);
        let file = folder.join("campaign.toml");
        fs::write(&file, fs::read_to_string(&file).unwrap().replace("seed = 5", &format!("seed = {seed}"))).unwrap();
        let run = prepare(folder, "data");
        assert!(run.ok, "{}", run.errors);
        let data = folder.join("data");
        assert_eq!(parts_with(&data, template).len(), 1, "the template");
        let in_series = |text: &str| text.to_lowercase().starts_with("seas");
        assert_eq!(parts_with(&data, in_series).len(), 1, "the series");
        let parts = run.json["text"]["parts"].as_object().unwrap();
        assert_eq!(parts.values().map(|part| part["documents"].as_u64().unwrap()).sum::<u64>(), 522, "none is lost");
        assert!(run.json["notes"][0].as_str().unwrap().starts_with("12 of 312 documents, "), "{}", run.json["notes"]);
    }
    let sources = source(&text, LINES, SPLIT) + &source(&wiki, r#""wiki-docs""#, halves);
    campaign(folder, "decontaminate = false", &sources);
    assert!(prepare(folder, "data").ok);
    assert!(parts_with(&folder.join("data"), template).len() > 1, "it can be switched off");
}

#[test]
fn measured_sources_that_share_text_leave_it_out_of_the_lesser_part() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let first = lines(folder, "a.txt", (0..200).map(document).chain(templates(5)));
    let second = lines(folder, "b.txt", (300..360).map(document).chain(templates(9).skip(5)));
    let third = lines(folder, "c.txt", (400..600).map(document).chain(templates(12).skip(9)));
    let sources = source(&first, LINES, "{ dev = 0.5, select = 0.5 }")
        + &source(&second, LINES, "{ report = 1.0 }")
        + &source(&third, LINES, "{ train = 1.0 }");
    campaign(folder, "", &sources);
    let run = prepare(folder, "data");
    assert!(run.ok, "{}", run.errors);
    assert_eq!(parts_with(&folder.join("data"), |text| text.contains("small place")), [Part::Report]);
    let left_out: Vec<&Value> = (0..3).map(|i| &run.json["text"]["sources"][i]["contaminated"]).collect();
    assert_eq!(left_out, [&json!(5), &json!(0), &json!(3)]);
}

#[test]
fn a_template_in_all_of_the_text_is_shown() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let text = lines(folder, "a.txt", templates(100));
    let sources = source(&text, LINES, SPLIT);
    campaign(folder, "", &sources);
    let run = prepare(folder, "data");
    let said = ["100 of 100 documents, 100.0 % of their text", "a country with a", "data.decontaminate = false"];
    assert!(!run.ok && said.iter().all(|part| run.errors.contains(part)), "{}", run.errors);
    campaign(folder, "decontaminate = false", &sources);
    assert!(prepare(folder, "data").ok);
}

const CONFIG: &str = r#"{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
  "vocab_size": 300, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 2,
  "num_key_value_heads": 2, "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "max_position_embeddings": 512,
  "tie_word_embeddings": true, "torch_dtype": "float32"}"#;

/// A campaign of a base model with this tokenizer; what `prepare --only text` does with it.
fn with_tokenizer(folder: &Path, tokenizer: &Value, sources: &str) -> common::Run {
    let model = folder.join("model");
    fs::create_dir_all(&model).unwrap();
    for (name, text) in [("config.json", CONFIG), ("tokenizer.json", &tokenizer.to_string())] {
        // A file that is written is one that has changed.
        if fs::read_to_string(model.join(name)).ok().as_deref() != Some(text) {
            fs::write(model.join(name), text).unwrap();
        }
    }
    let base = format!("[model.base]\nfrom = \"file:{}\"\nsha256 = \"any\"", model.display());
    campaign_of(folder, &base, "", sources, 16);
    prepare_with(folder, "data", &["--only", "text"])
}

/// A byte-level tokenizer that keeps all text.
fn byte_level(texts: impl Iterator<Item = String>) -> Value {
    let texts: Vec<String> = texts.collect();
    let tokenizer = prepare::tokenizer::train(300, texts.iter().map(String::as_str)).unwrap();
    serde_json::from_str(&tokenizer).unwrap()
}

#[test]
fn a_tokenizer_that_changes_the_text_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let text = lines(folder, "a.txt", (0..300).map(document));
    let sources = source(&text, LINES, SPLIT);
    let whole = byte_level((0..300).map(document));
    let run = with_tokenizer(folder, &whole, &sources);
    assert!(run.ok && run.json["notes"] == json!([]), "{} {}", run.errors, run.json);
    let report = &run.json["text"]["parts"]["report"];
    assert_eq!(report["bytes"], report["counted_bytes"]);

    let mut dropping = whole.clone();
    dropping["normalizer"] = json!({"type": "Replace", "pattern": {"String": " "}, "content": ""});
    let mut prefixing = whole.clone();
    prefixing["pre_tokenizer"]["pretokenizers"][1]["add_prefix_space"] = json!(true);
    let mut ids = serde_json::Map::from_iter([("<|endoftext|>".to_owned(), json!(0)), ("[UNK]".to_owned(), json!(1))]);
    ids.extend((0..100).map(|i| (format!("w{i}x0"), json!(2 + i))));
    let word_level = json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
        "decoder": null, "pre_tokenizer": {"type": "Whitespace"},
        "added_tokens": [{"id": 0, "content": "<|endoftext|>", "single_word": false, "lstrip": false, "rstrip": false,
                          "normalized": false, "special": true}],
        "model": {"type": "WordLevel", "vocab": ids, "unk_token": "[UNK]"},
    });
    for (what, tokenizer) in [("spaces", dropping), ("a prefix", prefixing), ("whole words", word_level)] {
        let run = with_tokenizer(folder, &tokenizer, &sources);
        assert!(!run.ok, "{what} was accepted: {}", run.json);
        let said =
            ["the tokens of report stand for ", " bytes, and its text has ", "at most 0.1 % is allowed", "Take what"];
        assert!(said.iter().all(|part| run.errors.contains(part)), "{what}: {}", run.errors);
    }
}

#[test]
fn a_tokenizer_that_hardly_changes_the_text_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    // An accent of its own in 2,000 bytes: two bytes and a letter, of which NFC makes two.
    let accented = |i: usize| {
        let words: Vec<String> = (0..300).map(|j| format!("w{i}x{j}")).collect();
        format!("cafe\u{301} {}", words.join(" "))
    };
    let text = lines(folder, "a.txt", (0..100).map(accented));
    let sources = source(&text, LINES, SPLIT);
    let mut composing = byte_level((0..100).map(accented));
    composing["normalizer"] = json!({"type": "NFC"});
    for made in [true, false] {
        let run = with_tokenizer(folder, &composing, &sources);
        assert!(run.ok && run.json["made"]["text"] == made, "{}", run.errors);
        let notes: Vec<&str> =
            run.json["notes"].as_array().unwrap().iter().map(|note| note.as_str().unwrap()).collect();
        assert_eq!(notes.len(), 4, "each part, each time: {notes:?}");
        let parts = &run.json["text"]["parts"]["select"];
        let (bytes, counted) = (&parts["bytes"], &parts["counted_bytes"]);
        assert_eq!(bytes.as_u64().unwrap() - parts["documents"].as_u64().unwrap(), counted.as_u64().unwrap());
        let wanted = format!("the tokens of select stand for {counted} bytes, and its text has {bytes} (-0.0");
        assert!(notes.iter().any(|note| note.starts_with(&wanted)), "{notes:?}");
    }
}

#[test]
fn a_tokenizer_with_more_ids_than_the_model_has_rows_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let text = lines(folder, "a.txt", (0..300).map(document));
    let mut more = byte_level((0..300).map(document));
    for id in more["model"]["vocab"].as_object().unwrap().len()..301 {
        let token = json!({"id": id, "content": format!("<|more {id}|>"), "single_word": false, "lstrip": false,
                           "rstrip": false, "normalized": false, "special": true});
        more["added_tokens"].as_array_mut().unwrap().push(token);
    }
    let run = with_tokenizer(folder, &more, &source(&text, LINES, SPLIT));
    assert!(
        !run.ok && run.errors.contains("the tokenizer has 301 ids, and the model's embedding 300 rows"),
        "{}",
        run.errors
    );
    assert!(!folder.join("data/tokenizer.json").exists(), "before anything is written");
}
