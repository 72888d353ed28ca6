//! The one module with `unsafe`: calls into `native.cpp`, and views of the memory of CPU tensors.
//!
//! Everything exported is safe to call: arguments are checked here, and C++ exceptions come back as [`NativeError`].

use std::ffi::{CStr, c_char, c_void};

use tch::{Device, Kind, Tensor};

/// What libtorch reported.
#[derive(Debug, thiserror::Error)]
#[error("libtorch: {0}")]
pub struct NativeError(pub String);

type Tensors = *const *const c_void;

#[allow(unsafe_code)]
// SAFETY: the signatures are those of src/native.cpp; `C_tensor` is libtorch's `at::Tensor`.
unsafe extern "C" {
    fn ternary_fused_adamw(
        parameters: Tensors,
        gradients: Tensors,
        first: Tensors,
        second: Tensors,
        steps: Tensors,
        count: usize,
        learning_rate: f64,
        beta1: f64,
        beta2: f64,
        weight_decay: f64,
        epsilon: f64,
        gradient_scale: *const c_void,
    ) -> *mut c_char;
    fn ternary_backward(tensors: Tensors, gradients: Tensors, count: usize) -> *mut c_char;
    fn ternary_parallel(
        count: i64,
        grain: i64,
        body: extern "C" fn(*mut c_void, i64, i64),
        context: *mut c_void,
    ) -> *mut c_char;
    fn ternary_free(message: *mut c_char);
}

fn pointers(tensors: &[&Tensor]) -> Vec<*const c_void> {
    tensors.iter().map(|tensor| tensor.as_ptr().cast()).collect()
}

#[allow(unsafe_code)]
fn outcome(message: *mut c_char) -> Result<(), NativeError> {
    if message.is_null() {
        return Ok(());
    }
    // SAFETY: a non-null message is a NUL-terminated string from strdup, owned by us until it is freed here, once.
    let text = unsafe { CStr::from_ptr(message) }.to_string_lossy().into_owned();
    // SAFETY: as above; nothing refers to it after this.
    unsafe { ternary_free(message) };
    Err(NativeError(text))
}

/// One parameter of a fused AdamW call: four contiguous f32 tensors of one shape and device, `step` a 0-dim f32.
pub(crate) struct FusedParameter<'a> {
    pub parameter: &'a Tensor,
    pub gradient: &'a Tensor,
    pub first: &'a Tensor,
    pub second: &'a Tensor,
    pub step: &'a Tensor,
}

/// Numbers of a fused AdamW call.
pub(crate) struct FusedNumbers {
    pub learning_rate: f64,
    pub betas: (f64, f64),
    pub weight_decay: f64,
    pub epsilon: f64,
}

/// `at::_fused_adamw_`: gradients are first divided by `gradient_scale` (a 0-dim f32 on the same device, never read
/// by the host on an accelerator), in place.
#[allow(unsafe_code)]
pub(crate) fn fused_adamw(
    parameters: &[FusedParameter<'_>],
    numbers: &FusedNumbers,
    gradient_scale: Option<&Tensor>,
) -> Result<(), NativeError> {
    for one in parameters {
        // The CPU kernel trusts its arguments.
        for tensor in [one.gradient, one.first, one.second] {
            assert_eq!(tensor.size(), one.parameter.size(), "a parameter, its gradient and moments have one shape");
        }
        for tensor in [one.parameter, one.gradient, one.first, one.second] {
            assert!(tensor.kind() == Kind::Float && tensor.is_contiguous(), "fused AdamW takes contiguous f32");
            assert_eq!(tensor.device(), one.step.device(), "fused AdamW takes tensors of one device");
        }
    }
    let column = |field: fn(&FusedParameter<'_>) -> *const c_void| -> Vec<*const c_void> {
        parameters.iter().map(field).collect()
    };
    let values = column(|p| p.parameter.as_ptr().cast());
    let gradients = column(|p| p.gradient.as_ptr().cast());
    let first = column(|p| p.first.as_ptr().cast());
    let second = column(|p| p.second.as_ptr().cast());
    let steps = column(|p| p.step.as_ptr().cast());
    // SAFETY: the five arrays hold `count` pointers to live tensors borrowed for the call, whose shapes, kinds and
    // layout are checked above; what libtorch throws comes back as a message.
    outcome(unsafe {
        ternary_fused_adamw(
            values.as_ptr(),
            gradients.as_ptr(),
            first.as_ptr(),
            second.as_ptr(),
            steps.as_ptr(),
            parameters.len(),
            numbers.learning_rate,
            numbers.betas.0,
            numbers.betas.1,
            numbers.weight_decay,
            numbers.epsilon,
            gradient_scale.map_or(std::ptr::null(), |scale| scale.as_ptr().cast()),
        )
    })
}

/// Runs the backward pass of `tensors` from the given gradients (each of its tensor's shape and kind), adding to the
/// `.grad` of the leaves; the graph is freed.
///
/// # Errors
/// What libtorch says, such as a tensor without a graph.
#[allow(unsafe_code)]
pub fn backward(tensors: &[&Tensor], gradients: &[&Tensor]) -> Result<(), NativeError> {
    assert_eq!(tensors.len(), gradients.len(), "one gradient for each tensor");
    let (tensors, gradients) = (pointers(tensors), pointers(gradients));
    // SAFETY: both arrays hold `tensors.len()` pointers to live tensors borrowed for the call.
    outcome(unsafe { ternary_backward(tensors.as_ptr(), gradients.as_ptr(), tensors.len()) })
}

/// A slice in pieces of `width` elements; the last may be shorter.
pub(crate) struct Pieces<'a, T> {
    pub slice: &'a mut [T],
    pub width: usize,
}

impl<T> Pieces<'_, T> {
    fn count(&self) -> usize {
        self.slice.len().div_ceil(self.width)
    }
}

/// [`parallel`] over one slice.
pub(crate) fn parallel_one<A: Send>(a: Pieces<'_, A>, grain: usize, body: impl Fn(usize, &mut [A]) + Sync) {
    let mut nothing = vec![(); a.count()];
    parallel(a, Pieces { slice: &mut nothing, width: 1 }, grain, |first, a, _| body(first, a));
}

/// Calls `body(first, a, b)` with runs of consecutive pieces of two slices of as many pieces, of which the first is
/// number `first`, on libtorch's threads. Below `grain` pieces it stays on this one.
///
/// # Panics
/// When the numbers of pieces differ. A panic of `body` ends the process.
#[allow(unsafe_code)]
pub(crate) fn parallel<A: Send, B: Send>(
    a: Pieces<'_, A>,
    b: Pieces<'_, B>,
    grain: usize,
    body: impl Fn(usize, &mut [A], &mut [B]) + Sync,
) {
    assert_eq!(a.count(), b.count(), "both slices have as many pieces");
    /// What a call needs to cut its part out of the slices.
    struct Context<A, B, F> {
        a: (*mut A, usize, usize),
        b: (*mut B, usize, usize),
        body: F,
    }
    extern "C" fn call<A, B, F: Fn(usize, &mut [A], &mut [B])>(context: *mut c_void, begin: i64, end: i64) {
        // SAFETY: `context` is the `Context` below, borrowed for the whole loop, and only read.
        let context = unsafe { &*context.cast_const().cast::<Context<A, B, F>>() };
        let (begin, end) = (begin as usize, end as usize);
        fn part<'a, T>((pointer, length, width): (*mut T, usize, usize), begin: usize, end: usize) -> &'a mut [T] {
            let (begin, end) = ((begin * width).min(length), (end * width).min(length));
            // SAFETY: within the slice, which is borrowed for the whole loop; no two calls share a piece.
            unsafe { std::slice::from_raw_parts_mut(pointer.add(begin), end - begin) }
        }
        (context.body)(begin, part(context.a, begin, end), part(context.b, begin, end));
    }
    fn start<A, B, F: Fn(usize, &mut [A], &mut [B])>(mut context: Context<A, B, F>, count: usize, grain: usize) {
        let context = (&raw mut context).cast();
        // SAFETY: the context outlives the loop, which is over when the call returns, and `call` fits its type.
        // `parallel` demands that what threads share may be shared.
        let done = outcome(unsafe { ternary_parallel(count as i64, grain as i64, call::<A, B, F>, context) });
        done.expect("libtorch runs a loop");
    }
    let count = a.count();
    if count == 0 {
        return;
    }
    let context = Context {
        a: (a.slice.as_mut_ptr(), a.slice.len(), a.width),
        b: (b.slice.as_mut_ptr(), b.slice.len(), b.width),
        body,
    };
    start(context, count, grain.max(1));
}

/// An element type of tensors that [`view`] and [`view_mut`] give out.
pub(crate) trait Element: Copy + Send + Sync {
    const KIND: Kind;
}
impl Element for f32 {
    const KIND: Kind = Kind::Float;
}
impl Element for half::bf16 {
    const KIND: Kind = Kind::BFloat16;
}
impl Element for i8 {
    const KIND: Kind = Kind::Int8;
}
impl Element for i64 {
    const KIND: Kind = Kind::Int64;
}

fn check<T: Element>(tensor: &Tensor) -> usize {
    assert_eq!(tensor.device(), Device::Cpu, "only memory of the CPU can be viewed");
    assert_eq!(tensor.kind(), T::KIND, "a view has its tensor's element type");
    assert!(tensor.is_contiguous(), "only contiguous tensors can be viewed");
    tensor.numel()
}

/// The elements of a contiguous CPU tensor.
///
/// # Panics
/// When it is on another device, of another kind or not contiguous.
#[allow(unsafe_code)]
pub(crate) fn view<T: Element>(tensor: &Tensor) -> &[T] {
    let length = check::<T>(tensor);
    if length == 0 {
        return &[];
    }
    // SAFETY: checked above: host memory, `length` elements of `T` from data_ptr on, alive as long as the borrow.
    // bf16 and f16 of `half` are transparent over u16. Callers hold no mutable view of the same storage.
    unsafe { std::slice::from_raw_parts(tensor.data_ptr().cast_const().cast(), length) }
}

/// As [`view`], for writing. The exclusive borrow is of the tensor, so no other tensor may share its storage while
/// the view lives: callers use it on buffers that they own.
#[allow(unsafe_code)]
pub(crate) fn view_mut<T: Element>(tensor: &mut Tensor) -> &mut [T] {
    let length = check::<T>(tensor);
    if length == 0 {
        return &mut [];
    }
    // SAFETY: as in `view`, and the caller owns the storage.
    unsafe { std::slice::from_raw_parts_mut(tensor.data_ptr().cast(), length) }
}

/// Defines a function whose body is compiled for the widths of vectors that x86-64 processors have, and picks by what
/// this one has. What the body calls must be `#[inline(always)]`, or it stays at the narrowest. Rust fuses no
/// multiply-adds, so results do not depend on the width.
macro_rules! vectorized {
    ($(#[$attribute:meta])* $visibility:vis fn $name:ident<$kind:ident: $bound:path>(
        $($argument:ident: $type:ty),* $(,)?
    ) -> $result:ty $body:block) => {
        $(#[$attribute])*
        $visibility fn $name<$kind: $bound>($($argument: $type),*) -> $result {
            #[inline(always)]
            fn body<$kind: $bound>($($argument: $type),*) -> $result $body

            #[cfg(target_arch = "x86_64")]
            #[allow(unsafe_code)]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
                fn avx512<$kind: $bound>($($argument: $type),*) -> $result {
                    body($($argument),*)
                }
                #[target_feature(enable = "avx2")]
                fn avx2<$kind: $bound>($($argument: $type),*) -> $result {
                    body($($argument),*)
                }
                if is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
                {
                    // SAFETY: the processor has the features, checked just above; bw, dq and vl imply f.
                    return unsafe { avx512($($argument),*) };
                }
                if is_x86_feature_detected!("avx2") {
                    // SAFETY: as above.
                    return unsafe { avx2($($argument),*) };
                }
            }
            body($($argument),*)
        }
    };
}
pub(crate) use vectorized;
