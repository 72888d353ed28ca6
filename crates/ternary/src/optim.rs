//! AdamW with decoupled weight decay (arXiv 1711.05101), one fused pass over parameter, gradient and both moments, and
//! clipping by the global gradient norm that never makes the host wait for the device.

use std::collections::BTreeMap;

use tch::{Device, Kind, Tensor};

use crate::native::{FusedNumbers, FusedParameter, NativeError, fused_adamw};

/// What all groups share.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Options {
    /// Decay of the first and second moment.
    pub betas: (f64, f64),
    /// Added to √v̂.
    pub epsilon: f64,
    /// Largest global gradient norm; larger gradients are scaled down to it.
    pub clip: Option<f64>,
}

impl Default for Options {
    fn default() -> Self {
        Self { betas: (0.9, 0.95), epsilon: 1e-8, clip: Some(1.0) }
    }
}

/// A set of parameters with rates of its own.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Group {
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Weight decay, multiplied with the learning rate.
    pub weight_decay: f64,
}

/// Handle of a [`Group`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GroupId(usize);

/// What the optimizer knows of a parameter.
#[derive(Debug, Clone, Copy)]
pub struct Moments<'a> {
    /// Running mean of the gradients, f32 in the parameter's shape.
    pub first: &'a Tensor,
    /// Running mean of their squares.
    pub second: &'a Tensor,
    /// Steps that moved it.
    pub steps: u64,
}

#[derive(Debug)]
struct Parameter {
    value: Tensor,
    group: usize,
    first: Tensor,
    second: Tensor,
    steps: u64,
}

/// The optimizer. Parameters are numbered in the order of [`AdamW::add`]; gradients are given in that order.
#[derive(Debug)]
pub struct AdamW {
    options: Options,
    groups: Vec<Group>,
    parameters: Vec<Parameter>,
}

impl AdamW {
    /// Without parameters.
    pub fn new(options: Options) -> Self {
        Self { options, groups: Vec::new(), parameters: Vec::new() }
    }

    /// A new group.
    pub fn group(&mut self, group: Group) -> GroupId {
        self.groups.push(group);
        GroupId(self.groups.len() - 1)
    }

    /// Adds an f32 parameter, which [`AdamW::step`] changes in place. Its state is in f32 on its device.
    ///
    /// # Panics
    /// When it is not f32, or not contiguous.
    pub fn add(&mut self, group: GroupId, parameter: &Tensor) {
        assert!(parameter.kind() == Kind::Float && parameter.is_contiguous(), "parameters are contiguous f32 masters");
        self.parameters.push(Parameter {
            value: parameter.detach(),
            group: group.0,
            first: parameter.zeros_like(),
            second: parameter.zeros_like(),
            steps: 0,
        });
    }

    /// Number of parameters.
    pub fn len(&self) -> usize {
        self.parameters.len()
    }

    /// Whether there is no parameter.
    pub fn is_empty(&self) -> bool {
        self.parameters.is_empty()
    }

    /// The state of each parameter in the order of [`AdamW::add`]: what a checkpoint holds beside the parameters.
    pub fn state(&self) -> impl Iterator<Item = Moments<'_>> {
        self.parameters.iter().map(|p| Moments { first: &p.first, second: &p.second, steps: p.steps })
    }

    /// Puts back the state of parameter `index`; the tensors are copied.
    ///
    /// # Panics
    /// When there is no such parameter, or a tensor has another shape.
    pub fn set_state(&mut self, index: usize, state: Moments<'_>) {
        let parameter = &mut self.parameters[index];
        assert!(state.first.size() == parameter.value.size() && state.second.size() == parameter.value.size());
        tch::no_grad(|| {
            parameter.first.copy_(state.first);
            parameter.second.copy_(state.second);
        });
        parameter.steps = state.steps;
    }

    /// One step with each group's learning rate times `factor`. A parameter without a gradient is left alone, its
    /// moments and its count of steps too. Gradients may be of any kind; f32 ones are scaled in place when clipped.
    ///
    /// Returns the global norm before clipping, a 0-dim f32 on the device; reading it waits for the device.
    ///
    /// # Errors
    /// What libtorch says.
    ///
    /// # Panics
    /// When `gradients` is not as long as the list of parameters, or a gradient of another shape or device.
    pub fn step(&mut self, gradients: &[Option<Tensor>], factor: f64) -> Result<Tensor, NativeError> {
        assert_eq!(gradients.len(), self.parameters.len(), "one gradient, or none, for each parameter");
        tch::no_grad(|| {
            let norm = self.norm(gradients);
            // The fused step divides by the scale, so 1 leaves small gradients alone.
            let scale = self.options.clip.map(|clip| (&norm / clip).clamp_min(1.0));
            let mut steps: BTreeMap<u64, Tensor> = BTreeMap::new();
            for (parameter, gradient) in self.parameters.iter_mut().zip(gradients) {
                if let Some(gradient) = gradient {
                    let (value, gradient) = (&parameter.value, (gradient.size(), gradient.device()));
                    assert_eq!(gradient, (value.size(), value.device()), "a gradient has its parameter's shape");
                    parameter.steps += 1;
                    steps
                        .entry(parameter.steps)
                        .or_insert_with(|| // Filled on the device: a copy from the host would wait for it.
                        Tensor::full([0i64; 0], parameter.steps as f64, (Kind::Float, parameter.value.device())));
                }
            }
            for (index, group) in self.groups.iter().enumerate() {
                let members: Vec<(&Parameter, &Tensor)> = self
                    .parameters
                    .iter()
                    .zip(gradients)
                    .filter(|(parameter, _)| parameter.group == index)
                    .filter_map(|(parameter, gradient)| Some((parameter, gradient.as_ref()?)))
                    .collect();
                // On the CPU one parameter at a time: its gradient in f32 is short-lived and still in the cache. On an
                // accelerator all at once: few launches.
                let batch = match members.first() {
                    Some((parameter, _)) if parameter.value.device() != Device::Cpu => members.len(),
                    _ => 1,
                };
                for members in members.chunks(batch) {
                    self.update(members, &steps, *group, factor, scale.as_ref())?;
                }
            }
            Ok(norm)
        })
    }

    fn norm(&self, gradients: &[Option<Tensor>]) -> Tensor {
        let norms: Vec<Tensor> = gradients.iter().flatten().map(|g| g.norm_scalaropt_dtype(2.0, Kind::Float)).collect();
        match self.parameters.first() {
            Some(first) if norms.is_empty() => Tensor::zeros([], (Kind::Float, first.value.device())),
            None => Tensor::from(0f32),
            Some(_) => Tensor::stack(&norms, 0).norm(),
        }
    }

    fn update(
        &self,
        members: &[(&Parameter, &Tensor)],
        steps: &BTreeMap<u64, Tensor>,
        group: Group,
        factor: f64,
        scale: Option<&Tensor>,
    ) -> Result<(), NativeError> {
        let wide: Vec<Tensor> =
            members.iter().map(|(_, gradient)| gradient.to_kind(Kind::Float).contiguous()).collect();
        let learning_rate = group.learning_rate * factor;
        let fused: Vec<FusedParameter<'_>> = members
            .iter()
            .zip(&wide)
            .map(|((parameter, _), gradient)| FusedParameter {
                parameter: &parameter.value,
                gradient,
                first: &parameter.first,
                second: &parameter.second,
                step: &steps[&parameter.steps],
            })
            .collect();
        let numbers = FusedNumbers {
            learning_rate,
            betas: self.options.betas,
            weight_decay: group.weight_decay,
            epsilon: self.options.epsilon,
        };
        match members.first().map(|(parameter, _)| parameter.value.device()) {
            Some(Device::Cpu | Device::Cuda(_) | Device::Mps) => fused_adamw(&fused, &numbers, scale),
            _ => {
                for (one, (parameter, _)) in fused.iter().zip(members) {
                    plain_adamw(one, parameter.steps, &numbers, scale);
                }
                Ok(())
            }
        }
    }
}

/// The same step in tensor operations, for devices without the fused one; also its reference in the tests.
fn plain_adamw(one: &FusedParameter<'_>, steps: u64, numbers: &FusedNumbers, scale: Option<&Tensor>) {
    let FusedNumbers { learning_rate, betas: (beta1, beta2), weight_decay, epsilon } = *numbers;
    let gradient = match scale {
        Some(scale) => one.gradient / scale,
        None => one.gradient.shallow_clone(),
    };
    let (mut value, mut first, mut second) =
        (one.parameter.shallow_clone(), one.first.shallow_clone(), one.second.shallow_clone());
    let _ = value.g_mul_scalar_(1.0 - learning_rate * weight_decay);
    let _ = first.lerp_(&gradient, 1.0 - beta1);
    let _ = second.lerp_(&(&gradient * &gradient), 1.0 - beta2);
    let steps = steps as f64;
    let (bias1, bias2) = (1.0 - beta1.powf(steps), 1.0 - beta2.powf(steps));
    let denominator = second.sqrt() / bias2.sqrt() + epsilon;
    let _ = value.g_sub_(&(first / denominator * (learning_rate / bias1)));
}

#[cfg(test)]
mod tests {
    use crate::draws::normal;

    use super::*;

    #[track_caller]
    fn close(a: &Tensor, b: &Tensor) {
        assert!(a.allclose(b, 1e-5, 1e-6, false), "differs by {}", (a - b).abs().max());
    }

    const SHAPES: [&[i64]; 4] = [&[64, 33], &[7], &[5, 5], &[1]];

    /// AdamW as its paper writes it, in f64.
    fn reference(w: &Tensor, gradients: &[Tensor], rate: f64, decay: f64, options: Options) -> Tensor {
        let (beta1, beta2) = options.betas;
        let mut w = w.to_kind(Kind::Double);
        let (mut m, mut v) = (w.zeros_like(), w.zeros_like());
        for (t, g) in gradients.iter().enumerate() {
            let g = g.to_kind(Kind::Double);
            let t = t as f64 + 1.0;
            m = m * beta1 + &g * (1.0 - beta1);
            v = v * beta2 + &g * &g * (1.0 - beta2);
            let update = (&m / (1.0 - beta1.powf(t))) / ((&v / (1.0 - beta2.powf(t))).sqrt() + options.epsilon);
            w = &w - (update + &w * decay) * rate;
        }
        w.to_kind(Kind::Float)
    }

    #[test]
    fn is_the_papers_with_rates_of_each_group() {
        crate::draws::seed(1);
        let options = Options { clip: None, ..Options::default() };
        let mut adamw = AdamW::new(options);
        let rates = [(1e-2, 0.0), (3e-3, 0.1)];
        let groups = rates.map(|(learning_rate, weight_decay)| adamw.group(Group { learning_rate, weight_decay }));
        let parameters: Vec<Tensor> = SHAPES.iter().map(normal).collect();
        let before: Vec<Tensor> = parameters.iter().map(Tensor::copy).collect();
        for (i, parameter) in parameters.iter().enumerate() {
            adamw.add(groups[i % 2], parameter);
        }
        assert_eq!(adamw.len(), 4);
        let history: Vec<Vec<Tensor>> = (0..5).map(|_| SHAPES.iter().map(normal).collect()).collect();
        for gradients in &history {
            let gradients: Vec<_> = gradients.iter().map(|g| Some(g.copy())).collect();
            let _ = adamw.step(&gradients, 0.5).expect("a step");
        }
        for (i, (parameter, before)) in parameters.iter().zip(&before).enumerate() {
            let gradients: Vec<Tensor> = history.iter().map(|g| g[i].copy()).collect();
            close(parameter, &reference(before, &gradients, rates[i % 2].0 * 0.5, rates[i % 2].1, options));
        }
    }

    #[test]
    fn clips_by_the_global_norm() {
        crate::draws::seed(2);
        for (size, clip) in [(1.0, 0.5), (1e-4, 0.5)] {
            let options = Options { clip: Some(clip), epsilon: 1e-2, ..Options::default() };
            let parameters: Vec<Tensor> = SHAPES.iter().map(normal).collect();
            let before: Vec<Tensor> = parameters.iter().map(Tensor::copy).collect();
            let gradients: Vec<Tensor> = SHAPES.iter().map(|shape| normal(shape) * size).collect();
            let squares: f64 = gradients.iter().map(|g| (g * g).sum(Kind::Double).double_value(&[])).sum();
            let scale = (clip / squares.sqrt()).min(1.0);
            let mut adamw = AdamW::new(options);
            let group = adamw.group(Group { learning_rate: 1e-2, weight_decay: 0.0 });
            parameters.iter().for_each(|parameter| adamw.add(group, parameter));
            let given: Vec<_> = gradients.iter().map(|g| Some(g.copy())).collect();
            let norm = adamw.step(&given, 1.0).expect("a step");
            assert!((norm.double_value(&[]) / squares.sqrt() - 1.0).abs() < 1e-5);
            for ((parameter, before), gradient) in parameters.iter().zip(&before).zip(&gradients) {
                close(parameter, &reference(before, &[gradient * scale], 1e-2, 0.0, options));
            }
        }
    }

    #[test]
    fn a_parameter_without_a_gradient_is_left_alone() {
        crate::draws::seed(3);
        let options = Options { clip: None, ..Options::default() };
        let parameters = [normal([9]), normal([9])];
        let before = [parameters[0].copy(), parameters[1].copy()];
        let mut adamw = AdamW::new(options);
        let group = adamw.group(Group { learning_rate: 1e-2, weight_decay: 0.1 });
        parameters.iter().for_each(|parameter| adamw.add(group, parameter));
        let gradients: Vec<Tensor> = (0..3).map(|_| normal([9])).collect();
        let _ = adamw.step(&[Some(gradients[0].copy()), None], 1.0).expect("a step");
        assert_eq!(parameters[1], before[1]);
        let _ = adamw.step(&[None, Some(gradients[1].copy())], 1.0).expect("a step");
        let _ = adamw.step(&[Some(gradients[2].copy()), None], 1.0).expect("a step");
        // Its steps are its own: bias correction goes by them.
        close(&parameters[0], &reference(&before[0], &[gradients[0].copy(), gradients[2].copy()], 1e-2, 0.1, options));
        close(&parameters[1], &reference(&before[1], &[gradients[1].copy()], 1e-2, 0.1, options));
        let norm = adamw.step(&[None, None], 1.0).expect("nothing to do");
        assert_eq!(norm.double_value(&[]), 0.0);
    }

    #[test]
    fn takes_bf16_gradients() {
        crate::draws::seed(4);
        let options = Options::default();
        let parameter = normal([64, 64]);
        let before = parameter.copy();
        let gradient = (normal([64, 64]) * 1e-3).to_kind(Kind::BFloat16);
        let mut adamw = AdamW::new(options);
        let group = adamw.group(Group { learning_rate: 1e-2, weight_decay: 0.0 });
        adamw.add(group, &parameter);
        let norm = adamw.step(&[Some(gradient.copy())], 1.0).expect("a step").double_value(&[]);
        let wide = gradient.to_kind(Kind::Float);
        assert!((norm - wide.norm().double_value(&[])).abs() < 1e-5);
        close(&parameter, &reference(&before, &[wide], 1e-2, 0.0, options));
    }

    #[test]
    fn the_plain_step_is_the_fused_one() {
        crate::draws::seed(5);
        let numbers = FusedNumbers { learning_rate: 1e-2, betas: (0.9, 0.95), weight_decay: 0.1, epsilon: 1e-8 };
        let scale = Tensor::from(3f32);
        let (a, b) = (normal([40]), Tensor::zeros([40], (Kind::Float, Device::Cpu)));
        let (a, b) = ([a.copy(), b.copy(), b.copy()], [a.copy(), b.copy(), b.copy()]);
        for step in 1..=3u64 {
            let gradient = normal([40]);
            let count = Tensor::from(step as f32);
            let one = |[parameter, first, second]: &'_ [Tensor; 3], run: &dyn Fn(&FusedParameter<'_>)| {
                let gradient = gradient.copy();
                run(&FusedParameter { parameter, gradient: &gradient, first, second, step: &count });
            };
            one(&a, &|p| fused_adamw(std::slice::from_ref(p), &numbers, Some(&scale)).expect("a step"));
            one(&b, &|p| plain_adamw(p, step, &numbers, Some(&scale)));
        }
        a.iter().zip(&b).for_each(|(a, b)| close(a, b));
    }

    #[test]
    fn a_gradient_may_be_strided() {
        crate::draws::seed(6);
        let options = Options { clip: None, ..Options::default() };
        let parameter = normal([4, 6]);
        let before = parameter.copy();
        let gradient = normal([6, 4]).tr();
        let mut adamw = AdamW::new(options);
        let group = adamw.group(Group { learning_rate: 1e-2, weight_decay: 0.0 });
        adamw.add(group, &parameter);
        let _ = adamw.step(&[Some(gradient.shallow_clone())], 1.0).expect("a step");
        close(&parameter, &reference(&before, &[gradient], 1e-2, 0.0, options));
    }

    #[test]
    #[should_panic(expected = "a gradient has its parameter's shape")]
    fn a_gradient_of_another_shape_is_refused() {
        let mut adamw = AdamW::new(Options::default());
        let group = adamw.group(Group { learning_rate: 1e-2, weight_decay: 0.0 });
        adamw.add(group, &normal([9]));
        let _ = adamw.step(&[Some(normal([3, 2]))], 1.0);
    }

    #[test]
    fn an_error_of_libtorch_comes_back() {
        let error = crate::backward(&[&normal([2])], &[&normal([2])]).expect_err("no graph").to_string();
        assert!(error.starts_with("libtorch: ") && error.contains("does not require grad"), "{error}");
    }
}
