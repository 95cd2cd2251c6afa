// A pre-norm block, attention and then SwiGLU, each added to the residual, and its gradients. One
// operator each: what Python and torch spend on a dozen small ones, with caches that the kernels
// have swept, takes as long as some of the kernels.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/mm.h>
#include <torch/library.h>

#include <array>
#include <optional>
#include <tuple>

#include "layers.h"

namespace {

using at::Tensor;
using llmtrain::FeedForwardLayer;
using llmtrain::HeadsOfLayer;

// Views (B, heads, T, D) of queries, keys and values, and of keys once more where rows have none.
std::array<Tensor, 3> split(const Tensor& rows, int64_t sequences, const HeadsOfLayer& layer,
                            int64_t queries) {
  const int64_t size = 2 * layer.cos.size(1), keys = layer.key_heads;
  const Tensor heads = rows.view({sequences, rows.size(0) / sequences, rows.size(1) / size, size})
                           .transpose(1, 2);
  return {heads.narrow(1, 0, queries), heads.narrow(1, queries, keys),
          heads.narrow(1, heads.size(1) - keys, keys)};
}

int64_t queries_of(const Tensor& heads, const HeadsOfLayer& layer) {
  return heads.size(1) / (2 * layer.cos.size(1)) - 2 * layer.key_heads;
}

// Returns x + o(attention(n(x))), and what the backward needs: heads, attended rows (N, H · D) and
// their log-sum-exp. `x`: (N, C); `qkv`: the weights of queries, keys and values as one.
std::tuple<Tensor, Tensor, Tensor, Tensor> attention_layer(
    const Tensor& x, int64_t sequences, const Tensor& gain, const Tensor& qkv, const Tensor& o,
    const HeadsOfLayer& layer, const std::optional<Tensor>& first) {
  Tensor heads = at::mm(llmtrain::normalize_rows(x, gain, layer.epsilon), qkv.t());
  const int64_t queries = queries_of(heads, layer);
  const Tensor rotated = llmtrain::rotate_heads(heads, layer);
  const auto [q, k, unused] = split(rotated, sequences, layer, queries);
  const Tensor v = split(heads, sequences, layer, queries)[2];
  auto [attended, lse] = llmtrain::attention(q, k, v, first);
  const Tensor attended_rows = attended.flatten(0, 1);
  return {llmtrain::add_projection(x, attended_rows, o), heads, attended_rows, lse};
}

// Returns the gradients of x, the gain, both weights and both gains of heads, in that order.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> attention_layer_backward(
    const Tensor& d_y, const Tensor& x, int64_t sequences, const Tensor& gain, const Tensor& qkv,
    const Tensor& o, const HeadsOfLayer& layer, const std::optional<Tensor>& first,
    const Tensor& heads, const Tensor& attended, const Tensor& lse) {
  const int64_t queries = queries_of(heads, layer);
  const Tensor d_sum = d_y.to(at::kBFloat16);
  const auto windows = [&](const Tensor& rows) {
    return rows.view({sequences, rows.size(0) / sequences, rows.size(1)});
  };
  const Tensor d_attended = at::mm(d_sum, o);
  const Tensor d_o = llmtrain::weight_gradient(d_sum, attended);
  const Tensor d_heads = at::empty_like(heads);
  {
    const Tensor rotated = llmtrain::rotate_heads(heads, layer);
    const auto [q, k, unused] = split(rotated, sequences, layer, queries);
    const Tensor v = split(heads, sequences, layer, queries)[2];
    const auto [d_q, d_k, d_v] = split(d_heads, sequences, layer, queries);
    llmtrain::attention_backward_into(windows(d_attended), q, k, v, windows(attended), lse, first,
                                      d_q, d_k, d_v);
  }
  const auto [d_q_gain, d_k_gain] = llmtrain::rotate_heads_backward(heads, d_heads, layer);
  const Tensor d_qkv =
      llmtrain::weight_gradient(d_heads, llmtrain::normalize_rows(x, gain, layer.epsilon));
  const auto [d_x, d_gain] =
      llmtrain::normalize_rows_backward(at::mm(d_heads, qkv), x, gain, layer.epsilon, d_y);
  return {d_x, d_gain, d_qkv, d_o, d_q_gain, d_k_gain};
}

// Returns the residual stream after the block, (B, T, C), and what its backward needs: the stream
// after attention, heads, attended rows and their log-sum-exp.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> block(
    const Tensor& x, const Tensor& gain, const Tensor& qkv, const Tensor& o,
    const Tensor& feed_gain, const Tensor& gate, const Tensor& up, const Tensor& down,
    const std::optional<Tensor>& q_gain, const std::optional<Tensor>& k_gain, const Tensor& cos,
    const Tensor& sin, const std::optional<Tensor>& first, int64_t key_heads, double epsilon) {
  const HeadsOfLayer layer{q_gain, k_gain, cos, sin, key_heads, epsilon};
  const FeedForwardLayer feed{feed_gain, gate, up, down, epsilon};
  auto [middle, heads, attended, lse] = attention_layer(
      x.flatten(0, 1).contiguous(), x.size(0), gain, qkv, o, layer, first);
  return {llmtrain::feed_forward(middle, feed).view(x.sizes()), middle, heads, attended, lse};
}

// Returns the gradients of x, and of gain, qkv, o, feed_gain, gate, up, down, q_gain and k_gain.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>
block_backward(const Tensor& d_y, const Tensor& x, const Tensor& gain, const Tensor& qkv,
               const Tensor& o, const Tensor& feed_gain, const Tensor& gate, const Tensor& up,
               const Tensor& down, const std::optional<Tensor>& q_gain,
               const std::optional<Tensor>& k_gain, const Tensor& cos, const Tensor& sin,
               const std::optional<Tensor>& first, int64_t key_heads, double epsilon,
               const Tensor& middle, const Tensor& heads, const Tensor& attended,
               const Tensor& lse) {
  const HeadsOfLayer layer{q_gain, k_gain, cos, sin, key_heads, epsilon};
  const FeedForwardLayer feed{feed_gain, gate, up, down, epsilon};
  const auto [d_middle, d_feed_gain, d_gate, d_up, d_down] =
      llmtrain::feed_forward_backward(d_y.flatten(0, 1).contiguous(), middle, feed);
  const auto [d_x, d_gain, d_qkv, d_o, d_q_gain, d_k_gain] =
      attention_layer_backward(d_middle, x.flatten(0, 1).contiguous(), x.size(0), gain, qkv, o,
                               layer, first, heads, attended, lse);
  return {d_x.view(x.sizes()), d_gain, d_qkv, d_o, d_feed_gain, d_gate, d_up, d_down,
          d_q_gain,            d_k_gain};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(llmtrain_native, m) {
  m.def("block(Tensor x, Tensor gain, Tensor qkv, Tensor o, Tensor feed_gain, Tensor gate, "
        "Tensor up, Tensor down, Tensor? q_gain, Tensor? k_gain, Tensor cos, Tensor sin, "
        "Tensor? first, int key_heads, float epsilon) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
        &block);
  m.def("block_backward(Tensor d_y, Tensor x, Tensor gain, Tensor qkv, Tensor o, "
        "Tensor feed_gain, Tensor gate, Tensor up, Tensor down, Tensor? q_gain, Tensor? k_gain, "
        "Tensor cos, Tensor sin, Tensor? first, int key_heads, float epsilon, Tensor middle, "
        "Tensor heads, Tensor attended, Tensor lse) -> (Tensor, Tensor, Tensor, Tensor, Tensor, "
        "Tensor, Tensor, Tensor, Tensor, Tensor)", &block_backward);
}
