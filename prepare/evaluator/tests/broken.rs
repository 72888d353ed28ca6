//! Exit code 1: the artifact is good, and nothing can be measured. A campaign stops for it, so it must never be said of
//! an artifact's own fault, nor the artifact be blamed for any of this.

mod fixture;

use formats::artifact;
use std::fs;
use std::path::Path;

use fixture::Fixture;

/// Measures a good artifact after `damage`; the message must say `reason`.
fn cannot_measure(pretrained: bool, reason: &str, damage: impl Fn(&Fixture)) {
    let fixture = Fixture::new(pretrained, !pretrained);
    let artifact = fixture.artifact(pretrained);
    artifact.write(&fixture.path("a.ternary")).expect("write");
    damage(&fixture);
    let output = fixture.run(&["--artifact", "a.ternary", "--part", "select"]);
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{reason}: {message}");
    assert!(message.contains(reason), "{message} does not say {reason}");
    assert!(!fixture.path("eval.json").exists(), "{reason}: nothing was found out");
}

fn flip_last_byte(path: &Path) {
    let mut bytes = fs::read(path).expect("read");
    *bytes.last_mut().expect("not empty") ^= 1;
    fs::write(path, bytes).expect("write");
}

#[test]
fn a_missing_artifact() {
    cannot_measure(false, "a.ternary", |f| fs::remove_file(f.path("a.ternary")).expect("remove"));
}

#[test]
fn a_campaign_that_is_not_there_or_contradicts_itself() {
    cannot_measure(false, "campaign.toml", |f| fs::remove_file(f.path("campaign.toml")).expect("remove"));
    cannot_measure(false, "max_bits_per_weight", |f| {
        let text = fs::read_to_string(f.path("campaign.toml")).expect("read");
        fs::write(f.path("campaign.toml"), text.replace("= 3.0", "= -3.0")).expect("write");
    });
}

#[test]
fn text_that_changed() {
    cannot_measure(false, "select-00000.tokens", |f| flip_last_byte(&f.path("data/text/select-00000.tokens")));
    cannot_measure(false, "manifest.json", |f| fs::remove_file(f.path("data/text/manifest.json")).expect("remove"));
    // In agreement with itself, and not what was prepared.
    cannot_measure(false, "manifest.json has sha256", |f| {
        let path = f.path("data/text/manifest.json");
        fs::write(&path, fs::read_to_string(&path).expect("read") + "\n").expect("write");
    });
    cannot_measure(false, "prepared.json; run `prepare`", |f| {
        fs::remove_file(f.path("data/prepared.json")).expect("remove");
    });
    cannot_measure(false, "token_bytes.u16", |f| flip_last_byte(&f.path("data/text/token_bytes.u16")));
}

#[test]
fn a_base_model_that_changed() {
    cannot_measure(true, "run `prepare` again", |f| flip_last_byte(&f.path("data/base/model.safetensors")));
    // A context of another length, or rotary embeddings of another base, is another model.
    cannot_measure(true, "config.json has sha256", |f| {
        let path = f.path("data/base/config.json");
        let text = fs::read_to_string(&path).expect("read");
        fs::write(&path, text.replace("10000.0", "20000.0")).expect("write");
    });
    cannot_measure(true, "base.json", |f| fs::remove_file(f.path("data/base/base.json")).expect("remove"));
    cannot_measure(true, "model.safetensors", |f| {
        fs::remove_file(f.path("data/base/model.safetensors")).expect("remove")
    });
}

/// The recorded hash is that of the file, and the file is of another model.
#[test]
fn a_base_model_of_another_shape() {
    cannot_measure(true, "the base model is not what its config.json says", |f| {
        let weights = f.path("data/base/model.safetensors");
        let mut bytes = fs::read(&weights).expect("read");
        let from = b"model.norm.weight";
        let at = bytes.windows(from.len()).position(|w| w == from).expect("a tensor of that name");
        bytes[at..at + from.len()].copy_from_slice(b"model.gone.weight");
        fs::write(&weights, bytes).expect("write");
        let sha256 = artifact::sha256_file(&weights).expect("hash");
        fs::write(f.path("data/base/base.json"), format!("{{\"sha256\":\"{sha256}\"}}")).expect("write");
        f.stamp();
        // The artifact was made from it.
        let mut artifact = f.artifact(true);
        artifact.base_sha256 = Some(sha256);
        artifact.write(&f.path("a.ternary")).expect("write");
    });
}

#[test]
fn figures_that_cannot_be_written() {
    cannot_measure(false, "cannot write", |f| fs::create_dir(f.path("eval.json.tmp")).expect("folder"));
}
