//! The C++ side of the fused operators (`ops.cpp`): the one place with foreign calls.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_char, c_int};

use tch::Tensor;
use torch_sys::C_tensor;

unsafe extern "C" {
    fn model_add_rms_norm(
        residual: *const C_tensor,
        delta: *const C_tensor,
        weight: *const C_tensor,
        eps: f64,
        bf16: c_int,
        sum: *mut *mut C_tensor,
        normal: *mut *mut C_tensor,
    ) -> *mut c_char;
    fn model_rotate(
        x: *const C_tensor,
        cos: *const C_tensor,
        sin: *const C_tensor,
        weight: *const C_tensor,
        eps: f64,
        out: *mut *mut C_tensor,
    ) -> *mut c_char;
    fn model_attention(
        q: *const C_tensor,
        k: *const C_tensor,
        v: *const C_tensor,
        out: *mut *mut C_tensor,
    ) -> *mut c_char;
    fn model_swiglu(gate: *const C_tensor, up: *const C_tensor, out: *mut *mut C_tensor) -> *mut c_char;
    fn model_linears(
        x: *const C_tensor,
        weights: *const *const C_tensor,
        count: usize,
        out: *mut *mut C_tensor,
    ) -> *mut c_char;
    fn model_head_loss(
        hidden: *const C_tensor,
        head: *const C_tensor,
        targets: *const C_tensor,
        parent_hidden: *const C_tensor,
        parent_head: *const C_tensor,
        weight: f64,
        temperature: f64,
        chunk: i64,
        total: *mut *mut C_tensor,
        entropy: *mut *mut C_tensor,
    ) -> *mut c_char;
    fn model_token_losses(logits: *const C_tensor, targets: *const C_tensor, out: *mut *mut C_tensor) -> *mut c_char;
    fn model_free(message: *mut c_char);
}

fn pointer(tensor: Option<&Tensor>) -> *const C_tensor {
    tensor.map_or(std::ptr::null(), |tensor| tensor.as_ptr())
}

/// Calls with room for `N` new tensors and takes them over.
///
/// # Panics
/// With libtorch's message when the call fails, as tch's own operators do.
fn outputs<const N: usize>(name: &str, call: impl FnOnce(&mut [*mut C_tensor; N]) -> *mut c_char) -> [Tensor; N] {
    let mut out = [std::ptr::null_mut(); N];
    take(name, call(&mut out));
    // SAFETY: the call succeeded, so each pointer is a new at::Tensor that nobody else owns.
    out.map(|tensor| unsafe { Tensor::from_ptr(tensor) })
}

/// Turns a message into a panic and frees it.
fn take(name: &str, message: *mut c_char) {
    if !message.is_null() {
        // SAFETY: a message is a null-terminated string from strdup, freed exactly once.
        let text = unsafe {
            let text = CStr::from_ptr(message).to_string_lossy().into_owned();
            model_free(message);
            text
        };
        panic!("{name}: {text}");
    }
}

pub(crate) fn add_rms_norm(
    residual: &Tensor,
    delta: Option<&Tensor>,
    weight: &Tensor,
    eps: f64,
    bf16: bool,
) -> (Tensor, Tensor) {
    // SAFETY (here and below): the arguments are live tensors, null where optional; C++ exceptions are caught there.
    let [sum, normal] = outputs("add_rms_norm", |[sum, normal]| unsafe {
        let (residual, delta) = (pointer(Some(residual)), pointer(delta));
        model_add_rms_norm(residual, delta, pointer(Some(weight)), eps, bf16.into(), sum, normal)
    });
    (sum, normal)
}

pub(crate) fn rotate(x: &Tensor, cos: &Tensor, sin: &Tensor, norm: Option<(&Tensor, f64)>) -> Tensor {
    let (weight, eps) = (norm.map(|n| n.0), norm.map_or(0.0, |n| n.1));
    let [out] = outputs("rotate", |[out]| unsafe {
        model_rotate(pointer(Some(x)), pointer(Some(cos)), pointer(Some(sin)), pointer(weight), eps, out)
    });
    out
}

pub(crate) fn attention(q: &Tensor, k: &Tensor, v: &Tensor) -> Tensor {
    let [out] = outputs("attention", |[out]| unsafe {
        model_attention(pointer(Some(q)), pointer(Some(k)), pointer(Some(v)), out)
    });
    out
}

pub(crate) fn swiglu(gate: &Tensor, up: &Tensor) -> Tensor {
    let [out] = outputs("swiglu", |[out]| unsafe { model_swiglu(pointer(Some(gate)), pointer(Some(up)), out) });
    out
}

pub(crate) fn linears(x: &Tensor, weights: &[&Tensor]) -> Vec<Tensor> {
    let pointers: Vec<_> = weights.iter().map(|&weight| pointer(Some(weight))).collect();
    let mut out = vec![std::ptr::null_mut(); weights.len()];
    // SAFETY: both lists have `weights.len()` places.
    let message = unsafe { model_linears(pointer(Some(x)), pointers.as_ptr(), pointers.len(), out.as_mut_ptr()) };
    take("linears", message);
    // SAFETY: as in `outputs`.
    out.into_iter().map(|tensor| unsafe { Tensor::from_ptr(tensor) }).collect()
}

/// Total loss and the cross entropy in it.
pub(crate) fn head_loss(
    hidden: &Tensor,
    head: &Tensor,
    targets: &Tensor,
    parent: Option<(&Tensor, &Tensor, f64, f64)>,
    chunk: i64,
) -> (Tensor, Tensor) {
    let (weight, temperature) = parent.map_or((0.0, 1.0), |p| (p.2, p.3));
    let [total, entropy] = outputs("head_loss", |[total, entropy]| unsafe {
        model_head_loss(
            pointer(Some(hidden)),
            pointer(Some(head)),
            pointer(Some(targets)),
            pointer(parent.map(|p| p.0)),
            pointer(parent.map(|p| p.1)),
            weight,
            temperature,
            chunk,
            total,
            entropy,
        )
    });
    (total, entropy)
}

pub(crate) fn token_losses(logits: &Tensor, targets: &Tensor) -> Tensor {
    let [out] = outputs("token_losses", |[out]| unsafe {
        model_token_losses(pointer(Some(logits)), pointer(Some(targets)), out)
    });
    out
}
