//! Ternary starting points from a sample of a projection's inputs: rounding with error feedback, and scales fitted to
//! the outputs. Both minimize tr((W − Q)·H·(W − Q)ᵀ), the squared error of the outputs, with H = 2/n·Σ x·xᵀ.

use formats::artifact::Grouping;
use tch::{Device, Kind, TchError, Tensor};

use crate::native::NativeError;
use crate::quantize::{Quantized, Scale, check, quantize, quantize_with, scales_shape, snap, spread};

/// Share of H's mean diagonal that is added to its diagonal before it is inverted (GPTQ's).
pub const DAMPING: f64 = 0.01;

/// Columns after which the feedback reaches the rest of the matrix; within, it is immediate. Results do not depend on
/// it.
const BLOCK: i64 = 128;

/// A sample of a projection's inputs, summed up as H.
#[derive(Debug)]
pub struct Inputs {
    /// Σ x·xᵀ, f64 `[in, in]`.
    sum: Tensor,
    count: i64,
}

impl Inputs {
    /// Of a projection with `columns` inputs, on `device`: one that computes in f64, so not MPS.
    pub fn new(columns: i64, device: Device) -> Self {
        Self { sum: Tensor::zeros([columns, columns], (Kind::Double, device)), count: 0 }
    }

    /// Adds inputs `(…, in)` of any kind.
    pub fn add(&mut self, x: &Tensor) {
        tch::no_grad(|| {
            let x = x.detach().reshape([-1, self.sum.size()[0]]).to_kind(Kind::Float);
            self.count += x.size()[0];
            let _ = self.sum.g_add_(&x.tr().matmul(&x).to_kind(Kind::Double));
        });
    }

    /// H, f64 `[in, in]`.
    pub fn hessian(&self) -> Tensor {
        &self.sum * (2.0 / self.count.max(1) as f64)
    }

    /// tr((W − Q)·H·(W − Q)ᵀ) of f32 `[out, in]` weights, by row: f64 `[out]`.
    pub fn errors(&self, w: &Tensor, quantized: &Tensor) -> Tensor {
        let off = (w - quantized).to_kind(Kind::Double);
        (off.matmul(&self.hessian()) * off).sum_dim_intlist(1, false, Kind::Double)
    }
}

/// Where to start training: the master of a [`crate::weight::TernaryWeight`] and, when it learns scales, its
/// [`crate::weight::TernaryWeight::set_levels`].
#[derive(Debug)]
pub struct Start {
    /// A master with these codes at these scales: each weight as it was, with its feedback, when it was rounded.
    pub master: Tensor,
    /// Codes and scales.
    pub quantized: Quantized,
}

/// GPTQ (arXiv 2210.17323) on the levels −s, 0, s: columns of `w` (f32 `[out, in]`) are rounded to the nearest level
/// one after the other, and each error is made up for by the columns that are left, as H says. s is `scale`'s, with its
/// own deadzone, of the group as it is when its first column is reached.
///
/// # Errors
/// When H cannot be factorized: inputs that are not finite.
///
/// # Panics
/// When `w` is not a matrix of f32, the group width does not divide its rows, `inputs` are of another width, or for
/// [`Scale::ThreeOfFour`], whose zeros are not those of the nearest level.
pub fn error_feedback(w: &Tensor, inputs: &Inputs, grouping: Grouping, scale: Scale) -> Result<Start, NativeError> {
    check(w, grouping);
    assert!(scale != Scale::ThreeOfFour, "error feedback rounds to the nearest level: choose another rule");
    let failed = |error: TchError| NativeError(error.to_string());
    tch::no_grad(|| {
        let columns = w.size()[1];
        let hessian = inputs.hessian();
        assert_eq!(hessian.size(), [columns, columns], "inputs are those of the projection");
        // An input that is always 0: nothing depends on its weights, and 0 is as good as any.
        let unused = hessian.diagonal(0, 0, 1).eq(0.0);
        let damping = hessian.diagonal(0, 0, 1).mean(Kind::Double) * DAMPING;
        let diagonal = unused.to_kind(Kind::Double) + damping;
        let damped = hessian + Tensor::diag_embed(&diagonal, 0, -2, -1);
        let inverse = damped.f_linalg_cholesky(false).and_then(|lower| lower.f_cholesky_inverse(false));
        let upper = inverse.and_then(|inverse| inverse.f_linalg_cholesky(true)).map_err(failed)?;
        let upper = upper.to_kind(Kind::Float);

        let rest = w.masked_fill(&unused.unsqueeze(0), 0.0);
        let master = rest.zeros_like();
        let width = match grouping {
            Grouping::Tensor => columns,
            Grouping::Row | Grouping::Group(_) => grouping.width(columns as usize) as i64,
        };
        let mut scales = Vec::new();
        for group in (0..columns).step_by(width as usize) {
            let own = if grouping == Grouping::Tensor { Grouping::Tensor } else { Grouping::Row };
            let fitted = quantize(&rest.narrow(1, group, width).contiguous(), own, scale, scale.default_deadzone());
            let level = fitted.scales.reshape([-1]);
            scales.push(fitted.scales);
            for begin in (group..group + width).step_by(BLOCK as usize) {
                let length = BLOCK.min(group + width - begin);
                let errors = rest.narrow(1, begin, length).zeros_like();
                for column in begin..begin + length {
                    let weight = rest.select(1, column);
                    master.select(1, column).copy_(&weight);
                    let rounded = weight.abs().gt_tensor(&(&level * 0.5)) * weight.sign() * &level;
                    let error = (weight - rounded) / upper.double_value(&[column, column]);
                    let later = begin + length - column;
                    let feedback = error.outer(&upper.select(0, column).narrow(0, column, later));
                    let _ = rest.narrow(1, column, later).g_sub_(&feedback);
                    errors.select(1, column - begin).copy_(&error);
                }
                let end = begin + length;
                let feedback = errors.matmul(&upper.narrow(0, begin, length).narrow(1, end, columns - end));
                let _ = rest.narrow(1, end, columns - end).g_sub_(&feedback);
            }
        }
        let scales = Tensor::cat(&scales, -1).reshape(scales_shape(w, grouping));
        let quantized = quantize_with(&master, grouping, &scales, 0.5);
        Ok(Start { master, quantized })
    })
}

/// Codes and scales in alternation, as PT2-LLM (arXiv 2510.03267) does it without its shift, which no artifact holds:
/// from [`Scale::Mse`], `rounds` times the scales that minimize the error of the outputs for the codes (a system of
/// equations a row, of as many unknowns as it has groups), then the codes nearest to the weights. The best of all
/// rounds by row ([`Grouping::Tensor`]: of the matrix) is kept, so no output is worse than with [`Scale::Mse`].
///
/// `w` is f32 `[out, in]`. A master to train from is `w` itself, with these scales in
/// [`crate::weight::TernaryWeight::set_levels`].
///
/// # Errors
/// When inputs are not finite.
///
/// # Panics
/// When `w` is not a matrix of f32, the group width does not divide its rows, or `inputs` are of another width.
pub fn fit_outputs(w: &Tensor, inputs: &Inputs, grouping: Grouping, rounds: usize) -> Result<Quantized, NativeError> {
    check(w, grouping);
    tch::no_grad(|| {
        let mut best = quantize(w, grouping, Scale::Mse, Scale::Mse.default_deadzone());
        let mut least = errors(w, inputs, grouping, &best);
        let mut codes = best.codes.shallow_clone();
        for _ in 0..rounds {
            let fitted = fit_scales(w, inputs, grouping, &codes)?;
            let error = errors(w, inputs, grouping, &fitted);
            let better = error.less_tensor(&least).unsqueeze(1);
            let flat = |scales: &Tensor| scales.reshape([least.size()[0], -1]);
            best.scales = flat(&fitted.scales).where_self(&better, &flat(&best.scales)).reshape(best.scales.size());
            best.codes = fitted.codes.where_self(&better, &best.codes);
            least = error.minimum(&least);
            codes = quantize_with(w, grouping, &fitted.scales, 0.5).codes;
        }
        Ok(best)
    })
}

/// Errors of the outputs by row, or of all for [`Grouping::Tensor`].
fn errors(w: &Tensor, inputs: &Inputs, grouping: Grouping, quantized: &Quantized) -> Tensor {
    let rows = inputs.errors(w, &quantized.dequantize());
    if grouping == Grouping::Tensor { rows.sum(Kind::Double).reshape([1]) } else { rows }
}

/// The scales that minimize the error of the outputs with these codes, snapped. With t_g the codes of group g, 0 beyond
/// it, they solve Σ_h (t_g·H·t_h)·α_h = t_g·H·w for each row, and summed over the rows for [`Grouping::Tensor`]. Where
/// one is negative, the codes of its group change their signs instead.
fn fit_scales(w: &Tensor, inputs: &Inputs, grouping: Grouping, codes: &Tensor) -> Result<Quantized, NativeError> {
    let hessian = inputs.hessian();
    let (rows, columns) = w.size2().map_err(|error| NativeError(error.to_string()))?;
    let width = match grouping {
        Grouping::Tensor => columns,
        Grouping::Row | Grouping::Group(_) => grouping.width(columns as usize) as i64,
    };
    let groups = columns / width;
    let codes = &codes.to_kind(Kind::Double);
    let by_group = |x: &Tensor| x.reshape([rows, groups, width]).sum_dim_intlist(-1, false, Kind::Double);
    let mut right = by_group(&(w.to_kind(Kind::Double).matmul(&hessian) * codes));
    let mut left: Vec<Tensor> = Vec::new();
    for group in 0..groups {
        let own = codes.narrow(1, group * width, width).matmul(&hessian.narrow(0, group * width, width));
        left.push(by_group(&(own * codes)));
    }
    let mut left = Tensor::stack(&left, 2);
    if grouping == Grouping::Tensor {
        (left, right) = (left.sum_dim_intlist(0, true, Kind::Double), right.sum_dim_intlist(0, true, Kind::Double));
    }
    // A group without codes has an empty equation.
    let diagonal = left.diagonal(0, 1, 2);
    let ridge = diagonal.eq(0.0).to_kind(Kind::Double) + diagonal * 1e-9;
    let left = left + ridge.diag_embed(0, -2, -1);
    let solved = Tensor::f_linalg_solve(&left, &right.unsqueeze(-1), true);
    let solved = solved.map_err(|error| NativeError(error.to_string()))?;
    let scales = solved.to_kind(Kind::Float).reshape(scales_shape(w, grouping));
    let codes = (codes * spread(&scales.sign(), codes)).to_kind(Kind::Int8);
    Ok(Quantized { codes, scales: snap(&scales.abs()) })
}
