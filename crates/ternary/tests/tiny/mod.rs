//! A model of a few thousand weights.

use formats::artifact::{Architecture, ModelConfig, RopeScaling};
use tch::{Device, Kind, Tensor};
use ternary::model::Weights;

/// A tiny model with grouped-query attention.
pub fn tiny(architecture: Architecture, tied: bool) -> ModelConfig {
    ModelConfig {
        architecture,
        vocab_size: 40,
        hidden_size: 24,
        intermediate_size: 32,
        num_hidden_layers: 2,
        num_attention_heads: 4,
        num_key_value_heads: 2,
        head_dim: 8,
        rope_theta: 10_000.0,
        rope_scaling: (!tied).then_some(RopeScaling {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position: 32,
        }),
        rms_norm_eps: 1e-5,
        tie_word_embeddings: tied,
        max_position_embeddings: 64,
    }
}

/// Random weights large enough that every part of the model matters, norms included.
pub fn weights(config: &ModelConfig) -> Weights {
    let plain = Weights::init(config, 7, Device::Cpu).expect("init");
    plain
        .iter()
        .map(|(name, tensor)| {
            let wave = Tensor::arange(tensor.numel() as i64, (Kind::Float, Device::Cpu)).sin();
            let tensor = if tensor.dim() == 1 { tensor + wave * 0.3 } else { tensor * 10.0 };
            (name.to_owned(), tensor)
        })
        .collect()
}
