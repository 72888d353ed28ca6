//! An exponential moving average of the weights.

use tch::Tensor;

/// Averages of f32 masters: after t updates, Σ d^(t−i)·w_i over the updates i divided by Σ d^(t−i), so that the first
/// weights count no more than later ones. Codes and scales come from the masters: put the averages there at the end,
/// and quantize them.
///
/// Where ternary recipes were searched with budgets of minutes, averages made models worse: compare before use.
#[derive(Debug)]
pub struct Average {
    decay: f64,
    weight: f64,
    masters: Vec<Tensor>,
    averages: Vec<Tensor>,
}

impl Average {
    /// Of these masters, with decay d in [0, 1); no update yet.
    pub fn new<'a>(masters: impl IntoIterator<Item = &'a Tensor>, decay: f64) -> Self {
        let masters: Vec<Tensor> = masters.into_iter().map(Tensor::detach).collect();
        let averages = masters.iter().map(Tensor::zeros_like).collect();
        Self { decay, weight: 0.0, masters, averages }
    }

    /// Takes in the masters as they are now: after each step.
    pub fn update(&mut self) {
        self.weight = self.weight * self.decay + 1.0;
        tch::no_grad(|| {
            for (average, master) in self.averages.iter_mut().zip(&self.masters) {
                let _ = average.lerp_(master, 1.0 / self.weight);
            }
        });
    }

    /// Writes the averages into the masters, which it returns as they were; nothing changes before the first update.
    pub fn apply(&self) -> Vec<Tensor> {
        let before: Vec<Tensor> = self.masters.iter().map(Tensor::copy).collect();
        if self.weight > 0.0 {
            for (average, master) in self.averages.iter().zip(&self.masters) {
                master.shallow_clone().copy_(average);
            }
        }
        before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn averages_are_weighted_by_age() {
        crate::draws::seed(1);
        let new = || crate::draws::normal([3, 4]);
        let masters = [new(), new()];
        let mut average = Average::new(&masters, 0.8);
        assert_eq!(average.apply(), masters, "there is no average yet");
        let (mut sums, mut total) = ([new() * 0.0, new() * 0.0], 0.0);
        for _ in 0..6 {
            for (master, sum) in masters.iter().zip(&mut sums) {
                master.shallow_clone().copy_(&new());
                *sum = &*sum * 0.8 + master;
            }
            total = total * 0.8 + 1.0;
            average.update();
        }
        let last = masters.each_ref().map(Tensor::copy);
        assert_eq!(average.apply(), last);
        for (master, sum) in masters.iter().zip(&sums) {
            assert!(master.allclose(&(sum / total), 1e-5, 1e-6, false));
        }
    }
}
