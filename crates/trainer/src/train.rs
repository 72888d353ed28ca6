//! The recipe: how a model becomes ternary within the budget. The one file that a search may change.
//!
//! From top to bottom: the knobs, the quantized projections, the model, the loop. What is settled (quantizers,
//! schedules, optimizer, losses; the decoder) is called by name from `ternary`; budget, data, log and
//! artifact are the frame's. A comment `search: …` at a knob is its search space: `log A..B`, `A..B` or `X | Y | Z`.

use anyhow::Result;
use formats::artifact::{Grouping, ProjectionKind};
use tch::{Kind, Tensor};
use ternary::loss::{Teacher, objective};
use ternary::model::{Decoder, Dense, Linears, Weights};
use ternary::optim::{AdamW, Group, Options};
use ternary::quantize::Scale;
use ternary::schedule::{Decay, Lambda, LearningRate, Temperature, Warmup};
use ternary::weight::{Blend, CastWeight, Estimator, Method, TernaryWeight};
use trainer::frame::{Run, Step, TernaryMatrix, Trained};

/// Everything that can be set. Times are shares of the budget.
struct Knobs {
    /// Windows a step.
    batch: usize,
    /// Tokens a window.
    window: usize,

    /// Weights along a row that share a scale; the whole row where it is 0 or does not divide the row.
    group_size: usize,
    /// Rule of the scale.
    scale: Scale,
    /// Threshold below which a weight becomes 0, in the rule's unit: means for Twn and AbsMean, scales for Mse. Learned
    /// scales have their own.
    deadzone: f64,
    /// How gradients pass the quantizer; LearnedScale trains the scales too, Soft anneals a smooth quantizer first.
    estimator: Estimator,
    /// Bits of the projections' inputs: 16 (as they are), 8 or 4.
    activation_bits: u32,

    /// Shape of λ, the share of the ternary weight in w + λ·(Q(w) − w).
    warmup: Warmup,
    /// When λ reaches 1, where it stays.
    warmup_end: f64,
    /// Levels of the step and plateau shapes.
    warmup_levels: u32,
    /// Steepness of the exponential and sigmoid shapes.
    warmup_rate: f64,
    /// Soft quantizer: first temperature, last temperature, and when the codes become hard.
    temperature: f64,
    temperature_last: f64,
    hard_from: f64,

    /// Peak learning rate of the quantized matrices.
    learning_rate: f64,
    /// Peak learning rate of embedding, head and norms.
    dense_learning_rate: f64,
    /// Peak learning rate of learned scales.
    scale_learning_rate: f64,
    /// Linear warm-up of the learning rate.
    lr_warmup: f64,
    /// Shape of its decay.
    lr_decay: Decay,
    /// Length of Wsd's decay.
    lr_cooldown: f64,
    /// Last learning rate, as a share of the peak.
    lr_last: f64,

    /// AdamW.
    beta1: f64,
    beta2: f64,
    epsilon: f64,
    /// Weight decay of embedding and head. The quantized matrices have none: only their signs and ratios count.
    weight_decay: f64,
    /// Largest global norm of the gradient.
    clip: f64,

    /// Share of the parent's distribution in the loss; 0 trains on the text alone and needs no parent.
    distillation: f64,
    /// Divides both logits in that part.
    distillation_temperature: f64,
}

/// Campaigns from random initial weights.
const SCRATCH: Knobs = Knobs {
    batch: 16,  // search: 4 | 8 | 16 | 32
    window: 64, // search: 32 | 64 | 128 | 256

    group_size: 128,             // search: 64 | 128 | 256
    scale: Scale::Twn,           // search: AbsMean | Twn | Mse
    deadzone: 0.75,              // search: 0.3..1.1
    estimator: Estimator::Plain, // search: Plain | LearnedScale | Soft
    activation_bits: 16,         // search: 8 | 16

    warmup: Warmup::Linear, // search: Linear | Cosine | Exponential | Sigmoid | Step | Plateau
    warmup_end: 0.1,        // search: 0.0..0.6
    warmup_levels: 4,
    warmup_rate: 6.0,
    temperature: 0.5,
    temperature_last: 0.1,
    hard_from: 0.4,

    learning_rate: 1e-3,       // search: log 2e-4..5e-3
    dense_learning_rate: 1e-2, // search: log 1e-3..3e-2
    scale_learning_rate: 1e-3,
    lr_warmup: 0.15,         // search: 0.0..0.3
    lr_decay: Decay::Linear, // search: Linear | Cosine | Wsd
    lr_cooldown: 0.3,
    lr_last: 0.0, // search: 0.0..0.2

    beta1: 0.7,  // search: 0.4..0.95
    beta2: 0.99, // search: 0.9..0.999
    epsilon: 1e-8,
    weight_decay: 0.01, // search: log 1e-3..3e-1
    clip: 1.0,          // search: log 0.3..10.0

    distillation: 0.0,
    distillation_temperature: 1.0,
};

/// Campaigns from pretrained weights.
const PRETRAINED: Knobs = Knobs {
    batch: 4,    // search: 2 | 4 | 8 | 16
    window: 256, // search: 128 | 256 | 512

    group_size: 64,
    scale: Scale::Twn,           // search: AbsMean | Twn | Mse
    deadzone: 0.75,              // search: 0.3..1.1
    estimator: Estimator::Plain, // search: Plain | LearnedScale | Stretched | Soft
    activation_bits: 16,         // search: 8 | 16

    warmup: Warmup::Linear, // search: Linear | Cosine | Exponential | Sigmoid | Step | Plateau
    warmup_end: 0.5,        // search: 0.0..0.9
    warmup_levels: 4,
    warmup_rate: 6.0,
    temperature: 0.5,
    temperature_last: 0.1,
    hard_from: 0.4,

    learning_rate: 2e-3,       // search: log 5e-5..1e-2
    dense_learning_rate: 1e-4, // search: log 1e-5..1e-3
    scale_learning_rate: 1e-3,
    lr_warmup: 0.05,         // search: 0.0..0.2
    lr_decay: Decay::Linear, // search: Linear | Cosine | Wsd
    lr_cooldown: 0.3,
    lr_last: 0.0, // search: 0.0..0.2

    beta1: 0.7,  // search: 0.4..0.95
    beta2: 0.99, // search: 0.9..0.999
    epsilon: 1e-8,
    weight_decay: 0.0, // search: 0.0..0.1
    clip: 1.0,         // search: log 0.3..10.0

    distillation: 0.5,             // search: 0.0 | 0.5 | 0.9 | 1.0
    distillation_temperature: 1.0, // search: 1.0..4.0
};

/// Trains until the budget is spent and returns the model at hard ternary.
pub fn train(run: &mut Run) -> Result<Trained> {
    let knobs = if run.is_pretrained() { PRETRAINED } else { SCRATCH };
    let compute = ternary::model::ops::preferred_kind(run.device());
    let mut student = Student::new(&knobs, run, compute)?;
    let mut optimizer = student.optimizer(&knobs);
    let parent = (run.is_pretrained() && knobs.distillation > 0.0).then(|| Parent::new(run, compute)).transpose()?;

    let lambda = Lambda {
        warmup: knobs.warmup,
        begin: 0.0,
        end: knobs.warmup_end,
        levels: knobs.warmup_levels,
        rate: knobs.warmup_rate,
    };
    let temperature =
        Temperature { first: knobs.temperature, last: knobs.temperature_last, hard_from: knobs.hard_from };
    let learning_rate = LearningRate {
        warmup: knobs.lr_warmup,
        decay: knobs.lr_decay,
        cooldown: knobs.lr_cooldown,
        last: knobs.lr_last,
    };

    while let Some(progress) = run.progress() {
        let blend = Blend { lambda: lambda.at(progress), temperature: temperature.at(progress) };
        let rate = learning_rate.at(progress);
        student.refresh(blend);

        let batch = run.batch(knobs.batch, knobs.window)?;
        let targets = batch.targets.reshape([-1]);
        let hidden = student.decoder.hidden(&student.projections, &batch.inputs);
        let taught = parent.as_ref().map(|parent| parent.hidden(&batch.inputs));
        let teacher = parent.as_ref().zip(taught.as_ref()).map(|(parent, hidden)| Teacher {
            hidden,
            head: parent.decoder.head(),
            weight: knobs.distillation,
            temperature: knobs.distillation_temperature,
        });
        let objective = objective(&hidden, student.head.leaf(), &targets, teacher);
        let loss = objective.cross_entropy.shallow_clone();
        objective.backward()?;

        // Loss and norm stay on the device; the frame reads them a step later.
        let norm = optimizer.step(&student.gradients(), rate)?;
        let lr = knobs.learning_rate * rate;
        let step = Step { lambda: blend.lambda, lr, loss: &loss, gradient_norm: Some(&norm) };
        run.end_step(step, || student.hard_ternary())?;
    }
    student.hard_ternary()
}

/// The projections of the blocks, quantized.
struct Projections {
    blocks: Vec<Vec<TernaryWeight>>,
    activation_bits: u32,
    lambda: f64,
}

impl Linears for Projections {
    fn project(&self, layer: usize, kinds: &[ProjectionKind], x: &Tensor) -> Vec<Tensor> {
        let weights: Vec<&Tensor> = kinds.iter().map(|&kind| self.blocks[layer][kind as usize].leaf()).collect();
        // λ also blends in the rounding of the inputs, as the Hugging Face blog does.
        let x = ternary::activation::fake_quantize(x, self.activation_bits, self.lambda);
        ternary::model::ops::linears(&x, &weights)
    }
}

/// The model in training: f32 masters, of which each step sees quantized or cast copies.
struct Student {
    projections: Projections,
    decoder: Decoder,
    /// Embedding, norms and an untied head by name, f32.
    dense: Vec<(String, Tensor)>,
    trains_dense: bool,
    /// The output embedding in the type of the products.
    head: CastWeight,
    head_name: &'static str,
}

impl Student {
    fn new(knobs: &Knobs, run: &Run, compute: Kind) -> Result<Self> {
        let config = run.config();
        let weights = run.initial_weights(Kind::Float)?;
        let method = |columns: usize| Method {
            grouping: match knobs.group_size {
                0 => Grouping::Row,
                size if columns.is_multiple_of(size) => Grouping::Group(size),
                _ => Grouping::Row,
            },
            scale: knobs.scale,
            deadzone: knobs.deadzone,
            estimator: knobs.estimator,
        };
        let mut blocks = Vec::with_capacity(config.num_hidden_layers);
        for layer in 0..config.num_hidden_layers {
            let block = ProjectionKind::ALL.into_iter().map(|kind| {
                let master = weights.projection(layer, kind)?.shallow_clone();
                Ok(TernaryWeight::new(master, method(config.projection_shape(kind)[1]), compute))
            });
            blocks.push(block.collect::<Result<Vec<_>>>()?);
        }
        let trains_dense = !run.is_pretrained() || run.campaign().constraints.train_unquantized;
        let dense: Weights = (weights.unquantized(config)?.iter())
            .map(|(name, tensor)| (name.to_owned(), tensor.detach().set_requires_grad(trains_dense)))
            .collect();
        let head_name = if config.tie_word_embeddings { "model.embed_tokens.weight" } else { "lm_head.weight" };
        Ok(Self {
            decoder: Decoder::new(config, &dense, compute)?,
            head: CastWeight::new(dense.get(head_name)?.detach(), compute),
            head_name,
            dense: dense.iter().map(|(name, tensor)| (name.to_owned(), tensor.shallow_clone())).collect(),
            trains_dense,
            projections: Projections { blocks, activation_bits: knobs.activation_bits, lambda: 1.0 },
        })
    }

    /// Parameters in the order of [`Student::gradients`].
    fn optimizer(&self, knobs: &Knobs) -> AdamW {
        let betas = (knobs.beta1, knobs.beta2);
        let mut optimizer = AdamW::new(Options { betas, epsilon: knobs.epsilon, clip: Some(knobs.clip) });
        let mut group = |learning_rate, weight_decay| optimizer.group(Group { learning_rate, weight_decay });
        let matrices = group(knobs.learning_rate, 0.0);
        let scales = group(knobs.scale_learning_rate, 0.0);
        let tables = group(knobs.dense_learning_rate, knobs.weight_decay);
        let norms = group(knobs.dense_learning_rate, 0.0);
        for weight in self.projections.blocks.iter().flatten() {
            optimizer.add(matrices, weight.master());
            if let Some(learned) = weight.scales() {
                optimizer.add(scales, learned);
            }
        }
        if self.trains_dense {
            for (_, tensor) in &self.dense {
                optimizer.add(if tensor.dim() == 1 { norms } else { tables }, tensor);
            }
        }
        optimizer
    }

    /// Quantizes every weight once for the coming step.
    fn refresh(&mut self, blend: Blend) {
        self.projections.lambda = blend.lambda;
        for weight in self.projections.blocks.iter_mut().flatten() {
            weight.refresh(blend);
        }
        if self.trains_dense {
            self.head.refresh();
            for (_, tensor) in &mut self.dense {
                tensor.zero_grad();
            }
        }
    }

    /// Gradients of the step, in the order of [`Student::optimizer`].
    fn gradients(&self) -> Vec<Option<Tensor>> {
        let mut all = Vec::new();
        for weight in self.projections.blocks.iter().flatten() {
            let gradients = weight.gradients();
            all.push(gradients.master);
            if weight.scales().is_some() {
                all.push(gradients.scales);
            }
        }
        if self.trains_dense {
            for (name, tensor) in &self.dense {
                let own = Some(tensor.grad()).filter(Tensor::defined);
                let head = (name == self.head_name).then(|| self.head.gradient()).flatten();
                all.push(match (own, head) {
                    // A tied embedding is used at both ends.
                    (Some(own), Some(head)) => Some(own + head),
                    (own, head) => own.or(head),
                });
            }
        }
        all
    }

    /// The model as it is exported.
    fn hard_ternary(&mut self) -> Result<Trained> {
        self.refresh(Blend::HARD);
        let mut ternary = Vec::new();
        for (layer, block) in self.projections.blocks.iter().enumerate() {
            for (kind, weight) in ProjectionKind::ALL.into_iter().zip(block) {
                ternary.push(TernaryMatrix {
                    name: kind.tensor(layer),
                    grouping: weight.method().grouping,
                    quantized: weight.export(),
                    weight: weight.leaf().detach(),
                });
            }
        }
        let dense = if self.trains_dense { self.dense.iter() } else { [].iter() };
        Ok(Trained {
            activation_bits: self.projections.activation_bits,
            ternary,
            dense: dense.map(|(name, tensor)| (name.clone(), tensor.detach())).collect(),
        })
    }
}

/// The full-precision parent, frozen.
struct Parent {
    decoder: Decoder,
    projections: Dense,
}

impl Parent {
    fn new(run: &Run, compute: Kind) -> Result<Self> {
        let weights = run.initial_weights(compute)?;
        let projections = Dense::new(run.config(), &weights, compute)?;
        Ok(Self { decoder: Decoder::new(run.config(), &weights, compute)?, projections })
    }

    /// Hidden states (B·T, D).
    fn hidden(&self, ids: &Tensor) -> Tensor {
        tch::no_grad(|| self.decoder.hidden(&self.projections, ids))
    }
}
