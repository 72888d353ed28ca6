//! The forward pass: embedding, blocks, final norm.

use std::cell::RefCell;

use artifact::{Architecture, ModelConfig, ProjectionKind};
use tch::{Kind, Tensor};

use crate::linears::Linears;
use crate::ops::{self, HeadNorm};
use crate::rope::Rope;
use crate::weights::{ModelError, Weights};

/// A pre-norm decoder (Llama, Qwen3) without its projections.
///
/// The residual stream, the norms and the softmax statistics are f32; matrix products and what flows between them
/// are in `compute` (f32 or bf16, which accumulates in f32).
pub struct Decoder {
    config: ModelConfig,
    compute: Kind,
    embedding: Tensor,
    head: Tensor,
    norm: Tensor,
    blocks: Vec<Block>,
    rope: RefCell<Rope>,
}

/// The norms of a block.
struct Block {
    input: Tensor,
    post_attention: Tensor,
    /// Qwen3's norms of q and k over the head dimension.
    query_key: Option<[Tensor; 2]>,
}

impl Decoder {
    /// Takes the tensors that are not projections; they are shared, so gradients reach the caller's.
    ///
    /// # Errors
    /// When one is missing or has another shape, or the configuration is unusable.
    pub fn new(config: &ModelConfig, weights: &Weights, compute: Kind) -> Result<Self, ModelError> {
        check(config)?;
        let take = |name: &str, shape: &[usize]| -> Result<Tensor, ModelError> {
            let tensor = weights.get(name)?;
            let found = tensor.size();
            if found.iter().map(|&n| n as usize).ne(shape.iter().copied()) {
                let (name, expected) = (name.to_owned(), shape.to_vec());
                return Err(ModelError::Shape { name, found, expected });
            }
            Ok(tensor.shallow_clone())
        };
        let table = [config.vocab_size, config.hidden_size];
        let embedding = take("model.embed_tokens.weight", &table)?;
        let head = if config.tie_word_embeddings { embedding.shallow_clone() } else { take("lm_head.weight", &table)? };
        let mut blocks = Vec::with_capacity(config.num_hidden_layers);
        for layer in 0..config.num_hidden_layers {
            let norm = |name: &str, width| take(&format!("model.layers.{layer}.{name}.weight"), &[width]);
            blocks.push(Block {
                input: norm("input_layernorm", config.hidden_size)?,
                post_attention: norm("post_attention_layernorm", config.hidden_size)?,
                query_key: match config.architecture {
                    Architecture::Llama => None,
                    Architecture::Qwen3 => {
                        Some([norm("self_attn.q_norm", config.head_dim)?, norm("self_attn.k_norm", config.head_dim)?])
                    }
                },
            });
        }
        Ok(Self {
            norm: take("model.norm.weight", &[config.hidden_size])?,
            rope: RefCell::new(Rope::new(config, 0, embedding.device())),
            config: config.clone(),
            compute,
            embedding,
            head,
            blocks,
        })
    }

    /// The shape of the model.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The type of the matrix products.
    pub fn compute(&self) -> Kind {
        self.compute
    }

    /// The output embedding (V, D), as it was given (the embedding itself when tied).
    pub fn head(&self) -> &Tensor {
        &self.head
    }

    /// Hidden states after the final norm, (B·T, D) in `compute`, for token ids (B, T). Causal within each row.
    ///
    /// # Panics
    /// When libtorch fails, out of memory included; when an id lies outside the vocabulary.
    pub fn hidden(&self, linears: &dyn Linears, ids: &Tensor) -> Tensor {
        use ProjectionKind::{Down, Gate, K, O, Q, Up, V};
        let (rows, length) = match ids.size()[..] {
            [rows, length] => (rows, length),
            ref other => panic!("token ids must be (batch, length), not {other:?}"),
        };
        let config = &self.config;
        self.grow_rope(length as usize);
        let rope = self.rope.borrow();
        let eps = config.rms_norm_eps;
        let heads = config.num_attention_heads as i64;
        let kv_heads = config.num_key_value_heads as i64;
        let head_dim = config.head_dim as i64;

        // (B·T, D), f32: the residual stream.
        let mut residual =
            Tensor::embedding(&self.embedding, &ids.reshape([-1]), -1, false, false).to_kind(Kind::Float);
        let mut delta: Option<Tensor> = None;
        for (layer, block) in self.blocks.iter().enumerate() {
            let (sum, x) = ops::add_rms_norm(&residual, delta.as_ref(), &block.input, eps, self.compute);
            let qkv = linears.project(layer, &[Q, K, V], &x);
            let norm = |which: usize| block.query_key.as_ref().map(|w| HeadNorm { weight: &w[which], eps });
            let q = ops::rotate(&qkv[0].view([rows, length, heads, head_dim]), &rope, norm(0));
            let k = ops::rotate(&qkv[1].view([rows, length, kv_heads, head_dim]), &rope, norm(1));
            let v = qkv[2].view([rows, length, kv_heads, head_dim]);
            let mixed = ops::attention(&q, &k, &v).reshape([rows * length, heads * head_dim]);
            let out = linears.project(layer, &[O], &mixed);
            let (sum, x) = ops::add_rms_norm(&sum, Some(&out[0]), &block.post_attention, eps, self.compute);
            let gate_up = linears.project(layer, &[Gate, Up], &x);
            let product = ops::swiglu(&gate_up[0], &gate_up[1]);
            delta = linears.project(layer, &[Down], &product).pop();
            residual = sum;
        }
        ops::add_rms_norm(&residual, delta.as_ref(), &self.norm, eps, self.compute).1
    }

    /// Makes the rotary tables cover `length` positions.
    fn grow_rope(&self, length: usize) {
        if self.rope.borrow().positions() < length {
            let table = Rope::new(&self.config, length, self.embedding.device());
            *self.rope.borrow_mut() = table;
        }
    }
}

/// Refuses shapes that cannot run.
fn check(config: &ModelConfig) -> Result<(), ModelError> {
    let problem = if config.vocab_size == 0
        || config.hidden_size == 0
        || config.intermediate_size == 0
        || config.num_attention_heads == 0
        || config.num_key_value_heads == 0
    {
        "a size is zero"
    } else if config.head_dim == 0 || config.head_dim % 2 == 1 {
        "head_dim must be even, for the rotary embedding"
    } else if !config.num_attention_heads.is_multiple_of(config.num_key_value_heads) {
        "num_key_value_heads must divide num_attention_heads"
    } else if !(config.rms_norm_eps >= 0.0 && config.rope_theta > 0.0) {
        "rms_norm_eps and rope_theta must be positive"
    } else {
        return Ok(());
    };
    Err(ModelError::Config(problem.into()))
}
