// torch.ops.llmtrain_native: the kernels of a block on tensors.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <optional>
#include <tuple>

#include "attention.h"
#include "feed_forward.h"
#include "projections.h"
#include "tensors.h"

namespace {

using at::BFloat16;
using at::Tensor;
using llmtrain::aligned;
using llmtrain::dense;
using llmtrain::heads_of;
using llmtrain::scratch_of;

Tensor floats(at::IntArrayRef sizes, const Tensor& like) {
  return at::empty(sizes, like.options().dtype(at::kFloat));
}

llmtrain::FeedForwardShape feed_forward_shape(const Tensor& x, const Tensor& gate, double epsilon) {
  TORCH_CHECK(x.dim() == 2 && gate.dim() == 2 && gate.size(1) == x.size(1) &&
                  x.size(1) % 32 == 0 && gate.size(0) % 32 == 0,
              "expected rows and weights whose sizes are multiples of 32");
  return {x.size(0), x.size(1), gate.size(0), static_cast<float>(epsilon)};
}

llmtrain::FeedForwardWeights weights_of(const Tensor& gain, const Tensor& gate, const Tensor& up,
                                        const Tensor& down) {
  TORCH_CHECK(up.sizes() == gate.sizes() && down.size(0) == gate.size(1) &&
              down.size(1) == gate.size(0) && gain.numel() == gate.size(1));
  return {dense<float>(gain), dense<BFloat16>(gate), dense<BFloat16>(up), dense<BFloat16>(down)};
}

Tensor feed_forward(const Tensor& x, const Tensor& gain, const Tensor& gate, const Tensor& up,
                    const Tensor& down, double epsilon) {
  const auto shape = feed_forward_shape(x, gate, epsilon);
  const int threads = at::get_num_threads();
  Tensor y = at::empty_like(x);
  const Tensor scratch = scratch_of(llmtrain::feed_forward_scratch(shape, threads), x);
  llmtrain::feed_forward(shape, weights_of(gain, gate, up, down), dense<float>(x),
                         y.mutable_data_ptr<float>(), aligned(scratch), threads);
  return y;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> feed_forward_backward(
    const Tensor& d_y, const Tensor& x, const Tensor& gain, const Tensor& gate, const Tensor& up,
    const Tensor& down, double epsilon) {
  const auto shape = feed_forward_shape(x, gate, epsilon);
  TORCH_CHECK(d_y.sizes() == x.sizes());
  const int threads = at::get_num_threads();
  Tensor d_x = at::empty_like(x), d_gain = at::empty_like(gain);
  Tensor d_gate = floats(gate.sizes(), x), d_up = floats(up.sizes(), x);
  Tensor d_down = floats(down.sizes(), x);
  const Tensor scratch = scratch_of(llmtrain::feed_forward_backward_scratch(shape, threads), x);
  const llmtrain::FeedForwardGradients gradients{
      d_x.mutable_data_ptr<float>(), d_gain.mutable_data_ptr<float>(),
      d_gate.mutable_data_ptr<float>(), d_up.mutable_data_ptr<float>(),
      d_down.mutable_data_ptr<float>()};
  llmtrain::feed_forward_backward(shape, weights_of(gain, gate, up, down), dense<float>(d_y),
                                  dense<float>(x), gradients, aligned(scratch), threads);
  return {d_x, d_gain, d_gate, d_up, d_down};
}

Tensor normalize(const Tensor& x, const Tensor& gain, double epsilon) {
  TORCH_CHECK(x.dim() == 2 && x.size(1) == gain.numel() && x.size(1) % 32 == 0);
  Tensor out = at::empty(x.sizes(), x.options().dtype(at::kBFloat16));
  llmtrain::normalize(dense<float>(x), dense<float>(gain), x.size(0), x.size(1),
                      static_cast<float>(epsilon), out.mutable_data_ptr<BFloat16>());
  return out;
}

std::tuple<Tensor, Tensor> normalize_backward(const Tensor& d_normed, const Tensor& x,
                                              const Tensor& gain, double epsilon,
                                              const std::optional<Tensor>& residual) {
  TORCH_CHECK(d_normed.sizes() == x.sizes() && x.dim() == 2 && x.size(1) == gain.numel() &&
              x.size(1) % 32 == 0 && (!residual || residual->sizes() == x.sizes()));
  Tensor d_x = at::empty_like(x), d_gain = at::empty_like(gain);
  const Tensor scratch = scratch_of(llmtrain::normalize_backward_scratch(x.size(0), x.size(1)), x);
  llmtrain::normalize_backward(
      dense<BFloat16>(d_normed), dense<float>(x), dense<float>(gain), x.size(0), x.size(1),
      static_cast<float>(epsilon), residual ? dense<float>(*residual) : nullptr,
      d_x.mutable_data_ptr<float>(), d_gain.mutable_data_ptr<float>(), aligned(scratch));
  return {d_x, d_gain};
}

// `heads`: (N, (H + 2 G) · D).
llmtrain::HeadsShape heads_shape(const Tensor& heads, const Tensor& cos, int64_t key_heads,
                                 double epsilon) {
  const int64_t size = 2 * cos.size(1), number = heads.size(1) / size;
  TORCH_CHECK(heads.dim() == 2 && heads.size(1) == number * size && number > 2 * key_heads &&
                  heads.size(0) % cos.size(0) == 0,
              "heads of another size");
  return {heads.size(0), number - 2 * key_heads, key_heads,
          size,          cos.size(0),            static_cast<float>(epsilon)};
}

llmtrain::HeadsParameters heads_parameters(const std::optional<Tensor>& q_gain,
                                           const std::optional<Tensor>& k_gain, const Tensor& cos,
                                           const Tensor& sin) {
  const int64_t size = 2 * cos.size(1);
  TORCH_CHECK(q_gain.has_value() == k_gain.has_value() && cos.sizes() == sin.sizes());
  TORCH_CHECK(!q_gain || (q_gain->numel() == size && k_gain->numel() == size));
  return {q_gain ? dense<float>(*q_gain) : nullptr, k_gain ? dense<float>(*k_gain) : nullptr,
          dense<float>(cos), dense<float>(sin)};
}

Tensor rotate_heads(const Tensor& heads, const std::optional<Tensor>& q_gain,
                    const std::optional<Tensor>& k_gain, const Tensor& cos, const Tensor& sin,
                    int64_t key_heads, double epsilon) {
  const auto shape = heads_shape(heads, cos, key_heads, epsilon);
  const int64_t stride = (shape.heads + shape.key_heads) * shape.size;
  Tensor out = at::empty({shape.tokens, stride}, heads.options());
  llmtrain::rotate_heads(shape, heads_parameters(q_gain, k_gain, cos, sin),
                         dense<BFloat16>(heads), out.mutable_data_ptr<BFloat16>(), stride);
  return out;
}

// Replaces `d_heads`, the gradient of rotated queries and keys and of values.
std::tuple<Tensor, Tensor> rotate_heads_backward(const Tensor& heads, Tensor d_heads,
                                                 const std::optional<Tensor>& q_gain,
                                                 const std::optional<Tensor>& k_gain,
                                                 const Tensor& cos, const Tensor& sin,
                                                 int64_t key_heads, double epsilon) {
  const auto shape = heads_shape(heads, cos, key_heads, epsilon);
  TORCH_CHECK(d_heads.sizes() == heads.sizes());
  const int64_t size = q_gain ? shape.size : 0;
  Tensor d_q_gain = floats({size}, heads), d_k_gain = floats({size}, heads);
  const Tensor scratch = scratch_of(llmtrain::rotate_heads_backward_scratch(shape), heads);
  dense<BFloat16>(d_heads);
  llmtrain::rotate_heads_backward(shape, heads_parameters(q_gain, k_gain, cos, sin),
                                  dense<BFloat16>(heads), d_heads.mutable_data_ptr<BFloat16>(),
                                  d_q_gain.mutable_data_ptr<float>(),
                                  d_k_gain.mutable_data_ptr<float>(), aligned(scratch));
  return {d_q_gain, d_k_gain};
}

Tensor add_projection(const Tensor& x, const Tensor& y, const Tensor& weight) {
  TORCH_CHECK(x.dim() == 2 && y.dim() == 2 && weight.dim() == 2 && x.size(0) == y.size(0) &&
              weight.size(0) == x.size(1) && weight.size(1) == y.size(1) &&
              x.size(1) % 32 == 0 && y.size(1) % 32 == 0);
  const llmtrain::ProjectionShape shape{x.size(0), x.size(1), y.size(1)};
  const int threads = at::get_num_threads();
  Tensor out = at::empty_like(x);
  const Tensor scratch = scratch_of(llmtrain::add_projection_scratch(shape, threads), x);
  llmtrain::add_projection(shape, dense<float>(x), dense<BFloat16>(y), dense<BFloat16>(weight),
                           out.mutable_data_ptr<float>(), aligned(scratch), threads);
  return out;
}

Tensor weight_gradient(const Tensor& d_y, const Tensor& x) {
  TORCH_CHECK(d_y.dim() == 2 && x.dim() == 2 && d_y.size(0) == x.size(0) &&
              d_y.size(1) % 32 == 0 && x.size(1) % 32 == 0);
  const llmtrain::ProjectionShape shape{x.size(0), d_y.size(1), x.size(1)};
  const int threads = at::get_num_threads();
  Tensor d_weight = floats({shape.size, shape.width}, x);
  const Tensor scratch = scratch_of(llmtrain::weight_gradient_scratch(shape, threads), x);
  llmtrain::weight_gradient(shape, dense<BFloat16>(d_y), dense<BFloat16>(x),
                            d_weight.mutable_data_ptr<float>(), aligned(scratch), threads);
  return d_weight;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(llmtrain_native, m) {
  m.def("feed_forward(Tensor x, Tensor gain, Tensor gate, Tensor up, Tensor down, float epsilon) "
        "-> Tensor", &feed_forward);
  m.def("feed_forward_backward(Tensor d_y, Tensor x, Tensor gain, Tensor gate, Tensor up, "
        "Tensor down, float epsilon) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
        &feed_forward_backward);
  m.def("normalize(Tensor x, Tensor gain, float epsilon) -> Tensor", &normalize);
  m.def("normalize_backward(Tensor d_normed, Tensor x, Tensor gain, float epsilon, "
        "Tensor? residual) -> (Tensor, Tensor)", &normalize_backward);
  m.def("rotate_heads(Tensor heads, Tensor? q_gain, Tensor? k_gain, Tensor cos, Tensor sin, "
        "int key_heads, float epsilon) -> Tensor", &rotate_heads);
  m.def("rotate_heads_backward(Tensor heads, Tensor(a!) d_heads, Tensor? q_gain, Tensor? k_gain, "
        "Tensor cos, Tensor sin, int key_heads, float epsilon) -> (Tensor, Tensor)",
        &rotate_heads_backward);
  m.def("add_projection(Tensor x, Tensor y, Tensor weight) -> Tensor", &add_projection);
  m.def("weight_gradient(Tensor d_y, Tensor x) -> Tensor", &weight_gradient);
}
