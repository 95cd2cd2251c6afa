// A pre-norm SwiGLU layer with its residual, x + down(silu(gate(n(x))) · up(n(x))), and its
// gradients: products in bf16, sums and the residual stream in fp32.
#pragma once

#include <c10/util/BFloat16.h>

#include <cstdint>

namespace llmtrain {

// N tokens, C hidden features, F features within. C and F are multiples of 32.
struct FeedForwardShape {
  int64_t tokens, size, features;
  float epsilon;
};

struct FeedForwardWeights {
  const float* gain;                      // (C)
  const c10::BFloat16 *gate, *up, *down;  // (F, C), (F, C), (C, F)
};

struct FeedForwardGradients {
  float* x;                   // (N, C)
  float* gain;                // (C)
  float *gate, *up, *down;    // as the weights
};

// Gates and what they gate may be kept for the backward, as bf16: of each kGateBlock tokens, the last
// ones padded, all features of both, (2F, kGateBlock). They begin where a line of the cache does.
constexpr int64_t kGateBlock = 128;
inline int64_t gate_blocks(const FeedForwardShape& shape) {
  return (shape.tokens + kGateBlock - 1) / kGateBlock;
}

// `scratch` has the bytes that the function of that name says for this number of threads. `gates`
// may be null: the forward then keeps none, and the backward computes them again, bit for bit.

int64_t feed_forward_scratch(const FeedForwardShape& shape, int threads);
void feed_forward(const FeedForwardShape& shape, const FeedForwardWeights& weights, const float* x,
                  float* y, c10::BFloat16* gates, char* scratch, int threads);

int64_t feed_forward_backward_scratch(const FeedForwardShape& shape, int threads);
void feed_forward_backward(const FeedForwardShape& shape, const FeedForwardWeights& weights,
                           const float* d_y, const float* x, const c10::BFloat16* gates,
                           const FeedForwardGradients& gradients, char* scratch, int threads);

}  // namespace llmtrain
