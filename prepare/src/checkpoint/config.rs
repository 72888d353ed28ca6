//! A Hugging Face `config.json` as [`ModelConfig`].
//!
//! A key that is present counts: when its value has another type it is refused, never read as if the key were absent, and
//! so is a value that asks for something the decoder does not have. Two keys for the same fact must agree. Defaults of
//! absent keys are those of transformers 5.

use anyhow::{Context, Result, bail, ensure};
use formats::artifact::{Architecture, ModelConfig};
use serde_json::Value;

use super::keys::Keys;
use super::rope;

/// Flags that turn on what the decoder does not have.
const OFF: [&str; 12] = [
    "attention_bias",
    "mlp_bias",
    "qkv_bias",
    "use_bias",
    "attention_out_bias",
    "lm_head_bias",
    "rope_interleaved",
    "use_bidirectional_attention",
    "is_encoder_decoder",
    "add_cross_attention",
    "parallel_residual",
    "use_parallel_residual",
];

/// Factors that other decoders multiply by.
const ONE: [&str; 6] = [
    "partial_rotary_factor",
    "rotary_pct",
    "embedding_multiplier",
    "residual_multiplier",
    "logits_scaling",
    "logit_scale",
];

/// Keys that only mean something the decoder does not have, whatever their value.
const EMPTY: [&str; 17] = [
    "attention_multiplier",
    "query_pre_attn_scalar",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "clip_qkv",
    "attention_chunk_size",
    "no_rope_layers",
    "no_rope_layer_interval",
    "num_experts",
    "num_local_experts",
    "scale_emb",
    "scale_depth",
    "per_layer_config",
    "pruned_heads",
    "transformers_weights",
    "fusion_config",
    "auxiliary_head",
];

/// Where weights say that they are quantized: transformers, compressed-tensors, MLX.
const QUANTIZED: [&str; 3] = ["quantization_config", "compression_config", "quantization"];

/// Reads a Hugging Face `config.json` (transformers 4 and 5 spellings).
///
/// # Errors
/// When the model is of another family than Llama or Qwen3, a key has a value of another type, two keys disagree, or the
/// model uses something that the decoder does not have (biases, sliding windows, other activations or rotary scalings,
/// weights that are quantized already).
pub fn parse_config(text: &str) -> Result<ModelConfig> {
    let root: Value = serde_json::from_str(text).context("config.json is not JSON")?;
    let map = root.as_object().context("config.json holds no object")?;
    let root = Keys { place: "config.json", map };
    let architecture = match root.text("model_type")?.unwrap_or("missing") {
        "llama" => Architecture::Llama,
        "qwen3" => Architecture::Qwen3,
        other => bail!("model_type is {other}; only llama and qwen3 decoders are supported"),
    };
    check_class(root, architecture)?;
    check_extras(root)?;

    let hidden_size = root.required("hidden_size")?;
    let layers = root.required("num_hidden_layers")?;
    let heads = root.required("num_attention_heads")?;
    ensure!(heads > 0, "num_attention_heads is 0");
    let qwen3 = architecture == Architecture::Qwen3;
    let head_dim = match root.map.get("head_dim") {
        None | Some(Value::Null) if !qwen3 => None,
        _ => Some(root.size("head_dim")?.unwrap_or(128)),
    };
    // transformers asks this of every Llama, whatever its head_dim.
    ensure!(
        qwen3 || hidden_size.is_multiple_of(heads),
        "hidden_size {hidden_size} is no multiple of the {heads} attention heads; correct config.json"
    );
    let kv = match root.map.get("num_key_value_heads") {
        None if qwen3 => 32,
        _ => root.size_or_null("num_key_value_heads")?.unwrap_or(heads),
    };
    ensure!(kv > 0 && heads.is_multiple_of(kv), "{heads} query heads are no multiple of {kv} key heads");
    check_sliding(root, qwen3, layers)?;
    let positions = root.size("max_position_embeddings")?.unwrap_or(if qwen3 { 32768 } else { 2048 });
    let rope = rope::parse(root)?;

    Ok(ModelConfig {
        architecture,
        vocab_size: root.required("vocab_size")?,
        hidden_size,
        intermediate_size: root.required("intermediate_size")?,
        num_hidden_layers: layers,
        num_attention_heads: heads,
        num_key_value_heads: kv,
        head_dim: head_dim.unwrap_or(hidden_size / heads),
        rope_theta: rope.theta,
        rope_scaling: rope.scaling,
        rms_norm_eps: root.number("rms_norm_eps")?.unwrap_or(1e-6),
        tie_word_embeddings: root.flag("tie_word_embeddings")?.unwrap_or(false),
        max_position_embeddings: positions,
    })
}

/// `architectures` must name the decoder that `model_type` does.
fn check_class(root: Keys<'_>, architecture: Architecture) -> Result<()> {
    let family = match architecture {
        Architecture::Llama => "Llama",
        Architecture::Qwen3 => "Qwen3",
    };
    let known = [format!("{family}ForCausalLM"), format!("{family}Model")];
    let named = root.texts("architectures")?.unwrap_or_default();
    if !named.is_empty() && !named.iter().any(|name| known.iter().any(|k| k == name)) {
        bail!(
            "config.json says model_type {} and architectures {named:?}; only a {} is read, so use such a checkpoint or \
             correct the one that is wrong",
            family.to_lowercase(),
            known[0]
        );
    }
    Ok(())
}

/// Refuses what the decoder does not have; what is turned off is harmless.
fn check_extras(root: Keys<'_>) -> Result<()> {
    for key in OFF {
        ensure!(!root.flag(key)?.unwrap_or(false), "config.json sets `{key}`, which the decoder does not have");
    }
    ensure!(root.flag("is_causal")?.unwrap_or(true), "config.json turns `is_causal` off; the decoder is causal");
    for key in ONE {
        if root.map.get(key).is_some_and(|value| !value.is_null()) {
            root.one(key)?;
        }
    }
    for (key, value) in EMPTY.iter().filter_map(|&key| root.map.get_key_value(key)) {
        let empty = match value {
            Value::Null | Value::Bool(false) => true,
            Value::Number(n) => n.as_f64() == Some(0.0),
            Value::Array(all) => all.is_empty(),
            Value::Object(all) => all.is_empty(),
            _ => false,
        };
        ensure!(empty, "config.json sets `{key}` to {value}, which the decoder does not have");
    }
    if let Some(key) = QUANTIZED.iter().find(|&&key| root.map.get(key).is_some_and(|q| !q.is_null())) {
        bail!("config.json has `{key}`: this checkpoint is quantized already; use the full-precision one");
    }
    if let Some(act) = root.text("hidden_act")? {
        ensure!(matches!(act, "silu" | "swish"), "hidden_act is {act}; only silu (swish) is supported");
    }
    Ok(())
}

/// Refuses layers that look at a window of the past only.
fn check_sliding(root: Keys<'_>, qwen3: bool, layers: usize) -> Result<()> {
    let advice = "the decoder looks at the whole past in every layer";
    let window = root.size_or_null("sliding_window")?;
    let uses = root.flag("use_sliding_window")?.unwrap_or(false);
    if let Some(types) = root.texts("layer_types")? {
        if let Some(other) = types.iter().find(|&&kind| kind != "full_attention") {
            bail!("layer_types in config.json has `{other}`; {advice}");
        }
        ensure!(types.len() == layers, "config.json has {} layer_types for {layers} layers", types.len());
        return Ok(());
    }
    // A Llama has no such layers, so the flag says that the model is something else.
    ensure!(qwen3 || !uses, "config.json sets `use_sliding_window`; {advice}");
    // transformers' defaults of Qwen3: layers from the 28th on slide over 4096 positions.
    let first = root.size("max_window_layers")?.unwrap_or(28);
    let slides = uses && (window.is_some() || !root.map.contains_key("sliding_window"));
    ensure!(
        !slides || first >= layers,
        "config.json sets `use_sliding_window`, and layers from {first} (max_window_layers) on slide; {advice}"
    );
    Ok(())
}
