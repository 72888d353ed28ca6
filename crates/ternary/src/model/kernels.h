// The table of loops that `kernels.cpp` fills for each instruction set and `ops.cpp` chooses from.
#pragma once

#include <cstdint>

// The bits of a bfloat16.
struct bf16_t {
  uint16_t bits;
};

// Widest head that the rotary loops have room for.
constexpr int64_t MAX_HEAD = 512;

// Queries and keys of a tile of attention scores.
constexpr int64_t SCORE_ROWS = 8, SCORE_COLUMNS = 48;

// Attention scores and their softmax in one go; null where the processor has no bf16 products.
template <typename T>
struct Scores {
  void (*pack_keys)(const T* keys, int64_t count, int64_t dim, int32_t* out);
  void (*shares_rows)(const T* queries, const int32_t* packed, int64_t dim, int64_t begin, int64_t end_row,
                      int64_t first, int64_t period, int64_t width, float scale, float* buffer, T* out);
};

// T is the type of the matrix products; all arithmetic is in f32.
template <typename T>
struct Kernels {
  void (*add_norm_forward)(const float* residual, const T* delta, const float* weight, float eps, int64_t begin,
                           int64_t end, int64_t columns, float* sum, T* normal, float* scale);
  void (*add_norm_backward)(const float* sum, const float* weight, const float* scale, const T* gradient,
                            const float* stream, int64_t begin, int64_t end, int64_t columns, float* out, T* delta,
                            float* d_weight);
  void (*rotate_forward)(const T* x, const float* cos, const float* sin, const float* weight, float eps, int64_t begin,
                         int64_t end, int64_t length, int64_t heads, int64_t dim, T* out);
  void (*rotate_backward)(const T* x, const float* cos, const float* sin, const float* weight, float eps,
                          const T* gradient, int64_t begin, int64_t end, int64_t length, int64_t heads, int64_t dim,
                          T* out, float* d_weight);
  void (*swiglu_forward)(const T* gate, const T* up, int64_t begin, int64_t end, T* out);
  void (*swiglu_backward)(const T* gate, const T* up, const T* gradient, int64_t begin, int64_t end, T* d_gate,
                          T* d_up);
  void (*softmax_row)(float* scores, int64_t valid, int64_t width, float scale, T* out);
  void (*softmax_backward_row)(const T* shares, T* gradient, int64_t valid, int64_t width, float scale);
  Scores<T> scores;
};

struct KernelTables {
  Kernels<float> f32;
  Kernels<bf16_t> bf16;
};

extern "C" {
extern const KernelTables model_kernels_plain;
#if defined(MODEL_X86_LEVELS)
extern const KernelTables model_kernels_v3;  // AVX2 and FMA
extern const KernelTables model_kernels_v4;  // AVX-512
extern const KernelTables model_kernels_v4bf16;
#endif
}
