// SiLU in fp32, and its derivative.
#pragma once

#include "vectors.h"

namespace llmtrain {

// 1 / (1 + e^-x): the hardware's approximation of a reciprocal, and one of Newton's steps.
inline __m512 sigmoid(__m512 x) {
  const __m512 one = _mm512_set1_ps(1.f);
  const __m512 bound = _mm512_min_ps(_mm512_mul_ps(x, _mm512_set1_ps(-kLog2E)),
                                     _mm512_set1_ps(120.f));  // of a NaN, the second operand
  const __m512 below = _mm512_add_ps(one, exp2(bound));
  const __m512 near = _mm512_rcp14_ps(below);
  return _mm512_mul_ps(near, _mm512_fnmadd_ps(below, near, _mm512_set1_ps(2.f)));
}

// The derivative of x · sigmoid(x), from both.
inline __m512 silu_slope(__m512 sigmoid, __m512 silu) {
  return _mm512_fmadd_ps(silu, _mm512_sub_ps(_mm512_set1_ps(1.f), sigmoid), sigmoid);
}

}  // namespace llmtrain
