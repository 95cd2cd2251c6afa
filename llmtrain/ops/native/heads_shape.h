// Queries, keys and values of causal attention with grouped queries.
#pragma once

#include <cstdint>

namespace llmtrain {

// B sequences, H query heads, G key heads, T tokens, D features a head.
struct AttentionShape {
  int64_t sequences, heads, key_heads, tokens, size;
};

// A (B, heads, T, D) matrix of any strides but the last, which is 1.
template <class T>
struct Heads {
  T* data;
  int64_t sequence_stride, head_stride, token_stride;
  T* at(int64_t sequence, int64_t head) const {
    return data + sequence * sequence_stride + head * head_stride;
  }
};

}  // namespace llmtrain
