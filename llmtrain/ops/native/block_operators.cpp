// torch.ops.llmtrain_native: the kernels of a block on tensors.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <optional>
#include <tuple>

#include "feed_forward.h"
#include "layers.h"
#include "projections.h"
#include "tensors.h"

using at::BFloat16;
using at::Tensor;
using llmtrain::aligned;
using llmtrain::dense;
using llmtrain::scratch_of;

namespace {

Tensor floats(at::IntArrayRef sizes, const Tensor& like) {
  return at::empty(sizes, like.options().dtype(at::kFloat));
}

}  // namespace

namespace llmtrain {

namespace {

FeedForwardShape shape_of(const Tensor& x, const FeedForwardLayer& layer) {
  TORCH_CHECK(x.dim() == 2 && layer.gate.dim() == 2 && layer.gate.size(1) == x.size(1) &&
                  x.size(1) % 32 == 0 && layer.gate.size(0) % 32 == 0,
              "expected rows and weights whose sizes are multiples of 32");
  return {x.size(0), x.size(1), layer.gate.size(0), static_cast<float>(layer.epsilon)};
}

FeedForwardWeights weights_of(const FeedForwardLayer& layer) {
  const auto& [gain, gate, up, down, epsilon] = layer;
  TORCH_CHECK(up.sizes() == gate.sizes() && down.size(0) == gate.size(1) &&
              down.size(1) == gate.size(0) && gain.numel() == gate.size(1));
  return {dense<float>(gain), dense<BFloat16>(gate), dense<BFloat16>(up), dense<BFloat16>(down)};
}

}  // namespace

std::tuple<Tensor, std::optional<Tensor>> feed_forward(const Tensor& x,
                                                       const FeedForwardLayer& layer,
                                                       bool keeps_gates) {
  const FeedForwardShape shape = shape_of(x, layer);
  const int threads = at::get_num_threads();
  Tensor y = at::empty_like(x);
  std::optional<Tensor> gates;
  if (keeps_gates)
    gates = at::empty({gate_blocks(shape), 2 * shape.features, kGateBlock}, layer.gate.options());
  const Tensor scratch = scratch_of(feed_forward_scratch(shape, threads), x);
  feed_forward(shape, weights_of(layer), dense<float>(x), y.mutable_data_ptr<float>(),
               gates ? gates->mutable_data_ptr<BFloat16>() : nullptr, aligned(scratch), threads);
  return {y, gates};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> feed_forward_backward(
    const Tensor& d_y, const Tensor& x, const FeedForwardLayer& layer,
    const std::optional<Tensor>& gates) {
  const FeedForwardShape shape = shape_of(x, layer);
  TORCH_CHECK(d_y.sizes() == x.sizes());
  TORCH_CHECK(!gates || gates->numel() == gate_blocks(shape) * 2 * shape.features * kGateBlock);
  const int threads = at::get_num_threads();
  Tensor d_x = at::empty_like(x), d_gain = at::empty_like(layer.gain);
  Tensor d_gate = floats(layer.gate.sizes(), x), d_up = floats(layer.up.sizes(), x);
  Tensor d_down = floats(layer.down.sizes(), x);
  const Tensor scratch = scratch_of(feed_forward_backward_scratch(shape, threads), x);
  const FeedForwardGradients gradients{
      d_x.mutable_data_ptr<float>(), d_gain.mutable_data_ptr<float>(),
      d_gate.mutable_data_ptr<float>(), d_up.mutable_data_ptr<float>(),
      d_down.mutable_data_ptr<float>()};
  feed_forward_backward(shape, weights_of(layer), dense<float>(d_y), dense<float>(x),
                        gates ? dense<BFloat16>(*gates) : nullptr, gradients, aligned(scratch),
                        threads);
  return {d_x, d_gain, d_gate, d_up, d_down};
}

Tensor normalize_rows(const Tensor& x, const Tensor& gain, double epsilon) {
  TORCH_CHECK(x.dim() == 2 && x.size(1) == gain.numel() && x.size(1) % 32 == 0);
  Tensor out = at::empty(x.sizes(), x.options().dtype(at::kBFloat16));
  normalize(dense<float>(x), dense<float>(gain), x.size(0), x.size(1),
            static_cast<float>(epsilon), out.mutable_data_ptr<BFloat16>());
  return out;
}

std::tuple<Tensor, Tensor> normalize_rows_backward(const Tensor& d_normed, const Tensor& x,
                                                   const Tensor& gain, double epsilon,
                                                   const std::optional<Tensor>& residual) {
  TORCH_CHECK(d_normed.sizes() == x.sizes() && x.dim() == 2 && x.size(1) == gain.numel() &&
              x.size(1) % 32 == 0 && (!residual || residual->sizes() == x.sizes()));
  Tensor d_x = at::empty_like(x), d_gain = at::empty_like(gain);
  const Tensor scratch = scratch_of(normalize_backward_scratch(x.size(0), x.size(1)), x);
  normalize_backward(
      dense<BFloat16>(d_normed), dense<float>(x), dense<float>(gain), x.size(0), x.size(1),
      static_cast<float>(epsilon), residual ? dense<float>(*residual) : nullptr,
      d_x.mutable_data_ptr<float>(), d_gain.mutable_data_ptr<float>(), aligned(scratch));
  return {d_x, d_gain};
}

namespace {

// `heads`: (N, (H + 2 G) · D).
HeadsShape shape_of(const Tensor& heads, const HeadsOfLayer& layer) {
  const int64_t size = 2 * layer.cos.size(1), number = heads.size(1) / size;
  TORCH_CHECK(heads.dim() == 2 && heads.size(1) == number * size &&
                  number > 2 * layer.key_heads && heads.size(0) % layer.cos.size(0) == 0,
              "heads of another size");
  return {heads.size(0), number - 2 * layer.key_heads, layer.key_heads,
          size,          layer.cos.size(0),            static_cast<float>(layer.epsilon)};
}

HeadsParameters parameters_of(const HeadsOfLayer& layer) {
  const auto& [q_gain, k_gain, cos, sin, key_heads, epsilon] = layer;
  const int64_t size = 2 * cos.size(1);
  TORCH_CHECK(q_gain.has_value() == k_gain.has_value() && cos.sizes() == sin.sizes());
  TORCH_CHECK(!q_gain || (q_gain->numel() == size && k_gain->numel() == size));
  return {q_gain ? dense<float>(*q_gain) : nullptr, k_gain ? dense<float>(*k_gain) : nullptr,
          dense<float>(cos), dense<float>(sin)};
}

}  // namespace

Tensor rotate_heads(const Tensor& heads, const HeadsOfLayer& layer) {
  const HeadsShape shape = shape_of(heads, layer);
  const int64_t stride = (shape.heads + shape.key_heads) * shape.size;
  Tensor out = at::empty({shape.tokens, stride}, heads.options());
  rotate_heads(shape, parameters_of(layer), dense<BFloat16>(heads),
               out.mutable_data_ptr<BFloat16>(), stride);
  return out;
}

std::tuple<Tensor, Tensor> rotate_heads_backward(const Tensor& heads, const Tensor& d_heads,
                                                 const HeadsOfLayer& layer) {
  const HeadsShape shape = shape_of(heads, layer);
  TORCH_CHECK(d_heads.sizes() == heads.sizes());
  const int64_t size = layer.q_gain ? shape.size : 0;
  Tensor d_q_gain = floats({size}, heads), d_k_gain = floats({size}, heads);
  const Tensor scratch = scratch_of(rotate_heads_backward_scratch(shape), heads);
  dense<BFloat16>(d_heads);
  rotate_heads_backward(shape, parameters_of(layer), dense<BFloat16>(heads),
                        d_heads.mutable_data_ptr<BFloat16>(), d_q_gain.mutable_data_ptr<float>(),
                        d_k_gain.mutable_data_ptr<float>(), aligned(scratch));
  return {d_q_gain, d_k_gain};
}

namespace {

// Views (B, heads, T, D) of queries, keys and values, and of keys once more where rows have none.
std::array<Tensor, 3> split(const Tensor& rows, int64_t sequences, const HeadsShape& shape) {
  const Tensor heads =
      rows.view({sequences, rows.size(0) / sequences, rows.size(1) / shape.size, shape.size})
          .transpose(1, 2);
  return {heads.narrow(1, 0, shape.heads), heads.narrow(1, shape.heads, shape.key_heads),
          heads.narrow(1, heads.size(1) - shape.key_heads, shape.key_heads)};
}

Tensor windows_of(const Tensor& rows, int64_t sequences) {
  return rows.view({sequences, rows.size(0) / sequences, rows.size(1)});
}

}  // namespace

std::array<Tensor, 3> attention_operands(const Tensor& heads, int64_t sequences,
                                         const HeadsOfLayer& layer) {
  const HeadsShape shape = shape_of(heads, layer);
  const auto [q, k, unused] = split(rotate_heads(heads, layer), sequences, shape);
  return {q, k, split(heads, sequences, shape)[2]};
}

void attention_backward_of_heads(const Tensor& d_attended, const Tensor& heads, int64_t sequences,
                                 const HeadsOfLayer& layer, const Tensor& attended,
                                 const Tensor& lse, const std::optional<Tensor>& first,
                                 const Tensor& d_heads) {
  const auto [q, k, v] = attention_operands(heads, sequences, layer);
  const auto [d_q, d_k, d_v] = split(d_heads, sequences, shape_of(heads, layer));
  attention_backward_into(windows_of(d_attended, sequences), q, k, v,
                          windows_of(attended, sequences), lse, first, d_q, d_k, d_v);
}

namespace {

void check_gates(const Tensor& gate, const Tensor& up) {
  TORCH_CHECK(gate.sizes() == up.sizes() && gate.numel() % 32 == 0);
  dense<BFloat16>(gate), dense<BFloat16>(up);
}

}  // namespace

void activate_rows(const Tensor& gate, const Tensor& up) {
  check_gates(gate, up);
  activate(gate.numel(), gate.mutable_data_ptr<BFloat16>(), dense<BFloat16>(up));
}

void activate_rows_backward(const Tensor& d_hidden, const Tensor& gate, const Tensor& up) {
  check_gates(gate, up);
  TORCH_CHECK(d_hidden.sizes() == gate.sizes());
  activate_backward(gate.numel(), dense<BFloat16>(d_hidden), gate.mutable_data_ptr<BFloat16>(),
                    up.mutable_data_ptr<BFloat16>());
}

namespace {

ProjectionShape shape_of(const Tensor& rows, const Tensor& weight) {
  TORCH_CHECK(rows.dim() == 2 && weight.dim() == 2 && weight.size(0) % 32 == 0 &&
                  weight.size(1) % 32 == 0,
              "expected rows and a weight whose sizes are multiples of 32");
  return {rows.size(0), weight.size(0), weight.size(1)};
}

}  // namespace

Tensor project_normed(const Tensor& x, const Tensor& gain, double epsilon, const Tensor& weight) {
  const ProjectionShape shape = shape_of(x, weight);
  TORCH_CHECK(x.size(1) == shape.width && gain.numel() == shape.width);
  const int threads = at::get_num_threads();
  Tensor out = at::empty({shape.tokens, shape.size}, weight.options());
  const Tensor scratch = scratch_of(row_products_scratch(shape, threads), x);
  project_normed(shape, dense<float>(x), dense<float>(gain), static_cast<float>(epsilon),
                 dense<BFloat16>(weight), out.mutable_data_ptr<BFloat16>(), aligned(scratch),
                 threads);
  return out;
}

std::tuple<Tensor, Tensor> project_normed_backward(const Tensor& d_out, const Tensor& x,
                                                   const Tensor& gain, double epsilon,
                                                   const Tensor& weight, const Tensor& residual) {
  const ProjectionShape shape = shape_of(d_out, weight);
  TORCH_CHECK(d_out.size(1) == shape.size && x.size(0) == shape.tokens &&
              x.size(1) == shape.width && gain.numel() == shape.width &&
              residual.sizes() == x.sizes());
  const int threads = at::get_num_threads();
  Tensor d_x = at::empty_like(x), d_gain = at::empty_like(gain);
  const Tensor scratch = scratch_of(row_products_scratch(shape, threads), x);
  project_normed_backward(shape, dense<BFloat16>(d_out), dense<float>(x), dense<float>(gain),
                          static_cast<float>(epsilon), dense<BFloat16>(weight),
                          dense<float>(residual), d_x.mutable_data_ptr<float>(),
                          d_gain.mutable_data_ptr<float>(), aligned(scratch), threads);
  return {d_x, d_gain};
}

Tensor add_projection(const Tensor& x, const Tensor& y, const Tensor& weight) {
  const ProjectionShape shape = shape_of(y, weight);
  TORCH_CHECK(x.dim() == 2 && x.size(0) == shape.tokens && x.size(1) == shape.size &&
              y.size(1) == shape.width);
  const int threads = at::get_num_threads();
  Tensor out = at::empty_like(x);
  const Tensor scratch = scratch_of(row_products_scratch(shape, threads), x);
  add_projection(shape, dense<float>(x), dense<BFloat16>(y), dense<BFloat16>(weight),
                 out.mutable_data_ptr<float>(), aligned(scratch), threads);
  return out;
}

std::tuple<Tensor, Tensor> round_and_project(const Tensor& d_y, const Tensor& weight) {
  const ProjectionShape shape = shape_of(d_y, weight);
  TORCH_CHECK(d_y.size(1) == shape.size);
  const int threads = at::get_num_threads();
  Tensor rounded = at::empty(d_y.sizes(), weight.options());
  Tensor d_x = at::empty({shape.tokens, shape.width}, weight.options());
  const Tensor scratch = scratch_of(row_products_scratch(shape, threads), d_y);
  round_and_project(shape, dense<float>(d_y), dense<BFloat16>(weight),
                    rounded.mutable_data_ptr<BFloat16>(), d_x.mutable_data_ptr<BFloat16>(),
                    aligned(scratch), threads);
  return {rounded, d_x};
}

Tensor weight_gradient(const Tensor& d_y, const Tensor& x) {
  TORCH_CHECK(d_y.dim() == 2 && x.dim() == 2 && d_y.size(0) == x.size(0) &&
              d_y.size(1) % 32 == 0 && x.size(1) % 32 == 0);
  const ProjectionShape shape{x.size(0), d_y.size(1), x.size(1)};
  const int threads = at::get_num_threads();
  Tensor d_weight = floats({shape.size, shape.width}, x);
  const Tensor scratch = scratch_of(weight_gradient_scratch(shape, threads), x);
  weight_gradient(shape, dense<BFloat16>(d_y), dense<BFloat16>(x),
                  d_weight.mutable_data_ptr<float>(), aligned(scratch), threads);
  return d_weight;
}

}  // namespace llmtrain

TORCH_LIBRARY_FRAGMENT(llmtrain_native, m) {
  m.def("normalize(Tensor x, Tensor gain, float epsilon) -> Tensor", &llmtrain::normalize_rows);
  m.def("normalize_backward(Tensor d_normed, Tensor x, Tensor gain, float epsilon, "
        "Tensor? residual) -> (Tensor, Tensor)", &llmtrain::normalize_rows_backward);
}
