//! Changes of a projection's inputs that its weights undo: x·Wᵀ = inputs(x)·fold(W)ᵀ. Folded weights may be easier to
//! quantize.
//!
//! An artifact holds no transform, and quantized folded weights are ternary only before they are unfolded. So only what
//! another stored tensor takes over can be exported: a [`Smoothing`] whose division goes into the norm before the
//! projection. The others are for comparisons, and for engines that transform inputs at run time.

use tch::{Device, Kind, TchError, Tensor};

use crate::native::NativeError;

/// A change of inputs `(…, in)` and weights `(out, in)` that leaves their product alone, in tensor operations that
/// autograd follows, in the kind of what they are given.
pub trait Transform {
    /// The inputs that folded weights take.
    fn inputs(&self, x: &Tensor) -> Tensor;
    /// The weights that transformed inputs take.
    fn fold(&self, w: &Tensor) -> Tensor;
    /// The weights that plain inputs take, of folded ones.
    fn unfold(&self, w: &Tensor) -> Tensor;
}

/// A randomized Hadamard rotation in blocks, as HIGGS (arXiv 2411.17525) and QuIP# (arXiv 2402.04396) have it: random
/// signs, then H/√block on each block, with Sylvester's matrix H of ±1. It is orthogonal.
#[derive(Debug)]
pub struct Hadamard {
    /// ±1, f32 `[in]`.
    signs: Tensor,
    /// H/√block, f32.
    matrix: Tensor,
}

impl Hadamard {
    /// For inputs of `width` in blocks of `block`, with signs of `seed`.
    ///
    /// # Panics
    /// When `block` is no power of two, or does not divide `width`.
    pub fn new(width: i64, block: i64, seed: u64, device: Device) -> Self {
        assert!(block > 0 && (block as u64).is_power_of_two(), "a Hadamard block of {block} is no power of two");
        assert!(width % block == 0, "Hadamard blocks of {block} do not divide a width of {width}");
        let pair = Tensor::from_slice(&[1f32, 1.0, 1.0, -1.0]).reshape([2, 2]).to_device(device);
        let mut matrix = Tensor::ones([1, 1], (Kind::Float, device));
        while matrix.size()[0] < block {
            matrix = pair.kron(&matrix);
        }
        Self { signs: signs(width, seed).to_device(device), matrix: matrix / (block as f64).sqrt() }
    }

    fn blocks(&self, x: &Tensor) -> Tensor {
        let block = self.matrix.size()[0];
        x.reshape([-1, block]).matmul(&self.matrix.to_kind(x.kind())).reshape(x.size())
    }
}

/// ±1 of `seed` whatever the device and the state of its generator (splitmix64).
fn signs(count: i64, seed: u64) -> Tensor {
    let mut state = seed;
    let signs: Vec<f32> = (0..count)
        .map(|_| {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            if (mixed ^ (mixed >> 31)) & 1 == 0 { 1.0 } else { -1.0 }
        })
        .collect();
    Tensor::from_slice(&signs)
}

impl Transform for Hadamard {
    fn inputs(&self, x: &Tensor) -> Tensor {
        self.blocks(&(x * self.signs.to_kind(x.kind())))
    }

    fn fold(&self, w: &Tensor) -> Tensor {
        self.inputs(w)
    }

    fn unfold(&self, w: &Tensor) -> Tensor {
        // H is symmetric and its own inverse.
        self.blocks(w) * self.signs.to_kind(w.kind())
    }
}

/// A learned matrix P = L ⊗ R on the inputs (FlatQuant, arXiv 2410.09426): `inputs` = x·P, folded weights W·P⁻ᵀ. With
/// in = a·b, it costs a + b products an input.
#[derive(Debug)]
pub struct Kronecker {
    left: Tensor,
    right: Tensor,
}

impl Kronecker {
    /// Of L `[a, a]` and R `[b, b]`, f32 and invertible; where they require gradients, those reach them through inputs
    /// and folded weights.
    pub fn new(left: Tensor, right: Tensor) -> Self {
        for factor in [&left, &right] {
            assert!(factor.dim() == 2 && factor.size()[0] == factor.size()[1], "factors are square matrices");
        }
        Self { left, right }
    }

    /// Random orthogonal L and R for inputs of `width`, as near to square as it allows.
    ///
    /// # Errors
    /// What libtorch says.
    pub fn random(width: i64, device: Device) -> Result<Self, NativeError> {
        let a = (1..=width.isqrt()).rev().find(|a| width % a == 0).unwrap_or(1);
        let orthogonal = |n: i64| -> Result<Tensor, TchError> {
            Ok(Tensor::f_linalg_qr(&Tensor::randn([n, n], (Kind::Float, device)), "reduced")?.0)
        };
        let both = orthogonal(a).and_then(|left| Ok((left, orthogonal(width / a)?)));
        both.map(|(left, right)| Self { left, right }).map_err(|error| NativeError(error.to_string()))
    }

    /// L and R, for the optimizer.
    pub fn factors(&self) -> [&Tensor; 2] {
        [&self.left, &self.right]
    }

    /// x·(L ⊗ R) by rows: with a row as a matrix X `[a, b]`, Lᵀ·X·R.
    fn product(x: &Tensor, left: &Tensor, right: &Tensor) -> Tensor {
        let (a, b) = (left.size()[0], right.size()[0]);
        let rows = x.reshape([-1, a, b]);
        left.tr().to_kind(x.kind()).matmul(&rows.matmul(&right.to_kind(x.kind()))).reshape(x.size())
    }
}

impl Transform for Kronecker {
    fn inputs(&self, x: &Tensor) -> Tensor {
        Self::product(x, &self.left, &self.right)
    }

    fn fold(&self, w: &Tensor) -> Tensor {
        Self::product(w, &Tensor::linalg_inv(&self.left).tr(), &Tensor::linalg_inv(&self.right).tr())
    }

    fn unfold(&self, w: &Tensor) -> Tensor {
        Self::product(w, &self.left.tr(), &self.right.tr())
    }
}

/// A division of each input by a number that its weights take over (SmoothQuant, arXiv 2211.10438).
#[derive(Debug)]
pub struct Smoothing {
    divisors: Tensor,
}

impl Smoothing {
    /// max|x|^α / max|w|^(1 − α) for each input, from the largest magnitudes of inputs (f32 `[in]`) and the weights
    /// (f32 `[out, in]`) that take them. α = ½ in the source; 0 evens out the weights' columns.
    pub fn new(inputs: &Tensor, w: &Tensor, alpha: f64) -> Self {
        let floor = |x: &Tensor| x.to_kind(Kind::Float).clamp_min(1e-5);
        let weights = floor(&w.abs().amax(0, false)).pow_tensor_scalar(1.0 - alpha);
        Self { divisors: floor(inputs).pow_tensor_scalar(alpha) / weights }
    }

    /// What each input is divided by, f32 `[in]`: a norm before the projection takes it over by dividing its weight.
    pub fn divisors(&self) -> &Tensor {
        &self.divisors
    }
}

impl Transform for Smoothing {
    fn inputs(&self, x: &Tensor) -> Tensor {
        x / self.divisors.to_kind(x.kind())
    }

    fn fold(&self, w: &Tensor) -> Tensor {
        w * self.divisors.to_kind(w.kind())
    }

    fn unfold(&self, w: &Tensor) -> Tensor {
        self.inputs(w)
    }
}
