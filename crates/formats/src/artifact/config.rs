//! The shape of a decoder and the names of its tensors.

use serde::{Deserialize, Serialize};

/// Largest size that is accepted, so that products of three sizes fit 64 bits.
const MAX_SIZE: usize = 1 << 20;
/// Most blocks that are accepted.
const MAX_LAYERS: usize = 1024;

/// Decoder family. Both are pre-norm, RMSNorm, rotary (half-split), SwiGLU, grouped-query attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Architecture {
    /// Llama (SmolLM, Llama 3.2).
    Llama,
    /// Qwen3: RMSNorm over the head dimension of q and k before rotary.
    Qwen3,
}

/// Llama 3's frequency scaling of the rotary embedding.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RopeScaling {
    /// `factor`.
    pub factor: f64,
    /// `low_freq_factor`.
    pub low_freq_factor: f64,
    /// `high_freq_factor`.
    pub high_freq_factor: f64,
    /// `original_max_position_embeddings`.
    pub original_max_position: usize,
}

/// Shape of a decoder; field names follow Hugging Face's config.json.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    /// Family.
    pub architecture: Architecture,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the feed-forward layer.
    pub intermediate_size: usize,
    /// Blocks.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads.
    pub num_key_value_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Llama 3's frequency scaling, when it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rope_scaling: Option<RopeScaling>,
    /// Epsilon of every RMSNorm.
    pub rms_norm_eps: f64,
    /// Whether the head is the embedding.
    pub tie_word_embeddings: bool,
    /// Longest context.
    pub max_position_embeddings: usize,
}

/// The seven linear projections of a block, which are what is quantized.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum ProjectionKind {
    Q,
    K,
    V,
    O,
    Gate,
    Up,
    Down,
}

impl ProjectionKind {
    /// All seven, in the order of the forward pass.
    pub const ALL: [Self; 7] = [Self::Q, Self::K, Self::V, Self::O, Self::Gate, Self::Up, Self::Down];

    /// Hugging Face's name inside a block, such as `self_attn.q_proj`.
    pub fn module(self) -> &'static str {
        match self {
            Self::Q => "self_attn.q_proj",
            Self::K => "self_attn.k_proj",
            Self::V => "self_attn.v_proj",
            Self::O => "self_attn.o_proj",
            Self::Gate => "mlp.gate_proj",
            Self::Up => "mlp.up_proj",
            Self::Down => "mlp.down_proj",
        }
    }

    /// Tensor name in block `layer`: `model.layers.3.self_attn.q_proj.weight`.
    pub fn tensor(self, layer: usize) -> String {
        format!("model.layers.{layer}.{}.weight", self.module())
    }
}

impl ModelConfig {
    /// `[out, in]` of a projection.
    pub fn projection_shape(&self, kind: ProjectionKind) -> [usize; 2] {
        let q = self.num_attention_heads * self.head_dim;
        let kv = self.num_key_value_heads * self.head_dim;
        let (d, f) = (self.hidden_size, self.intermediate_size);
        match kind {
            ProjectionKind::Q => [q, d],
            ProjectionKind::K | ProjectionKind::V => [kv, d],
            ProjectionKind::O => [d, q],
            ProjectionKind::Gate | ProjectionKind::Up => [f, d],
            ProjectionKind::Down => [d, f],
        }
    }

    /// Names of the block projections.
    pub fn projection_names(&self) -> std::collections::BTreeSet<String> {
        (0..self.num_hidden_layers).flat_map(|layer| ProjectionKind::ALL.map(|kind| kind.tensor(layer))).collect()
    }

    /// Checks that the shape is one a decoder can have; the error names the key and what to do.
    ///
    /// # Errors
    /// A message for people.
    pub fn check(&self) -> Result<(), String> {
        let sizes = [
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_attention_heads", self.num_attention_heads),
            ("num_key_value_heads", self.num_key_value_heads),
            ("head_dim", self.head_dim),
            ("max_position_embeddings", self.max_position_embeddings),
        ];
        for (key, size) in sizes {
            if !(1..=MAX_SIZE).contains(&size) {
                return Err(format!("{key} is {size}; it must be between 1 and {MAX_SIZE}"));
            }
        }
        if self.num_hidden_layers > MAX_LAYERS {
            let layers = self.num_hidden_layers;
            return Err(format!("num_hidden_layers is {layers}; at most {MAX_LAYERS} are supported"));
        }
        if !self.num_attention_heads.is_multiple_of(self.num_key_value_heads) {
            return Err(format!(
                "num_key_value_heads ({}) must divide num_attention_heads ({})",
                self.num_key_value_heads, self.num_attention_heads
            ));
        }
        if !self.head_dim.is_multiple_of(2) {
            let dim = self.head_dim;
            return Err(format!("head_dim is {dim}; rotary embeddings need an even number"));
        }
        let mut positive = vec![("rope_theta", self.rope_theta), ("rms_norm_eps", self.rms_norm_eps)];
        if let Some(scaling) = &self.rope_scaling {
            positive.push(("rope_scaling.factor", scaling.factor));
            positive.push(("rope_scaling.low_freq_factor", scaling.low_freq_factor));
            positive.push(("rope_scaling.high_freq_factor", scaling.high_freq_factor));
            positive.push(("rope_scaling.original_max_position", scaling.original_max_position as f64));
        }
        for (key, value) in positive {
            if !(value.is_finite() && value > 0.0) {
                return Err(format!("{key} is {value}; it must be a positive number"));
            }
        }
        if let Some(scaling) = &self.rope_scaling
            && scaling.low_freq_factor >= scaling.high_freq_factor
        {
            let (low, high) = (scaling.low_freq_factor, scaling.high_freq_factor);
            return Err(format!(
                "rope_scaling.low_freq_factor ({low}) must be below rope_scaling.high_freq_factor ({high})"
            ));
        }
        Ok(())
    }

    /// Name and shape of every tensor of the model, Hugging Face's names: the projections first, by block, then
    /// `model.embed_tokens.weight`, the norms and, untied, `lm_head.weight`.
    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let mut all = Vec::new();
        for layer in 0..self.num_hidden_layers {
            for kind in ProjectionKind::ALL {
                all.push((kind.tensor(layer), self.projection_shape(kind).to_vec()));
            }
        }
        all.push(("model.embed_tokens.weight".into(), vec![self.vocab_size, self.hidden_size]));
        for layer in 0..self.num_hidden_layers {
            let block = format!("model.layers.{layer}");
            all.push((format!("{block}.input_layernorm.weight"), vec![self.hidden_size]));
            all.push((format!("{block}.post_attention_layernorm.weight"), vec![self.hidden_size]));
            if self.architecture == Architecture::Qwen3 {
                all.push((format!("{block}.self_attn.q_norm.weight"), vec![self.head_dim]));
                all.push((format!("{block}.self_attn.k_norm.weight"), vec![self.head_dim]));
            }
        }
        all.push(("model.norm.weight".into(), vec![self.hidden_size]));
        if !self.tie_word_embeddings {
            all.push(("lm_head.weight".into(), vec![self.vocab_size, self.hidden_size]));
        }
        all
    }
}

/// How weights share a scale. Groups run along a row and never cross it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Grouping {
    /// One scale for the tensor.
    Tensor,
    /// One scale a row (output).
    Row,
    /// One scale for this many consecutive weights of a row; must divide the row.
    #[serde(untagged)]
    Group(usize),
}

impl std::fmt::Display for Grouping {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        match self {
            Self::Tensor => f.pad("tensor"),
            Self::Row => f.pad("row"),
            Self::Group(width) => width.fmt(f),
        }
    }
}

impl Grouping {
    /// Weights along a row that share a scale, for rows of `columns`.
    pub fn width(self, columns: usize) -> usize {
        match self {
            Self::Tensor | Self::Row => columns,
            Self::Group(width) => width,
        }
    }
}
