// The root-mean-square norm of one row, forward and backward, in fp32. Sizes are multiples of 32.
#pragma once

#include <cmath>

#include "vectors.h"

namespace llmtrain {

inline float inverse_rms(const float* x, int64_t size, float epsilon) {
  __m512 sum0 = _mm512_setzero_ps(), sum1 = _mm512_setzero_ps();
  for (int64_t d = 0; d < size; d += 32) {
    const __m512 a = _mm512_loadu_ps(x + d), b = _mm512_loadu_ps(x + d + 16);
    sum0 = _mm512_fmadd_ps(a, a, sum0), sum1 = _mm512_fmadd_ps(b, b, sum1);
  }
  const float mean = _mm512_reduce_add_ps(_mm512_add_ps(sum0, sum1)) / static_cast<float>(size);
  return 1.f / std::sqrt(mean + epsilon);
}

// Write gain · x / rms(x) as bf16; returns 1 / rms(x).
inline float normalize_row(const float* x, const float* gain, int64_t size, float epsilon,
                           bf16* out) {
  const float inverse = inverse_rms(x, size, epsilon);
  const __m512 r = _mm512_set1_ps(inverse);
  const auto normed = [&](int64_t d) {
    return _mm512_mul_ps(_mm512_mul_ps(_mm512_loadu_ps(x + d), r), _mm512_loadu_ps(gain + d));
  };
  for (int64_t d = 0; d < size; d += 32)
    _mm512_storeu_si512(out + d, to_bf16(normed(d), normed(d + 16)));
  return inverse;
}

// From the gradient of a normed row to that of the row, added to `residual`; adds to `d_gain`.
inline void normalize_row_backward(const float* d_normed, const float* x, const float* gain,
                                   float inverse, int64_t size, const float* residual, float* d_x,
                                   float* d_gain) {
  const __m512 r = _mm512_set1_ps(inverse);
  __m512 sum = _mm512_setzero_ps();
  for (int64_t d = 0; d < size; d += 16) {
    const __m512 unit = _mm512_mul_ps(_mm512_loadu_ps(x + d), r);
    const __m512 along = _mm512_mul_ps(_mm512_loadu_ps(d_normed + d), unit);
    _mm512_storeu_ps(d_gain + d, _mm512_add_ps(_mm512_loadu_ps(d_gain + d), along));
    sum = _mm512_fmadd_ps(along, _mm512_loadu_ps(gain + d), sum);
  }
  const __m512 mean = _mm512_set1_ps(_mm512_reduce_add_ps(sum) / static_cast<float>(size));
  for (int64_t d = 0; d < size; d += 16) {
    const __m512 unit = _mm512_mul_ps(_mm512_loadu_ps(x + d), r);
    const __m512 scaled = _mm512_mul_ps(_mm512_loadu_ps(d_normed + d), _mm512_loadu_ps(gain + d));
    const __m512 across = _mm512_fnmadd_ps(unit, mean, scaled);
    _mm512_storeu_ps(d_x + d, _mm512_fmadd_ps(across, r, _mm512_loadu_ps(residual + d)));
  }
}

// Sum the rows of `parts` into `sum`, in order, so that threads do not change the result.
inline void add_parts(const float* parts, int64_t count, int64_t size, float* sum) {
  for (int64_t d = 0; d < size; ++d) {
    float total = 0.f;
    for (int64_t i = 0; i < count; ++i) total += parts[i * size + d];
    sum[d] = total;
  }
}

}  // namespace llmtrain
