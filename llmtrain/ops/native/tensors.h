// Tensors as the kernels take them.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <cstdint>
#include <optional>

#include "heads_shape.h"

namespace llmtrain {

// The data of a dense tensor on the CPU.
template <class T>
const T* dense(const at::Tensor& x) {
  TORCH_CHECK(x.is_contiguous() && x.device().is_cpu(), "expected a dense tensor on the CPU");
  return x.const_data_ptr<T>();
}

template <class T>
Heads<T> heads_as(const at::Tensor& x) {
  TORCH_CHECK(x.dim() == 4 && x.scalar_type() == c10::CppTypeToScalarType<T>::value &&
                  x.device().is_cpu() && (x.stride(3) == 1 || x.size(3) == 1),
              "expected a (B, heads, T, D) tensor on the CPU with dense features, of ",
              c10::CppTypeToScalarType<T>::value);
  return {static_cast<T*>(x.data_ptr()), x.stride(0), x.stride(1), x.stride(2)};
}

// The (B, heads, T, D) view of rows (B, T, heads · D).
template <class T>
Heads<T> heads_of_rows(const at::Tensor& x, const AttentionShape& shape) {
  return heads_as<T>(
      x.view({shape.sequences, shape.tokens, shape.heads, shape.size}).transpose(1, 2));
}

inline AttentionShape attention_shape(const at::Tensor& q, const at::Tensor& k) {
  TORCH_CHECK(q.size(0) == k.size(0) && q.size(2) == k.size(2) && q.size(3) == k.size(3) &&
                  q.size(1) % k.size(1) == 0,
              "queries and keys of other shapes");
  return {q.size(0), q.size(1), k.size(1), q.size(2), q.size(3)};
}

inline const int32_t* first_of(const std::optional<at::Tensor>& first,
                               const AttentionShape& shape) {
  if (!first.has_value()) return nullptr;
  TORCH_CHECK(first->scalar_type() == at::kInt && first->is_contiguous() && first->dim() == 2 &&
                  first->size(0) == shape.sequences && first->size(1) == shape.tokens,
              "first tokens: expected a dense int32 tensor (B, T)");
  return first->const_data_ptr<int32_t>();
}

inline at::Tensor scratch_of(int64_t bytes, const at::Tensor& like) {
  return at::empty({bytes + 64}, like.options().dtype(at::kByte));
}

inline char* aligned(const at::Tensor& scratch) {
  const auto address = reinterpret_cast<uintptr_t>(scratch.data_ptr());
  return reinterpret_cast<char*>((address + 63) / 64 * 64);
}

}  // namespace llmtrain
