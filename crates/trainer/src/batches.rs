//! Windows of training text in random order, none twice within an epoch.
//!
//! An epoch cuts the train part into consecutive windows behind a random offset and takes them in random order. Windows
//! cross document boundaries; each document is followed by the end token.

use anyhow::{Result, ensure};
use formats::corpus::Tokens;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use tch::{Device, Tensor};

/// One batch: position `t` of `inputs` predicts position `t` of `targets`.
#[derive(Debug)]
pub struct Batch {
    /// Token ids (B, T), i64.
    pub inputs: Tensor,
    /// The ids one position later (B, T), i64.
    pub targets: Tensor,
}

/// Draws batches from the train part.
pub struct Batches {
    tokens: Tokens,
    rng: StdRng,
    window: usize,
    /// Starts of the epoch's windows that are left, taken from the end.
    left: Vec<u64>,
    epochs: u64,
}

impl Batches {
    /// Batches of `tokens` in an order given by `seed`.
    pub fn new(tokens: Tokens, seed: u64) -> Self {
        Self { tokens, rng: StdRng::seed_from_u64(seed), window: 0, left: Vec::new(), epochs: 0 }
    }

    /// `rows` windows of `window` inputs. Another `window` than last time starts a new epoch.
    ///
    /// # Errors
    /// When a window is empty or longer than the text.
    pub fn next(&mut self, rows: usize, window: usize, device: Device) -> Result<Batch> {
        ensure!(rows > 0 && window > 0, "a batch of {rows} x {window} tokens is empty: set both to at least 1");
        ensure!(
            self.tokens.len() > window as u64,
            "a window of {window} tokens and its last target do not fit into the {} tokens of the train part: \
             use a shorter window or more text",
            self.tokens.len()
        );
        if window != self.window {
            self.window = window;
            self.left.clear();
        }
        let mut ids = vec![0i64; rows * (window + 1)];
        for row in ids.chunks_exact_mut(window + 1) {
            let start = self.next_start();
            self.tokens.copy(start, row);
        }
        let (rows, window) = (rows as i64, window as i64);
        let ids = Tensor::from_slice(&ids).view([rows, window + 1]);
        let inputs = ids.narrow(1, 0, window).contiguous().to_device(device);
        let targets = ids.narrow(1, 1, window).contiguous().to_device(device);
        Ok(Batch { inputs, targets })
    }

    /// Epochs begun.
    pub fn epochs(&self) -> u64 {
        self.epochs
    }

    fn next_start(&mut self) -> u64 {
        if let Some(start) = self.left.pop() {
            return start;
        }
        // Each window needs one token more than its inputs: the last target.
        let (len, window) = (self.tokens.len() - 1, self.window as u64);
        let offset = self.rng.random_range(0..=(len % window));
        self.left = (0..(len - offset) / window).map(|i| offset + i * window).collect();
        self.left.shuffle(&mut self.rng);
        self.epochs += 1;
        self.left.pop().unwrap_or(0)
    }
}
