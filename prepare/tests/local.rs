//! `prepare` as a process on local files: a tokenizer trained on them, parts without a document in common, and runs
//! that repeat exactly and skip what is done.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::path::Path;
use std::process::Command;

use formats::campaign;
use formats::corpus::{Corpus, Part};
use serde_json::Value;

#[path = "common/local.rs"]
mod common;
use common::{campaign, document, documents, lines, prepare, source};

const SPLIT: &str = "{ train = 0.7, dev = 0.1, select = 0.1, report = 0.1 }";

#[test]
fn every_document_is_in_one_part_once_and_whole() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    // 300 documents, 50 of them twice; a second source repeats 30 of them for training.
    let first = lines(folder, "a.txt", (0..300).chain(0..50).map(document));
    let second = lines(folder, "b.txt", (0..30).chain(300..310).map(document));
    let sources = source(&first, r#"{ separator = "\n" }"#, SPLIT)
        + &source(&second, r#"{ separator = "\n" }"#, "{ train = 1.0 }");
    campaign(folder, "", &sources);
    let run = prepare(folder, "data");
    assert!(run.ok, "{}", run.errors);
    assert_eq!(run.json["duplicates"], 80);

    let data = folder.join("data");
    let mut all = Vec::new();
    for part in Part::ALL {
        let found = documents(&data, part);
        let info = Corpus::open(&data.join("text")).unwrap().manifest().parts[&part].clone();
        assert_eq!(info.documents, found.len() as u64);
        assert_eq!(info.bytes, found.iter().map(|d| d.len() as u64).sum::<u64>());
        assert!(!found.is_empty(), "{part}");
        all.extend(found);
    }
    let unique: BTreeSet<String> = all.iter().cloned().collect();
    assert_eq!(unique.len(), all.len(), "no document twice");
    assert_eq!(unique, (0..310).map(document).collect(), "none lost, none cut");

    let train = documents(&data, Part::Train);
    let mut sorted = train.clone();
    sorted.sort_by_key(|d| (0..310).position(|i| document(i) == *d));
    assert_ne!(train, sorted, "shuffled");

    // The same again elsewhere is the same to the byte, and a second run changes nothing.
    let again = prepare(folder, "other");
    assert!(again.ok && again.json["text"] == run.json["text"]);
    let rerun = prepare(folder, "data");
    assert_eq!(rerun.json["made"], serde_json::json!({"text": false, "tokenizer": false}));

    // Another seed is another split.
    let text = fs::read_to_string(folder.join("campaign.toml")).unwrap();
    fs::write(folder.join("campaign.toml"), text.replace("seed = 5", "seed = 6")).unwrap();
    let reseeded = prepare(folder, "data");
    assert!(reseeded.ok && reseeded.json["made"]["text"] == true);
    assert_ne!(documents(&data, Part::Train), train);
}

#[test]
fn training_documents_that_share_text_with_measured_ones_are_dropped() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let measured = lines(folder, "measured.txt", (0..60).map(document));
    // Ten training documents quote fifteen words of a measured one, ten others only ten words.
    let quote = |i: usize, words: usize| {
        let quoted: Vec<String> = document(i).split(' ').take(words).map(str::to_uppercase).collect();
        format!("{} -- {}", document(1000 + i), quoted.join(", "))
    };
    let training = lines(
        folder,
        "training.txt",
        (0..10).map(|i| quote(i, 15)).chain((10..20).map(|i| quote(i, 10))).chain((100..200).map(document)),
    );
    let sources = source(&measured, r#"{ separator = "\n" }"#, "{ dev = 0.3, select = 0.3, report = 0.4 }")
        + &source(&training, r#"{ separator = "\n" }"#, "{ train = 1.0 }");
    campaign(folder, "", &sources);
    let run = prepare(folder, "data");
    assert!(run.ok, "{}", run.errors);
    assert_eq!(run.json["text"]["sources"][1]["contaminated"], 10);
    assert_eq!(run.json["text"]["parts"]["train"]["documents"], 110);

    campaign(folder, "decontaminate = false", &sources);
    let run = prepare(folder, "data");
    assert_eq!(run.json["text"]["parts"]["train"]["documents"], 120);
}

#[test]
fn training_text_stops_at_the_asked_count() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let first = lines(folder, "a.txt", (0..2000).map(document));
    let second = lines(folder, "b.txt", (5000..7000).map(document));
    let sources = source(&first, r#"{ separator = "\n" }"#, SPLIT)
        + &source(&second, r#"{ separator = "\n" }"#, "{ train = 1.0 }");
    campaign(folder, "max_train_tokens = 10_000", &sources);
    let run = prepare(folder, "data");
    assert!(run.ok, "{}", run.errors);
    let tokens = run.json["text"]["parts"]["train"]["tokens"].as_u64().unwrap();
    assert!((10_000..10_400).contains(&tokens), "{tokens}: whole documents, the last one crosses the count");
    // Both sources take turns, and neither is read to its end.
    for source in [0, 1] {
        let read = run.json["text"]["sources"][source]["documents"].as_u64().unwrap();
        assert!((50..1000).contains(&read), "source {source}: {read}");
    }
}

#[test]
fn formats_give_their_documents() {
    let folder = tempfile::tempdir().unwrap();
    let read = |name: &str, bytes: &[u8], format: &campaign::TextFormat| -> Vec<String> {
        let path = folder.path().join(name);
        fs::write(&path, bytes).unwrap();
        prepare::documents::read(&path, format).unwrap().map(|document| document.unwrap().text).collect()
    };
    use formats::campaign::{RequestText, TextFormat};
    let wiki =
        "<doc id=\"1\" title=\"A\">\nA\n\nText of A.\n\n</doc>\n<doc id=\"2\">\n\n</doc>\n<doc id=\"3\">\nB\n</doc>\n";
    assert_eq!(read("w", wiki.as_bytes(), &TextFormat::WikiDocs), ["A\n\nText of A.", "B"]);
    let separator = TextFormat::Separator("<|end|>".into());
    assert_eq!(read("s", b"one|>\n<|end|>\ntwo<|end|><|end|>three", &separator), ["one|>", "two", "three"]);
    let json = "{\"a\":{\"b\":\"x\\ny\"}}\n\n{\"a\":{\"b\":\"z\"}}\n";
    let field = TextFormat::JsonLines("a.b".into());
    assert_eq!(read("j", json.as_bytes(), &field), ["x\ny", "z"]);
    let mut zipped = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut zipped, json.as_bytes()).unwrap();
    assert_eq!(read("j.gz", &zipped.finish().unwrap(), &field), ["x\ny", "z"]);
    let raw = " \n = First = \n \n Text . \n = = Section = = \n More . \n = Second = \n End . \n";
    assert_eq!(
        read("r", raw.as_bytes(), &TextFormat::WikiText),
        ["= First = \n \n Text . \n = = Section = = \n More .", "= Second = \n End ."]
    );
    assert_eq!(read("h", b"all\nof it\n", &TextFormat::Whole), ["all\nof it"]);
    let item = |id: u64, gold: usize| {
        format!(
            "{{\"doc_id\":{id},\"doc\":{{\"query\":\"He ran\\nQuestion: why?\",\"choices\":[\", fast.\",\"away.\"],\"gold\":{gold}}}}}\n"
        )
    };
    let requests = item(0, 0) + &item(0, 0) + &item(1, 1) + &item(1_000_000, 0);
    assert_eq!(
        read("q", requests.as_bytes(), &TextFormat::Requests(RequestText::Gold)),
        ["He ran\nQuestion: why?, fast.", "He ran\nQuestion: why? away."]
    );
    assert_eq!(read("p", requests.as_bytes(), &TextFormat::Requests(RequestText::Passage)), ["He ran"]);

    let path = folder.path().join("bad");
    fs::write(&path, b"good\n\xff\xfe\n").unwrap();
    let lines = TextFormat::Separator("\n".into());
    let results: Vec<_> = prepare::documents::read(&path, &lines).unwrap().collect();
    assert!(results[0].is_ok() && format!("{:#}", results[1].as_ref().unwrap_err()).contains("UTF-8"));
    assert_eq!(results.len(), 2);
}

#[test]
fn mistakes_are_explained() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let text = lines(folder, "a.txt", (0..100).map(document));
    let good = source(&text, r#"{ separator = "\n" }"#, SPLIT);
    let cases: HashMap<&str, (String, &str)> = HashMap::from([
        ("missing file", (good.replace("a.txt", "none.txt"), "put it there or correct campaign.toml")),
        ("wrong hash", (good.replace("\"any\"", &format!("\"{}\"", "0".repeat(64))), "campaign.toml says 0000")),
        ("empty part", (good.replace("0.7", "0.7999").replace("select = 0.1", "select = 0.0001"), "select")),
        ("no field", (good.replace("separator = \"\\n\"", "json-lines = \"text\""), "not JSON")),
    ]);
    for (what, (sources, expected)) in cases {
        campaign(folder, "", &sources);
        let run = prepare(folder, "data");
        assert!(!run.ok && run.errors.contains(expected), "{what}: {}", run.errors);
        assert!(!folder.join("data/prepared.json").exists(), "{what}");
    }
    campaign(folder, "", &good);
    assert!(prepare(folder, "data").ok, "running again goes on");
    assert!(folder.join("data/prepared.json").exists());
}

/// A parent of the test's shape, in the form that `pretrain` leaves behind.
fn weights(path: &Path) {
    let (vocabulary, hidden) = (300, 64);
    let mut shapes = vec![("model.embed_tokens.weight".to_owned(), vec![vocabulary, hidden])];
    for name in ["q", "k", "v", "o"] {
        shapes.push((format!("model.layers.0.self_attn.{name}_proj.weight"), vec![hidden, hidden]));
    }
    for name in ["gate", "up", "down"] {
        shapes.push((format!("model.layers.0.mlp.{name}_proj.weight"), vec![hidden, hidden]));
    }
    for name in ["model.layers.0.input_layernorm", "model.layers.0.post_attention_layernorm", "model.norm"] {
        shapes.push((format!("{name}.weight"), vec![hidden]));
    }
    let bytes: Vec<Vec<u8>> = shapes.iter().map(|(_, shape)| vec![0; 4 * shape.iter().product::<usize>()]).collect();
    let views = shapes.iter().zip(&bytes).map(|((name, shape), bytes)| {
        (name, safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.clone(), bytes).unwrap())
    });
    safetensors::serialize_to_file(views, None, path).unwrap();
}

#[test]
fn a_parent_is_trained_once_and_again_when_its_settings_change() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let text = lines(folder, "a.txt", (0..300).map(document));
    campaign(folder, "", &source(&text, r#"{ separator = "\n" }"#, SPLIT));
    let file = folder.join("campaign.toml");
    let plain = fs::read_to_string(&file).unwrap();
    let with =
        |tokens: u32| plain.replace("[data]\n", &format!("[model.pretrain]\ntokens = {tokens}\nwindow = 64\n[data]\n"));
    weights(&folder.join("weights"));
    // Stands in for the program that links libtorch; notes each call, and fails while it is told to.
    let program = folder.join("pretrainer");
    fs::write(
        &program,
        "#!/bin/sh\nhere=${0%/*}\necho \"$*\" >> \"$here/calls\"\nwhile [ $# -gt 0 ]; do\n\
         case $1 in --out) out=$2 ;; esac\nshift\ndone\nmkdir -p \"$out\"\n[ -e \"$here/fail\" ] && exit 130\n\
         cp \"$here/weights\" \"$out/model.safetensors\"\n",
    )
    .unwrap();
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let prepare = || {
        let output = Command::new(env!("CARGO_BIN_EXE_prepare"))
            .args(["--json", "--campaign"])
            .arg(&file)
            .arg("--data")
            .arg(folder.join("data"))
            .arg("--pretrainer")
            .arg(&program)
            .output()
            .unwrap();
        let made = serde_json::from_slice::<Value>(&output.stdout).map(|json| json["made"].clone());
        (output.status.success(), made.unwrap_or_default(), String::from_utf8(output.stderr).unwrap())
    };
    let calls = || fs::read_to_string(folder.join("calls")).unwrap_or_default().lines().count();
    let stamp = folder.join("data/prepared.json");

    fs::write(&file, with(1000)).unwrap();
    fs::write(folder.join("fail"), "").unwrap();
    let (ok, _, said) = prepare();
    assert!(!ok && said.contains("goes on from its last checkpoint"), "{said}");
    assert!(!stamp.exists(), "nothing is prepared without its parent");
    fs::remove_file(folder.join("fail")).unwrap();

    let all = |base: bool| serde_json::json!({"base": base, "text": false, "tokenizer": false});
    assert_eq!(prepare(), (true, all(true), String::new()));
    let about: Value = serde_json::from_slice(&fs::read(folder.join("data/base/base.json")).unwrap()).unwrap();
    assert_eq!(about["source"]["pretrained"]["tokens"], 1000);
    let config: Value = serde_json::from_slice(&fs::read(folder.join("data/base/config.json")).unwrap()).unwrap();
    assert_eq!(config["hidden_size"], 64);
    let recorded: Value = serde_json::from_slice(&fs::read(&stamp).unwrap()).unwrap();
    let outputs = recorded["stages"]["base"]["outputs"].as_object().unwrap();
    assert!(outputs.len() == 3 && outputs["base/model.safetensors"] == about["sha256"], "{outputs:?}");
    assert!(!folder.join("data/pretrain").exists(), "what is finished is not kept twice");

    assert_eq!((prepare(), calls()), ((true, all(false), String::new()), 2), "it is not done again");
    fs::write(&file, with(2000)).unwrap();
    assert_eq!((prepare(), calls()), ((true, all(true), String::new()), 3), "the text stays");
    fs::write(folder.join("data/base/model.safetensors"), "damaged").unwrap();
    assert_eq!((prepare(), calls()), ((true, all(true), String::new()), 4));
}
