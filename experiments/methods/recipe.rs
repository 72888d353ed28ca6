//! The recipe of the comparison of quantization methods: crates/trainer/src/train.rs with the methods that it leaves out,
//! each behind a knob. As its knobs stand it is the plain one, ternary and straight through from the first step; an arm
//! of `orchestrator compare` is this file with some of them set, in the place of train.rs.
//!
//! From top to bottom: the knobs, the loop, the training of single blocks before it, a projection with all that can belong
//! to it, the model, the start, the optimizers. Every method ends in codes and scales; what an artifact cannot hold has
//! gone by then.

use anyhow::{Result, ensure};
use formats::artifact::{Grouping, ProjectionKind};
use tch::{Kind, Reduction, Tensor};
use ternary::adapter::LoraWeight;
use ternary::distill::{feature_loss, relation_loss};
use ternary::learned::FixedCodes;
use ternary::loss::{Teacher, objective};
use ternary::model::{Calibration, Decoder, Frozen, Linears, Taps, Weights};
use ternary::muon::{self, Muon};
use ternary::optim::{AdamW, Group, GroupId, Options};
use ternary::quantize::{Quantized, Scale};
use ternary::schedule::{Decay, Lambda, LearningRate, Residual, Temperature, Warmup};
use ternary::start::{Inputs, error_feedback, fit_outputs};
use ternary::tequila::Reactivation;
use ternary::weight::{Blend, CastWeight, Estimator, Method, TernaryWeight};
use trainer::frame::{Run, Step, TernaryMatrix, Trained};

/// Everything that can be set. Times are shares of the budget.
pub struct Knobs {
    /// Windows a step.
    pub batch: usize,
    /// Tokens a window.
    pub window: usize,

    /// Weights along a row that share a scale; the whole row where it is 0 or does not divide the row.
    pub group_size: usize,
    /// Rule of the scale.
    pub scale: Scale,
    /// Threshold below which a weight becomes 0, in the rule's unit: means for Twn and AbsMean, scales for Mse. Learned
    /// scales have their own.
    pub deadzone: f64,
    /// How gradients pass the quantizer; LearnedScale trains the scales too, Soft anneals a smooth quantizer first.
    pub estimator: Estimator,
    /// Bits of the projections' inputs: 16 (as they are), 8 or 4.
    pub activation_bits: u32,
    /// What the masters start from; other than the parent's weights only with an estimator that learns scales.
    pub start: Start,
    /// Windows of text whose inputs a start is fitted to.
    pub start_windows: usize,

    /// Shape of λ, the share of the ternary weight in w + λ·(Q(w) − w).
    pub warmup: Warmup,
    /// When λ reaches 1, where it stays.
    pub warmup_end: f64,
    /// Levels of the step and plateau shapes.
    pub warmup_levels: u32,
    /// Steepness of the exponential and sigmoid shapes.
    pub warmup_rate: f64,
    /// Soft quantizer: first temperature, last temperature, and when the codes become hard.
    pub temperature: f64,
    pub temperature_last: f64,
    pub hard_from: f64,
    /// Arenas (Sherry): when the share of the full-precision weight beside the ternary one has gone; 0 is none.
    pub residual_end: f64,
    /// Tequila: strength λ of the bias of the weights whose code is 0; 0 is none.
    pub tequila: f64,
    /// When that bias has gone, linearly over the run: no artifact holds it.
    pub tequila_end: f64,
    /// Soft to hard with LoRA: rank of the updates that are trained instead of the parent's weights; 0 trains the weights.
    pub lora_rank: i64,
    /// LoRA's α: an update counts α/rank times.
    pub lora_alpha: f64,
    /// What the penalty towards the grid has risen to at the end, linearly.
    pub lora_penalty: f64,
    /// EfficientQAT's first phase, Block-AP: until when the blocks are trained alone, in order and for equal parts of it;
    /// 0 is none. What comes after has the learning rate's whole course.
    pub block_until: f64,
    /// EfficientQAT's second phase: from when the codes stay and of the matrices scales alone are trained; 1 is
    /// never.
    pub fixed_from: f64,

    /// Peak learning rate of the quantized matrices.
    pub learning_rate: f64,
    /// Peak learning rate of embedding, head and norms.
    pub dense_learning_rate: f64,
    /// Peak learning rate of learned scales.
    pub scale_learning_rate: f64,
    /// Peak learning rate of the scales of codes that stay.
    pub fixed_learning_rate: f64,
    /// Linear warm-up of the learning rate.
    pub lr_warmup: f64,
    /// Shape of its decay.
    pub lr_decay: Decay,
    /// Length of Wsd's decay.
    pub lr_cooldown: f64,
    /// Last learning rate, as a share of the peak.
    pub lr_last: f64,

    /// Moves the quantized matrices by Muon, which has a learning rate of its own order, instead of AdamW.
    pub muon: bool,
    /// AdamW.
    pub beta1: f64,
    pub beta2: f64,
    pub epsilon: f64,
    /// Weight decay of embedding and head. The quantized matrices have none: only their signs and ratios count.
    pub weight_decay: f64,
    /// Largest global norm of the gradient.
    pub clip: f64,

    /// Share of the parent's distribution in the loss; 0 trains on the text alone and needs no parent.
    pub distillation: f64,
    /// Divides both logits in that part.
    pub distillation_temperature: f64,
    /// OFF (TernaryLLM): weight of 1 − cos(hidden states, the parent's) at the last layer; 0 is none.
    pub features: f64,
    /// The same for the residual streams behind all blocks, the mean over them.
    pub inner_features: f64,
    /// BitDistill: weight of the distance between the attention relations of one block and the parent's; 0 is none.
    pub relations: f64,
    /// Where that block is: 0 the first, 1 the last. BitDistill's is 22 of 28.
    pub relations_depth: f64,
    /// Parts that queries, keys and values are split into for it; divides the width of each.
    pub relations_heads: i64,
}

/// What masters start from.
#[derive(Clone, Copy, PartialEq, Eq)]
#[allow(dead_code, reason = "arms choose")]
pub enum Start {
    /// The parent's weights.
    Parent,
    /// GPTQ: rounded a column at a time, each error made up for by those that are left.
    Feedback,
    /// PT2-LLM without its shift: the parent's weights, scales that minimize the error of the outputs.
    Outputs,
}

/// Campaigns with a parent; there is no other constant, because what is compared is what is recovered of one.
pub const PRETRAINED: Knobs = Knobs {
    batch: 4,
    window: 256,

    group_size: 64,
    scale: Scale::Twn,
    deadzone: 0.75,
    estimator: Estimator::Plain,
    activation_bits: 16,
    start: Start::Parent,
    start_windows: 32,

    warmup: Warmup::Linear,
    warmup_end: 0.0,
    warmup_levels: 4,
    warmup_rate: 6.0,
    temperature: 0.5,
    temperature_last: 0.1,
    hard_from: 0.4,
    residual_end: 0.0,
    tequila: 0.0,
    tequila_end: 0.8,
    lora_rank: 0,
    lora_alpha: 32.0,
    lora_penalty: 10.0,
    block_until: 0.0,
    fixed_from: 1.0,

    learning_rate: 1e-4,
    dense_learning_rate: 1e-4,
    scale_learning_rate: 1e-4,
    fixed_learning_rate: 1e-4,
    lr_warmup: 0.05,
    lr_decay: Decay::Linear,
    lr_cooldown: 0.3,
    lr_last: 0.05,

    muon: false,
    beta1: 0.9,
    beta2: 0.95,
    epsilon: 1e-8,
    weight_decay: 0.0,
    clip: 1.0,

    distillation: 0.0,
    distillation_temperature: 1.0,
    features: 0.0,
    inner_features: 0.0,
    relations: 0.0,
    relations_depth: 0.8,
    relations_heads: 32,
};

/// Trains until the budget is spent and returns the model at hard ternary.
pub fn train(run: &mut Run) -> Result<Trained> {
    train_with(&PRETRAINED, run)
}

/// [`train`] with other knobs.
pub fn train_with(knobs: &Knobs, run: &mut Run) -> Result<Trained> {
    ensure!(run.is_pretrained(), "this recipe compares what is recovered of a parent: give the campaign one");
    let compute = ternary::model::ops::preferred_kind(run.device());
    let weights = run.initial_weights(Kind::Float)?;
    let mut student = Student::new(knobs, run, &weights, compute)?;
    let distils =
        [knobs.distillation, knobs.features, knobs.inner_features, knobs.relations].iter().any(|&weight| weight > 0.0);
    let needed = distils || knobs.block_until > 0.0;
    // Before the student moves: its masters are the memory of `weights`.
    let parent = needed.then(|| Frozen::new(run.config(), &weights, &student.dense, compute)).transpose()?;
    drop(weights);

    let lambda = Lambda {
        warmup: knobs.warmup,
        begin: 0.0,
        end: knobs.warmup_end,
        levels: knobs.warmup_levels,
        rate: knobs.warmup_rate,
    };
    let temperature =
        Temperature { first: knobs.temperature, last: knobs.temperature_last, hard_from: knobs.hard_from };
    let residual = Residual { rise: 0.1 * knobs.residual_end, end: knobs.residual_end };
    let learning_rate = LearningRate {
        warmup: knobs.lr_warmup,
        decay: knobs.lr_decay,
        cooldown: knobs.lr_cooldown,
        last: knobs.lr_last,
    };

    let blocks = run.config().num_hidden_layers;
    if let Some(parent) = parent.as_ref().filter(|_| knobs.block_until > 0.0) {
        for layer in 0..blocks {
            train_block(knobs, run, &mut student, parent, layer, learning_rate)?;
        }
    }
    let parent = parent.filter(|_| distils);
    let streams: Vec<usize> = (0..blocks).filter(|_| knobs.inner_features > 0.0).collect();
    let related = (knobs.relations > 0.0).then_some(((knobs.relations_depth * blocks as f64) as usize).min(blocks - 1));
    let taps = Taps { streams: &streams, attention: related.as_slice() };

    let mut optimizer = Optimizer::new(knobs, &student, compute);
    while let Some(progress) = run.progress() {
        let blend = Blend { lambda: lambda.at(progress), temperature: temperature.at(progress) };
        let rate = learning_rate.at((progress - knobs.block_until) / (1.0 - knobs.block_until));
        if progress >= knobs.fixed_from && student.fix_codes(compute) {
            optimizer.add_fixed(&student);
        }
        let share = (1.0 - progress / knobs.tequila_end).max(0.0);
        let epsilon = if knobs.residual_end > 0.0 { residual.at(progress) } else { 0.0 };
        student.refresh(Stage { blend, residual: epsilon, tequila: share, penalty: knobs.lora_penalty * progress });

        let batch = run.batch(knobs.batch, knobs.window)?;
        let targets = batch.targets.reshape([-1]);
        let seen = student.decoder.tapped(&student.projections, &batch.inputs, taps);
        let taught = parent.as_ref().map(|parent| (parent, parent.tapped(&batch.inputs, taps)));
        let teacher = taught.as_ref().filter(|_| knobs.distillation > 0.0).map(|(parent, taught)| Teacher {
            hidden: &taught.hidden,
            head: parent.head(),
            weight: knobs.distillation,
            temperature: knobs.distillation_temperature,
        });
        let mut objective = objective(&seen.hidden, &student.head(), &targets, teacher);
        if let Some((_, taught)) = &taught {
            if knobs.features > 0.0 {
                objective.add(knobs.features, &feature_loss(&seen.hidden, &taught.hidden));
            }
            for (stream, parents) in seen.streams.iter().zip(&taught.streams) {
                objective.add(knobs.inner_features / blocks as f64, &feature_loss(stream, parents));
            }
            for (attention, parents) in seen.attention.iter().zip(&taught.attention) {
                objective.add(knobs.relations, &relation_loss(attention, parents, knobs.relations_heads));
            }
        }
        let loss = objective.cross_entropy.shallow_clone();
        objective.backward()?;

        // Loss and norm stay on the device; the frame reads them a step later.
        let norm = optimizer.step(&student, rate)?;
        let lr = knobs.learning_rate * rate;
        let step = Step { lambda: blend.lambda, lr, loss: &loss, gradient_norm: Some(&norm) };
        run.end_step(step, || student.hard_ternary())?;
    }
    student.hard_ternary()
}

/// A block's part of Block-AP: at hard ternary, given what the student's blocks before it put out, it learns to put out
/// what the parent's blocks up to it do. Its norms learn with it where the campaign trains them.
fn train_block(
    knobs: &Knobs,
    run: &mut Run,
    student: &mut Student,
    parent: &Frozen,
    layer: usize,
    learning_rate: LearningRate,
) -> Result<()> {
    let blocks = run.config().num_hidden_layers as f64;
    let [begin, end] = [layer, layer + 1].map(|block| knobs.block_until * block as f64 / blocks);
    // A fresh one for each block: norms of the blocks before must not move on by their momentum.
    let mut optimizer = Optimizer::new(knobs, student, parent.decoder().compute());
    while let Some(progress) = run.progress().filter(|&progress| progress < end) {
        let rate = learning_rate.at((progress - begin) / (end - begin));
        student.refresh(Stage::HARD);

        let batch = run.batch(knobs.batch, knobs.window)?;
        let behind = |decoder: &Decoder, linears: &dyn Linears, blocks: usize| {
            (0..blocks).fold(decoder.embed(&batch.inputs), |stream, layer| decoder.block(linears, layer, stream))
        };
        let (input, wanted) = tch::no_grad(|| {
            let wanted = behind(parent.decoder(), parent.projections(), layer + 1).tensor();
            (behind(&student.decoder, &student.projections, layer), wanted)
        });
        let output = student.decoder.block(&student.projections, layer, input).tensor();
        // A share of what is wanted, whose squares differ from block to block: the log and the frame's limit on losses
        // mean the same in all, and AdamW's steps hardly change.
        let loss = output.mse_loss(&wanted, Reduction::Mean) / wanted.square().mean(Kind::Float);
        loss.f_backward()?;

        let norm = optimizer.step(student, rate)?;
        let lr = knobs.learning_rate * rate;
        let step = Step { lambda: 1.0, lr, loss: &loss, gradient_norm: Some(&norm) };
        run.end_step(step, || student.hard_ternary())?;
    }
    Ok(())
}

/// How far the methods are at a step.
#[derive(Clone, Copy)]
struct Stage {
    blend: Blend,
    /// Share of the full-precision weight in Arenas.
    residual: f64,
    /// Share of Tequila's bias.
    tequila: f64,
    /// Strength of the pull of LoRA's sums to the grid.
    penalty: f64,
}

impl Stage {
    const HARD: Self = Self { blend: Blend::HARD, residual: 0.0, tequila: 0.0, penalty: 0.0 };
}

/// What is trained of a projection.
enum Weight {
    Full(TernaryWeight),
    Lora { weight: LoraWeight, penalty: f64 },
}

impl Weight {
    fn leaf(&self) -> &Tensor {
        match self {
            Self::Full(weight) => weight.leaf(),
            Self::Lora { weight, .. } => weight.leaf(),
        }
    }

    fn grouping(&self) -> Grouping {
        match self {
            Self::Full(weight) => weight.method().grouping,
            Self::Lora { weight, .. } => weight.method().grouping,
        }
    }

    fn scales(&self) -> Option<&Tensor> {
        match self {
            Self::Full(weight) => weight.scales(),
            Self::Lora { weight, .. } => weight.scales(),
        }
    }

    /// The master, or both factors of its update.
    fn matrices(&self) -> Vec<&Tensor> {
        match self {
            Self::Full(weight) => vec![weight.master()],
            Self::Lora { weight, .. } => vec![weight.a(), weight.b()],
        }
    }

    fn refresh(&mut self, stage: Stage) {
        match self {
            Self::Full(weight) => weight.refresh_with_residual(stage.blend, stage.residual),
            Self::Lora { weight, penalty } => {
                *penalty = stage.penalty;
                weight.refresh(stage.blend);
            }
        }
    }

    /// Of the matrices, and of learned scales.
    fn gradients(&self, tequila: Option<&Reactivation>) -> (Vec<Option<Tensor>>, Option<Tensor>) {
        match self {
            Self::Full(weight) => {
                let gradients = tequila.map_or_else(|| weight.gradients(), |tequila| tequila.gradients(weight).0);
                (vec![gradients.master], gradients.scales)
            }
            Self::Lora { weight, penalty } => {
                let gradients = weight.gradients(*penalty);
                (vec![gradients.a, gradients.b], gradients.scales)
            }
        }
    }

    fn export(&self) -> Quantized {
        match self {
            Self::Full(weight) => weight.export(),
            Self::Lora { weight, .. } => weight.export(),
        }
    }
}

/// A quantized projection, with what a method puts beside it.
struct Projection {
    weight: Weight,
    tequila: Option<Reactivation>,
    /// Set once the codes stay.
    fixed: Option<FixedCodes>,
}

impl Projection {
    fn leaf(&self) -> &Tensor {
        self.fixed.as_ref().map_or(self.weight.leaf(), FixedCodes::leaf)
    }

    fn refresh(&mut self, stage: Stage) {
        match &mut self.fixed {
            Some(fixed) => fixed.refresh(),
            None => self.weight.refresh(stage),
        }
        if let (Some(tequila), Weight::Full(weight)) = (&mut self.tequila, &self.weight) {
            tequila.refresh(weight, stage.tequila);
        }
    }

    /// Of the matrices and of learned scales; none where the codes stay.
    fn gradients(&self) -> (Vec<Option<Tensor>>, Option<Tensor>) {
        match self.fixed {
            Some(_) => (self.weight.matrices().iter().map(|_| None).collect(), None),
            None => self.weight.gradients(self.tequila.as_ref()),
        }
    }
}

/// The projections of the blocks.
struct Projections {
    blocks: Vec<Vec<Projection>>,
    activation_bits: u32,
    lambda: f64,
}

impl Linears for Projections {
    fn project(&self, layer: usize, kinds: &[ProjectionKind], x: &Tensor) -> Vec<Tensor> {
        let chosen: Vec<&Projection> = kinds.iter().map(|&kind| &self.blocks[layer][kind as usize]).collect();
        let weights: Vec<&Tensor> = chosen.iter().map(|projection| projection.leaf()).collect();
        // λ also blends in the rounding of the inputs, as the Hugging Face blog does.
        let x = ternary::activation::fake_quantize(x, self.activation_bits, self.lambda);
        let products = ternary::model::ops::linears(&x, &weights);
        let with_bias = |(product, projection): (Tensor, &&Projection)| match &projection.tequila {
            Some(tequila) => product + tequila.bias(),
            None => product,
        };
        products.into_iter().zip(&chosen).map(with_bias).collect()
    }
}

/// The model in training: f32 masters, of which each step sees quantized or cast copies.
struct Student {
    projections: Projections,
    decoder: Decoder,
    /// Embedding, norms and an untied head, f32.
    dense: Weights,
    trains_dense: bool,
    /// The output embedding in the type of the products.
    head: CastWeight,
    head_name: &'static str,
}

impl Student {
    fn new(knobs: &Knobs, run: &mut Run, weights: &Weights, compute: Kind) -> Result<Self> {
        let sampled = knobs.start != Start::Parent;
        let parent = sampled.then(|| Frozen::new(run.config(), weights, weights, compute)).transpose()?;
        let calibration = parent.as_ref().map(|parent| calibrate(knobs, run, parent)).transpose()?;
        let config = run.config();
        let mut blocks = Vec::with_capacity(config.num_hidden_layers);
        for layer in 0..config.num_hidden_layers {
            let mut block = Vec::with_capacity(ProjectionKind::ALL.len());
            for kind in ProjectionKind::ALL {
                let columns = config.projection_shape(kind)[1];
                let grouping = match knobs.group_size {
                    0 => Grouping::Row,
                    size if columns.is_multiple_of(size) => Grouping::Group(size),
                    _ => Grouping::Row,
                };
                let Knobs { scale, deadzone, estimator, .. } = *knobs;
                let method = Method { grouping, scale, deadzone, estimator };
                let parent = weights.projection(layer, kind)?;
                let weight = match calibration.as_ref().and_then(|calibration| calibration.inputs(layer, kind)) {
                    None => TernaryWeight::new(parent.shallow_clone(), method, compute),
                    Some(inputs) => started(knobs.start, parent, &inputs, method, compute)?,
                };
                let tequila = (knobs.tequila > 0.0).then(|| Reactivation::new(&weight, knobs.tequila, false));
                ensure!(tequila.is_none() || knobs.lora_rank == 0, "Tequila moves whole weights: use no LoRA with it");
                let weight = match knobs.lora_rank {
                    0 => Weight::Full(weight),
                    rank => Weight::Lora { weight: LoraWeight::new(weight, rank, knobs.lora_alpha), penalty: 0.0 },
                };
                block.push(Projection { weight, tequila, fixed: None });
            }
            blocks.push(block);
        }
        let trains_dense = run.campaign().constraints.train_unquantized;
        let dense: Weights = (weights.unquantized(config)?.iter())
            .map(|(name, tensor)| (name.to_owned(), tensor.detach().set_requires_grad(trains_dense)))
            .collect();
        let head_name = if config.tie_word_embeddings { "model.embed_tokens.weight" } else { "lm_head.weight" };
        Ok(Self {
            decoder: Decoder::new(config, &dense, compute)?,
            head: CastWeight::new(dense.get(head_name)?.detach(), compute),
            head_name,
            dense,
            trains_dense,
            projections: Projections { blocks, activation_bits: knobs.activation_bits, lambda: 1.0 },
        })
    }

    fn all(&self) -> impl Iterator<Item = &Projection> {
        self.projections.blocks.iter().flatten()
    }

    /// Quantizes every weight once for the coming step.
    fn refresh(&mut self, stage: Stage) {
        self.projections.lambda = stage.blend.lambda;
        for projection in self.projections.blocks.iter_mut().flatten() {
            projection.refresh(stage);
        }
        if self.trains_dense {
            self.head.refresh();
            for (_, tensor) in self.dense.iter() {
                tensor.shallow_clone().zero_grad();
            }
        }
    }

    /// The output embedding, without a graph where it is not trained: its gradient is a product of V·D that nobody uses.
    fn head(&self) -> Tensor {
        let leaf = self.head.leaf();
        if self.trains_dense { leaf.shallow_clone() } else { leaf.detach() }
    }

    /// Lets the codes be what they are from here on; false when they already are.
    fn fix_codes(&mut self, compute: Kind) -> bool {
        let mut changed = false;
        for projection in self.projections.blocks.iter_mut().flatten().filter(|projection| projection.fixed.is_none()) {
            projection.fixed = Some(FixedCodes::new(projection.weight.export(), compute));
            projection.tequila = None;
            changed = true;
        }
        changed
    }

    /// Gradients of the dense tensors, in their order.
    fn dense_gradients(&self) -> Vec<Option<Tensor>> {
        let gradient = |(name, tensor): (&str, &Tensor)| {
            let own = Some(tensor.grad()).filter(Tensor::defined);
            let head = (name == self.head_name).then(|| self.head.gradient()).flatten();
            match (own, head) {
                // A tied embedding is used at both ends.
                (Some(own), Some(head)) => Some(own + head),
                (own, head) => own.or(head),
            }
        };
        self.dense.iter().filter(|_| self.trains_dense).map(gradient).collect()
    }

    /// The model as it is exported.
    fn hard_ternary(&mut self) -> Result<Trained> {
        self.refresh(Stage::HARD);
        let mut ternary = Vec::new();
        for (layer, block) in self.projections.blocks.iter().enumerate() {
            for (kind, projection) in ProjectionKind::ALL.into_iter().zip(block) {
                let fixed = projection.fixed.as_ref();
                ternary.push(TernaryMatrix {
                    name: kind.tensor(layer),
                    grouping: projection.weight.grouping(),
                    quantized: fixed.map_or_else(|| projection.weight.export(), FixedCodes::export),
                    weight: projection.leaf().detach(),
                });
            }
        }
        let dense = self.dense.iter().filter(|_| self.trains_dense);
        Ok(Trained {
            activation_bits: self.projections.activation_bits,
            ternary,
            dense: dense.map(|(name, tensor)| (name.to_owned(), tensor.detach())).collect(),
        })
    }
}

/// A weight whose codes and scales are fitted to the inputs of its projection.
fn started(start: Start, parent: &Tensor, inputs: &Inputs, method: Method, compute: Kind) -> Result<TernaryWeight> {
    ensure!(
        method.estimator.learned().is_some(),
        "a start has scales of its own: choose an estimator that learns them"
    );
    let (master, scales) = match start {
        Start::Feedback => {
            let start = error_feedback(parent, inputs, method.grouping, Scale::Mse)?;
            (start.master, start.quantized.scales)
        }
        Start::Parent | Start::Outputs => {
            (parent.shallow_clone(), fit_outputs(parent, inputs, method.grouping, FITTED_ROUNDS)?.scales)
        }
    };
    let mut weight = TernaryWeight::new(master, method, compute);
    weight.set_levels(&scales);
    weight.refresh(Blend::HARD);
    Ok(weight)
}

/// Rounds of codes and scales in alternation.
const FITTED_ROUNDS: usize = 8;

/// The inputs that the parent's projections see on windows of the training text, which count as the first step's.
fn calibrate<'a>(knobs: &Knobs, run: &mut Run, parent: &'a Frozen) -> Result<Calibration<'a>> {
    let calibration = Calibration::new(parent.projections(), 0..run.config().num_hidden_layers);
    for _ in 0..knobs.start_windows.div_ceil(knobs.batch) {
        let batch = run.batch(knobs.batch, knobs.window)?;
        let _hidden = tch::no_grad(|| parent.decoder().hidden(&calibration, &batch.inputs));
    }
    Ok(calibration)
}

/// AdamW, and Muon for the quantized matrices where it is chosen.
struct Optimizer {
    adamw: AdamW,
    muon: Option<Muon>,
    fixed: GroupId,
}

impl Optimizer {
    /// Parameters: masters or their updates, learned scales, dense tensors; scales of fixed codes come last.
    fn new(knobs: &Knobs, student: &Student, compute: Kind) -> Self {
        let betas = (knobs.beta1, knobs.beta2);
        let mut adamw = AdamW::new(Options { betas, epsilon: knobs.epsilon, clip: Some(knobs.clip) });
        let mut muon = knobs.muon.then(|| Muon::new(muon::Options::new(compute)));
        let matrices = Group { learning_rate: knobs.learning_rate, weight_decay: 0.0 };
        let mut group = |learning_rate, weight_decay| adamw.group(Group { learning_rate, weight_decay });
        let masters = group(knobs.learning_rate, 0.0);
        let scales = group(knobs.scale_learning_rate, 0.0);
        let tables = group(knobs.dense_learning_rate, knobs.weight_decay);
        let norms = group(knobs.dense_learning_rate, 0.0);
        let fixed = group(knobs.fixed_learning_rate, 0.0);
        for matrix in student.all().flat_map(|projection| projection.weight.matrices()) {
            match &mut muon {
                Some(muon) => muon.add(matrices, matrix),
                None => adamw.add(masters, matrix),
            }
        }
        for learned in student.all().filter_map(|projection| projection.weight.scales()) {
            adamw.add(scales, learned);
        }
        for (_, tensor) in student.dense.iter().filter(|_| student.trains_dense) {
            adamw.add(if tensor.dim() == 1 { norms } else { tables }, tensor);
        }
        Self { adamw, muon, fixed }
    }

    fn add_fixed(&mut self, student: &Student) {
        for fixed in student.all().filter_map(|projection| projection.fixed.as_ref()) {
            self.adamw.add(self.fixed, fixed.scales());
        }
    }

    /// Moves everything that has a gradient; the global norm of AdamW's part.
    fn step(&mut self, student: &Student, rate: f64) -> Result<Tensor> {
        let (matrices, scales): (Vec<_>, Vec<_>) = student.all().map(Projection::gradients).unzip();
        let matrices = matrices.into_iter().flatten();
        let learned = student.all().zip(scales).filter(|(projection, _)| projection.weight.scales().is_some());
        let mut rest: Vec<_> = learned.map(|(_, gradient)| gradient).collect();
        rest.extend(student.dense_gradients());
        rest.extend(student.all().filter_map(|projection| projection.fixed.as_ref()).map(FixedCodes::gradient));
        Ok(match &mut self.muon {
            Some(muon) => {
                muon.step(&matrices.collect::<Vec<_>>(), rate);
                self.adamw.step(&rest, rate)?
            }
            None => self.adamw.step(&matrices.chain(rest).collect::<Vec<_>>(), rate)?,
        })
    }
}
