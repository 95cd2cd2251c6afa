// What follows the backward of a step: the gradients' norm, and the update of the weights.
#pragma once

#include <c10/util/BFloat16.h>

#include <cstdint>
#include <vector>

namespace llmtrain {

struct Elements {
  const float* data;
  int64_t count;
};

// The sum of squares: the same bits for any number of threads.
double sum_of_squares(const std::vector<Elements>& tensors);

// One parameter and its state, all dense. `copy`: the weight in bf16; null where none is kept.
struct AdamwTensors {
  float* weight;
  const float* gradient;
  float *mean, *mean_square;
  c10::BFloat16* copy;
  int64_t count;
};

// Of one step, first scaling gradients by `gradient`: 1 − β of each moment, β2, 1 − lr · weight
// decay, lr over the first bias correction, one over the root of the second, ε.
struct AdamwFactors {
  float gradient, less1, less2, beta2, keep, rate, inverse_root, eps;
};

struct AdamwUpdate {
  AdamwTensors tensors;
  AdamwFactors factors;
};

void adamw(const std::vector<AdamwUpdate>& updates);

// Update the momentum m of a matrix, m += (1 − μ) (g − m), and write Nesterov's direction,
// g + μ (m − g). Gradients are scaled by `factor` first.
void nesterov(const float* gradient, float* momentum, c10::BFloat16* direction, int64_t count,
              float factor, float mu);

// weight = keep · weight − rate · direction, and its copy in bf16 unless that is null.
void descend(float* weight, const c10::BFloat16* direction, c10::BFloat16* copy, int64_t count,
             float keep, float rate);

}  // namespace llmtrain
