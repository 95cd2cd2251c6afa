// A pre-norm block, attention and then SwiGLU, each added to the residual, and its gradients. One
// operator each: what Python and torch spend on a dozen small ones, with caches that the kernels
// have swept, takes as long as some of the kernels.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <optional>
#include <tuple>

#include "layers.h"

namespace {

using at::Tensor;
using llmtrain::FeedForwardLayer;
using llmtrain::HeadsOfLayer;

// Returns x + o(attention(n(x))), and what the backward needs: heads, attended rows (N, H · D) and
// their log-sum-exp. `x`: (N, C); `qkv`: the weights of queries, keys and values as one.
std::tuple<Tensor, Tensor, Tensor, Tensor> attention_layer(
    const Tensor& x, int64_t sequences, const Tensor& gain, const Tensor& qkv, const Tensor& o,
    const HeadsOfLayer& layer, const std::optional<Tensor>& first) {
  Tensor heads = llmtrain::project_normed(x, gain, layer.epsilon, qkv);
  const auto [q, k, v] = llmtrain::attention_operands(heads, sequences, layer);
  auto [attended, lse] = llmtrain::attention(q, k, v, first);
  const Tensor attended_rows = attended.flatten(0, 1);
  return {llmtrain::add_projection(x, attended_rows, o), heads, attended_rows, lse};
}

// Returns the gradients of x, the gain, both weights and both gains of heads, in that order.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> attention_layer_backward(
    const Tensor& d_y, const Tensor& x, int64_t sequences, const Tensor& gain, const Tensor& qkv,
    const Tensor& o, const HeadsOfLayer& layer, const std::optional<Tensor>& first,
    const Tensor& heads, const Tensor& attended, const Tensor& lse) {
  const auto [d_sum, d_attended] = llmtrain::round_and_project(d_y, o);
  const Tensor d_o = llmtrain::weight_gradient(d_sum, attended);
  const Tensor d_heads = at::empty_like(heads);
  llmtrain::attention_backward_of_heads(d_attended, heads, sequences, layer, attended, lse, first,
                                        d_heads);
  const auto [d_q_gain, d_k_gain] = llmtrain::rotate_heads_backward(heads, d_heads, layer);
  const Tensor d_qkv =
      llmtrain::weight_gradient(d_heads, llmtrain::normalize_rows(x, gain, layer.epsilon));
  const auto [d_x, d_gain] =
      llmtrain::project_normed_backward(d_heads, x, gain, layer.epsilon, qkv, d_y);
  return {d_x, d_gain, d_qkv, d_o, d_q_gain, d_k_gain};
}

// Returns the residual stream after the block, (B, T, C), and what its backward needs: the stream
// after attention, heads, attended rows and their log-sum-exp; and the gates, if they are kept.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, std::optional<Tensor>> block(
    const Tensor& x, const Tensor& gain, const Tensor& qkv, const Tensor& o,
    const Tensor& feed_gain, const Tensor& gate, const Tensor& up, const Tensor& down,
    const std::optional<Tensor>& q_gain, const std::optional<Tensor>& k_gain, const Tensor& cos,
    const Tensor& sin, const std::optional<Tensor>& first, int64_t key_heads, double epsilon,
    bool keeps_gates) {
  const HeadsOfLayer layer{q_gain, k_gain, cos, sin, key_heads, epsilon};
  const FeedForwardLayer feed{feed_gain, gate, up, down, epsilon};
  auto [middle, heads, attended, lse] = attention_layer(
      x.flatten(0, 1).contiguous(), x.size(0), gain, qkv, o, layer, first);
  const auto [y, gates] = llmtrain::feed_forward(middle, feed, keeps_gates);
  return {y.view(x.sizes()), middle, heads, attended, lse, gates};
}

// Returns the gradients of x, and of gain, qkv, o, feed_gain, gate, up, down, q_gain and k_gain.
// `kept`: of what the forward returned beside the stream all, or all but the gates, or nothing. What
// is missing is computed again.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>
block_backward(const Tensor& d_y, const Tensor& x, const Tensor& gain, const Tensor& qkv,
               const Tensor& o, const Tensor& feed_gain, const Tensor& gate, const Tensor& up,
               const Tensor& down, const std::optional<Tensor>& q_gain,
               const std::optional<Tensor>& k_gain, const Tensor& cos, const Tensor& sin,
               const std::optional<Tensor>& first, int64_t key_heads, double epsilon,
               at::TensorList kept) {
  const HeadsOfLayer layer{q_gain, k_gain, cos, sin, key_heads, epsilon};
  const FeedForwardLayer feed{feed_gain, gate, up, down, epsilon};
  const Tensor rows = x.flatten(0, 1).contiguous();
  const auto [middle, heads, attended, lse] =
      kept.empty() ? attention_layer(rows, x.size(0), gain, qkv, o, layer, first)
                   : std::make_tuple(kept[0], kept[1], kept[2], kept[3]);
  const auto gates = kept.size() > 4 ? std::optional<Tensor>(kept[4]) : std::nullopt;
  const auto [d_middle, d_feed_gain, d_gate, d_up, d_down] =
      llmtrain::feed_forward_backward(d_y.flatten(0, 1).contiguous(), middle, feed, gates);
  const auto [d_x, d_gain, d_qkv, d_o, d_q_gain, d_k_gain] = attention_layer_backward(
      d_middle, rows, x.size(0), gain, qkv, o, layer, first, heads, attended, lse);
  return {d_x.view(x.sizes()), d_gain, d_qkv, d_o, d_feed_gain, d_gate, d_up, d_down,
          d_q_gain,            d_k_gain};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(llmtrain_native, m) {
  m.def("block(Tensor x, Tensor gain, Tensor qkv, Tensor o, Tensor feed_gain, Tensor gate, "
        "Tensor up, Tensor down, Tensor? q_gain, Tensor? k_gain, Tensor cos, Tensor sin, "
        "Tensor? first, int key_heads, float epsilon, bool keeps_gates) -> "
        "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor?)", &block);
  m.def("block_backward(Tensor d_y, Tensor x, Tensor gain, Tensor qkv, Tensor o, "
        "Tensor feed_gain, Tensor gate, Tensor up, Tensor down, Tensor? q_gain, Tensor? k_gain, "
        "Tensor cos, Tensor sin, Tensor? first, int key_heads, float epsilon, Tensor[] kept) -> "
        "(Tensor, Tensor, Tensor, Tensor, Tensor, "
        "Tensor, Tensor, Tensor, Tensor, Tensor)", &block_backward);
}
