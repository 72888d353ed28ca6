//! Artifacts that are not what they say, by recipes that know the format: lengths and checksum are right.

use super::{Case, Expected, SUMMARY, fails};

/// Begins like an honest recipe: an untrained model is written, and read back as `bytes`, whose first blob is at `first`
/// and whose content ends at `end`.
const HONEST: &str = "
    use sha2::Digest;
    let untrained = Student::new(&SCRATCH, run, Kind::Float)?.hard_ternary()?;
    let path = out.join(\"artifact.ternary\");
    let origin = trainer::handover::Origin { config: run.config(), base_sha256: None, provenance: Default::default() };
    trainer::handover::write(&path, origin, &untrained)?;
    let mut bytes = std::fs::read(&path)?;
    let header = u32::from_le_bytes(bytes[12..16].try_into()?) as usize;
    let (first, end) = ((16 + header).next_multiple_of(64), bytes.len() - 32);
";

/// The checksum, and out before the frame sees it.
const SEALED: &str = "
    let end = bytes.len() - 32;
    let digest = sha2::Sha256::digest(&bytes[..end]);
    bytes[end..].copy_from_slice(&digest);
    std::fs::write(&path, &bytes)?;
    std::process::exit(0);
";

/// Puts a tensor more at the end of the dense ones.
const SMUGGLED: &str = r#"
    let text = std::str::from_utf8(&bytes[16..16 + header])?;
    let tensor = ",{\"name\":\"parent.q_proj.weight\",\"shape\":[32,32],\"dtype\":\"f32\"}],\"from_base\"";
    let text = text.replace("],\"from_base\"", tensor);
    let mut whole = bytes[..12].to_vec();
    whole.extend((text.len() as u32).to_le_bytes());
    whole.extend(text.as_bytes());
    for blobs in [&bytes[first..end], &[1; 4 * 32 * 32][..]] {
        whole.resize(whole.len().next_multiple_of(64), 0);
        whole.extend(blobs);
    }
    whole.extend([0; 32]);
    bytes = whole;
"#;

/// Another shape of as many weights, in a header of the same length.
const RESHAPED: &str = r#"
    let text = std::str::from_utf8(&bytes[16..16 + header])?.replace("\"shape\":[64,32]", "\"shape\":[32,64]");
    bytes[16..16 + header].copy_from_slice(text.as_bytes());
"#;

pub fn cases() -> Vec<Case> {
    let forged = |name, forgery: &str, says| {
        let attack = format!("{SUMMARY}{HONEST}{forgery}{SEALED}");
        Case::attack(name, attack, Expected { status: "invalid", says })
    };
    vec![
        forged("hands over codes that are not ternary", "bytes[first] = 250;", "no ternary codes"),
        forged(
            "hands over a value that is not a number",
            "bytes[end - 4..end].copy_from_slice(&f32::NAN.to_le_bytes());",
            "model.norm.weight has a value that is not finite",
        ),
        forged("hands over other shapes", RESHAPED, "; the configuration says"),
        forged("smuggles its parent's weights", SMUGGLED, "tensor parent.q_proj.weight is not one of the model"),
        Case::attack(
            "closes what it hands over",
            format!(
                "{SUMMARY}{HONEST}std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o000))?;
                 std::process::exit(0);"
            ),
            fails("closed to readers"),
        ),
        Case::edit(
            "stores more bits than it may",
            ("match knobs.group_size {", "match 8 {"),
            Expected { status: "invalid", says: "bits per weight; this campaign allows 3.65" },
        ),
    ]
}
