//! Losses on what lies between a student and its parent besides logits: hidden states and attention relations. Tensor
//! operations that autograd follows, for [`crate::loss::Objective::add`].

use tch::{Kind, Tensor};

/// Smallest probability of a relation, and smallest product of lengths, so that nothing is divided by 0.
const SMALLEST: f64 = 1e-8;

/// Mean over tokens of 1 − cos(student, teacher), for hidden states `(…, D)` of one shape and any kind; 0-dim f32. The
/// feature loss of OFF (TernaryLLM, arXiv 2406.07177). No gradient reaches the teacher.
pub fn feature_loss(student: &Tensor, teacher: &Tensor) -> Tensor {
    assert_eq!(student.size(), teacher.size(), "hidden states of student and teacher have one shape");
    let (student, teacher) = (student.to_kind(Kind::Float), teacher.detach().to_kind(Kind::Float));
    let dot = |a: &Tensor, b: &Tensor| (a * b).sum_dim_intlist(-1, false, Kind::Float);
    let norms = (dot(&student, &student) * dot(&teacher, &teacher)).clamp_min(SMALLEST * SMALLEST).sqrt();
    let distance: Tensor = 1.0 - dot(&student, &teacher) / norms;
    distance.mean(Kind::Float)
}

/// Distance of the attention relations of student and teacher (MiniLMv2, arXiv 2012.15828, as BitDistill, arXiv
/// 2510.13998, uses it), 0-dim f32; no gradient reaches the teacher.
///
/// `student` and `teacher` are the same projections (queries, keys, values, one of each or some) of one block each,
/// `(B, T, D)`; their D may differ. Each is split into `heads` parts of D/`heads`, each part of a token normalized to
/// length 1, and R = softmax(A·Aᵀ) `(B, heads, T, T)` over all positions. The loss is the mean over pairs, B, heads and
/// T of KL(R_teacher ‖ R_student), probabilities clamped from below at 1e-8.
///
/// BitDistill's code divides this mean by the number of heads (and of layers) once more, which is why its weight is
/// 1000 and more.
///
/// # Panics
/// When the numbers of tensors, or B and T, differ, or `heads` does not divide a D.
pub fn relation_loss(student: &[Tensor], teacher: &[Tensor], heads: i64) -> Tensor {
    assert_eq!(student.len(), teacher.len(), "student and teacher have the same projections");
    assert!(!student.is_empty(), "a relation needs a projection");
    let losses: Vec<Tensor> = (student.iter().zip(teacher))
        .map(|(student, teacher)| {
            let got = relations(student, heads).clamp_min(SMALLEST).log();
            let wanted = relations(&teacher.detach(), heads).clamp_min(SMALLEST);
            assert_eq!(got.size(), wanted.size(), "student and teacher see the same tokens");
            (&wanted * (wanted.log() - got)).sum_dim_intlist(-1, false, Kind::Float).mean(Kind::Float)
        })
        .collect();
    Tensor::stack(&losses, 0).mean(Kind::Float)
}

/// softmax(A·Aᵀ) of each head, `(B, heads, T, T)` f32, for `x` `(B, T, D)`.
fn relations(x: &Tensor, heads: i64) -> Tensor {
    let (rows, length, width) = x.size3().expect("projections are (batch, length, width)");
    assert!(heads > 0 && width % heads == 0, "{heads} heads do not divide a width of {width}");
    let split = x.to_kind(Kind::Float).reshape([rows, length, heads, width / heads]).transpose(1, 2);
    let norm = split.square().sum_dim_intlist(-1, true, Kind::Float).sqrt().clamp_min(1e-12);
    let unit = split / norm;
    unit.matmul(&unit.transpose(-2, -1)).softmax(-1, Kind::Float)
}
