//! What the projections of some blocks are given, summed up while text runs through the model.

use std::cell::{Ref, RefCell};
use std::collections::BTreeMap;
use std::ops::Range;

use crate::start::Inputs;
use formats::artifact::ProjectionKind;
use tch::Tensor;

use crate::model::linears::Linears;

/// Passes every call on to other projections and adds up the inputs of those in some blocks, for [`crate::start`].
///
/// It keeps in² f64 for each of a block's four inputs and no activations: 27 MB a block of SmolLM2-135M. Take a few
/// blocks at a time where all are too many.
pub struct Calibration<'a> {
    linears: &'a dyn Linears,
    layers: Range<usize>,
    inputs: RefCell<BTreeMap<(usize, ProjectionKind), Inputs>>,
}

impl<'a> Calibration<'a> {
    /// Of the blocks `layers`, whose products are those of `linears`.
    pub fn new(linears: &'a dyn Linears, layers: Range<usize>) -> Self {
        Self { linears, layers, inputs: RefCell::default() }
    }

    /// What was seen of a projection's inputs; `None` when it was not called.
    pub fn inputs(&self, layer: usize, kind: ProjectionKind) -> Option<Ref<'_, Inputs>> {
        Ref::filter_map(self.inputs.borrow(), |inputs| inputs.get(&(layer, first_of_call(kind)))).ok()
    }
}

impl Linears for Calibration<'_> {
    fn project(&self, layer: usize, kinds: &[ProjectionKind], x: &Tensor) -> Vec<Tensor> {
        if let (true, Some(&kind)) = (self.layers.contains(&layer), kinds.first()) {
            let columns = x.size().last().copied().unwrap_or(0);
            self.inputs
                .borrow_mut()
                .entry((layer, first_of_call(kind)))
                .or_insert_with(|| Inputs::new(columns, x.device()))
                .add(x);
        }
        self.linears.project(layer, kinds, x)
    }
}

/// The first of the projections that share an input.
fn first_of_call(kind: ProjectionKind) -> ProjectionKind {
    use ProjectionKind::{Down, Gate, K, O, Q, Up, V};
    match kind {
        Q | K | V => Q,
        O => O,
        Gate | Up => Gate,
        Down => Down,
    }
}
