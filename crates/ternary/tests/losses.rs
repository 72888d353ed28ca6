//! Chunked losses against losses over whole logits, and against numerical derivatives.

#[path = "../src/draws.rs"]
mod draws;

use draws::normal;
use tch::{Kind, Tensor};
use ternary::distill::{feature_loss, relation_loss};
use ternary::loss::{Teacher, cross_entropy, objective};

#[track_caller]
fn close(a: &Tensor, b: &Tensor, tolerance: f64) {
    let error =
        (a.to_kind(Kind::Float) - b.to_kind(Kind::Float)).norm() / b.to_kind(Kind::Float).norm().clamp_min(1e-6);
    let error = error.double_value(&[]);
    assert!(error <= tolerance, "differs by {error} of its norm");
}

/// The objective over whole logits, by autograd.
fn whole(hidden: &Tensor, head: &Tensor, targets: &Tensor, teacher: Option<Teacher<'_>>) -> Tensor {
    let logits = hidden.matmul(&head.tr());
    let entropy = logits.cross_entropy_for_logits(targets);
    let Some(teacher) = teacher else { return entropy };
    let t = teacher.temperature;
    let wanted = (teacher.hidden.matmul(&teacher.head.tr()) / t).log_softmax(-1, Kind::Float);
    let got = (logits / t).log_softmax(-1, Kind::Float);
    let divergence = (wanted.exp() * (wanted - got)).sum(Kind::Float) / hidden.size()[0] as f64 * t * t;
    entropy * (1.0 - teacher.weight) + divergence * teacher.weight
}

/// More rows than a chunk has at this vocabulary (64), and not a multiple of them.
const ROWS: i64 = 70;
const VOCABULARY: i64 = 150_000;

/// Loss and gradients against [`whole`], with teachers of the given weights and temperatures.
fn adds_up(vocabulary: i64, teachers: &[Option<(f64, f64)>]) {
    draws::seed(1);
    let hidden = normal([ROWS, 6]);
    let head = normal([vocabulary, 6]);
    let targets = draws::integers(vocabulary, [ROWS]);
    let (parent, parent_head) = (normal([ROWS, 3]), normal([vocabulary, 3]));
    for teacher in teachers {
        let teacher =
            teacher.map(|(weight, temperature)| Teacher { hidden: &parent, head: &parent_head, weight, temperature });
        let plain = [hidden.copy().set_requires_grad(true), head.copy().set_requires_grad(true)];
        let loss = whole(&plain[0], &plain[1], &targets, teacher);
        loss.backward();
        let chunked = [hidden.copy().set_requires_grad(true), head.copy().set_requires_grad(true)];
        // Something before the hidden states, so that the backward pass has a graph to go on into.
        let objective = objective(&(&chunked[0] * 1.0), &chunked[1], &targets, teacher);
        close(&objective.loss, &loss, 1e-5);
        assert_eq!(objective.divergence.is_some(), teacher.is_some());
        objective.backward().expect("a graph");
        close(&chunked[0].grad(), &plain[0].grad(), 1e-5);
        close(&chunked[1].grad(), &plain[1].grad(), 1e-5);
    }
}

#[test]
fn chunks_add_up_to_the_whole() {
    adds_up(VOCABULARY, &[None, Some((0.7, 3.0))]);
}

#[test]
fn teachers_of_any_weight_and_temperature() {
    adds_up(300, &[Some((0.5, 1.0)), Some((0.7, 3.0)), Some((1.0, 2.0)), Some((0.0, 2.0))]);
}

#[test]
fn a_frozen_head_gets_no_gradient() {
    draws::seed(2);
    let hidden = normal([5, 4]).set_requires_grad(true);
    let head = normal([7, 4]);
    let targets = draws::integers(7, [5]);
    let objective = objective(&hidden, &head, &targets, None);
    assert!(objective.head_gradient().is_none());
    objective.backward().expect("a leaf");
    assert!(hidden.grad().defined());
}

#[test]
fn rows_without_a_gradient_are_the_same_losses() {
    draws::seed(3);
    let (hidden, head) = (normal([ROWS, 6]), normal([VOCABULARY, 6]));
    let targets = draws::integers(VOCABULARY, [ROWS]);
    let rows = cross_entropy(&hidden, &head, &targets);
    assert_eq!((rows.size(), rows.kind()), (vec![ROWS], Kind::Float));
    let wanted = hidden.matmul(&head.tr()).log_softmax(-1, Kind::Float).gather(1, &targets.unsqueeze(1), false);
    close(&rows, &-wanted.squeeze_dim(1), 1e-6);
}

/// bf16 products, f32 softmax: what rounding the logits to bf16 costs, no more.
#[test]
fn bf16_is_close() {
    draws::seed(4);
    let (hidden, head) = (normal([64, 32]), normal([1000, 32]) * 0.3);
    let targets = draws::integers(1000, [64]);
    let half = |t: &Tensor| t.to_kind(Kind::BFloat16).set_requires_grad(true);
    let (narrow, narrow_head) = (half(&hidden), half(&head));
    let wide = [&narrow, &narrow_head].map(|t| t.detach().to_kind(Kind::Float).set_requires_grad(true));
    let loss = whole(&wide[0], &wide[1], &targets, None);
    loss.backward();
    close(&cross_entropy(&narrow, &narrow_head, &targets).mean(Kind::Float), &loss, 2e-3);
    let objective = objective(&narrow, &narrow_head, &targets, None);
    close(&objective.cross_entropy, &loss, 2e-3);
    objective.backward().expect("a leaf");
    assert_eq!(narrow.grad().kind(), Kind::BFloat16);
    close(&narrow.grad(), &wide[0].grad(), 1e-2);
    close(&narrow_head.grad(), &wide[1].grad(), 1e-2);
}

#[test]
fn gradients_are_numerical_derivatives() {
    draws::seed(5);
    let (hidden, head) = (normal([3, 4]), normal([9, 4]));
    let targets = Tensor::from_slice(&[8i64, 0, 4]);
    let (parent, parent_head) = (normal([3, 4]), normal([9, 4]));
    let teacher = Some(Teacher { hidden: &parent, head: &parent_head, weight: 0.6, temperature: 1.7 });
    let at = |hidden: &Tensor, head: &Tensor| objective(hidden, head, &targets, teacher).loss.double_value(&[]);
    let trained = head.copy().set_requires_grad(true);
    let exact = objective(&hidden, &trained, &targets, teacher);
    let step = 1e-2;
    for (index, gradient) in [(0, exact.hidden_gradient()), (1, exact.head_gradient().expect("it is trained"))] {
        for i in 0..gradient.numel() as i64 {
            let moved = |by: f64| {
                let inputs = [hidden.copy(), head.copy()];
                let _ = inputs[index].view([-1]).get(i).g_add_scalar_(by);
                at(&inputs[0], &inputs[1])
            };
            let slope = (moved(step) - moved(-step)) / (2.0 * step);
            let given = gradient.reshape([-1]).double_value(&[i]);
            assert!((slope - given).abs() < 2e-4, "entry {i} of {index}: {given}, numerically {slope}");
        }
    }
}

#[test]
fn what_is_not_a_number_is_not_hidden() {
    let mut hidden = normal([4, 3]);
    let _ = hidden.get(1).fill_(f64::NAN);
    let targets = Tensor::from_slice(&[0i64, 1, 2, 3]);
    let objective = objective(&hidden, &normal([5, 3]), &targets, None);
    assert!(objective.loss.double_value(&[]).is_nan());
    hidden = normal([4, 3]) * 1e30;
    let rows = cross_entropy(&hidden, &(normal([5, 3]) * 1e30), &targets);
    assert!(!rows.sum(Kind::Float).double_value(&[]).is_finite());
}

/// Label, logits and features in one backward pass, against autograd on their weighted sum.
#[test]
fn terms_are_added_with_their_weights() {
    draws::seed(7);
    let (source, head) = (normal([6, 4]), normal([9, 4]));
    let targets = draws::integers(9, [6]);
    let (parent, parent_head) = (normal([6, 4]), normal([9, 4]));
    let teacher = Some(Teacher { hidden: &parent, head: &parent_head, weight: 0.3, temperature: 2.0 });
    let leaf = || [source.copy().set_requires_grad(true), head.copy().set_requires_grad(true)];

    let plain = leaf();
    let hidden = plain[0].tanh();
    let loss = whole(&hidden, &plain[1], &targets, teacher)
        + feature_loss(&hidden, &parent) * 0.7
        + feature_loss(&plain[0], &parent) * 2.0;
    loss.backward();

    let ours = leaf();
    let hidden = ours[0].tanh();
    let mut objective = objective(&hidden, &ours[1], &targets, teacher);
    objective.add(0.7, &feature_loss(&hidden, &parent));
    objective.add(2.0, &feature_loss(&ours[0], &parent));
    close(&objective.loss, &loss, 1e-6);
    objective.backward().expect("a graph");
    close(&ours[0].grad(), &plain[0].grad(), 1e-5);
    close(&ours[1].grad(), &plain[1].grad(), 1e-5);
}

fn rows(x: &Tensor) -> Vec<f64> {
    Vec::<f64>::try_from(x.to_kind(Kind::Double).reshape([-1])).expect("a vector")
}

/// The relation loss of one projection as its definition reads, a number at a time.
fn relations_slowly(student: &Tensor, teacher: &Tensor, heads: usize) -> f64 {
    let relation = |x: &Tensor| -> Vec<Vec<f64>> {
        let (batch, length, width) = x.size3().expect("(B, T, D)");
        let (batch, length, width, values) = (batch as usize, length as usize, width as usize, rows(x));
        let part = width / heads;
        let mut all = Vec::new();
        for b in 0..batch {
            for h in 0..heads {
                let unit: Vec<Vec<f64>> = (0..length)
                    .map(|t| {
                        let x = &values[(b * length + t) * width + h * part..][..part];
                        let norm = x.iter().map(|v| v * v).sum::<f64>().sqrt();
                        x.iter().map(|v| v / norm).collect()
                    })
                    .collect();
                for a in &unit {
                    let exp: Vec<f64> =
                        unit.iter().map(|b| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>().exp()).collect();
                    let total: f64 = exp.iter().sum();
                    all.push(exp.iter().map(|e| e / total).collect());
                }
            }
        }
        all
    };
    let (got, wanted) = (relation(student), relation(teacher));
    let sum: f64 = got
        .iter()
        .zip(&wanted)
        .flat_map(|(got, wanted)| got.iter().zip(wanted).map(|(got, wanted)| wanted * (wanted / got).ln()))
        .sum();
    sum / got.len() as f64
}

#[test]
fn relations_are_their_definition() {
    draws::seed(8);
    let new = |width: i64| normal([2, 5, width]);
    // The parent's width may be another; queries and keys may be as well.
    let (student, teacher) = ([new(12), new(24)], [new(18), new(24)]);
    for heads in [1, 2, 6] {
        let loss = relation_loss(&student, &teacher, heads).double_value(&[]);
        let wanted: f64 =
            student.iter().zip(&teacher).map(|(s, t)| relations_slowly(s, t, heads as usize)).sum::<f64>() / 2.0;
        assert!((loss - wanted).abs() < 1e-6 && loss > 1e-4, "{loss} is not {wanted}");
    }
    assert!(relation_loss(&student, &[&student[0] * 3.0, &student[1] * 0.1], 2).double_value(&[]).abs() < 1e-6);
    // Its gradient is the numerical derivative, and the teacher gets none.
    let trained = student[0].copy().set_requires_grad(true);
    let parent = teacher[0].copy().set_requires_grad(true);
    relation_loss(&[trained.shallow_clone()], &[parent.shallow_clone()], 3).backward();
    assert!(!parent.grad().defined());
    for i in [0, 17, 63, 119] {
        let moved = |by: f64| {
            let x = student[0].copy();
            let _ = x.view([-1]).get(i).g_add_scalar_(by);
            relations_slowly(&x, &teacher[0], 3)
        };
        let slope = (moved(1e-3) - moved(-1e-3)) / 2e-3;
        let given = trained.grad().reshape([-1]).double_value(&[i]);
        assert!((slope - given).abs() < 1e-5, "entry {i}: {given}, numerically {slope}");
    }
}

#[test]
#[should_panic(expected = "5 heads do not divide a width of 12")]
fn heads_must_divide_the_width() {
    let x = normal([1, 2, 12]);
    let _ = relation_loss(&[x.copy()], &[x], 5);
}
