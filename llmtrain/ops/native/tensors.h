// Tensors as the kernels take them.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <cstdint>

#include "attention.h"

namespace llmtrain {

// The data of a dense tensor on the CPU.
template <class T>
const T* dense(const at::Tensor& x) {
  TORCH_CHECK(x.is_contiguous() && x.device().is_cpu(), "expected a dense tensor on the CPU");
  return x.const_data_ptr<T>();
}

inline HeadsOf heads_of(const at::Tensor& x) {
  TORCH_CHECK(x.dim() == 4 && x.scalar_type() == at::kBFloat16 && x.device().is_cpu() &&
                  (x.stride(3) == 1 || x.size(3) == 1),
              "expected a (B, heads, T, D) tensor of bf16 on the CPU with dense features");
  return {static_cast<at::BFloat16*>(x.data_ptr()), x.stride(0), x.stride(1), x.stride(2)};
}

inline at::Tensor scratch_of(int64_t bytes, const at::Tensor& like) {
  return at::empty({bytes + 64}, like.options().dtype(at::kByte));
}

inline char* aligned(const at::Tensor& scratch) {
  const auto address = reinterpret_cast<uintptr_t>(scratch.data_ptr());
  return reinterpret_cast<char*>((address + 63) / 64 * 64);
}

}  // namespace llmtrain
