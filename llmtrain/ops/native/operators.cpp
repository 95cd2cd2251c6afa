// torch.ops.llmtrain_native: the kernels on tensors.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <optional>
#include <tuple>

#include "attention.h"
#include "layers.h"
#include "loss.h"
#include "tensors.h"

using at::Tensor;
using llmtrain::aligned;
using llmtrain::AttentionShape;
using llmtrain::first_of;
using llmtrain::HeadsOf;
using llmtrain::scratch_of;

namespace {

AttentionShape even_shape_of(const Tensor& q, const Tensor& k) {
  TORCH_CHECK(q.size(3) % 2 == 0, "an odd number of features a head");
  return llmtrain::attention_shape(q, k);
}

HeadsOf heads_of(const Tensor& x) { return llmtrain::heads_as<at::BFloat16>(x); }

}  // namespace

namespace llmtrain {

std::tuple<Tensor, Tensor> attention(const Tensor& q, const Tensor& k, const Tensor& v,
                                     const std::optional<Tensor>& first) {
  const AttentionShape shape = even_shape_of(q, k);
  const int threads = at::get_num_threads();
  Tensor y = at::empty({shape.sequences, shape.tokens, shape.heads, shape.size}, q.options());
  Tensor lse =
      at::empty({shape.sequences, shape.heads, shape.tokens}, q.options().dtype(at::kFloat));
  const Tensor scratch = scratch_of(llmtrain::attention_forward_scratch(shape, threads), q);
  llmtrain::attention_forward(shape, heads_of(q), heads_of(k), heads_of(v), first_of(first, shape),
                              heads_of(y.transpose(1, 2)), lse.mutable_data_ptr<float>(),
                              aligned(scratch), threads);
  return {y.flatten(2), lse};
}

void attention_backward_into(const Tensor& d_y, const Tensor& q, const Tensor& k, const Tensor& v,
                             const Tensor& y, const Tensor& lse,
                             const std::optional<Tensor>& first, const Tensor& d_q,
                             const Tensor& d_k, const Tensor& d_v) {
  const AttentionShape shape = even_shape_of(q, k);
  const int threads = at::get_num_threads();
  const auto heads = [&](const Tensor& x) {
    return llmtrain::heads_of_rows<at::BFloat16>(x, shape);
  };
  TORCH_CHECK(lse.is_contiguous() && lse.scalar_type() == at::kFloat);
  TORCH_CHECK(d_q.sizes() == q.sizes() && d_k.sizes() == k.sizes() && d_v.sizes() == v.sizes());
  const Tensor scratch = scratch_of(llmtrain::attention_backward_scratch(shape, threads), q);
  llmtrain::attention_backward(shape, heads(d_y), heads_of(q), heads_of(k), heads_of(v), heads(y),
                               lse.const_data_ptr<float>(), first_of(first, shape), heads_of(d_q),
                               heads_of(d_k), heads_of(d_v), aligned(scratch), threads);
}

}  // namespace llmtrain

namespace {

std::tuple<Tensor, Tensor, Tensor> attention_backward(const Tensor& d_y, const Tensor& q,
                                                      const Tensor& k, const Tensor& v,
                                                      const Tensor& y, const Tensor& lse,
                                                      const std::optional<Tensor>& first) {
  Tensor d_q = at::empty_like(q), d_k = at::empty_like(k), d_v = at::empty_like(v);
  llmtrain::attention_backward_into(d_y, q, k, v, y, lse, first, d_q, d_k, d_v);
  return {d_q, d_k, d_v};
}

// Returns each token's loss, and the gradients of their sum; empty ones where they are not wanted.
std::tuple<Tensor, Tensor, Tensor> linear_cross_entropy(const Tensor& hidden, const Tensor& weight,
                                                        const Tensor& targets, int64_t chunk,
                                                        bool has_padding, bool wants_hidden,
                                                        bool wants_weight) {
  TORCH_CHECK(hidden.is_contiguous() && weight.is_contiguous() && targets.is_contiguous() &&
                  hidden.scalar_type() == at::kBFloat16 &&
                  weight.scalar_type() == at::kBFloat16 && targets.scalar_type() == at::kLong,
              "expected dense bf16 hidden states and weights, and int64 targets");
  TORCH_CHECK(hidden.dim() == 2 && weight.dim() == 2 && hidden.size(1) == weight.size(1) &&
                  hidden.size(1) % 32 == 0 && targets.numel() == hidden.size(0),
              "hidden states and weights of other shapes");
  TORCH_CHECK(chunk > 0 && chunk % 32 == 0 && (chunk <= 512 || chunk % 512 == 0), "chunk ", chunk);
  const llmtrain::LossShape shape{hidden.size(0), hidden.size(1), weight.size(0),
                                  chunk,          wants_hidden,   wants_weight};
  const int64_t* y = targets.const_data_ptr<int64_t>();
  for (int64_t t = 0; t < shape.tokens; ++t)
    TORCH_CHECK_INDEX(y[t] < shape.vocabulary && (y[t] >= 0 || has_padding), "target ", y[t],
                      " of ", shape.vocabulary);
  const int threads = at::get_num_threads();
  const auto floats = hidden.options().dtype(at::kFloat);
  Tensor losses = at::empty({shape.tokens}, floats);
  Tensor d_hidden = at::empty({wants_hidden ? shape.tokens : 0, shape.size}, hidden.options());
  Tensor d_weight = at::empty({wants_weight ? shape.vocabulary : 0, shape.size}, floats);
  const Tensor scratch =
      scratch_of(llmtrain::linear_cross_entropy_scratch(shape, threads), hidden);
  llmtrain::linear_cross_entropy(
      shape, hidden.const_data_ptr<at::BFloat16>(), weight.const_data_ptr<at::BFloat16>(), y,
      losses.mutable_data_ptr<float>(),
      wants_hidden ? d_hidden.mutable_data_ptr<at::BFloat16>() : nullptr,
      wants_weight ? d_weight.mutable_data_ptr<float>() : nullptr, aligned(scratch), threads);
  return {losses, d_hidden, d_weight};
}

}  // namespace

TORCH_LIBRARY(llmtrain_native, m) {
  m.def("attention(Tensor q, Tensor k, Tensor v, Tensor? first) -> (Tensor, Tensor)",
        &llmtrain::attention);
  m.def(
      "attention_backward(Tensor d_y, Tensor q, Tensor k, Tensor v, Tensor y, Tensor lse, "
      "Tensor? first) -> (Tensor, Tensor, Tensor)",
      &attention_backward);
  m.def(
      "linear_cross_entropy(Tensor hidden, Tensor weight, Tensor targets, int chunk, "
      "bool has_padding, bool wants_hidden, bool wants_weight) -> (Tensor, Tensor, Tensor)",
      &linear_cross_entropy);
}
