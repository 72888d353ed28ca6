//! Gradients of weights with learned scales on the CPU, in one pass over memory. Tensor operations take twenty times as
//! long.

use half::bf16;
use tch::{Kind, Tensor};

use crate::kernel::{GRAIN, LANES, Real, total};
use crate::native::{Pieces, parallel, vectorized, view, view_mut};

/// A rule in numbers, see [`crate::learned::LearnedRule`], and what is made of it.
#[derive(Clone, Copy)]
pub(crate) struct Slopes {
    /// 1/stretch: the level of a code, in α.
    pub level: f32,
    /// |x| above which the code is not 0.
    pub threshold: f32,
    /// |x| up to which w gets a gradient.
    pub bound: f32,
    /// Whether α gets the sign alone.
    pub sign_only: bool,
    /// Share of G that w gets within the bound, and beyond it.
    pub within: f32,
    pub beyond: f32,
}

vectorized! {
    /// Writes G·share of consecutive groups of `width`, and Σ G·slope of each.
    fn groups<T: Real>(
        weights: &[f32],
        gradient: &[T],
        width: usize,
        alphas: &[f32],
        slopes: Slopes,
        out: &mut [f32],
        sums: &mut [f32],
    ) -> () {
        let of = weights.chunks_exact(width).zip(gradient.chunks_exact(width)).zip(out.chunks_exact_mut(width));
        for (i, ((weights, gradient), out)) in of.enumerate() {
            // One for all, where the whole matrix shares it.
            let alpha = alphas[i.min(alphas.len() - 1)];
            let mut sum = 0f64;
            for begin in (0..width).step_by(1024) {
                let end = width.min(begin + 1024);
                let mut lanes = [0f32; LANES];
                let blocks = weights[begin..end].chunks(LANES).zip(gradient[begin..end].chunks(LANES));
                for ((weights, gradient), out) in blocks.zip(out[begin..end].chunks_mut(LANES)) {
                    for (lane, ((&w, &g), out)) in lanes.iter_mut().zip(weights.iter().zip(gradient).zip(out)) {
                        let (x, g) = (w / alpha, g.widen());
                        let magnitude = x.abs();
                        let sign = if x == 0.0 { 0.0 } else { 1f32.copysign(x) };
                        let inside = magnitude <= slopes.bound;
                        let level = if magnitude > slopes.threshold { sign * slopes.level } else { 0.0 };
                        let slope = if inside && !slopes.sign_only { level - x } else { sign };
                        *out = g * if inside { slopes.within } else { slopes.beyond };
                        *lane += g * slope;
                    }
                }
                sum += f64::from(total(lanes));
            }
            sums[i] = sum as f32;
        }
    }
}

/// dw and Σ G·slope by group, in the shape of `alpha`, for contiguous f32 `w` and `alpha` on the CPU and a `gradient`
/// in f32 or bf16.
pub(crate) fn gradients(w: &Tensor, alpha: &Tensor, gradient: &Tensor, slopes: Slopes) -> (Tensor, Tensor) {
    let gradient = gradient.contiguous();
    match gradient.kind() {
        Kind::BFloat16 => run::<bf16>(w, alpha, &gradient, slopes),
        _ => run::<f32>(w, alpha, &gradient, slopes),
    }
}

fn run<T: Real>(w: &Tensor, alpha: &Tensor, gradient: &Tensor, slopes: Slopes) -> (Tensor, Tensor) {
    let whole = alpha.dim() == 1;
    let width = w.size()[1] as usize / if whole { 1 } else { alpha.size()[1] as usize };
    let mut out = w.empty_like();
    let mut sums = if whole { w.new_empty([w.size()[0], 1], (Kind::Float, w.device())) } else { alpha.empty_like() };
    let (weights, gradient, alphas) = (view::<f32>(w), view::<T>(gradient), view::<f32>(alpha));
    let pieces = Pieces { slice: view_mut::<f32>(&mut out), width };
    let of_groups = Pieces { slice: view_mut::<f32>(&mut sums), width: 1 };
    parallel(pieces, of_groups, GRAIN.div_ceil(width), |first, out, sums| {
        let part = first * width..first * width + out.len();
        let alphas = if whole { alphas } else { &alphas[first..first + sums.len()] };
        groups(&weights[part.clone()], &gradient[part], width, alphas, slopes, out, sums);
    });
    (out, if whole { sums.sum(Kind::Float).reshape([1]) } else { sums })
}
