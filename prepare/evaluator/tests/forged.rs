//! What the evaluator refuses, as a program, with exit code 4: artifacts that break a limit of the campaign, and files
//! by someone who knows the format. The text, the campaign and the machine are as they should be here; see `broken.rs`.

mod fixture;
#[path = "../../../crates/formats/tests/sample/forge.rs"]
#[allow(dead_code)]
mod forge;

use std::fs::{self, File};

use fixture::Fixture;
use forge::{ALIGNMENT, Forgery, PREFIX_BYTES, seal};
use formats::artifact::{Artifact, DenseData, DenseTensor, Grouping, TernaryTensor};
use half::f16;

const SELECT: [&str; 4] = ["--artifact", "a.ternary", "--part", "select"];

/// Hands over these bytes.
fn refused(fixture: &Fixture, bytes: &[u8], reason: &str) {
    fs::write(fixture.path("a.ternary"), bytes).expect("write");
    fixture.refused(&fixture.run(&SELECT), reason);
}

#[test]
fn forged_files_are_invalid() {
    let fixture = Fixture::new(false, true);
    let good = fixture.artifact(false);
    let forgery = || Forgery::of(&good);
    fs::write(fixture.path("a.ternary"), forgery().bytes()).expect("write");
    assert!(fixture.run(&SELECT).status.success(), "taken apart and put together it is an artifact");

    let mut codes = forgery();
    codes.blobs[0][5] = 250;
    refused(&fixture, &codes.bytes(), "model.layers.0.self_attn.q_proj.weight has bytes that are no ternary codes");

    let mut scale = forgery();
    scale.blobs[1][..2].copy_from_slice(&f16::NAN.to_le_bytes());
    refused(&fixture, &scale.bytes(), "q_proj.weight has a scale that is not a positive number");

    let mut dense = forgery();
    dense.blobs.last_mut().expect("a blob")[..4].copy_from_slice(&f32::NAN.to_le_bytes());
    refused(&fixture, &dense.bytes(), "model.norm.weight has a value that is not finite");

    // A parent's weights, in full precision, in a tensor of their own and as an exception beside the ternary one.
    for name in ["parent.q_proj.weight", "model.layers.0.self_attn.q_proj.weight"] {
        let header = format!("\"dense\":[{{\"name\":\"{name}\",\"shape\":[32,32],\"dtype\":\"f32\"}},");
        let mut side = forgery().edit("\"dense\":[", &header);
        side.blobs.insert(2 * good.ternary.len(), vec![0; 4 * 32 * 32]);
        let reason = if name.starts_with("parent") { "is not one of the model" } else { "is there twice" };
        refused(&fixture, &side.bytes(), &format!("tensor {name} {reason}"));
    }
    // The same between the tensors, behind them, and in the header.
    let mut gap = forgery().bytes();
    let end = PREFIX_BYTES + forgery().header.len();
    assert!(!end.is_multiple_of(ALIGNMENT));
    gap[end] = 1;
    seal(&mut gap);
    refused(&fixture, &gap, "there is something between its tensors");
    let mut behind = forgery().bytes();
    behind.extend([1; 4096]);
    seal(&mut behind);
    refused(&fixture, &behind, "bytes long; its header says");
    let header = forgery().edit("\"activation_bits\"", "\"parent\":[0.5],\"activation_bits\"");
    refused(&fixture, &header.bytes(), "unknown field `parent`");
    let deep = forgery().edit("\"provenance\":", &format!("\"provenance\":{}", "[".repeat(100_000)));
    refused(&fixture, &deep.bytes(), "header: ");

    let shape = forgery().edit("\"shape\":[32,32]", "\"shape\":[4294967296,4294967296]");
    refused(&fixture, &shape.bytes(), "has shape [4294967296, 4294967296]; the configuration says [32, 32]");
    let model = forgery().edit("\"rope_theta\":10000.0", "\"rope_theta\":500000.0");
    refused(&fixture, &model.bytes(), "it is another model");
    let huge = forgery().edit("\"hidden_size\":32", "\"hidden_size\":1048576");
    refused(&fixture, &huge.bytes(), "it is another model");

    let escapes = forgery().edit("\"dense\":[{\"name\":\"", "\"dense\":[{\"name\":\"\\u001b[2J\\r\\n");
    fs::write(fixture.path("a.ternary"), escapes.bytes()).expect("write");
    let said = fixture.run(&SELECT);
    fixture.refused(&said, "is not one of the model");
    let said = String::from_utf8(said.stderr).expect("text");
    assert!(!said.trim_end().contains(|c: char| c.is_control()), "{said:?}");
}

#[test]
fn what_is_no_artifact_is_invalid() {
    let fixture = Fixture::new(false, true);
    let whole = fixture.artifact(false).to_bytes().expect("valid");
    for length in [0, 7, 40, whole.len() / 2, whole.len() - 1] {
        refused(&fixture, &whole[..length], "it is not a readable artifact");
    }
    for place in [3, 20, 200, whole.len() / 2, whole.len() - 10] {
        let mut changed = whole.clone();
        changed[place] ^= 0x55;
        fs::write(fixture.path("a.ternary"), changed).expect("write");
        assert_eq!(fixture.run(&SELECT).status.code(), Some(4), "changed at {place}");
    }
    // 40 GB that take no room on disk, and seconds to read if anyone did.
    fs::write(fixture.path("a.ternary"), &whole).expect("write");
    let file = File::options().write(true).open(fixture.path("a.ternary")).expect("open");
    file.set_len(40 << 30).expect("a sparse file");
    fixture.refused(&fixture.run(&SELECT), "it is 42949672960 bytes long; its header says");
    fs::remove_file(fixture.path("a.ternary")).expect("remove");
    fs::create_dir(fixture.path("a.ternary")).expect("folder");
    fixture.refused(&fixture.run(&SELECT), "it is not a regular file");
}

/// Whoever wrote the file may have closed it to its reader.
#[test]
#[cfg(unix)]
fn a_closed_file_is_invalid() {
    use std::os::unix::fs::PermissionsExt;
    let fixture = Fixture::new(false, true);
    let path = fixture.path("a.ternary");
    fixture.artifact(false).write(&path).expect("write");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o000)).expect("close");
    let output = fixture.run(&SELECT);
    if File::open(&path).is_ok() {
        // The superuser reads it all the same; in the sandbox nobody is one (the trainer's hostile recipes).
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    } else {
        fixture.refused(&output, "its file or folder is closed to readers");
    }
}

#[test]
#[cfg(unix)]
fn a_link_to_the_text_is_no_artifact() {
    let fixture = Fixture::new(false, true);
    let text = fixture.path("data/text/select-00000.tokens");
    std::os::unix::fs::symlink(text, fixture.path("a.ternary")).expect("link");
    fixture.refused(&fixture.run(&SELECT), "it does not begin with the magic number");
}

#[test]
fn what_breaks_a_limit_is_invalid() {
    let fixture = Fixture::new(false, true);
    let good = fixture.artifact(false);
    let mut rows = good.clone();
    for tensor in &mut rows.ternary {
        tensor.grouping = Grouping::Row;
        tensor.scales.truncate(tensor.shape[0]);
    }
    fixture.refused(&fixture.measure(&rows), "has scales by row; this campaign allows 16");
    // A scale for each weight: 17.6 bits.
    let mut single = good.clone();
    for tensor in &mut single.ternary {
        tensor.grouping = Grouping::Group(1);
        tensor.scales = vec![f16::ONE; tensor.codes.len()];
    }
    fixture.refused(&fixture.measure(&single), "has scales by 1; this campaign allows 16");
    let mut dense = good.clone();
    let taken = dense.ternary.remove(3);
    let (shape, data) = (taken.shape.to_vec(), DenseData::F32(taken.dequantize()));
    dense.dense.push(DenseTensor { name: taken.name, shape, data });
    fixture.refused(&fixture.measure(&dense), "is not ternary");
    let based = Artifact { base_sha256: Some("a".repeat(64)), ..good.clone() };
    fixture.refused(&fixture.measure(&based), "this campaign has none");
    let mut other = good;
    other.config.rope_theta = 20_000.0;
    fixture.refused(&fixture.measure(&other), "it is another model");

    let text = fs::read_to_string(fixture.path("campaign.toml")).expect("campaign");
    // 1.75 bits a code in rows of 32 (7 bytes for 6.4), 1.625 in rows of 64, and 1 for the scales.
    let tight = text.replace("max_bits_per_weight = 3.0", "max_bits_per_weight = 2.65");
    fs::write(fixture.path("campaign.toml"), tight).expect("campaign");
    fixture.refused(
        &fixture.measure(&fixture.artifact(false)),
        "it stores 2.7222 bits per weight; this campaign allows 2.65",
    );
}

/// With a parent, and a campaign that protects what is not quantized.
#[test]
fn what_the_campaign_protects_comes_from_the_base_model() {
    let fixture = Fixture::new(true, false);
    let good = fixture.artifact(true);
    assert!(fixture.measure(&good).status.success());

    // Stored, be it the same values, in any form.
    fixture.refused(&fixture.measure(&fixture.artifact(false)), "must be left as it is in the base model");
    let mut embedding = good.clone();
    embedding.from_base.retain(|name| name != "model.embed_tokens.weight");
    let shape = [good.config.vocab_size, good.config.hidden_size];
    let codes = vec![1; shape[0] * shape[1]];
    let (name, grouping) = ("model.embed_tokens.weight".to_owned(), Grouping::Row);
    embedding.ternary.push(TernaryTensor { name, shape, grouping, codes, scales: vec![f16::ONE; shape[0]] });
    fixture.refused(&fixture.measure(&embedding), "model.embed_tokens.weight must be left as it is");

    // Another parent, none, and projections that are the parent's own.
    let other = Artifact { base_sha256: Some("b".repeat(64)), ..good.clone() };
    fixture.refused(&fixture.measure(&other), "it was made from base model");
    let sha256 = good.base_sha256.as_deref().expect("a parent");
    let none = Forgery::of(&good).edit(&format!("\"base_sha256\":\"{sha256}\""), "\"base_sha256\":null");
    refused(&fixture, &none.bytes(), "base_sha256 is missing");
    let mut header = serde_json::to_string(&good.ternary[0].name).expect("json");
    header = format!("{{\"name\":{header},\"shape\":[32,32],\"grouping\":16}},");
    let mut parents = Forgery::of(&good).edit(&header, "");
    parents = parents.edit("\"from_base\":[", "\"from_base\":[\"model.layers.0.self_attn.q_proj.weight\",");
    parents.blobs.drain(..2);
    refused(&fixture, &parents.bytes(), "q_proj.weight is not stored; store every projection");
}
