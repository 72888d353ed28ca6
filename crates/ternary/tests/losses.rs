//! Chunked losses against losses over whole logits, and against numerical derivatives.

use tch::{Device, Kind, Tensor};
use ternary::loss::{Teacher, cross_entropy, objective};

fn normal(shape: [i64; 2]) -> Tensor {
    Tensor::randn(shape, (Kind::Float, Device::Cpu))
}

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
    tch::manual_seed(1);
    let hidden = normal([ROWS, 6]);
    let head = normal([vocabulary, 6]);
    let targets = Tensor::randint(vocabulary, [ROWS], (Kind::Int64, Device::Cpu));
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
    tch::manual_seed(2);
    let hidden = normal([5, 4]).set_requires_grad(true);
    let head = normal([7, 4]);
    let targets = Tensor::randint(7, [5], (Kind::Int64, Device::Cpu));
    let objective = objective(&hidden, &head, &targets, None);
    assert!(objective.head_gradient().is_none());
    objective.backward().expect("a leaf");
    assert!(hidden.grad().defined());
}

#[test]
fn rows_without_a_gradient_are_the_same_losses() {
    tch::manual_seed(3);
    let (hidden, head) = (normal([ROWS, 6]), normal([VOCABULARY, 6]));
    let targets = Tensor::randint(VOCABULARY, [ROWS], (Kind::Int64, Device::Cpu));
    let rows = cross_entropy(&hidden, &head, &targets);
    assert_eq!((rows.size(), rows.kind()), (vec![ROWS], Kind::Float));
    let wanted = hidden.matmul(&head.tr()).log_softmax(-1, Kind::Float).gather(1, &targets.unsqueeze(1), false);
    close(&rows, &-wanted.squeeze_dim(1), 1e-6);
}

/// bf16 products, f32 softmax: what rounding the logits to bf16 costs, no more.
#[test]
fn bf16_is_close() {
    tch::manual_seed(4);
    let (hidden, head) = (normal([64, 32]), normal([1000, 32]) * 0.3);
    let targets = Tensor::randint(1000, [64], (Kind::Int64, Device::Cpu));
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
    tch::manual_seed(5);
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
