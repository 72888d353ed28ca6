//! Writes what the fuzzer begins with: valid artifacts, in both forms of its input. Example, in crates/formats:
//! `cargo run --release --example fuzz_seeds -- fuzz/corpus/read`

use std::fs;
use std::path::PathBuf;

use formats::artifact::{Architecture, RopeScaling};

#[path = "../tests/sample/mod.rs"]
mod sample;

use sample::forge::{DIGEST_BYTES, Forgery};
use sample::{Filler, small};

/// Artifacts that are written.
const SEEDS: u64 = 24;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = PathBuf::from(std::env::args().nth(1).ok_or("where to? give a folder")?);
    fs::create_dir_all(&folder)?;
    for seed in 0..SEEDS {
        let mut config = small().config;
        if seed % 2 == 0 {
            config.architecture = Architecture::Llama;
            config.tie_word_embeddings = false;
        }
        if seed % 3 == 0 {
            let (low_freq_factor, high_freq_factor) = (1.0, 4.0);
            let (factor, original_max_position) = (32.0, 8192);
            config.rope_scaling =
                Some(RopeScaling { factor, low_freq_factor, high_freq_factor, original_max_position });
        }
        let artifact = Filler(seed).artifact(config);
        let file = artifact.to_bytes()?;
        fs::write(folder.join(format!("file-{seed}")), [&[0], &file[..file.len() - DIGEST_BYTES]].concat())?;
        let parts = Forgery::of(&artifact);
        let header = parts.header.as_bytes();
        fs::write(folder.join(format!("parts-{seed}")), [&[1], header, &parts.blobs.concat()].concat())?;
    }
    println!("{} seeds in {}", 2 * SEEDS, folder.display());
    Ok(())
}
