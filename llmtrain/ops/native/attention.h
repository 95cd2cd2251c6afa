// Causal attention with grouped queries, and its gradients, in bf16 with sums in fp32.
#pragma once

#include <c10/util/BFloat16.h>

#include <cstdint>

#include "heads_shape.h"

namespace llmtrain {

using HeadsOf = Heads<c10::BFloat16>;

// D is even.
// `first`: (B, T), the first token that each attends to, not decreasing along T; null: token 0.
// `lse`: (B, H, T), the logarithm of the sum of exponentials of each row, to base 2.
// `scratch` has the bytes that the function of that name says for this number of threads.

int64_t attention_forward_scratch(const AttentionShape& shape, int threads);
void attention_forward(const AttentionShape& shape, HeadsOf q, HeadsOf k, HeadsOf v,
                       const int32_t* first, HeadsOf y, float* lse, char* scratch, int threads);

int64_t attention_backward_scratch(const AttentionShape& shape, int threads);
void attention_backward(const AttentionShape& shape, HeadsOf d_y, HeadsOf q, HeadsOf k, HeadsOf v,
                        HeadsOf y, const float* lse, const int32_t* first, HeadsOf d_q, HeadsOf d_k,
                        HeadsOf d_v, char* scratch, int threads);

}  // namespace llmtrain
