// torch.ops.llmtrain_fp32: the kernels on tensors.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <optional>
#include <tuple>

#include "../tensors.h"
#include "attention.h"

namespace {

namespace fp32 = llmtrain::fp32;
using at::Tensor;
using llmtrain::aligned;
using llmtrain::AttentionShape;

fp32::HeadsOf heads_of(const Tensor& x) { return llmtrain::heads_as<float>(x); }

std::tuple<Tensor, Tensor> attention(const Tensor& q, const Tensor& k, const Tensor& v,
                                     const std::optional<Tensor>& first) {
  const AttentionShape shape = llmtrain::attention_shape(q, k);
  const int threads = at::get_num_threads();
  Tensor y = at::empty({shape.sequences, shape.tokens, shape.heads * shape.size}, q.options());
  Tensor lse = at::empty({shape.sequences, shape.heads, shape.tokens}, q.options());
  const Tensor scratch = llmtrain::scratch_of(fp32::attention_forward_scratch(shape, threads), q);
  fp32::attention_forward(shape, heads_of(q), heads_of(k), heads_of(v),
                          llmtrain::first_of(first, shape),
                          llmtrain::heads_of_rows<float>(y, shape), lse.mutable_data_ptr<float>(),
                          aligned(scratch), threads);
  return {y, lse};
}

std::tuple<Tensor, Tensor, Tensor> attention_backward(const Tensor& d_y, const Tensor& q,
                                                      const Tensor& k, const Tensor& v,
                                                      const Tensor& y, const Tensor& lse,
                                                      const std::optional<Tensor>& first) {
  const AttentionShape shape = llmtrain::attention_shape(q, k);
  const int threads = at::get_num_threads();
  const auto heads = [&](const Tensor& x) { return llmtrain::heads_of_rows<float>(x, shape); };
  Tensor d_q = at::empty_like(q), d_k = at::empty_like(k), d_v = at::empty_like(v);
  const Tensor scratch = llmtrain::scratch_of(fp32::attention_backward_scratch(shape, threads), q);
  fp32::attention_backward(shape, heads(d_y), heads_of(q), heads_of(k), heads_of(v), heads(y),
                           llmtrain::dense<float>(lse), llmtrain::first_of(first, shape),
                           heads_of(d_q), heads_of(d_k), heads_of(d_v), aligned(scratch), threads);
  return {d_q, d_k, d_v};
}

}  // namespace

TORCH_LIBRARY(llmtrain_fp32, m) {
  m.def("attention(Tensor q, Tensor k, Tensor v, Tensor? first) -> (Tensor, Tensor)", &attention);
  m.def(
      "attention_backward(Tensor d_y, Tensor q, Tensor k, Tensor v, Tensor y, Tensor lse, "
      "Tensor? first) -> (Tensor, Tensor, Tensor)",
      &attention_backward);
}
