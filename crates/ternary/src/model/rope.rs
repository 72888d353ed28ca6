//! Rotary position embedding: the tables of cosines and sines.
//!
//! Half-split convention of Hugging Face (component i turns with component i + head_dim/2), frequencies θ^(-2i/d)
//! (Su et al. 2021), with Llama 3.1's frequency scaling where the configuration has it.

use std::f64::consts::TAU;

use formats::artifact::ModelConfig;
use tch::{Device, Tensor};

/// Cosines and sines by position, `(positions, head_dim / 2)` each, f32.
#[derive(Debug)]
pub struct Rope {
    /// Cosines.
    pub cos: Tensor,
    /// Sines.
    pub sin: Tensor,
}

impl Rope {
    /// Tables for positions 0 to `positions`.
    pub fn new(config: &ModelConfig, positions: usize, device: Device) -> Self {
        let frequencies = frequencies(config);
        let mut cos = Vec::with_capacity(positions * frequencies.len());
        let mut sin = Vec::with_capacity(positions * frequencies.len());
        for position in 0..positions {
            for frequency in &frequencies {
                let (s, c) = (position as f64 * frequency).sin_cos();
                cos.push(c as f32);
                sin.push(s as f32);
            }
        }
        let shape = [positions as i64, frequencies.len() as i64];
        let place = |values: &[f32]| Tensor::from_slice(values).view(shape).to_device(device);
        Self { cos: place(&cos), sin: place(&sin) }
    }

    /// Positions in the tables.
    pub fn positions(&self) -> usize {
        self.cos.size()[0] as usize
    }
}

/// Radians per position of each pair of components.
pub(crate) fn frequencies(config: &ModelConfig) -> Vec<f64> {
    let dim = config.head_dim;
    let plain = (0..dim / 2).map(|i| config.rope_theta.powf(-2.0 * i as f64 / dim as f64));
    let Some(scaling) = &config.rope_scaling else { return plain.collect() };
    let original = scaling.original_max_position as f64;
    let (low, high) = (original / scaling.low_freq_factor, original / scaling.high_freq_factor);
    plain
        .map(|frequency| {
            let wavelength = TAU / frequency;
            if wavelength < high {
                frequency
            } else if wavelength > low {
                frequency / scaling.factor
            } else {
                let smooth = (original / wavelength - scaling.low_freq_factor)
                    / (scaling.high_freq_factor - scaling.low_freq_factor);
                (1.0 - smooth) * frequency / scaling.factor + smooth * frequency
            }
        })
        .collect()
}
