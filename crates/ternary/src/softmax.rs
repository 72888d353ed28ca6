//! Softmax, its losses and their gradient on the CPU: a row of logits is read once into the cache and its gradient
//! written over it, where tensor operations would send every chunk through memory some eight times. Parallel over rows.

use half::bf16;
use tch::{Device, Kind, Tensor};

use crate::kernel::{GRAIN, LANES, Real, total};
use crate::native::{Pieces, parallel, parallel_one, vectorized, view, view_mut};

/// e^max(x, −80) for x ≤ 0, within 2 units in the last place. A NaN counts as −80: the loss is NaN all the same, by the
/// target's logit.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    // e^x = 2^n·e^r with n = round(x/ln 2), |r| ≤ ln 2/2; ln 2 in two parts keeps r exact.
    const MAGIC: f32 = 12_582_912.0; // 1.5·2^23: adding it rounds to an integer in the low bits
    let x = if x > -80.0 { x } else { -80.0 };
    let shifted = x * std::f32::consts::LOG2_E + MAGIC;
    let n = shifted - MAGIC;
    let r = (x - n * 0.693_359_4) - n * -2.121_944_4e-4;
    let series = 1.0 / 5040.0;
    let series = series * r + 1.0 / 720.0;
    let series = series * r + 1.0 / 120.0;
    let series = series * r + 1.0 / 24.0;
    let series = series * r + 1.0 / 6.0;
    let series = series * r + 0.5;
    let series = series * r + 1.0;
    let series = series * r + 1.0;
    series * f32::from_bits((shifted.to_bits() << 23).wrapping_add(1f32.to_bits()))
}

/// Sum of `f` over `items`, in lanes that the compiler vectorizes.
#[inline(always)]
fn sum_of<T: Copy>(items: &mut [T], mut f: impl FnMut(&mut T) -> f32) -> f64 {
    let mut sum = 0f64;
    for part in items.chunks_mut(4096) {
        let mut lanes = [0f32; LANES];
        let mut blocks = part.chunks_exact_mut(LANES);
        for block in &mut blocks {
            for (lane, item) in lanes.iter_mut().zip(block) {
                *lane += f(item);
            }
        }
        for item in blocks.into_remainder() {
            lanes[0] += f(item);
        }
        sum += f64::from(total(lanes));
    }
    sum
}

#[inline(always)]
fn largest<T: Real>(row: &[T]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    for block in row.chunks(LANES) {
        for (lane, value) in lanes.iter_mut().zip(block) {
            let value = value.widen();
            *lane = if value > *lane { value } else { *lane };
        }
    }
    lanes.into_iter().fold(f32::NEG_INFINITY, f32::max)
}

/// Writes e^((row − max)/T) to `out`; returns max and the sum.
#[inline(always)]
fn exponentials<T: Real>(row: &[T], temperature: f32, out: &mut Vec<f32>) -> (f32, f64) {
    let most = largest(row);
    let rate = 1.0 / temperature;
    out.clear();
    out.extend(row.iter().map(|value| (value.widen() - most) * rate));
    let sum = sum_of(out, |value| {
        *value = exp(*value);
        *value
    });
    (most, sum)
}

/// −log softmax(row) at `target`.
#[inline(always)]
fn entropy<T: Real>(row: &[T], target: usize, most: f32, sum: f64) -> f64 {
    sum.ln() - f64::from(row[target].widen() - most)
}

/// The rows of a contiguous CPU matrix of logits, with their targets.
fn targets_of(targets: &Tensor, vocabulary: usize) -> Vec<usize> {
    let targets = targets.to_device(Device::Cpu).contiguous();
    let targets: Vec<usize> = view::<i64>(&targets).iter().map(|&id| id as usize).collect();
    assert!(targets.iter().all(|&id| id < vocabulary), "targets are token ids below the vocabulary's {vocabulary}");
    targets
}

/// Whether the functions of this module take these logits.
pub(crate) fn takes(logits: &Tensor) -> bool {
    logits.device() == Device::Cpu && logits.is_contiguous() && matches!(logits.kind(), Kind::Float | Kind::BFloat16)
}

/// Cross entropy of each row of `logits` `(N, V)`, f32 `(N)`.
pub(crate) fn cross_entropy(logits: &Tensor, targets: &Tensor) -> Tensor {
    fn run<T: Real>(logits: &Tensor, targets: &Tensor) -> Vec<f32> {
        let vocabulary = logits.size()[1] as usize;
        let targets = targets_of(targets, vocabulary);
        let logits = view::<T>(logits);
        let mut losses = vec![0.0; targets.len()];
        parallel_one(Pieces { slice: &mut losses, width: 1 }, GRAIN.div_ceil(vocabulary), |first, losses| {
            let mut scratch = Vec::new();
            let rows = logits[first * vocabulary..].chunks_exact(vocabulary).zip(&targets[first..]);
            for (loss, (row, &target)) in losses.iter_mut().zip(rows) {
                *loss = entropy_row(row, target, &mut scratch);
            }
        });
        losses
    }
    Tensor::from_slice(&match logits.kind() {
        Kind::Float => run::<f32>(logits, targets),
        _ => run::<bf16>(logits, targets),
    })
}

/// A teacher's logits of the same rows, ω and T.
#[derive(Clone, Copy)]
pub(crate) struct TeacherLogits<'a> {
    pub logits: &'a Tensor,
    pub weight: f64,
    pub temperature: f64,
}

/// Sums over rows of cross entropy and T²·KL, writing dL/dz over `logits`, each row's share of the mean being `each`.
pub(crate) fn gradient(
    logits: &mut Tensor,
    targets: &Tensor,
    teacher: Option<TeacherLogits<'_>>,
    each: f64,
) -> (f64, f64) {
    match logits.kind() {
        Kind::Float => gradient_of::<f32>(logits, targets, teacher, each),
        _ => gradient_of::<bf16>(logits, targets, teacher, each),
    }
}

fn gradient_of<T: Real>(
    logits: &mut Tensor,
    targets: &Tensor,
    teacher: Option<TeacherLogits<'_>>,
    each: f64,
) -> (f64, f64) {
    let vocabulary = logits.size()[1] as usize;
    let targets = targets_of(targets, vocabulary);
    let teacher_rows = teacher.map(|teacher| {
        assert_eq!(teacher.logits.kind(), T::KIND, "teacher and student compute in the same kind");
        (view::<T>(teacher.logits), teacher.weight, teacher.temperature)
    });
    let mut losses = vec![(0.0, 0.0); targets.len()];
    let rows = Pieces { slice: view_mut::<T>(logits), width: vocabulary };
    let each_loss = Pieces { slice: &mut losses, width: 1 };
    parallel(rows, each_loss, GRAIN.div_ceil(vocabulary), |first, rows, losses| {
        let mut scratch: [Vec<f32>; 3] = Default::default();
        for (i, (row, loss)) in rows.chunks_exact_mut(vocabulary).zip(losses).enumerate() {
            let target = targets[first + i];
            *loss = match teacher_rows {
                None => plain_row(row, target, each, &mut scratch[0]),
                Some((logits, weight, temperature)) => {
                    let teacher_row = &logits[(first + i) * vocabulary..][..vocabulary];
                    distilled_row(row, target, teacher_row, weight, temperature, each, &mut scratch)
                }
            };
        }
    });
    // In the order of the rows, so that the sum does not depend on the threads.
    losses.into_iter().fold((0.0, 0.0), |a, b| (a.0 + b.0, a.1 + b.1))
}

vectorized! {
    /// Cross entropy of a row.
    fn entropy_row<T: Real>(row: &[T], target: usize, scratch: &mut Vec<f32>) -> f32 {
        let (most, sum) = exponentials(row, 1.0, scratch);
        entropy(row, target, most, sum) as f32
    }
}

vectorized! {
    /// Cross entropy of a row and zero; writes the gradient over it.
    fn plain_row<T: Real>(row: &mut [T], target: usize, each: f64, scratch: &mut Vec<f32>) -> (f64, f64) {
        let (most, sum) = exponentials(row, 1.0, scratch);
        let loss = entropy(row, target, most, sum);
        let rate = (each / sum) as f32;
        for (out, &e) in row.iter_mut().zip(scratch.iter()) {
            *out = T::narrow(e * rate);
        }
        row[target] = T::narrow(scratch[target] * rate - each as f32);
        (loss, 0.0)
    }
}

vectorized! {
    /// Cross entropy of a row and T²·KL; writes the gradient of the mix over it.
    fn distilled_row<T: Real>(
        row: &mut [T],
        target: usize,
        teacher_row: &[T],
        weight: f64,
        temperature: f64,
        each: f64,
        scratch: &mut [Vec<f32>; 3],
    ) -> (f64, f64) {
        let [sharp, soft, wanted] = scratch;
        let t = temperature as f32;
        let (most, sum) = exponentials(row, 1.0, sharp);
        let loss = entropy(row, target, most, sum);
        let (_, soft_sum) = exponentials(row, t, soft);
        let (teacher_most, wanted_sum) = exponentials(teacher_row, t, wanted);
        // KL = Σ q·(z'/T − z/T) − log Σ' + log Σ, with both logits less their largest.
        let difference = |student: f32, teacher: f32| ((teacher - teacher_most) - (student - most)) / t;
        let mut dot = 0f64;
        for ((students, teachers), q) in row.chunks(4096).zip(teacher_row.chunks(4096)).zip(wanted.chunks(4096)) {
            let mut lanes = [0f32; LANES];
            let blocks = students.chunks(LANES).zip(teachers.chunks(LANES)).zip(q.chunks(LANES));
            for ((students, teachers), q) in blocks {
                for (lane, ((student, teacher), q)) in lanes.iter_mut().zip(students.iter().zip(teachers).zip(q)) {
                    *lane += q * difference(student.widen(), teacher.widen());
                }
            }
            dot += f64::from(total(lanes));
        }
        let divergence = temperature * temperature * (dot / wanted_sum - wanted_sum.ln() + soft_sum.ln());
        let sharp_rate = ((1.0 - weight) * each / sum) as f32;
        let soft_rate = (weight * temperature * each / soft_sum) as f32;
        let wanted_rate = (weight * temperature * each / wanted_sum) as f32;
        let at = |i: usize| sharp[i] * sharp_rate + (soft[i] * soft_rate - wanted[i] * wanted_rate);
        let of_target = at(target) - ((1.0 - weight) * each) as f32;
        for (((out, p), soft), wanted) in row.iter_mut().zip(sharp.iter()).zip(soft.iter()).zip(wanted.iter()) {
            *out = T::narrow(p * sharp_rate + (soft * soft_rate - wanted * wanted_rate));
        }
        row[target] = T::narrow(of_target);
        (loss, divergence)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exponential_is_exact_to_two_units() {
        for i in 0..=800_000 {
            let x = -(i as f32) * 1e-4;
            let wanted = f64::from(x).exp();
            let error = (f64::from(exp(x)) - wanted).abs() / wanted;
            assert!(error < 2.0 * f64::from(f32::EPSILON), "exp({x}) is off by {error}");
        }
        assert_eq!(exp(-1e9), exp(-80.0));
        assert_eq!(exp(f32::NEG_INFINITY), exp(-80.0));
    }
}
