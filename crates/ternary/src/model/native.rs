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
