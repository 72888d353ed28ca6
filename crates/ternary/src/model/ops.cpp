// Fused operators of the decoder for the CPU, with hand-written gradients. `ops.rs` and `loss.rs` call them; the same
// operators as compositions of libtorch's are there too, and tests compare the two.
//
// Tensors are `at::Tensor*` as tch holds them. Exceptions do not cross into Rust: each function returns null, or a
// message allocated with strdup that the caller frees with `model_free`. "Narrow" is the type of the matrix products
// (f32 or bf16); all arithmetic here is in f32.
#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <limits>
#include <string>
#include <type_traits>
#include <vector>

#include "kernels.h"

// Of the crate `ternary`.
extern "C" {
char* ternary_parallel(int64_t count, int64_t grain, void (*body)(void*, int64_t, int64_t), void* context);
void ternary_free(char* message);
}

namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::Variable;
using torch::autograd::variable_list;

// Runs f(begin, end) over [0, count) on libtorch's own threads.
template <typename F>
void parallel(int64_t count, int64_t grain, F&& f) {
  auto call = [](void* context, int64_t begin, int64_t end) {
    (*static_cast<std::remove_reference_t<F>*>(context))(begin, end);
  };
  if (char* message = ternary_parallel(count, grain, call, &f)) {
    const std::string text = message;
    ternary_free(message);
    TORCH_CHECK(false, text);
  }
}

// Rows per parallel piece so that a piece is worth a thread.
int64_t grain(int64_t columns) { return std::max<int64_t>(1, 16384 / std::max<int64_t>(1, columns)); }

bool narrow_is_bf16(const Tensor& t) {
  TORCH_CHECK(t.scalar_type() == at::kFloat || t.scalar_type() == at::kBFloat16, "products must be f32 or bf16, not ",
              t.scalar_type());
  return t.scalar_type() == at::kBFloat16;
}

// The loops for this processor.
const KernelTables& kernels() {
#if defined(MODEL_X86_LEVELS)
  static const KernelTables& chosen = [&]() -> const KernelTables& {
    const bool v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
    const bool v4 = v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                    __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                    __builtin_cpu_supports("avx512vl");
    if (v4 && __builtin_cpu_supports("avx512bf16")) return model_kernels_v4bf16;
    return v4 ? model_kernels_v4 : v3 ? model_kernels_v3 : model_kernels_plain;
  }();
  return chosen;
#else
  return model_kernels_plain;
#endif
}

template <typename T>
T kernel_type(const Kernels<T>&);

// Calls f with the loops of the narrow type.
template <typename F>
void dispatch(bool bf16, F&& f) {
  if (bf16) {
    f(kernels().bf16);
  } else {
    f(kernels().f32);
  }
}

template <typename T>
T* pointer(const Tensor& t) {
  return static_cast<T*>(t.data_ptr());
}

// Gradients of a weight that every row shares are summed in this many fixed pieces, whatever the threads are, so that
// the result does not depend on them.
constexpr int64_t PIECES = 16;

// Runs f(piece, begin, end) over PIECES slices of the rows.
template <typename F>
void pieces(int64_t rows, F&& f) {
  parallel(PIECES, 1, [&](int64_t first, int64_t last) {
    for (int64_t piece = first; piece < last; ++piece) f(piece, rows * piece / PIECES, rows * (piece + 1) / PIECES);
  });
}

// residual (N, D) f32 + delta (N, D) narrow -> the sum and its RMSNorm in `narrow`.
struct AddRmsNorm : Function<AddRmsNorm> {
  static variable_list forward(AutogradContext* context, const Tensor& residual_,
                               const std::optional<Tensor>& delta_, const Tensor& weight_, double eps, bool bf16) {
    Tensor residual = residual_.contiguous(), weight = weight_.to(at::kFloat).contiguous();
    const int64_t rows = residual.size(0), columns = residual.size(1);
    Tensor delta = delta_ ? delta_->contiguous() : Tensor();
    Tensor sum = delta.defined() ? at::empty_like(residual) : residual;
    Tensor normal = at::empty({rows, columns}, residual.options().dtype(bf16 ? at::kBFloat16 : at::kFloat));
    Tensor scale = at::empty({rows}, residual.options());
    dispatch(bf16, [&](const auto& k) {
      using T = decltype(kernel_type(k));
      parallel(rows, grain(columns), [&](int64_t begin, int64_t end) {
        k.add_norm_forward(pointer<float>(residual), delta.defined() ? pointer<T>(delta) : nullptr,
                         pointer<float>(weight), static_cast<float>(eps), begin, end, columns, pointer<float>(sum),
                         pointer<T>(normal), pointer<float>(scale));
      });
    });
    context->save_for_backward({sum, weight, scale});
    context->saved_data["weight"] = weight_.requires_grad();
    context->saved_data["delta"] = delta_.has_value();
    context->saved_data["bf16"] = bf16;
    // Without a delta the stream goes on unchanged and is not an output.
    return delta.defined() ? variable_list{normal, sum} : variable_list{normal};
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    const auto saved = context->get_saved_variables();
    const Tensor &sum = saved[0], &weight = saved[1], &scale = saved[2];
    const bool bf16 = context->saved_data["bf16"].toBool(), has_delta = context->saved_data["delta"].toBool();
    const bool weight_gradient = context->saved_data["weight"].toBool();
    const int64_t rows = sum.size(0), columns = sum.size(1);
    Tensor normal = gradients[0];
    Tensor stream = gradients.size() > 1 ? gradients[1] : Tensor();
    if (!normal.defined()) return {stream, has_delta ? stream.to(bf16 ? at::kBFloat16 : at::kFloat) : Tensor(), {}, {}, {}};
    normal = normal.contiguous();
    if (stream.defined()) stream = stream.contiguous();
    Tensor out = at::empty_like(sum);
    Tensor delta = has_delta && bf16 ? at::empty_like(normal) : Tensor();
    Tensor partial = weight_gradient ? at::zeros({PIECES, columns}, sum.options()) : Tensor();
    dispatch(bf16, [&](const auto& k) {
      using T = decltype(kernel_type(k));
      pieces(rows, [&](int64_t piece, int64_t begin, int64_t end) {
        k.add_norm_backward(pointer<float>(sum), pointer<float>(weight), pointer<float>(scale), pointer<T>(normal),
                          stream.defined() ? pointer<float>(stream) : nullptr, begin, end, columns,
                          pointer<float>(out), delta.defined() ? pointer<T>(delta) : nullptr,
                          partial.defined() ? pointer<float>(partial) + piece * columns : nullptr);
      });
    });
    // In f32 both inputs of the sum have the same gradient.
    if (has_delta && !bf16) delta = out;
    return {out, delta, partial.defined() ? partial.sum(0) : Tensor(), {}, {}};
  }
};

// Norm of each head when there is a weight, then the rotary embedding: x (B, T, H, head_dim).
struct Rotate : Function<Rotate> {
  static Tensor forward(AutogradContext* context, const Tensor& x_, const Tensor& cos, const Tensor& sin,
                        const std::optional<Tensor>& weight_, double eps) {
    Tensor x = x_.contiguous();
    const int64_t length = x.size(1), heads = x.size(2), dim = x.size(3), rows = x.size(0) * length;
    Tensor weight = weight_ ? weight_->to(at::kFloat).contiguous() : Tensor();
    Tensor out = at::empty_like(x);
    dispatch(narrow_is_bf16(x), [&](const auto& k) {
      using T = decltype(kernel_type(k));
      parallel(rows, grain(heads * dim), [&](int64_t begin, int64_t end) {
        k.rotate_forward(pointer<T>(x), pointer<float>(cos), pointer<float>(sin),
                       weight.defined() ? pointer<float>(weight) : nullptr, static_cast<float>(eps), begin, end,
                       length, heads, dim, pointer<T>(out));
      });
    });
    context->save_for_backward({weight.defined() ? x : Tensor(), cos, sin, weight});
    context->saved_data["weight"] = weight_ && weight_->requires_grad();
    context->saved_data["eps"] = eps;
    return out;
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    const auto saved = context->get_saved_variables();
    const Tensor &x = saved[0], &cos = saved[1], &sin = saved[2], &weight = saved[3];
    const auto eps = static_cast<float>(context->saved_data["eps"].toDouble());
    const Tensor gradient = gradients[0].contiguous();
    const int64_t length = gradient.size(1), heads = gradient.size(2), dim = gradient.size(3);
    const int64_t rows = gradient.size(0) * length;
    Tensor out = at::empty_like(gradient);
    Tensor partial;
    if (context->saved_data["weight"].toBool()) partial = at::zeros({PIECES, dim}, cos.options());
    dispatch(narrow_is_bf16(gradient), [&](const auto& k) {
      using T = decltype(kernel_type(k));
      pieces(rows, [&](int64_t piece, int64_t begin, int64_t end) {
        k.rotate_backward(x.defined() ? pointer<T>(x) : nullptr, pointer<float>(cos), pointer<float>(sin),
                        weight.defined() ? pointer<float>(weight) : nullptr, eps, pointer<T>(gradient), begin, end,
                        length, heads, dim, pointer<T>(out),
                        partial.defined() ? pointer<float>(partial) + piece * dim : nullptr);
      });
    });
    return {out, {}, {}, partial.defined() ? partial.sum(0) : Tensor(), {}};
  }
};

// (B, X, Y, D) -> (B, Y, X, D).
Tensor swap(const Tensor& x_) {
  const Tensor x = x_.contiguous();
  const int64_t first = x.size(1), second = x.size(2), bytes = x.size(3) * x.element_size();
  Tensor out = at::empty({x.size(0), second, first, x.size(3)}, x.options());
  const char* from = static_cast<const char*>(x.data_ptr());
  char* to = static_cast<char*>(out.data_ptr());
  parallel(x.size(0) * second, 16, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t batch = row / second, y = row % second;
      for (int64_t i = 0; i < first; ++i) {
        std::memcpy(to + (row * first + i) * bytes, from + ((batch * first + i) * second + y) * bytes, bytes);
      }
    }
  });
  return out;
}

// Causal attention with shared keys and values: q (B, T, H, D), k and v (B, T, G, D), G dividing H. In blocks of
// queries, so that only one block's shares exist, and with the heads that share keys in one product. The scores and
// their softmax are f32, the shares narrow. (libtorch's flash kernel does all its products in f32 on processors
// without AMX, at a quarter of the speed.)
struct Attention : Function<Attention> {
  static constexpr int64_t BLOCK = 128;
  // Shares of a sequence up to this long are kept for the backward pass; longer ones are computed again.
  static constexpr int64_t KEPT = 512;

  struct Block {
    int64_t first, count, end;
  };

  static std::vector<Block> blocks(int64_t length) {
    std::vector<Block> all;
    for (int64_t first = 0; first < length; first += BLOCK) {
      const int64_t end = std::min(length, first + BLOCK);
      all.push_back({first, end - first, end});
    }
    return all;
  }

  // The rows of a block of x (B, H, T, D) for each group of heads: (B·G, H/G·count, D).
  static Tensor rows(const Tensor& x, int64_t groups, const Block& block) {
    const int64_t shared = x.size(1) / groups;
    return x.view({x.size(0) * groups, shared, x.size(2), x.size(3)})
        .narrow(2, block.first, block.count)
        .reshape({x.size(0) * groups, shared * block.count, x.size(3)});
  }

  // Puts such rows back.
  static void put(const Tensor& x, int64_t groups, const Block& block, const Tensor& rows) {
    const int64_t shared = x.size(1) / groups;
    x.view({x.size(0) * groups, shared, x.size(2), x.size(3)})
        .narrow(2, block.first, block.count)
        .copy_(rows.view({x.size(0) * groups, shared, block.count, x.size(3)}));
  }

  // (B, G, T, D) -> the first keys of each group, (B·G, end, D).
  static Tensor keys(const Tensor& x, const Block& block) { return x.flatten(0, 1).narrow(1, 0, block.end); }

  static float scale(const Tensor& q) { return 1.0f / std::sqrt(static_cast<float>(q.size(3))); }

  // The keys as the processor's bf16 products take them, or nothing where it has none.
  static Tensor pack(const Tensor& k) {
    Tensor out;
    dispatch(narrow_is_bf16(k), [&](const auto& kernel) {
      using T = decltype(kernel_type(kernel));
      if (!kernel.scores.pack_keys) return;
      const int64_t batch = k.size(0) * k.size(1), length = k.size(2), dim = k.size(3);
      const int64_t padded = (length + SCORE_COLUMNS - 1) / SCORE_COLUMNS * SCORE_COLUMNS;
      out = at::empty({batch, padded, dim / 2}, k.options().dtype(at::kInt));
      parallel(batch, 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          kernel.scores.pack_keys(pointer<T>(k) + i * length * dim, length, dim,
                                  pointer<int32_t>(out) + i * padded * (dim / 2));
        }
      });
    });
    return out;
  }

  static Tensor shares(const Tensor& q, const Tensor& k, const Tensor& packed, const Block& block) {
    return packed.defined() ? packed_shares(q, packed, k.size(1), block) : plain_shares(q, k, block);
  }

  static Tensor packed_shares(const Tensor& q, const Tensor& packed, int64_t groups, const Block& block) {
    const Tensor queries = rows(q, groups, block);
    const int64_t batch = queries.size(0), count = queries.size(1), dim = queries.size(2);
    Tensor out = at::empty({batch, count, block.end}, q.options());
    dispatch(narrow_is_bf16(q), [&](const auto& kernel) {
      using T = decltype(kernel_type(kernel));
      constexpr int64_t PIECE = 4 * SCORE_ROWS;
      const int64_t each = (count + PIECE - 1) / PIECE;
      parallel(batch * each, 1, [&](int64_t begin, int64_t end) {
        std::vector<float> buffer(SCORE_ROWS * (block.end + SCORE_COLUMNS));
        for (int64_t piece = begin; piece < end; ++piece) {
          const int64_t i = piece / each, first = piece % each * PIECE;
          kernel.scores.shares_rows(pointer<T>(queries) + i * count * dim,
                                    pointer<int32_t>(packed) + i * packed.size(1) * (dim / 2), dim, first,
                                    std::min(count, first + PIECE), block.first, block.count, block.end, scale(q),
                                    buffer.data(), pointer<T>(out) + i * count * block.end);
        }
      });
    });
    return out;
  }

  static Tensor plain_shares(const Tensor& q, const Tensor& k, const Block& block) {
    Tensor scores = at::bmm(rows(q, k.size(1), block).to(at::kFloat), keys(k, block).to(at::kFloat).transpose(1, 2));
    Tensor out = q.scalar_type() == at::kFloat ? scores : at::empty(scores.sizes(), q.options());
    dispatch(narrow_is_bf16(q), [&](const auto& kernel) {
      using T = decltype(kernel_type(kernel));
      parallel(scores.size(0) * scores.size(1), grain(block.end), [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row) {
          kernel.softmax_row(pointer<float>(scores) + row * block.end, block.first + row % block.count + 1, block.end,
                             scale(q), pointer<T>(out) + row * block.end);
        }
      });
    });
    return out;
  }

  static Tensor forward(AutogradContext* context, const Tensor& q_, const Tensor& k_, const Tensor& v_) {
    const Tensor q = swap(q_), k = swap(k_), v = swap(v_);
    const bool keep = q.size(2) <= KEPT && (q_.requires_grad() || k_.requires_grad() || v_.requires_grad());
    Tensor out = at::empty_like(q);
    variable_list saved{q, k, v};
    const Tensor packed = pack(k);
    for (const Block& block : blocks(q.size(2))) {
      const Tensor p = shares(q, k, packed, block);
      put(out, k.size(1), block, at::bmm(p, keys(v, block)));
      if (keep) saved.push_back(p);
    }
    context->save_for_backward(saved);
    return swap(out);
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    const auto saved = context->get_saved_variables();
    const Tensor &q = saved[0], &k = saved[1], &v = saved[2];
    const int64_t groups = k.size(1);
    const Tensor gradient = swap(gradients[0]);
    Tensor d_q = at::empty_like(q), d_k = at::zeros_like(k), d_v = at::zeros_like(v);
    const Tensor packed = saved.size() > 3 ? Tensor() : pack(k);
    size_t index = 3;
    for (const Block& block : blocks(q.size(2))) {
      const Tensor p = saved.size() > 3 ? saved[index++] : shares(q, k, packed, block);
      const Tensor from = rows(gradient, groups, block);
      keys(d_v, block).baddbmm_(p.transpose(1, 2), from);
      Tensor d_scores = at::bmm(from, keys(v, block).transpose(1, 2));
      dispatch(narrow_is_bf16(q), [&](const auto& kernel) {
        using T = decltype(kernel_type(kernel));
        parallel(p.size(0) * p.size(1), grain(block.end), [&](int64_t begin, int64_t end) {
          for (int64_t row = begin; row < end; ++row) {
            kernel.softmax_backward_row(pointer<T>(p) + row * block.end, pointer<T>(d_scores) + row * block.end,
                                        block.first + row % block.count + 1, block.end, scale(q));
          }
        });
      });
      put(d_q, groups, block, at::bmm(d_scores, keys(k, block)));
      keys(d_k, block).baddbmm_(d_scores.transpose(1, 2), rows(q, groups, block));
    }
    return {swap(d_q), swap(d_k), swap(d_v)};
  }
};

// silu(gate) * up.
struct Swiglu : Function<Swiglu> {
  static Tensor forward(AutogradContext* context, const Tensor& gate_, const Tensor& up_) {
    Tensor gate = gate_.contiguous(), up = up_.contiguous();
    Tensor out = at::empty_like(gate);
    dispatch(narrow_is_bf16(gate), [&](const auto& k) {
      using T = decltype(kernel_type(k));
      parallel(gate.numel(), 16384, [&](int64_t begin, int64_t end) {
        k.swiglu_forward(pointer<T>(gate), pointer<T>(up), begin, end, pointer<T>(out));
      });
    });
    context->save_for_backward({gate, up});
    return out;
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    const auto saved = context->get_saved_variables();
    const Tensor &gate = saved[0], &up = saved[1], gradient = gradients[0].contiguous();
    Tensor gate_gradient = at::empty_like(gate), up_gradient = at::empty_like(up);
    dispatch(narrow_is_bf16(gate), [&](const auto& k) {
      using T = decltype(kernel_type(k));
      parallel(gate.numel(), 16384, [&](int64_t begin, int64_t end) {
        k.swiglu_backward(pointer<T>(gate), pointer<T>(up), pointer<T>(gradient), begin, end,
                        pointer<T>(gate_gradient), pointer<T>(up_gradient));
      });
    });
    return {gate_gradient, up_gradient};
  }
};

// x (N, in) times the transpose of each weight (out, in); the gradients of x are summed inside the products.
struct LinearsFunction : Function<LinearsFunction> {
  static variable_list forward(AutogradContext* context, const Tensor& x, at::TensorList weights) {
    variable_list saved{x}, out;
    for (const Tensor& weight : weights) {
      saved.push_back(weight);
      out.push_back(at::mm(x, weight.t()));
    }
    context->save_for_backward(saved);
    return out;
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    const auto saved = context->get_saved_variables();
    const Tensor& x = saved[0];
    variable_list out(saved.size());
    for (size_t i = 0; i < gradients.size(); ++i) {
      if (!gradients[i].defined()) continue;
      const Tensor gradient = gradients[i].contiguous();
      const Tensor& weight = saved[i + 1];
      if (context->needs_input_grad(0)) {
        if (out[0].defined()) {
          out[0].addmm_(gradient, weight);
        } else {
          out[0] = at::mm(gradient, weight);
        }
      }
      if (context->needs_input_grad(i + 1)) out[i + 1] = at::mm(gradient.t(), x);
    }
    return out;
  }
};

// A kernel checks what libtorch's operators would have checked: everything is on the CPU.
void check_cpu(std::initializer_list<const Tensor*> tensors) {
  for (const Tensor* t : tensors) TORCH_CHECK(!t || t->device().is_cpu(), "this operator runs on the CPU only");
}

std::optional<Tensor> optional(const Tensor* t) { return t ? std::optional<Tensor>(*t) : std::nullopt; }

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

char* model_add_rms_norm(const Tensor* residual, const Tensor* delta, const Tensor* weight, double eps, int bf16,
                         Tensor** sum, Tensor** normal) {
  return guarded([&] {
    check_cpu({residual, delta, weight});
    TORCH_CHECK(residual->dim() == 2 && residual->scalar_type() == at::kFloat, "the residual stream must be (N, D) f32");
    TORCH_CHECK(weight->numel() == residual->size(1), "the norm's weight does not fit the stream");
    if (delta) {
      TORCH_CHECK(delta->sizes() == residual->sizes() && narrow_is_bf16(*delta) == (bf16 != 0),
                  "what is added must have the stream's shape and the products' type");
    }
    auto out = AddRmsNorm::apply(*residual, optional(delta), *weight, eps, bf16 != 0);
    *normal = new Tensor(out[0]);
    *sum = new Tensor(out.size() > 1 ? out[1] : *residual);
  });
}

char* model_rotate(const Tensor* x, const Tensor* cos, const Tensor* sin, const Tensor* weight, double eps,
                   Tensor** out) {
  return guarded([&] {
    check_cpu({x, cos, sin, weight});
    TORCH_CHECK(x->dim() == 4 && x->size(3) % 2 == 0 && x->size(3) <= MAX_HEAD,
                "heads must be (B, T, H, head_dim), head_dim even and at most ", MAX_HEAD);
    for (const Tensor* table : {cos, sin}) {
      TORCH_CHECK(table->scalar_type() == at::kFloat && table->is_contiguous() && table->dim() == 2 &&
                      table->size(0) >= x->size(1) && table->size(1) == x->size(3) / 2,
                  "the rotary tables are too small");
    }
    TORCH_CHECK(!weight || weight->numel() == x->size(3), "the head norm's weight does not fit");
    *out = new Tensor(Rotate::apply(*x, *cos, *sin, optional(weight), eps));
  });
}

char* model_attention(const Tensor* q, const Tensor* k, const Tensor* v, Tensor** out) {
  return guarded([&] {
    check_cpu({q, k, v});
    TORCH_CHECK(q->dim() == 4 && k->dim() == 4 && k->sizes() == v->sizes() && q->size(0) == k->size(0) &&
                    q->size(1) == k->size(1) && q->size(3) == k->size(3) && q->size(2) % k->size(2) == 0,
                "queries (B, T, H, D), keys and values (B, T, G, D) with G dividing H");
    TORCH_CHECK(q->scalar_type() == k->scalar_type() && q->scalar_type() == v->scalar_type(), "types differ");
    *out = new Tensor(Attention::apply(*q, *k, *v));
  });
}

char* model_swiglu(const Tensor* gate, const Tensor* up, Tensor** out) {
  return guarded([&] {
    check_cpu({gate, up});
    TORCH_CHECK(gate->sizes() == up->sizes() && gate->scalar_type() == up->scalar_type(), "gate and up differ");
    *out = new Tensor(Swiglu::apply(*gate, *up));
  });
}

char* model_linears(const Tensor* x, const Tensor* const* weights, size_t count, Tensor** out) {
  return guarded([&] {
    std::vector<Tensor> all;
    for (size_t i = 0; i < count; ++i) all.push_back(*weights[i]);
    auto products = LinearsFunction::apply(*x, at::TensorList(all));
    for (size_t i = 0; i < count; ++i) out[i] = new Tensor(products[i]);
  });
}

void model_free(char* message) { std::free(message); }

}  // extern "C"
