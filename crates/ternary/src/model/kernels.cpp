// The loops of the fused operators, over rows [begin, end). This file is compiled once for each instruction set in
// LEVEL (see build.rs); everything but the table at its end is local, so that no level's code gets into another's.
#include "kernels.h"

#include <cmath>
#include <cstring>
#include <limits>

#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

#define INLINE inline __attribute__((always_inline))

namespace {

INLINE float widen(float x) { return x; }
INLINE float widen(bf16_t x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float out;
  std::memcpy(&out, &bits, 4);
  return out;
}
INLINE void narrow(float x, float* out) { *out = x; }
// Round to nearest, ties to even; not-a-number stays one.
INLINE void narrow(float x, bf16_t* out) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  out->bits = static_cast<uint16_t>(x != x ? 0x7fc0 : rounded);
}

// e^x to about 1e-7 relative: 2^n times a polynomial of the rest (|rest| <= ln(2)/2). Branchless, so it vectorizes.
INLINE float exponential(float x) {
  x = x < -87.0f ? -87.0f : x;
  x = x > 88.0f ? 88.0f : x;
  const float n = __builtin_rintf(x * 1.44269504f);
  const float rest = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * rest + 1.3981999507e-3f;
  p = p * rest + 8.3334519073e-3f;
  p = p * rest + 4.1665795894e-2f;
  p = p * rest + 1.6666665459e-1f;
  p = p * rest + 5.0000001201e-1f;
  p = p * rest * rest + rest + 1.0f;
  const int32_t bits = (static_cast<int32_t>(n) + 127) << 23;
  float power;
  std::memcpy(&power, &bits, 4);
  return p * power;
}

INLINE float sigmoid(float x) { return 1.0f / (1.0f + exponential(-x)); }

template <typename T>
void add_norm_forward(const float* residual, const T* delta, const float* weight, float eps, int64_t begin,
                                  int64_t end, int64_t columns, float* sum, T* normal, float* scale) {
  for (int64_t row = begin; row < end; ++row) {
    const float* in = residual + row * columns;
    float* stream = sum + row * columns;
    float squares = 0.0f;
    if (delta) {
      const T* add = delta + row * columns;
      for (int64_t j = 0; j < columns; ++j) {
        const float x = in[j] + widen(add[j]);
        stream[j] = x;
        squares += x * x;
      }
    } else {
      for (int64_t j = 0; j < columns; ++j) squares += in[j] * in[j];
    }
    const float factor = 1.0f / std::sqrt(squares / columns + eps);
    scale[row] = factor;
    T* out = normal + row * columns;
    for (int64_t j = 0; j < columns; ++j) narrow(stream[j] * factor * weight[j], out + j);
  }
}

// With y = w·x·r and r = 1/sqrt(mean(x²) + eps): dx = r·(g·w - x·r·mean(g·w·x·r)), dw = sum over rows of g·x·r.
template <typename T>
void add_norm_backward(const float* sum, const float* weight, const float* scale, const T* gradient,
                                   const float* stream, int64_t begin, int64_t end, int64_t columns, float* out,
                                   T* delta, float* d_weight) {
  for (int64_t row = begin; row < end; ++row) {
    const float* x = sum + row * columns;
    const T* g = gradient + row * columns;
    const float* from_stream = stream ? stream + row * columns : nullptr;
    float* dx = out + row * columns;
    const float r = scale[row];
    float dot = 0.0f;
    for (int64_t j = 0; j < columns; ++j) dot += widen(g[j]) * weight[j] * x[j];
    const float back = dot * r * r * r / columns;
    if (from_stream) {
      for (int64_t j = 0; j < columns; ++j) dx[j] = from_stream[j] + widen(g[j]) * weight[j] * r - x[j] * back;
    } else {
      for (int64_t j = 0; j < columns; ++j) dx[j] = widen(g[j]) * weight[j] * r - x[j] * back;
    }
    if (delta) {
      T* narrow_out = delta + row * columns;
      for (int64_t j = 0; j < columns; ++j) narrow(dx[j], narrow_out + j);
    }
    if (d_weight) {
      for (int64_t j = 0; j < columns; ++j) d_weight[j] += widen(g[j]) * x[j] * r;
    }
  }
}

template <typename T>
void rotate_forward(const T* x, const float* cos, const float* sin, const float* weight, float eps,
                                int64_t begin, int64_t end, int64_t length, int64_t heads, int64_t dim, T* out) {
  const int64_t half = dim / 2;
  float buffer[MAX_HEAD];
  for (int64_t row = begin; row < end; ++row) {
    const float* c = cos + (row % length) * half;
    const float* s = sin + (row % length) * half;
    for (int64_t head = 0; head < heads; ++head) {
      const T* in = x + (row * heads + head) * dim;
      T* to = out + (row * heads + head) * dim;
      for (int64_t j = 0; j < dim; ++j) buffer[j] = widen(in[j]);
      if (weight) {
        float squares = 0.0f;
        for (int64_t j = 0; j < dim; ++j) squares += buffer[j] * buffer[j];
        const float factor = 1.0f / std::sqrt(squares / dim + eps);
        for (int64_t j = 0; j < dim; ++j) buffer[j] *= factor * weight[j];
      }
      for (int64_t j = 0; j < half; ++j) narrow(buffer[j] * c[j] - buffer[half + j] * s[j], to + j);
      for (int64_t j = 0; j < half; ++j) narrow(buffer[half + j] * c[j] + buffer[j] * s[j], to + half + j);
    }
  }
}

// Turns the gradient back, then goes through the norm as above.
template <typename T>
void rotate_backward(const T* x, const float* cos, const float* sin, const float* weight, float eps,
                                 const T* gradient, int64_t begin, int64_t end, int64_t length, int64_t heads,
                                 int64_t dim, T* out, float* d_weight) {
  const int64_t half = dim / 2;
  float g[MAX_HEAD], wide[MAX_HEAD];
  for (int64_t row = begin; row < end; ++row) {
    const float* c = cos + (row % length) * half;
    const float* s = sin + (row % length) * half;
    for (int64_t head = 0; head < heads; ++head) {
      const T* from = gradient + (row * heads + head) * dim;
      T* to = out + (row * heads + head) * dim;
      for (int64_t j = 0; j < half; ++j) {
        const float a = widen(from[j]), b = widen(from[half + j]);
        g[j] = a * c[j] + b * s[j];
        g[half + j] = b * c[j] - a * s[j];
      }
      if (weight) {
        const T* in = x + (row * heads + head) * dim;
        float squares = 0.0f, dot = 0.0f;
        for (int64_t j = 0; j < dim; ++j) {
          wide[j] = widen(in[j]);
          squares += wide[j] * wide[j];
          dot += g[j] * weight[j] * wide[j];
        }
        const float r = 1.0f / std::sqrt(squares / dim + eps);
        const float back = dot * r * r * r / dim;
        if (d_weight) {
          for (int64_t j = 0; j < dim; ++j) d_weight[j] += g[j] * wide[j] * r;
        }
        for (int64_t j = 0; j < dim; ++j) g[j] = g[j] * weight[j] * r - wide[j] * back;
      }
      for (int64_t j = 0; j < dim; ++j) narrow(g[j], to + j);
    }
  }
}

template <typename T>
void swiglu_forward(const T* gate, const T* up, int64_t begin, int64_t end, T* out) {
  for (int64_t i = begin; i < end; ++i) {
    const float g = widen(gate[i]);
    narrow(g * sigmoid(g) * widen(up[i]), out + i);
  }
}

template <typename T>
void swiglu_backward(const T* gate, const T* up, const T* gradient, int64_t begin, int64_t end, T* d_gate,
                                 T* d_up) {
  for (int64_t i = begin; i < end; ++i) {
    const float g = widen(gate[i]), u = widen(up[i]), d = widen(gradient[i]);
    const float s = sigmoid(g);
    narrow(d * u * s * (1.0f + g * (1.0f - s)), d_gate + i);
    narrow(d * g * s, d_up + i);
  }
}

template <typename T>
INLINE float largest(const T* x, int64_t count) {
  // As integers in the order of the floats: unlike theirs, compilers vectorize an integer maximum.
  int32_t best = std::numeric_limits<int32_t>::min();
  for (int64_t j = 0; j < count; ++j) {
    const float v = widen(x[j]);
    int32_t bits;
    std::memcpy(&bits, &v, 4);
    const int32_t key = bits ^ ((bits >> 31) & 0x7fffffff);
    best = key > best ? key : best;
  }
  const int32_t bits = best ^ ((best >> 31) & 0x7fffffff);
  float top;
  std::memcpy(&top, &bits, 4);
  return top;
}

// Softmax of `scale` times the first `valid` scores, zeros in the rest of the row. The scores are overwritten, and may
// be where the result goes.
template <typename T>
void softmax_row(float* scores, int64_t valid, int64_t width, float scale, T* out) {
  const float top = largest(scores, valid);
  float sum = 0.0f;
  for (int64_t j = 0; j < valid; ++j) {
    const float e = exponential((scores[j] - top) * scale);
    scores[j] = e;
    sum += e;
  }
  const float share = 1.0f / sum;
  for (int64_t j = 0; j < valid; ++j) narrow(scores[j] * share, out + j);
  for (int64_t j = valid; j < width; ++j) narrow(0.0f, out + j);
}

// In place of the gradient of the shares p, that of the scores: scale·p·(g - sum(p·g)).
template <typename T>
void softmax_backward_row(const T* shares, T* gradient, int64_t valid, int64_t width, float scale) {
  float dot = 0.0f;
  for (int64_t j = 0; j < valid; ++j) dot += widen(shares[j]) * widen(gradient[j]);
  for (int64_t j = 0; j < valid; ++j) narrow(scale * widen(shares[j]) * (widen(gradient[j]) - dot), gradient + j);
  for (int64_t j = valid; j < width; ++j) narrow(0.0f, gradient + j);
}

#if defined(__AVX512BF16__)
// 16 keys of a pair of components beside each other, as the bf16 instruction takes them: out is (keys / 16, dim / 2, 16)
// pairs, keys beyond `count` zero up to a multiple of COLUMNS.
void pack_keys(const bf16_t* keys, int64_t count, int64_t dim, int32_t* out) {
  const int64_t padded = (count + SCORE_COLUMNS - 1) / SCORE_COLUMNS * SCORE_COLUMNS;
  for (int64_t block = 0; block < padded; block += 16) {
    for (int64_t pair = 0; pair < dim / 2; ++pair) {
      for (int64_t i = 0; i < 16; ++i, ++out) {
        *out = 0;
        if (block + i < count) std::memcpy(out, keys + (block + i) * dim + 2 * pair, 4);
      }
    }
  }
}

// Scores of SCORE_ROWS queries with SCORE_COLUMNS keys: sums of products of bf16 pairs in f32 registers.
INLINE void score_tile(const int32_t* const* queries, const int32_t* keys, int64_t pairs, float* out, int64_t stride) {
  constexpr int64_t VECTORS = SCORE_COLUMNS / 16;
  __m512 sums[SCORE_ROWS][VECTORS];
#pragma GCC unroll 8
  for (int64_t r = 0; r < SCORE_ROWS; ++r) {
#pragma GCC unroll 4
    for (int64_t c = 0; c < VECTORS; ++c) sums[r][c] = _mm512_setzero_ps();
  }
  for (int64_t pair = 0; pair < pairs; ++pair) {
    __m512bh key[VECTORS];
#pragma GCC unroll 4
    for (int64_t c = 0; c < VECTORS; ++c) key[c] = (__m512bh)_mm512_loadu_si512(keys + (c * pairs + pair) * 16);
#pragma GCC unroll 8
    for (int64_t r = 0; r < SCORE_ROWS; ++r) {
      const __m512bh query = (__m512bh)_mm512_set1_epi32(queries[r][pair]);
#pragma GCC unroll 4
      for (int64_t c = 0; c < VECTORS; ++c) sums[r][c] = _mm512_dpbf16_ps(sums[r][c], query, key[c]);
    }
  }
#pragma GCC unroll 8
  for (int64_t r = 0; r < SCORE_ROWS; ++r) {
#pragma GCC unroll 4
    for (int64_t c = 0; c < VECTORS; ++c) _mm512_storeu_ps(out + r * stride + c * 16, sums[r][c]);
  }
}

// Shares of queries [begin, end_row): the softmax of their scores with the keys up to their own position.
void shares_rows(const bf16_t* queries, const int32_t* packed, int64_t dim, int64_t begin, int64_t end_row,
                 int64_t first, int64_t period, int64_t width, float scale, float* buffer, bf16_t* out) {
  const int64_t stride = (width + SCORE_COLUMNS - 1) / SCORE_COLUMNS * SCORE_COLUMNS;
  for (int64_t row = begin; row < end_row; row += SCORE_ROWS) {
    const int32_t* pointers[SCORE_ROWS];
    int64_t most = 0;
    for (int64_t r = 0; r < SCORE_ROWS; ++r) {
      const int64_t real = row + r < end_row ? row + r : end_row - 1;
      pointers[r] = reinterpret_cast<const int32_t*>(queries + real * dim);
      const int64_t valid = first + real % period + 1;
      most = valid > most ? valid : most;
    }
    for (int64_t column = 0; column < most; column += SCORE_COLUMNS) {
      score_tile(pointers, packed + column * (dim / 2), dim / 2, buffer + column, stride);
    }
    for (int64_t r = 0; r < SCORE_ROWS && row + r < end_row; ++r) {
      softmax_row(buffer + r * stride, first + (row + r) % period + 1, width, scale, out + (row + r) * width);
    }
  }
}
#endif

// The loops that only processors with bf16 products have.
template <typename T>
constexpr Scores<T> scores() {
  return {nullptr, nullptr};
}
#if defined(__AVX512BF16__)
template <>
constexpr Scores<bf16_t> scores() {
  return {pack_keys, shares_rows};
}
#endif

template <typename T>
constexpr Kernels<T> table() {
  return {add_norm_forward<T>, add_norm_backward<T>, rotate_forward<T>, rotate_backward<T>, swiglu_forward<T>,
          swiglu_backward<T>,  softmax_row<T>,    softmax_backward_row<T>, scores<T>()};
}

}  // namespace

#define JOIN(a, b) a##b
#define NAME(level) JOIN(model_kernels_, level)
extern "C" const KernelTables NAME(LEVEL) = {table<float>(), table<bf16_t>()};
