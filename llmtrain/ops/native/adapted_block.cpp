// A block whose matrices stay as they are, each with an adapter of low rank that is trained
// (llmtrain/model/adapted_linear.py), and the adapters' gradients.
//
// Most of a block's gradients are not needed, so that what is left are products over all rows at
// once, by torch, and those of adapters.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/mm.h>
#include <torch/library.h>

#include <algorithm>
#include <optional>
#include <tuple>
#include <vector>

#include "layers.h"
#include "low_rank.h"
#include "tensors.h"

namespace {

using at::BFloat16;
using at::Tensor;
using llmtrain::aligned;
using llmtrain::dense;
using llmtrain::HeadsOfLayer;
using llmtrain::RowsOf;

enum Matrix { kQuery, kKey, kValue, kOutput, kGate, kUp, kDown, kMatrices };

// y = x Wᵀ + scale · (x Aᵀ) Bᵀ of W (M, K), A (R, K) and B (M, R); R may be 0.
struct Adapted {
  const Tensor &weight, &a, &b;
  double scale;
  bool has_adapter() const { return a.size(0) > 0; }
};

struct Adapters {
  at::TensorList weights, a, b;
  double scale;
  Adapted operator[](Matrix which) const { return {weights[which], a[which], b[which], scale}; }
};

void check(const Adapters& adapters) {
  const auto& [weights, a, b, scale] = adapters;
  TORCH_CHECK(weights.size() == kMatrices && a.size() == kMatrices && b.size() == kMatrices);
  for (size_t i = 0; i < kMatrices; ++i)
    TORCH_CHECK(a[i].size(1) == weights[i].size(1) && b[i].size(0) == weights[i].size(0) &&
                a[i].size(0) == b[i].size(1));
}

struct Gradients {
  std::vector<Tensor> a{kMatrices}, b{kMatrices};
};

RowsOf rows_of(const Tensor& x) {
  TORCH_CHECK(x.dim() == 2 && x.stride(1) == 1 && x.device().is_cpu() && x.size(1) % 32 == 0);
  return {x.const_data_ptr<BFloat16>(), x.size(0), x.size(1), x.stride(0)};
}

// What the products of one adapter need beside operands.
class LowRank {
 public:
  LowRank(const Tensor& rows, const Adapted& layer)
      : layer_(layer), rank_(layer.a.size(0)), scale_(static_cast<float>(layer.scale)),
        scratch_(llmtrain::scratch_of(
            llmtrain::low_rank_scratch(rows.size(0), std::max(layer.a.size(1), layer.b.size(0)),
                                       rank_, at::get_num_threads()),
            rows)) {}

  Tensor inner_of(const Tensor& x) const {
    Tensor inner = empty_inner(x);
    llmtrain::to_rank(rows_of(x), dense<BFloat16>(layer_.a), rank_,
                      inner.mutable_data_ptr<BFloat16>(), aligned(scratch_));
    return inner;
  }

  Tensor d_inner_of(const Tensor& d_y) const {
    Tensor inner = empty_inner(d_y);
    llmtrain::to_rank_of_output(rows_of(d_y), dense<BFloat16>(layer_.b), rank_,
                                inner.mutable_data_ptr<BFloat16>(), aligned(scratch_));
    return inner;
  }

  template <class T>
  void add_output(const Tensor& inner, const Tensor& y) const {
    llmtrain::add_from_rank(dense<BFloat16>(inner), dense<BFloat16>(layer_.b), rank_, scale_,
                            y.mutable_data_ptr<T>(), y.size(0), y.size(1), y.stride(0),
                            aligned(scratch_));
  }

  void add_input(const Tensor& d_inner, const Tensor& d_x) const {
    llmtrain::add_from_rank_of_input(dense<BFloat16>(d_inner), dense<BFloat16>(layer_.a), rank_,
                                     scale_, d_x.mutable_data_ptr<BFloat16>(), d_x.size(0),
                                     d_x.size(1), d_x.stride(0), aligned(scratch_));
  }

  Tensor gradient_of_a(const Tensor& x, const Tensor& d_inner) const {
    Tensor d_a = at::empty(layer_.a.sizes(), layer_.a.options().dtype(at::kFloat));
    llmtrain::gradient_of_a(rows_of(x), dense<BFloat16>(d_inner), rank_, scale_,
                            d_a.mutable_data_ptr<float>(), aligned(scratch_));
    return d_a;
  }

  Tensor gradient_of_b(const Tensor& d_y, const Tensor& inner) const {
    Tensor d_b = at::empty(layer_.b.sizes(), layer_.b.options().dtype(at::kFloat));
    llmtrain::gradient_of_b(rows_of(d_y), dense<BFloat16>(inner), rank_, scale_,
                            d_b.mutable_data_ptr<float>(), aligned(scratch_));
    return d_b;
  }

 private:
  Tensor empty_inner(const Tensor& rows) const {
    return at::empty({rows.size(0), llmtrain::padded_rank(rank_)}, layer_.a.options());
  }

  const Adapted& layer_;
  int64_t rank_;
  float scale_;
  Tensor scratch_;
};

void project_into(Tensor out, const Tensor& x, const Adapted& layer) {
  at::mm_out(out, x, layer.weight.t());
  if (!layer.has_adapter()) return;
  const LowRank adapter(x, layer);
  adapter.add_output<BFloat16>(adapter.inner_of(x), out);
}

Tensor project(const Tensor& x, const Adapted& layer) {
  Tensor out = at::empty({x.size(0), layer.weight.size(0)}, x.options());
  project_into(out, x, layer);
  return out;
}

// Returns x + project(y), in fp32.
Tensor add_projected(const Tensor& x, const Tensor& y, const Adapted& layer) {
  Tensor sum = llmtrain::add_projection(x, y, layer.weight);
  if (!layer.has_adapter()) return sum;
  const LowRank adapter(y, layer);
  adapter.add_output<float>(adapter.inner_of(y), sum);
  return sum;
}

// Returns the gradient of x, added to `d_x` if that is one, and sets those of the adapter.
Tensor differentiate(const Tensor& d_y, const Tensor& x, const Adapters& adapters, Matrix which,
                     Gradients& gradients, Tensor d_x = {}) {
  const Adapted layer = adapters[which];
  if (d_x.defined())
    d_x.addmm_(d_y, layer.weight);
  else
    d_x = at::mm(d_y, layer.weight);
  if (!layer.has_adapter()) {
    gradients.a[which] = at::empty({0}, layer.a.options().dtype(at::kFloat));
    gradients.b[which] = gradients.a[which];
    return d_x;
  }
  const LowRank adapter(x, layer);
  const Tensor d_inner = adapter.d_inner_of(d_y);
  gradients.b[which] = adapter.gradient_of_b(d_y, adapter.inner_of(x));
  gradients.a[which] = adapter.gradient_of_a(x, d_inner);
  adapter.add_input(d_inner, d_x);
  return d_x;
}

struct Kept {
  Tensor middle, heads, attended, lse;
};

// `x`: (N, C). Returns the stream after attention, and what its backward needs.
Kept attend(const Tensor& x, int64_t sequences, const Tensor& gain, const Adapters& adapters,
            const HeadsOfLayer& layer, const std::optional<Tensor>& first) {
  const int64_t q_width = adapters.weights[kQuery].size(0), k_width = adapters.weights[kKey].size(0);
  const Tensor normed = llmtrain::normalize_rows(x, gain, layer.epsilon);
  Tensor heads = at::empty({x.size(0), q_width + 2 * k_width}, normed.options());
  project_into(heads.narrow(1, 0, q_width), normed, adapters[kQuery]);
  project_into(heads.narrow(1, q_width, k_width), normed, adapters[kKey]);
  project_into(heads.narrow(1, q_width + k_width, k_width), normed, adapters[kValue]);
  const auto [q, k, v] = llmtrain::attention_operands(heads, sequences, layer);
  const auto [attended, lse] = llmtrain::attention(q, k, v, first);
  const Tensor rows = attended.flatten(0, 1);
  return {add_projected(x, rows, adapters[kOutput]), heads, rows, lse};
}

// Returns the gradient of x.
Tensor attend_backward(const Tensor& d_y, const Tensor& x, int64_t sequences, const Tensor& gain,
                       const Adapters& adapters, const HeadsOfLayer& layer,
                       const std::optional<Tensor>& first, const Kept& kept, Gradients& gradients) {
  const int64_t q_width = adapters.weights[kQuery].size(0), k_width = adapters.weights[kKey].size(0);
  const Tensor d_attended =
      differentiate(d_y.to(at::kBFloat16), kept.attended, adapters, kOutput, gradients);
  const Tensor d_heads = at::empty_like(kept.heads);
  llmtrain::attention_backward_of_heads(d_attended, kept.heads, sequences, layer, kept.attended,
                                        kept.lse, first, d_heads);
  llmtrain::rotate_heads_backward(kept.heads, d_heads, layer);
  const Tensor normed = llmtrain::normalize_rows(x, gain, layer.epsilon);
  Tensor d_normed = differentiate(d_heads.narrow(1, 0, q_width), normed, adapters, kQuery, gradients);
  differentiate(d_heads.narrow(1, q_width, k_width), normed, adapters, kKey, gradients, d_normed);
  differentiate(d_heads.narrow(1, q_width + k_width, k_width), normed, adapters, kValue, gradients,
                d_normed);
  return std::get<0>(llmtrain::normalize_rows_backward(d_normed, x, gain, layer.epsilon, d_y));
}

Tensor feed(const Tensor& x, const Tensor& gain, const Adapters& adapters, double epsilon) {
  const Tensor normed = llmtrain::normalize_rows(x, gain, epsilon);
  const Tensor hidden = project(normed, adapters[kGate]);
  llmtrain::activate_rows(hidden, project(normed, adapters[kUp]));
  return add_projected(x, hidden, adapters[kDown]);
}

// Returns the gradient of x.
Tensor feed_backward(const Tensor& d_y, const Tensor& x, const Tensor& gain,
                     const Adapters& adapters, double epsilon, Gradients& gradients) {
  const Tensor normed = llmtrain::normalize_rows(x, gain, epsilon), d_sum = d_y.to(at::kBFloat16);
  const Tensor gate = project(normed, adapters[kGate]), up = project(normed, adapters[kUp]);
  // The adapter of `down` needs the hidden rows, which are known with their gradient.
  Tensor hidden = gate.clone();
  llmtrain::activate_rows(hidden, up);
  const Tensor d_hidden = differentiate(d_sum, hidden, adapters, kDown, gradients);
  llmtrain::activate_rows_backward(d_hidden, gate, up);
  Tensor d_normed = differentiate(gate, normed, adapters, kGate, gradients);
  differentiate(up, normed, adapters, kUp, gradients, d_normed);
  return std::get<0>(llmtrain::normalize_rows_backward(d_normed, x, gain, epsilon, d_y));
}

// Returns the residual stream after the block, (B, T, C), and what its backward needs.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> adapted_block(
    const Tensor& x, at::TensorList weights, at::TensorList a, at::TensorList b, double scale,
    const Tensor& gain, const Tensor& feed_gain, const std::optional<Tensor>& q_gain,
    const std::optional<Tensor>& k_gain, const Tensor& cos, const Tensor& sin,
    const std::optional<Tensor>& first, int64_t key_heads, double epsilon) {
  const Adapters adapters{weights, a, b, scale};
  check(adapters);
  const Kept kept = attend(x.flatten(0, 1).contiguous(), x.size(0), gain, adapters,
                           {q_gain, k_gain, cos, sin, key_heads, epsilon}, first);
  const Tensor y = feed(kept.middle, feed_gain, adapters, epsilon);
  return {y.view(x.sizes()), kept.middle, kept.heads, kept.attended, kept.lse};
}

// Returns the gradients of x, and of every a and b in the order of matrices. `kept`: what the forward
// returned beside the stream, or nothing, and it is computed again.
std::tuple<Tensor, std::vector<Tensor>, std::vector<Tensor>> adapted_block_backward(
    const Tensor& d_y, const Tensor& x, at::TensorList weights, at::TensorList a, at::TensorList b,
    double scale, const Tensor& gain, const Tensor& feed_gain, const std::optional<Tensor>& q_gain,
    const std::optional<Tensor>& k_gain, const Tensor& cos, const Tensor& sin,
    const std::optional<Tensor>& first, int64_t key_heads, double epsilon, at::TensorList kept) {
  const Adapters adapters{weights, a, b, scale};
  check(adapters);
  const HeadsOfLayer layer{q_gain, k_gain, cos, sin, key_heads, epsilon};
  const Tensor rows = x.flatten(0, 1).contiguous();
  const Kept all = kept.empty() ? attend(rows, x.size(0), gain, adapters, layer, first)
                                : Kept{kept[0], kept[1], kept[2], kept[3]};
  Gradients gradients;
  const Tensor d_middle = feed_backward(d_y.flatten(0, 1).contiguous(), all.middle, feed_gain,
                                        adapters, epsilon, gradients);
  const Tensor d_x = attend_backward(d_middle, rows, x.size(0), gain, adapters, layer, first, all,
                                     gradients);
  return {d_x.view(x.sizes()), gradients.a, gradients.b};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(llmtrain_native, m) {
  m.def("adapted_block(Tensor x, Tensor[] weights, Tensor[] a, Tensor[] b, float scale, "
        "Tensor gain, Tensor feed_gain, Tensor? q_gain, Tensor? k_gain, Tensor cos, Tensor sin, "
        "Tensor? first, int key_heads, float epsilon) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
        &adapted_block);
  m.def("adapted_block_backward(Tensor d_y, Tensor x, Tensor[] weights, Tensor[] a, Tensor[] b, "
        "float scale, Tensor gain, Tensor feed_gain, Tensor? q_gain, Tensor? k_gain, Tensor cos, "
        "Tensor sin, Tensor? first, int key_heads, float epsilon, Tensor[] kept) -> "
        "(Tensor, Tensor[], Tensor[])", &adapted_block_backward);
}
