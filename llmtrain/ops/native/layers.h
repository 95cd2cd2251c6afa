// The kernels on tensors that a layer is made of; what they compute is said beside each kernel.
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <optional>
#include <tuple>

namespace llmtrain {

// Attention of (B, heads, T, D), as rows (B, T, H · D), and each row's log-sum-exp.
std::tuple<at::Tensor, at::Tensor> attention(const at::Tensor& q, const at::Tensor& k,
                                             const at::Tensor& v,
                                             const std::optional<at::Tensor>& first);

// Writes the gradients into `d_q`, `d_k` and `d_v`, which may be views of one tensor.
void attention_backward_into(const at::Tensor& d_y, const at::Tensor& q, const at::Tensor& k,
                             const at::Tensor& v, const at::Tensor& y, const at::Tensor& lse,
                             const std::optional<at::Tensor>& first, const at::Tensor& d_q,
                             const at::Tensor& d_k, const at::Tensor& d_v);

at::Tensor normalize_rows(const at::Tensor& x, const at::Tensor& gain, double epsilon);

std::tuple<at::Tensor, at::Tensor> normalize_rows_backward(
    const at::Tensor& d_normed, const at::Tensor& x, const at::Tensor& gain, double epsilon,
    const std::optional<at::Tensor>& residual);

struct FeedForwardLayer {
  const at::Tensor &gain, &gate, &up, &down;
  double epsilon;
};

// Returns the layer's output and, if they are kept, its gates.
std::tuple<at::Tensor, std::optional<at::Tensor>> feed_forward(const at::Tensor& x,
                                                               const FeedForwardLayer& layer,
                                                               bool keeps_gates);

// Returns the gradients of x, the gain, and the weights of gate, up and down.
std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> feed_forward_backward(
    const at::Tensor& d_y, const at::Tensor& x, const FeedForwardLayer& layer,
    const std::optional<at::Tensor>& gates);

// How rows of heads are divided, and what normalizes and rotates them.
struct HeadsOfLayer {
  const std::optional<at::Tensor>&q_gain, &k_gain;  // both or neither
  const at::Tensor &cos, &sin;                      // (window, D / 2)
  int64_t key_heads;
  double epsilon;
};

at::Tensor rotate_heads(const at::Tensor& heads, const HeadsOfLayer& layer);

// Replaces `d_heads`; returns the gradients of the gains, empty ones where there are none.
std::tuple<at::Tensor, at::Tensor> rotate_heads_backward(const at::Tensor& heads,
                                                         const at::Tensor& d_heads,
                                                         const HeadsOfLayer& layer);

// Queries and keys, normalised and rotated, and values of rows of heads: (B, heads, T, D).
std::array<at::Tensor, 3> attention_operands(const at::Tensor& heads, int64_t sequences,
                                             const HeadsOfLayer& layer);

// Writes into `d_heads` the gradients of what `attention_operands` returned, which is computed
// again. `d_attended` and `attended` are rows.
void attention_backward_of_heads(const at::Tensor& d_attended, const at::Tensor& heads,
                                 int64_t sequences, const HeadsOfLayer& layer,
                                 const at::Tensor& attended, const at::Tensor& lse,
                                 const std::optional<at::Tensor>& first, const at::Tensor& d_heads);

// Replaces rows of `gate` by silu(gate) · up.
void activate_rows(const at::Tensor& gate, const at::Tensor& up);

// Replaces both by their gradients.
void activate_rows_backward(const at::Tensor& d_hidden, const at::Tensor& gate,
                            const at::Tensor& up);

// n(x) Wᵀ, and from its gradient to those of x, beside `residual`, and of the gain.
at::Tensor project_normed(const at::Tensor& x, const at::Tensor& gain, double epsilon,
                          const at::Tensor& weight);
std::tuple<at::Tensor, at::Tensor> project_normed_backward(const at::Tensor& d_out,
                                                           const at::Tensor& x,
                                                           const at::Tensor& gain, double epsilon,
                                                           const at::Tensor& weight,
                                                           const at::Tensor& residual);

// x + y Wᵀ, and from its gradient to itself in bf16, and to that of y.
at::Tensor add_projection(const at::Tensor& x, const at::Tensor& y, const at::Tensor& weight);
std::tuple<at::Tensor, at::Tensor> round_and_project(const at::Tensor& d_y,
                                                     const at::Tensor& weight);

at::Tensor weight_gradient(const at::Tensor& d_y, const at::Tensor& x);

}  // namespace llmtrain
