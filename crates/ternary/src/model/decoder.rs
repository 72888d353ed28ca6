//! The forward pass: embedding, blocks, final norm.

use std::cell::RefCell;

use formats::artifact::{Architecture, ModelConfig, ProjectionKind};
use tch::{Kind, Tensor};

use crate::model::linears::Linears;
use crate::model::ops::{self, HeadNorm};
use crate::model::rope::Rope;
use crate::model::weights::{ModelError, Weights};

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

/// The residual stream between two blocks, of B rows of T tokens.
///
/// What the last block adds lies beside it: the next norm adds it in its own pass.
#[derive(Debug)]
pub struct Stream {
    rows: i64,
    length: i64,
    /// (B·T, D), f32.
    residual: Tensor,
    /// (B·T, D), in the type of the products.
    delta: Option<Tensor>,
}

impl Stream {
    /// Its values, (B, T, D), f32.
    pub fn tensor(&self) -> Tensor {
        let sum = match &self.delta {
            Some(delta) => &self.residual + delta.to_kind(Kind::Float),
            None => self.residual.shallow_clone(),
        };
        sum.view([self.rows, self.length, -1])
    }

    /// The same memory without a graph, to be kept and run through a block again and again.
    pub fn detach(&self) -> Self {
        let delta = self.delta.as_ref().map(Tensor::detach);
        Self { rows: self.rows, length: self.length, residual: self.residual.detach(), delta }
    }
}

/// What [`Decoder::tapped`] gives out besides its result, by block, counted from 0.
#[derive(Debug, Clone, Copy, Default)]
pub struct Taps<'a> {
    /// Blocks behind which the residual stream is wanted.
    pub streams: &'a [usize],
    /// Blocks whose queries, keys and values are wanted.
    pub attention: &'a [usize],
}

/// What [`Decoder::tapped`] gave out, each list by rising block. Gradients flow through all of it.
#[derive(Debug)]
pub struct Tapped {
    /// (B·T, D) in `compute`, as [`Decoder::hidden`] gives them.
    pub hidden: Tensor,
    /// (B, T, D), f32; for [`crate::distill::feature_loss`].
    pub streams: Vec<Tensor>,
    /// Queries (B, T, H·head_dim), keys and values (B, T, H_kv·head_dim) as attention takes them, behind norm and
    /// rotation; for [`crate::distill::relation_loss`].
    pub attention: Vec<[Tensor; 3]>,
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
        self.tapped(linears, ids, Taps::default()).hidden
    }

    /// [`Decoder::hidden`], bit for bit, and what `taps` asks for; what it does not costs nothing.
    ///
    /// # Panics
    /// As [`Decoder::hidden`]; when a tapped block does not exist.
    pub fn tapped(&self, linears: &dyn Linears, ids: &Tensor, taps: Taps<'_>) -> Tapped {
        let count = self.blocks.len();
        for &layer in taps.streams.iter().chain(taps.attention) {
            assert!(layer < count, "block {layer} is tapped, the model has {count}, counted from 0");
        }
        let (mut streams, mut attention) = (Vec::new(), Vec::new());
        let mut stream = self.embed(ids);
        for layer in 0..count {
            stream = self.run(linears, layer, stream, taps.attention.contains(&layer).then_some(&mut attention));
            if taps.streams.contains(&layer) {
                streams.push(stream.tensor());
            }
        }
        Tapped { hidden: self.final_norm(stream), streams, attention }
    }

    /// What enters the first block, for token ids (B, T).
    ///
    /// [`Decoder::embed`], [`Decoder::block`] for each block and [`Decoder::final_norm`] are [`Decoder::hidden`] in parts,
    /// bit for bit: for training a block by itself against the parent's (Block-AP of EfficientQAT, arXiv 2407.11062).
    ///
    /// # Panics
    /// As [`Decoder::hidden`].
    pub fn embed(&self, ids: &Tensor) -> Stream {
        let (rows, length) = match ids.size()[..] {
            [rows, length] => (rows, length),
            ref other => panic!("token ids must be (batch, length), not {other:?}"),
        };
        let residual = Tensor::embedding(&self.embedding, &ids.reshape([-1]), -1, false, false).to_kind(Kind::Float);
        Stream { rows, length, residual, delta: None }
    }

    /// Runs block `layer`, counted from 0.
    ///
    /// # Panics
    /// As [`Decoder::hidden`]; when there is no such block.
    pub fn block(&self, linears: &dyn Linears, layer: usize, stream: Stream) -> Stream {
        self.run(linears, layer, stream, None)
    }

    /// The final norm: hidden states (B·T, D) in `compute`.
    ///
    /// # Panics
    /// As [`Decoder::hidden`].
    pub fn final_norm(&self, stream: Stream) -> Tensor {
        let Stream { residual, delta, .. } = stream;
        ops::add_rms_norm(&residual, delta.as_ref(), &self.norm, self.config.rms_norm_eps, self.compute).1
    }

    /// A block; puts what its attention takes into `attention` where there is one.
    fn run(
        &self,
        linears: &dyn Linears,
        layer: usize,
        stream: Stream,
        attention: Option<&mut Vec<[Tensor; 3]>>,
    ) -> Stream {
        use ProjectionKind::{Down, Gate, K, O, Q, Up, V};
        let Stream { rows, length, residual, delta } = stream;
        let block = &self.blocks[layer];
        let config = &self.config;
        let eps = config.rms_norm_eps;
        let heads = config.num_attention_heads as i64;
        let kv_heads = config.num_key_value_heads as i64;
        let head_dim = config.head_dim as i64;
        self.grow_rope(length as usize);
        let rope = self.rope.borrow();

        let (sum, x) = ops::add_rms_norm(&residual, delta.as_ref(), &block.input, eps, self.compute);
        let qkv = linears.project(layer, &[Q, K, V], &x);
        let norm = |which: usize| block.query_key.as_ref().map(|w| HeadNorm { weight: &w[which], eps });
        let q = ops::rotate(&qkv[0].view([rows, length, heads, head_dim]), &rope, norm(0));
        let k = ops::rotate(&qkv[1].view([rows, length, kv_heads, head_dim]), &rope, norm(1));
        let v = qkv[2].view([rows, length, kv_heads, head_dim]);
        if let Some(attention) = attention {
            attention.push([&q, &k, &v].map(|x| x.reshape([rows, length, -1])));
        }
        let mixed = ops::attention(&q, &k, &v).reshape([rows * length, heads * head_dim]);
        let out = linears.project(layer, &[O], &mixed);
        let (sum, x) = ops::add_rms_norm(&sum, Some(&out[0]), &block.post_attention, eps, self.compute);
        let gate_up = linears.project(layer, &[Gate, Up], &x);
        let product = ops::swiglu(&gate_up[0], &gate_up[1]);
        let delta = linears.project(layer, &[Down], &product).pop();
        Stream { rows, length, residual: sum, delta }
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
