//! How much work a second of the processor does at the moment.
//!
//! That differs: other programs share caches and memory, the machine's host has other guests, a core that was asleep has
//! to wake, and clock rates follow heat. [`Probe`] times a fixed piece of work of training's own kind, which is what
//! the budget's clock divides by.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use tch::{Device, Kind, Tensor};

use crate::model::ops;

/// Tokens in the piece of work.
const TOKENS: i64 = 1024;
/// Channels of its residual stream and of its inner layer: those of `experiments/nano`.
const CHANNELS: [i64; 2] = [256, 512];
/// Untimed rounds before the timed ones, since training has filled the caches with its own data.
const WARMUP_ROUNDS: usize = 1;
/// Just below the 32 MiB from which glibc never keeps anything.
const KEPT_BYTES: i64 = 31 << 20;
/// Timed rounds.
const ROUNDS: usize = 3;

/// A fixed piece of work on the processor.
#[derive(Debug)]
pub struct Probe {
    x: Tensor,
    up: Tensor,
    down: Tensor,
}

impl Probe {
    /// The piece of work; about 3 MB.
    pub fn new() -> Self {
        // What was once freed in one piece, glibc keeps from then on: otherwise a process that has allocated little gives the
        // memory of each product back to the kernel, which is a third of the time.
        drop(Tensor::zeros([KEPT_BYTES], (Kind::Uint8, Device::Cpu)));
        let [outer, inner] = CHANNELS;
        let tensor = |shape: [i64; 2]| Tensor::full(shape, 0.05, (ops::preferred_kind(Device::Cpu), Device::Cpu));
        Self { x: tensor([TOKENS, outer]), up: tensor([outer, inner]), down: tensor([inner, outer]) }
    }

    /// Does the work with as many threads as libtorch is set to. Returns the processor time of all threads of this process.
    pub fn time(&self) -> Duration {
        tch::no_grad(|| {
            self.work(WARMUP_ROUNDS);
            let start = processor_time();
            self.work(ROUNDS);
            processor_time().saturating_sub(start)
        })
    }

    /// Products with what lies between them in a block: an activation, a norm, a residual connection.
    fn work(&self, rounds: usize) {
        let mut x = self.x.shallow_clone();
        for _ in 0..rounds {
            let inner = x.matmul(&self.up).silu();
            let square = inner.to_kind(Kind::Float).square().mean_dim([-1].as_slice(), true, Kind::Float);
            x = (inner / (square.to_kind(self.x.kind()) + 1e-6).sqrt()).matmul(&self.down) * 0.1 + &self.x;
        }
        std::hint::black_box(x.size());
    }
}

impl Default for Probe {
    fn default() -> Self {
        Self::new()
    }
}

fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_takes_processor_time_and_computes_numbers() {
        let probe = Probe::new();
        assert!(probe.time() > Duration::ZERO);
        assert!(probe.x.isfinite().all().int64_value(&[]) == 1);
    }
}
