// The cross-entropy of a linear head, with both gradients, from tiles of logits that stay in cache.
#pragma once

#include <c10/util/BFloat16.h>

#include <cstdint>

namespace llmtrain {

// N tokens, D features, V rows of vocabulary; D is a multiple of 32. `chunk`: tokens whose
// exponentials are kept at once, a multiple of 32 and, beyond 512, of 512.
struct LossShape {
  int64_t tokens, size, vocabulary, chunk;
  bool differentiates_hidden, differentiates_weight;
};

int64_t linear_cross_entropy_scratch(const LossShape& shape, int threads);

// Write each token's loss in nats and, where they are wanted, the gradients of their sum: `d_hidden`
// in bf16 and `d_weight` in fp32. A token whose target is negative does not count. Targets are below V.
void linear_cross_entropy(const LossShape& shape, const c10::BFloat16* hidden,
                          const c10::BFloat16* weight, const int64_t* targets, float* losses,
                          c10::BFloat16* d_hidden, float* d_weight, char* scratch, int threads);

}  // namespace llmtrain
