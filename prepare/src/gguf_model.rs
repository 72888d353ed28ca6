//! A GGUF file as a model: its metadata as [`ModelConfig`], its tensors under Hugging Face's names, dequantized to f32.

use std::borrow::Cow;

use anyhow::{Context, Result, bail, ensure};
use formats::artifact::config::RopeScaling;
use formats::artifact::{Architecture, ModelConfig};
use safetensors::{Dtype, View};

use crate::dequant::GgmlType;
use crate::gguf::{Gguf, Value};

/// The model's shape.
///
/// # Errors
/// When the architecture is not llama or qwen3, a key is missing or has another type, or the model uses something that the
/// decoder does not have.
pub fn config(gguf: &Gguf) -> Result<ModelConfig> {
    let name = gguf.text("general.architecture")?;
    let architecture = match name {
        "llama" => Architecture::Llama,
        "qwen3" => Architecture::Qwen3,
        other => bail!("the GGUF file holds a {other} model; only llama and qwen3 are supported"),
    };
    let key = |suffix: &str| format!("{name}.{suffix}");
    let size = |suffix: &str| gguf.optional(&key(suffix), Gguf::integer);
    let hidden_size = gguf.integer(&key("embedding_length"))?;
    let heads = gguf.integer(&key("attention.head_count"))?;
    ensure!(heads > 0, "the GGUF file says 0 attention heads");
    let kv = size("attention.head_count_kv")?.unwrap_or(heads);
    ensure!(kv > 0 && heads.is_multiple_of(kv), "{heads} query heads are no multiple of {kv} key heads");
    let head_dim = size("attention.key_length")?.unwrap_or(hidden_size / heads);
    for (suffix, what) in [("attention.value_length", "values"), ("rope.dimension_count", "rotary embeddings")] {
        let found = size(suffix)?.unwrap_or(head_dim);
        ensure!(found == head_dim, "{what} over {found} of {head_dim} dimensions of a head are not supported");
    }
    check_extras(gguf, name)?;
    let rope_theta = gguf.optional(&key("rope.freq_base"), Gguf::float)?.unwrap_or(10_000.0);
    let embedding = &gguf.info("token_embd.weight")?.shape;
    ensure!(
        embedding.len() == 2 && embedding[1] == hidden_size,
        "the embedding's shape {embedding:?} does not fit width {hidden_size}"
    );
    let rows = size("vocab_size")?.unwrap_or(embedding[0]);
    ensure!(rows == embedding[0], "the GGUF file says a vocabulary of {rows} and has {} embeddings", embedding[0]);
    Ok(ModelConfig {
        architecture,
        vocab_size: embedding[0],
        hidden_size,
        intermediate_size: gguf.integer(&key("feed_forward_length"))?,
        num_hidden_layers: gguf.integer(&key("block_count"))?,
        num_attention_heads: heads,
        num_key_value_heads: kv,
        head_dim,
        rope_theta,
        rope_scaling: rope_scaling(gguf, rope_theta, head_dim)?,
        rms_norm_eps: round_to_f32(gguf.float(&key("attention.layer_norm_rms_epsilon"))?),
        tie_word_embeddings: gguf.info("output.weight").is_err(),
        max_position_embeddings: gguf.integer(&key("context_length"))?,
    })
}

/// Refuses metadata that change the forward pass to what the decoder does not have, as llama.cpp reads them; what is turned
/// off is harmless.
fn check_extras(gguf: &Gguf, architecture: &str) -> Result<()> {
    let key = |suffix: &str| format!("{architecture}.{suffix}");
    let scaling = gguf.optional(&key("rope.scaling.type"), Gguf::text)?.unwrap_or("linear");
    let mut factor = 1.0;
    for suffix in ["rope.scaling.factor", "rope.scale_linear"] {
        // llama.cpp takes 0 for none.
        let found = gguf.optional(&key(suffix), Gguf::float)?.filter(|&found| found != 0.0).unwrap_or(1.0);
        factor = if found == 1.0 { factor } else { found };
    }
    ensure!(
        scaling == "none" || (scaling == "linear" && factor == 1.0),
        "rotary scaling `{scaling}` by {factor} is not supported"
    );
    for suffix in ["logit_scale", "residual_scale", "embedding_scale"] {
        let found = gguf.optional(&key(suffix), Gguf::float)?.unwrap_or(1.0);
        ensure!(found == 0.0 || found == 1.0, "`{}` of {found} is not supported", key(suffix));
    }
    let zero = ["attention.scale", "attn_logit_softcapping", "final_logit_softcapping", "attention.clamp_kqv"];
    for suffix in zero.into_iter().chain(["attention.sliding_window", "expert_count"]) {
        let found = gguf.optional(&key(suffix), Gguf::float)?.unwrap_or(0.0);
        ensure!(found == 0.0, "`{}` of {found} is not supported", key(suffix));
    }
    let on = gguf.optional(&key("attention.causal"), Gguf::flag)?.unwrap_or(true);
    ensure!(on, "`{}` is off, and the decoder is causal", key("attention.causal"));
    let parallel = gguf.optional(&key("use_parallel_residual"), Gguf::flag)?.unwrap_or(false);
    ensure!(!parallel, "`{}` is not supported", key("use_parallel_residual"));
    Ok(())
}

/// The shortest decimal that is the same f32: metadata is f32, so 1e-5 would otherwise become 9.999999747e-6.
fn round_to_f32(x: f64) -> f64 {
    (x as f32).to_string().parse().unwrap_or(x)
}

/// Llama 3's scaling is stored as one divisor per rotary frequency. The parameters behind it are recovered by trying
/// those of the released models and comparing every divisor.
fn rope_scaling(gguf: &Gguf, theta: f64, head_dim: usize) -> Result<Option<RopeScaling>> {
    if gguf.info("rope_freqs.weight").is_err() {
        return Ok(None);
    }
    let stored = gguf.values("rope_freqs.weight")?;
    if stored.len() == head_dim / 2 && stored.iter().all(|&divisor| divisor == 1.0) {
        return Ok(None);
    }
    let factor = stored.iter().copied().fold(1.0f32, f32::max);
    let scaling = RopeScaling {
        factor: f64::from(factor),
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position: 8192,
    };
    let expected = (0..head_dim / 2).map(|i| divisor(&scaling, theta, head_dim, i));
    let same =
        stored.len() == head_dim / 2 && stored.iter().zip(expected).all(|(&a, b)| (f64::from(a) - b).abs() < 1e-3 * b);
    ensure!(same, "the GGUF file's rotary frequencies are none of Llama 3's; use the safetensors checkpoint");
    Ok(Some(scaling))
}

/// What rotary frequency `i` is divided by (transformers' `_compute_llama3_parameters`).
fn divisor(scaling: &RopeScaling, theta: f64, head_dim: usize, i: usize) -> f64 {
    let wavelength = std::f64::consts::TAU * theta.powf(2.0 * i as f64 / head_dim as f64);
    let original = scaling.original_max_position as f64;
    if wavelength < original / scaling.high_freq_factor {
        1.0
    } else if wavelength > original / scaling.low_freq_factor {
        scaling.factor
    } else {
        let smooth =
            (original / wavelength - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor);
        1.0 / ((1.0 - smooth) / scaling.factor + smooth)
    }
}

/// GGUF's name of a tensor with Hugging Face's name.
fn gguf_name(name: &str) -> Option<String> {
    match name {
        "model.embed_tokens.weight" => return Some("token_embd.weight".into()),
        "model.norm.weight" => return Some("output_norm.weight".into()),
        "lm_head.weight" => return Some("output.weight".into()),
        _ => {}
    }
    let (layer, rest) = name.strip_prefix("model.layers.")?.split_once('.')?;
    let module = match rest.strip_suffix(".weight")? {
        "self_attn.q_proj" => "attn_q",
        "self_attn.k_proj" => "attn_k",
        "self_attn.v_proj" => "attn_v",
        "self_attn.o_proj" => "attn_output",
        "self_attn.q_norm" => "attn_q_norm",
        "self_attn.k_norm" => "attn_k_norm",
        "mlp.gate_proj" => "ffn_gate",
        "mlp.up_proj" => "ffn_up",
        "mlp.down_proj" => "ffn_down",
        "input_layernorm" => "attn_norm",
        "post_attention_layernorm" => "ffn_norm",
        _ => return None,
    };
    Some(format!("blk.{layer}.{module}.weight"))
}

/// Every tensor of the model, decoded when it is written.
///
/// # Errors
/// When a tensor is missing, of another shape, of a type that cannot be decoded, or unknown.
pub fn tensors<'a>(gguf: &'a Gguf, config: &ModelConfig) -> Result<Vec<(String, GgufTensor<'a>)>> {
    let mut out = Vec::new();
    for (name, shape) in config.tensors() {
        let source = gguf_name(&name).with_context(|| format!("no GGUF name for {name}"))?;
        let info = gguf.info(&source)?;
        ensure!(info.shape == shape, "tensor `{source}` has shape {:?} where the metadata says {shape:?}", info.shape);
        let (kind, data) = gguf.data(&source)?;
        // Only the llama converter permutes q and k; qwen3 keeps the half-split order.
        let heads = match (config.architecture, name.rsplit('.').nth(1)) {
            (Architecture::Llama, Some("q_proj")) => Some(config.num_attention_heads),
            (Architecture::Llama, Some("k_proj")) => Some(config.num_key_value_heads),
            _ => None,
        };
        out.push((name, GgufTensor { kind, data, shape, heads }));
    }
    let known = out.len() + usize::from(gguf.info("rope_freqs.weight").is_ok());
    ensure!(
        known == gguf.tensors().len(),
        "the GGUF file has {} tensors, the decoder knows {known} of them (biases and experts are not supported)",
        gguf.tensors().len()
    );
    Ok(out)
}

/// One tensor of a GGUF file, to be written as f32 under Hugging Face's layout.
#[derive(Debug)]
pub struct GgufTensor<'a> {
    kind: GgmlType,
    data: &'a [u8],
    shape: Vec<usize>,
    /// Heads whose rows are interleaved for GGUF's rotary order.
    heads: Option<usize>,
}

impl View for GgufTensor<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }
    fn shape(&self) -> &[usize] {
        &self.shape
    }
    fn data(&self) -> Cow<'_, [u8]> {
        let mut values = self.kind.dequantize(self.data);
        if let Some(heads) = self.heads {
            values = unpermute(&values, heads, self.shape[0], self.shape[1]);
        }
        Cow::Owned(values.iter().flat_map(|v| v.to_le_bytes()).collect())
    }
    fn data_len(&self) -> usize {
        4 * self.shape.iter().product::<usize>()
    }
}

/// Undoes the interleaving of q and k rows: `reshape(heads, hd/2, 2, in).swapaxes(1, 2)`.
pub fn unpermute(values: &[f32], heads: usize, rows: usize, columns: usize) -> Vec<f32> {
    let (head, half) = (rows / heads, rows / heads / 2);
    let mut out = Vec::with_capacity(values.len());
    for row in 0..rows {
        let (h, within) = (row / head, row % head);
        let (second, i) = (within / half, within % half);
        let source = h * head + 2 * i + second;
        out.extend_from_slice(&values[source * columns..(source + 1) * columns]);
    }
    out
}

/// The tokenizer's metadata in a GGUF file.
#[derive(Debug)]
pub struct Vocabulary {
    /// Pre-tokenizer's name, such as `smollm`.
    pub pre: String,
    /// Token of each id.
    pub tokens: Vec<String>,
    /// ggml's token type of each id: 1 normal, 3 control, 4 user-defined.
    pub types: Vec<i128>,
    /// Merges, best first: two tokens and a space between.
    pub merges: Vec<String>,
}

/// Reads the tokenizer's metadata.
///
/// # Errors
/// When it is no byte-level BPE or incomplete.
pub fn vocabulary(gguf: &Gguf) -> Result<Vocabulary> {
    let model = gguf.text("tokenizer.ggml.model")?;
    ensure!(model == "gpt2", "the GGUF file's tokenizer is `{model}`; only byte-level BPE (`gpt2`) is supported");
    let texts = |key: &str| -> Result<Vec<String>> {
        let all = gguf.array(key)?.iter().map(|v| match v {
            Value::Text(text) => Ok(text.clone()),
            _ => bail!("`{key}` in the GGUF file is no list of strings"),
        });
        all.collect()
    };
    let tokens = texts("tokenizer.ggml.tokens")?;
    let types = match gguf.optional("tokenizer.ggml.token_type", Gguf::array)? {
        Some(all) => all
            .iter()
            .map(|v| if let Value::Int(n) = v { Ok(*n) } else { bail!("a token type is no integer") })
            .collect::<Result<Vec<_>>>()?,
        None => vec![1; tokens.len()],
    };
    ensure!(types.len() == tokens.len(), "{} tokens but {} token types", tokens.len(), types.len());
    Ok(Vocabulary {
        pre: gguf.optional("tokenizer.ggml.pre", Gguf::text)?.unwrap_or("default").to_owned(),
        tokens,
        types,
        merges: texts("tokenizer.ggml.merges")?,
    })
}
