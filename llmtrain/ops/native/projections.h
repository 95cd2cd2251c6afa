// What surrounds attention in a block: the norm, heads, gates, and products with weights.
#pragma once

#include <c10/util/BFloat16.h>

#include <cstdint>

namespace llmtrain {

// n(x) of (N, C) rows as bf16. C is a multiple of 32.
void normalize(const float* x, const float* gain, int64_t tokens, int64_t size, float epsilon,
               c10::BFloat16* out);

// `residual`, added to the gradient of x, may be null. `scratch`: as the function below says.
int64_t normalize_backward_scratch(int64_t tokens, int64_t size);
void normalize_backward(const c10::BFloat16* d_normed, const float* x, const float* gain,
                        int64_t tokens, int64_t size, float epsilon, const float* residual,
                        float* d_x, float* d_gain, char* scratch);

// Queries and keys of (N, (H + 2 G) · D) rows: H heads of queries, G of keys, G of values.
struct HeadsShape {
  int64_t tokens, heads, key_heads, size;  // N, H, G, D; D is even
  int64_t window;                          // tokens of a sequence: angles are those of n % window
  float epsilon;
};

// Gains (D) of query and key norms, null where there are none; the angles' cosines and sines
// (window, D / 2).
struct HeadsParameters {
  const float *q_gain, *k_gain, *cos, *sin;
};

// Normalise and rotate queries and keys into rows of `stride` values.
void rotate_heads(const HeadsShape& shape, const HeadsParameters& parameters,
                  const c10::BFloat16* heads, c10::BFloat16* out, int64_t stride);

// From the gradient of rotated heads, replaced, to that of `heads`; (D) each of the gains.
int64_t rotate_heads_backward_scratch(const HeadsShape& shape);
void rotate_heads_backward(const HeadsShape& shape, const HeadsParameters& parameters,
                           const c10::BFloat16* heads, c10::BFloat16* d_heads, float* d_q_gain,
                           float* d_k_gain, char* scratch);

// Replace `gate` by silu(gate) · up, or both by their gradients. `count` is a multiple of 32.
void activate(int64_t count, c10::BFloat16* gate, const c10::BFloat16* up);
void activate_backward(int64_t count, const c10::BFloat16* d_hidden, c10::BFloat16* gate,
                       c10::BFloat16* up);

// Of a weight (C, K) and N rows. C and K are multiples of 32.
struct ProjectionShape {
  int64_t tokens, size, width;  // N, C, K
};

// What the four functions that follow work in.
int64_t row_products_scratch(const ProjectionShape& shape, int threads);

// n(x) Wᵀ of (N, K), as bf16.
void project_normed(const ProjectionShape& shape, const float* x, const float* gain, float epsilon,
                    const c10::BFloat16* weight, c10::BFloat16* out, char* scratch, int threads);

// From its gradient (N, C) to that of x, added to `residual`, and that of the gain.
void project_normed_backward(const ProjectionShape& shape, const c10::BFloat16* d_out,
                             const float* x, const float* gain, float epsilon,
                             const c10::BFloat16* weight, const float* residual, float* d_x,
                             float* d_gain, char* scratch, int threads);

// x + y Wᵀ of (N, C) and (N, K), in fp32.
void add_projection(const ProjectionShape& shape, const float* x, const c10::BFloat16* y,
                    const c10::BFloat16* weight, float* out, char* scratch, int threads);

// From its gradient (N, C), which is rounded, to that of y.
void round_and_project(const ProjectionShape& shape, const float* d_y, const c10::BFloat16* weight,
                       c10::BFloat16* rounded, c10::BFloat16* d_x, char* scratch, int threads);

// dyᵀ x of (N, C) and (N, K): the gradient (C, K) of a weight, in fp32.
int64_t weight_gradient_scratch(const ProjectionShape& shape, int threads);
void weight_gradient(const ProjectionShape& shape, const c10::BFloat16* d_y,
                     const c10::BFloat16* x, float* d_weight, char* scratch, int threads);

}  // namespace llmtrain
