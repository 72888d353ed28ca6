// The libtorch calls that tch does not wrap: the fused AdamW step, a backward pass from given gradients, and a loop on
// libtorch's threads.
// Tensors are `at::Tensor*` as tch holds them. Exceptions do not cross into Rust: each function returns null, or a
// message allocated with strdup that the caller frees with `ternary_free`.
#include <ATen/TensorIterator.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/_fused_adamw.h>
#include <ATen/ops/empty.h>
#include <torch/csrc/autograd/autograd.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <optional>
#include <vector>

namespace {

std::vector<at::Tensor> collect(at::Tensor* const* tensors, size_t count) {
  std::vector<at::Tensor> all;
  all.reserve(count);
  for (size_t i = 0; i < count; ++i) all.push_back(*tensors[i]);
  return all;
}

template <typename F>
char* guarded(F&& body) {
  try {
    body();
    return nullptr;
  } catch (const std::exception& error) {
    return strdup(error.what());
  } catch (...) {
    return strdup("unknown C++ exception");
  }
}

}  // namespace

extern "C" {

char* ternary_fused_adamw(at::Tensor* const* parameters, at::Tensor* const* gradients, at::Tensor* const* first,
                          at::Tensor* const* second, at::Tensor* const* steps, size_t count, double learning_rate,
                          double beta1, double beta2, double weight_decay, double epsilon,
                          const at::Tensor* gradient_scale) {
  return guarded([&] {
    std::optional<at::Tensor> scale;
    if (gradient_scale != nullptr) scale = *gradient_scale;
    at::_fused_adamw_(collect(parameters, count), collect(gradients, count), collect(first, count),
                      collect(second, count), {}, collect(steps, count), learning_rate, beta1, beta2, weight_decay,
                      epsilon, /*amsgrad=*/false, /*maximize=*/false, scale, std::nullopt);
  });
}

char* ternary_backward(at::Tensor* const* tensors, at::Tensor* const* gradients, size_t count) {
  return guarded([&] { torch::autograd::backward(collect(tensors, count), collect(gradients, count)); });
}

// Calls body(context, begin, end) for parts of [0, count) on libtorch's own threads; `model` calls it too.
// TensorIterator brings them without this file having to be compiled for the OpenMP runtime that libtorch was compiled
// for. A second pool would compete with libtorch's workers, which spin for a while after each loop.
char* ternary_parallel(int64_t count, int64_t grain, void (*body)(void*, int64_t, int64_t), void* context) {
  return guarded([&] {
    at::Tensor index = at::empty({count}, at::kByte);
    const char* base = static_cast<const char*>(index.data_ptr());
    auto iterator = at::TensorIteratorConfig()
                        .check_all_same_dtype(false)
                        .resize_outputs(false)
                        .declare_static_shape({count})
                        .add_output(index)
                        .build();
    iterator.for_each(
        [&](char** data, const int64_t*, int64_t size) { body(context, data[0] - base, data[0] - base + size); },
        grain);
  });
}

void ternary_free(char* message) { std::free(message); }

}  // extern "C"
