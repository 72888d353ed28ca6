//! Muon (K. Jordan and others, 2024; arXiv 2502.16982), the optimizer of matrices whose update is the momentum made
//! orthogonal. Everything that is no matrix, and embeddings and heads, stay with [`crate::optim::AdamW`].

use tch::{Kind, Tensor};

use crate::optim::Group;

/// What all matrices share.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Options {
    /// β of the momentum.
    pub momentum: f64,
    /// Whether the gradient is mixed with the momentum once more (Nesterov).
    pub nesterov: bool,
    /// Iterations of [`orthogonalize`].
    pub iterations: u32,
    /// The kind of its products: bf16 or f32.
    pub compute: Kind,
}

impl Options {
    /// The authors' numbers, with products in `compute`.
    pub fn new(compute: Kind) -> Self {
        Self { momentum: 0.95, nesterov: true, iterations: 5, compute }
    }
}

#[derive(Debug)]
struct Matrix {
    value: Tensor,
    group: Group,
    momentum: Tensor,
}

/// The optimizer. With gradient G, momentum M, rate η and decay ω, a step is
///
/// * M ← β·M + (1 − β)·G, U = β·M + (1 − β)·G (Nesterov; else U = M)
/// * w ← w·(1 − η·ω) − η·√max(1, out/in)·orthogonal(U)
///
/// An update has entries of about 1/√in whatever the size of the gradient: it is not clipped, and its learning rate is
/// not AdamW's.
#[derive(Debug)]
pub struct Muon {
    options: Options,
    matrices: Vec<Matrix>,
}

impl Muon {
    /// Without matrices.
    pub fn new(options: Options) -> Self {
        Self { options, matrices: Vec::new() }
    }

    /// Adds an f32 matrix, which [`Muon::step`] changes in place.
    ///
    /// # Panics
    /// When it is no f32 matrix.
    pub fn add(&mut self, group: Group, matrix: &Tensor) {
        assert!(matrix.dim() == 2 && matrix.kind() == Kind::Float, "Muon moves f32 matrices");
        self.matrices.push(Matrix { value: matrix.detach(), group, momentum: matrix.zeros_like() });
    }

    /// One step with each group's learning rate times `factor`; gradients of any kind, in the order of [`Muon::add`]. A
    /// matrix without a gradient is left alone, its momentum too.
    ///
    /// # Panics
    /// When `gradients` is not as long as the list of matrices, or a gradient of another shape.
    pub fn step(&mut self, gradients: &[Option<Tensor>], factor: f64) {
        assert_eq!(gradients.len(), self.matrices.len(), "one gradient, or none, for each matrix");
        let Options { momentum: beta, nesterov, iterations, compute } = self.options;
        tch::no_grad(|| {
            for (matrix, gradient) in self.matrices.iter_mut().zip(gradients) {
                let Some(gradient) = gradient else { continue };
                assert_eq!(gradient.size(), matrix.value.size(), "a gradient has its matrix's shape");
                let gradient = gradient.to_kind(Kind::Float);
                let _ = matrix.momentum.lerp_(&gradient, 1.0 - beta);
                let direction = if nesterov { gradient.lerp(&matrix.momentum, beta) } else { matrix.momentum.copy() };
                let update = orthogonalize(&direction, iterations, compute);
                let rate = matrix.group.learning_rate * factor;
                let [rows, columns] = [0, 1].map(|i| matrix.value.size()[i] as f64);
                let _ = matrix.value.g_mul_scalar_(1.0 - rate * matrix.group.weight_decay);
                let _ = matrix.value.g_sub_(&(update * (rate * (rows / columns).max(1.0).sqrt())));
            }
        });
    }
}

/// The coefficients of an odd polynomial of degree 5 that takes singular values in (0, 1] to about 1 when it is applied
/// again and again: steep at 0, and content with 0.7 to 1.2 (Jordan).
const COEFFICIENTS: [f64; 3] = [3.4445, -4.7750, 2.0315];

/// About U·Vᵀ of `x` = U·Σ·Vᵀ, f32 in the shape of `x` (a matrix), by Newton-Schulz iterations
/// X ← a·X + (b·A + c·A²)·X with A = X·Xᵀ, from X = x/‖x‖, products in `compute`.
pub fn orthogonalize(x: &Tensor, iterations: u32, compute: Kind) -> Tensor {
    let [a, b, c] = COEFFICIENTS;
    let tall = x.size()[0] > x.size()[1];
    let wide = if tall { x.tr() } else { x.shallow_clone() };
    let mut x = (&wide / (wide.norm() + 1e-7)).to_kind(compute);
    for _ in 0..iterations {
        let square = x.matmul(&x.tr());
        let factor = &square * b + square.matmul(&square) * c;
        x = &x * a + factor.matmul(&x);
    }
    let x = x.to_kind(Kind::Float);
    if tall { x.tr() } else { x }
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;

    fn normal(rows: i64, columns: i64) -> Tensor {
        crate::draws::normal([rows, columns])
    }

    /// The polynomial on the singular values, in f64.
    fn reference(x: &Tensor, iterations: u32) -> Tensor {
        let (u, s, v) = x.to_kind(Kind::Double).svd(true, true);
        let mut s = &s / s.norm();
        for _ in 0..iterations {
            s = &s * 3.4445 - s.pow_tensor_scalar(3) * 4.775 + s.pow_tensor_scalar(5) * 2.0315;
        }
        (u * s.unsqueeze(0)).matmul(&v.tr()).to_kind(Kind::Float)
    }

    #[track_caller]
    fn close(a: &Tensor, b: &Tensor, tolerance: f64) {
        let error = ((a - b).norm() / b.norm()).double_value(&[]);
        assert!(error < tolerance, "differs by {error} of its norm");
    }

    #[test]
    fn orthogonal_is_the_polynomial_of_singular_values() {
        crate::draws::seed(1);
        for (rows, columns) in [(24, 24), (16, 40), (40, 16), (1, 9)] {
            let x = normal(rows, columns) * 1e-3;
            for iterations in [1, 5] {
                close(&orthogonalize(&x, iterations, Kind::Float), &reference(&x, iterations), 2e-3);
            }
            close(&orthogonalize(&x, 5, Kind::BFloat16), &reference(&x, 5), 0.05);
        }
        // Singular values that are not tiny come near 1.
        let (_, s, _) = orthogonalize(&normal(16, 64), 5, Kind::Float).svd(true, true);
        assert!(s.min().double_value(&[]) > 0.6 && s.max().double_value(&[]) < 1.3, "{s}");
        assert_eq!(
            orthogonalize(&Tensor::zeros([3, 4], (Kind::Float, Device::Cpu)), 5, Kind::Float).norm(),
            0f32.into()
        );
    }

    #[test]
    fn steps_are_their_formula() {
        crate::draws::seed(2);
        let rates = [(0.02, 0.0), (0.05, 0.1)];
        let shapes = [(12, 8), (6, 20)];
        for nesterov in [true, false] {
            let options = Options { nesterov, ..Options::new(Kind::Float) };
            let mut muon = Muon::new(options);
            let matrices = shapes.map(|(rows, columns)| normal(rows, columns));
            let mut wanted = [0, 1].map(|i: usize| matrices[i].copy());
            let mut momenta = [0, 1].map(|i: usize| matrices[i].zeros_like());
            for ((learning_rate, weight_decay), matrix) in rates.into_iter().zip(&matrices) {
                muon.add(Group { learning_rate, weight_decay }, matrix);
            }
            for step in 0..4 {
                let gradients = shapes.map(|(rows, columns)| normal(rows, columns));
                // The second matrix has no gradient in one step.
                let used = |i: usize| !(i == 1 && step == 2);
                let given: Vec<_> = [0, 1].map(|i| used(i).then(|| gradients[i].copy())).into();
                muon.step(&given, 0.5);
                for i in (0..2).filter(|&i| used(i)) {
                    momenta[i] = &momenta[i] * 0.95 + &gradients[i] * 0.05;
                    let mixed = &momenta[i] * 0.95 + &gradients[i] * 0.05;
                    let update = reference(if nesterov { &mixed } else { &momenta[i] }, 5);
                    let (rate, decay) = (rates[i].0 * 0.5, rates[i].1);
                    let tall = [1.5f64.sqrt(), 1.0][i];
                    wanted[i] = &wanted[i] * (1.0 - rate * decay) - update * (rate * tall);
                }
            }
            matrices.iter().zip(&wanted).for_each(|(got, wanted)| close(got, wanted, 1e-4));
        }
    }
}
