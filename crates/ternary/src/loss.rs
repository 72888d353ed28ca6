//! Losses over a large vocabulary, a chunk of tokens at a time: logits never exist whole, and no product with the head
//! is done twice. The gradient of a chunk is written down directly instead of recorded.
//!
//! With hidden states h `(N, D)`, head W `(V, D)`, logits z = h·Wᵀ, p = softmax(z), targets y and, when distilling, the
//! teacher's logits z', temperature T, weight ω:
//!
//! * cross entropy: mean over rows of −log p_y; dL/dz = (p − onehot(y))/N
//! * distillation: T²·mean over rows of KL(softmax(z'/T) ‖ softmax(z/T)) (arXiv 1503.02531);
//!   dL/dz = T·(softmax(z/T) − softmax(z'/T))/N
//! * objective: (1 − ω)·cross entropy + ω·distillation
//!
//! Products are in the kind of hidden states and head (bf16 or f32, both the same); softmax and losses are in f32.

use tch::{Kind, Tensor};

use crate::native::{NativeError, backward};
use crate::softmax;

/// The full-precision parent's side of a distillation.
#[derive(Debug, Clone, Copy)]
pub struct Teacher<'a> {
    /// Hidden states `(N, D')`.
    pub hidden: &'a Tensor,
    /// Head `(V, D')`.
    pub head: &'a Tensor,
    /// ω: share of the distillation in the objective; 1 leaves the cross entropy out.
    pub weight: f64,
    /// T.
    pub temperature: f64,
}

/// A loss and its gradients with respect to hidden states and head.
#[derive(Debug)]
pub struct Objective {
    /// What is minimized, 0-dim f32 on the device, with what was added.
    pub loss: Tensor,
    /// Mean cross entropy in nats a token, 0-dim f32 on the device.
    pub cross_entropy: Tensor,
    /// T²·KL, 0-dim f32, when there is a teacher.
    pub divergence: Option<Tensor>,
    hidden: (Tensor, Tensor),
    head: Option<(Tensor, Tensor)>,
    added: Vec<(Tensor, Tensor)>,
}

impl Objective {
    /// Adds `weight`·`term` to the objective: a 0-dim loss with a graph, such as one of [`crate::distill`]. The
    /// backward pass is one for all.
    ///
    /// A sum label + ε·logits + δ·features is (1 + ε) times the objective whose teacher has the weight ε/(1 + ε), with
    /// the features added at δ/(1 + ε); AdamW makes the same steps of both.
    pub fn add(&mut self, weight: f64, term: &Tensor) {
        self.loss = tch::no_grad(|| &self.loss + term.to_kind(Kind::Float) * weight);
        self.added.push((term.shallow_clone(), term.full_like(weight)));
    }

    /// Continues the backward pass into what made the hidden states and, when the head requires a gradient, the head.
    ///
    /// # Errors
    /// What libtorch says, such as hidden states without a graph.
    pub fn backward(self) -> Result<(), NativeError> {
        let mut tensors = vec![&self.hidden.0];
        let mut gradients = vec![&self.hidden.1];
        if let Some((head, gradient)) = &self.head {
            tensors.push(head);
            gradients.push(gradient);
        }
        for (term, gradient) in &self.added {
            tensors.push(term);
            gradients.push(gradient);
        }
        backward(&tensors, &gradients)
    }

    /// dL/dh, `(N, D)`, of what was not added.
    pub fn hidden_gradient(&self) -> &Tensor {
        &self.hidden.1
    }

    /// dL/dW, `(V, D)`, when the head requires a gradient.
    pub fn head_gradient(&self) -> Option<&Tensor> {
        self.head.as_ref().map(|(_, gradient)| gradient)
    }
}

/// Logits that exist at a time.
const LOGITS: i64 = 3 << 22;

/// Rows whose logits exist at a time.
pub(crate) fn chunk_rows(vocabulary: i64) -> i64 {
    // Multiples of 64 where there is room: the matrix products run best on whole tiles. Beyond 1024 rows they gain
    // nothing.
    match LOGITS / vocabulary {
        rows if rows >= 64 => (rows / 64 * 64).min(1024),
        rows => rows.max(1),
    }
}

/// Cross entropy of each row in nats, f32 `(N)`, without a gradient. `targets`: i64 `(N)`.
pub fn cross_entropy(hidden: &Tensor, head: &Tensor, targets: &Tensor) -> Tensor {
    tch::no_grad(|| {
        let rows = chunk_rows(head.size()[0]);
        let parts: Vec<Tensor> = hidden
            .split(rows, 0)
            .iter()
            .zip(targets.split(rows, 0))
            .map(|(hidden, targets)| {
                let logits = hidden.matmul(&head.tr());
                if softmax::takes(&logits) {
                    return softmax::cross_entropy(&logits, &targets);
                }
                let logits = logits.to_kind(Kind::Float);
                logits.logsumexp(-1, false) - logits.gather(1, &targets.unsqueeze(1), false).squeeze_dim(1)
            })
            .collect();
        Tensor::cat(&parts, 0)
    })
}

/// The objective over `(N, D)` hidden states with a graph, a `(V, D)` head and i64 targets `(N)`; with a teacher, the
/// mix described above.
pub fn objective(hidden: &Tensor, head: &Tensor, targets: &Tensor, teacher: Option<Teacher<'_>>) -> Objective {
    tch::no_grad(|| {
        let count = hidden.size()[0];
        let rows = chunk_rows(head.size()[0]);
        let weight = head.detach();
        let states = hidden.detach();
        let mut head_gradient = head.requires_grad().then(|| weight.zeros_like());
        let (mut entropies, mut divergences, mut hidden_gradients) = (Vec::new(), Vec::new(), Vec::new());
        for begin in (0..count).step_by(rows as usize) {
            let length = rows.min(count - begin);
            let states = states.narrow(0, begin, length);
            let targets = targets.narrow(0, begin, length);
            let logits = states.matmul(&weight.tr());
            let teacher = teacher.map(|teacher| {
                let logits = teacher.hidden.detach().narrow(0, begin, length).matmul(&teacher.head.detach().tr());
                (logits, teacher)
            });
            let chunk = chunk_gradient(logits, &targets, teacher, 1.0 / count as f64);
            entropies.push(chunk.entropy);
            divergences.extend(chunk.divergence);
            hidden_gradients.push(chunk.gradient.matmul(&weight));
            if let Some(sum) = &mut head_gradient {
                let _ = sum.addmm_(&chunk.gradient.tr(), &states);
            }
        }
        let mean = |parts: &[Tensor]| Tensor::stack(parts, 0).sum(Kind::Float) / count as f64;
        let cross_entropy = mean(&entropies);
        let divergence = teacher.map(|_| mean(&divergences));
        let loss = match (&divergence, teacher) {
            (Some(divergence), Some(teacher)) => &cross_entropy * (1.0 - teacher.weight) + divergence * teacher.weight,
            _ => cross_entropy.shallow_clone(),
        };
        Objective {
            loss,
            cross_entropy,
            divergence,
            hidden: (hidden.shallow_clone(), Tensor::cat(&hidden_gradients, 0)),
            head: head_gradient.map(|gradient| (head.shallow_clone(), gradient)),
            added: Vec::new(),
        }
    })
}

/// Sums over a chunk's rows, and dL/dz in the kind of the logits.
struct Chunk {
    entropy: Tensor,
    divergence: Option<Tensor>,
    gradient: Tensor,
}

fn chunk_gradient(mut logits: Tensor, targets: &Tensor, teacher: Option<(Tensor, Teacher<'_>)>, each: f64) -> Chunk {
    if softmax::takes(&logits) && teacher.as_ref().is_none_or(|(logits, _)| softmax::takes(logits)) {
        let teacher = teacher.as_ref().map(|(logits, teacher)| softmax::TeacherLogits {
            logits,
            weight: teacher.weight,
            temperature: teacher.temperature,
        });
        let (entropy, divergence) = softmax::gradient(&mut logits, targets, teacher, each);
        let divergence = teacher.map(|_| Tensor::from(divergence as f32));
        return Chunk { entropy: Tensor::from(entropy as f32), divergence, gradient: logits };
    }
    on_device(&logits, targets, teacher.as_ref(), each)
}

/// The same in tensor operations, for accelerators. Also the plain reference of the CPU's.
fn on_device(logits: &Tensor, targets: &Tensor, teacher: Option<&(Tensor, Teacher<'_>)>, each: f64) -> Chunk {
    let kind = logits.kind();
    let index = targets.unsqueeze(1);
    let mut log_p = logits.log_softmax(-1, Kind::Float);
    let entropy = -log_p.gather(1, &index, false).sum(Kind::Float);
    let share = teacher.map_or(1.0, |(_, teacher)| 1.0 - teacher.weight);
    let mut gradient = log_p.exp_();
    let _ = gradient.scatter_add_(1, &index, &index.ones_like().to_kind(Kind::Float).neg());
    let _ = gradient.g_mul_scalar_(share * each);
    let divergence = teacher.map(|(teacher_logits, teacher)| {
        let t = teacher.temperature;
        let student = (logits.to_kind(Kind::Float) / t).log_softmax(-1, Kind::Float);
        let target = (teacher_logits.to_kind(Kind::Float) / t).log_softmax(-1, Kind::Float);
        let q = target.exp();
        let divergence = (&q * (target - &student)).sum(Kind::Float) * (t * t);
        let _ = gradient.g_add_(&((student.exp() - q) * (teacher.weight * t * each)));
        divergence
    });
    Chunk { entropy, divergence, gradient: gradient.to_kind(kind) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpus_gradient_is_that_of_tensor_operations() {
        crate::draws::seed(6);
        let normal = || crate::draws::normal([5, 5003]) * 4.0;
        let (logits, teacher_logits) = (normal(), normal());
        let targets = crate::draws::integers(5003, [5]);
        for (weight, temperature) in [(None, 1.0), (Some(0.4), 2.5), (Some(1.0), 1.0)] {
            let teacher = weight.map(|weight| {
                let teacher = Teacher { hidden: &logits, head: &logits, weight, temperature };
                (teacher_logits.shallow_clone(), teacher)
            });
            let plain = on_device(&logits, &targets, teacher.as_ref(), 0.2);
            let fast = chunk_gradient(logits.copy(), &targets, teacher, 0.2);
            let close = |a: &Tensor, b: &Tensor| assert!(a.allclose(b, 1e-5, 1e-7, false), "{}", (a - b).abs().max());
            close(&fast.gradient, &plain.gradient);
            close(&fast.entropy, &plain.entropy);
            match (fast.divergence, plain.divergence) {
                (Some(fast), Some(plain)) => close(&fast, &plain),
                (fast, plain) => assert!(fast.is_none() && plain.is_none()),
            }
        }
    }
}
