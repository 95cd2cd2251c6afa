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

// `scratch` has the bytes that the function of that name says for this number of threads.

int64_t feed_forward_scratch(const FeedForwardShape& shape, int threads);
void feed_forward(const FeedForwardShape& shape, const FeedForwardWeights& weights, const float* x,
                  float* y, char* scratch, int threads);

int64_t feed_forward_backward_scratch(const FeedForwardShape& shape, int threads);
void feed_forward_backward(const FeedForwardShape& shape, const FeedForwardWeights& weights,
                           const float* d_y, const float* x, const FeedForwardGradients& gradients,
                           char* scratch, int threads);

}  // namespace llmtrain
