// bf16 matrices in AVX-512 registers: conversion, exponentials, and the layouts that products want.
//
// brgemm multiplies a plain left operand by a right operand in pairs of rows ("VNNI"):
//     packed[k / 2][n][k % 2] = right[k][n]
// Leading dimensions are in elements of a plain row, in pairs of a packed one. Packing fills what is
// beyond a matrix with zeros, so that loops need no tails.
#pragma once

#include <ATen/native/CPUBlas.h>
#include <immintrin.h>

#include <cstdint>

#include "scratch.h"

namespace llmtrain {

using bf16 = at::BFloat16;
using at::native::cpublas::brgemm;
using at::native::cpublas::brgemm_release;

// The first n of 16 or 32 lanes; none below 0.
inline __mmask16 lanes16(int64_t n) {
  return n >= 16 ? 0xffff : n <= 0 ? 0 : static_cast<__mmask16>((1u << n) - 1);
}
inline __mmask32 lanes32(int64_t n) {
  return n >= 32 ? ~0u : n <= 0 ? 0u : (1u << n) - 1;
}

// 2^x with a relative error of 3e-6 (a polynomial on [-0.5, 0.5]); 0 from -200 down, NaN of NaN.
inline __m512 exp2(__m512 x) {
  x = _mm512_max_ps(_mm512_set1_ps(-200.f), x);  // of a NaN, the second operand is returned
  const __m512 whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m512 rest = _mm512_sub_ps(x, whole);
  __m512 p = _mm512_set1_ps(0.00133336f);
  p = _mm512_fmadd_ps(p, rest, _mm512_set1_ps(0.00961813f));
  p = _mm512_fmadd_ps(p, rest, _mm512_set1_ps(0.05550411f));
  p = _mm512_fmadd_ps(p, rest, _mm512_set1_ps(0.24022651f));
  p = _mm512_fmadd_ps(p, rest, _mm512_set1_ps(0.69314718f));
  p = _mm512_fmadd_ps(p, rest, _mm512_set1_ps(1.f));
  return _mm512_scalef_ps(p, whole);
}

inline __m512i to_bf16(__m512 low, __m512 high) {
  return (__m512i)_mm512_cvtne2ps_pbh(high, low);
}
inline __m512 widened(__m256i x) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16));
}
inline __m512 low_half(__m512i x) { return widened(_mm512_castsi512_si256(x)); }
inline __m512 high_half(__m512i x) { return widened(_mm512_extracti64x4_epi64(x, 1)); }

// Write `count` floats, scaled, as bf16. Reads up to the next multiple of 32.
inline void store_scaled(bf16* out, const float* from, int64_t count, float scale) {
  const __m512 f = _mm512_set1_ps(scale);
  for (int64_t i = 0; i < count; i += 32) {
    const __m512 low = _mm512_mul_ps(_mm512_loadu_ps(from + i), f);
    const __m512 high = _mm512_mul_ps(_mm512_loadu_ps(from + i + 16), f);
    _mm512_mask_storeu_epi16(out + i, lanes32(count - i), to_bf16(low, high));
  }
}

inline float dot(const bf16* a, const bf16* b, int64_t count) {
  __m512 sum = _mm512_setzero_ps();
  for (int64_t i = 0; i < count; i += 32) {
    const __mmask32 some = lanes32(count - i);
    const __m512i x = _mm512_maskz_loadu_epi16(some, a + i);
    const __m512i y = _mm512_maskz_loadu_epi16(some, b + i);
    sum = _mm512_fmadd_ps(low_half(x), low_half(y), sum);
    sum = _mm512_fmadd_ps(high_half(x), high_half(y), sum);
  }
  return _mm512_reduce_add_ps(sum);
}

// Writes two rows of 32 in turn: a0 b0 a1 b1 …
class Interleave {
 public:
  Interleave() {
    alignas(64) uint16_t low[32], high[32];
    for (int i = 0; i < 16; ++i) {
      low[2 * i] = i, low[2 * i + 1] = 32 + i;
      high[2 * i] = 16 + i, high[2 * i + 1] = 48 + i;
    }
    low_ = _mm512_load_si512(low), high_ = _mm512_load_si512(high);
  }
  __m512i low(__m512i a, __m512i b) const { return _mm512_permutex2var_epi16(a, low_, b); }
  __m512i high(__m512i a, __m512i b) const { return _mm512_permutex2var_epi16(a, high_, b); }
  void store(bf16* out, __m512i a, __m512i b) const {
    _mm512_storeu_si512(out, low(a, b));
    _mm512_storeu_si512(out + 32, high(a, b));
  }

 private:
  __m512i low_, high_;
};

// Transpose 16 × 16 elements of 32 bits.
inline void transpose16(__m512i (&r)[16]) {
  __m512i t[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  for (int j = 0; j < 4; ++j) {  // the 128-bit lanes: column 4 · lane + j of four rows each
    const __m512i even0 = _mm512_shuffle_i32x4(r[j], r[4 + j], 0x88);
    const __m512i even1 = _mm512_shuffle_i32x4(r[8 + j], r[12 + j], 0x88);
    const __m512i odd0 = _mm512_shuffle_i32x4(r[j], r[4 + j], 0xdd);
    const __m512i odd1 = _mm512_shuffle_i32x4(r[8 + j], r[12 + j], 0xdd);
    t[j] = _mm512_shuffle_i32x4(even0, even1, 0x88);
    t[4 + j] = _mm512_shuffle_i32x4(odd0, odd1, 0x88);
    t[8 + j] = _mm512_shuffle_i32x4(even0, even1, 0xdd);
    t[12 + j] = _mm512_shuffle_i32x4(odd0, odd1, 0xdd);
  }
  for (int i = 0; i < 16; ++i) r[i] = t[i];
}

// Pack rows × columns, row stride `stride`; zeros up to even rows and to a multiple of 32 columns.
inline void pack(const bf16* from, int64_t stride, int64_t rows, int64_t columns, bf16* out,
                 int64_t out_pairs) {
  const Interleave interleave;
  for (int64_t k = 0; k < rows; k += 2)
    for (int64_t n = 0; n < columns; n += 32) {
      const __mmask32 some = lanes32(columns - n);
      const bf16* row = from + k * stride + n;
      const __m512i a = _mm512_maskz_loadu_epi16(some, row);
      const __m512i b = _mm512_maskz_loadu_epi16(k + 1 < rows ? some : 0u, row + stride);
      interleave.store(out + k * out_pairs + 2 * n, a, b);
    }
}

// Pack the transpose of rows × columns: `columns` are its K. Zeros up to multiples of 32.
inline void pack_transposed(const bf16* from, int64_t stride, int64_t rows, int64_t columns,
                            bf16* out, int64_t out_pairs) {
  for (int64_t n = 0; n < round_up(rows, 32); n += 16)
    for (int64_t k = 0; k < columns; k += 32) {
      __m512i r[16];
      for (int i = 0; i < 16; ++i)
        r[i] = _mm512_maskz_loadu_epi16(n + i < rows ? lanes32(columns - k) : 0u,
                                        from + (n + i) * stride + k);
      transpose16(r);
      for (int i = 0; i < 16; ++i)
        _mm512_storeu_si512(out + (k + 2 * i) * out_pairs + 2 * n, r[i]);
    }
}

// Transpose rows × columns into columns × rows; zeros up to multiples of 32 of both.
inline void transpose(const bf16* from, int64_t stride, int64_t rows, int64_t columns, bf16* out,
                      int64_t out_stride) {
  const Interleave interleave;
  for (int64_t n = 0; n < rows; n += 32)
    for (int64_t k = 0; k < columns; k += 32) {
      __m512i low[16], high[16];
      const __mmask32 some = lanes32(columns - k);
      for (int i = 0; i < 16; ++i) {
        const int64_t row = n + 2 * i;
        const bf16* p = from + row * stride + k;
        const __m512i a = _mm512_maskz_loadu_epi16(row < rows ? some : 0u, p);
        const __m512i b = _mm512_maskz_loadu_epi16(row + 1 < rows ? some : 0u, p + stride);
        low[i] = interleave.low(a, b), high[i] = interleave.high(a, b);
      }
      transpose16(low), transpose16(high);
      for (int i = 0; i < 16; ++i) {
        _mm512_storeu_si512(out + (k + i) * out_stride + n, low[i]);
        _mm512_storeu_si512(out + (k + 16 + i) * out_stride + n, high[i]);
      }
    }
}

}  // namespace llmtrain
