// Query and key norms and rotary positions, in one pass over memory, and their gradients.
#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>

#include "norm_rows.h"
#include "projections.h"

namespace llmtrain {
namespace {

constexpr int64_t kRows = 128;  // tokens whose gradients of gains are one part of the sum

// Up to 16 pairs of a head: features i and i + D / 2, rotated together.
struct Pairs {
  __m512 first, second;
};

Pairs load(const bf16* head, int64_t half, int64_t i, __mmask16 some) {
  const auto wide = [&](const bf16* from) {
    return widened(_mm256_maskz_loadu_epi16(some, from));
  };
  return {wide(head + i), wide(head + half + i)};
}

Pairs load(const float* values, int64_t half, int64_t i, __mmask16 some) {
  return {_mm512_maskz_loadu_ps(some, values + i), _mm512_maskz_loadu_ps(some, values + half + i)};
}

void store(bf16* head, int64_t half, int64_t i, __mmask16 some, const Pairs& x) {
  const __m512i both = to_bf16(x.first, x.second);
  _mm256_mask_storeu_epi16(head + i, some, _mm512_castsi512_si256(both));
  _mm256_mask_storeu_epi16(head + half + i, some, _mm512_extracti64x4_epi64(both, 1));
}

Pairs times(const Pairs& x, const Pairs& y) {
  return {_mm512_mul_ps(x.first, y.first), _mm512_mul_ps(x.second, y.second)};
}

Pairs scaled(const Pairs& x, float factor) {
  const __m512 f = _mm512_set1_ps(factor);
  return {_mm512_mul_ps(x.first, f), _mm512_mul_ps(x.second, f)};
}

// sum + the products of each of x with that of y
__m512 add_products(__m512 sum, const Pairs& x, const Pairs& y) {
  return _mm512_fmadd_ps(x.first, y.first, _mm512_fmadd_ps(x.second, y.second, sum));
}

Pairs rotated(const Pairs& x, __m512 cos, __m512 sin) {
  return {_mm512_fmsub_ps(x.first, cos, _mm512_mul_ps(x.second, sin)),
          _mm512_fmadd_ps(x.second, cos, _mm512_mul_ps(x.first, sin))};
}

struct Angles {
  const float *cos, *sin;  // of one token
  __m512 cosines(int64_t i, __mmask16 some) const { return _mm512_maskz_loadu_ps(some, cos + i); }
  __m512 sines(int64_t i, __mmask16 some) const { return _mm512_maskz_loadu_ps(some, sin + i); }
};

float inverse_rms(const bf16* head, int64_t size, float epsilon) {
  const int64_t half = size / 2;
  __m512 total = _mm512_setzero_ps();
  for (int64_t i = 0; i < half; i += 16) {
    const Pairs x = load(head, half, i, lanes16(half - i));
    total = add_products(total, x, x);
  }
  return 1.f / std::sqrt(_mm512_reduce_add_ps(total) / static_cast<float>(size) + epsilon);
}

void rotate_head(const HeadsShape& shape, const float* gain, const Angles& angles, const bf16* head,
                 bf16* out) {
  const int64_t half = shape.size / 2;
  const float r = gain == nullptr ? 1.f : inverse_rms(head, shape.size, shape.epsilon);
  for (int64_t i = 0; i < half; i += 16) {
    const __mmask16 some = lanes16(half - i);
    Pairs x = load(head, half, i, some);
    if (gain != nullptr) x = times(scaled(x, r), load(gain, half, i, some));
    store(out, half, i, some, rotated(x, angles.cosines(i, some), angles.sines(i, some)));
  }
}

// Replace a rotated head's gradient by that of the head; add to the gradient of the gain.
void rotate_head_backward(const HeadsShape& shape, const float* gain, const Angles& angles,
                          const bf16* head, bf16* d_head, float* d_gain) {
  const int64_t half = shape.size / 2;
  const auto unrotated = [&](int64_t i, __mmask16 some) {
    const __m512 sines = angles.sines(i, some);
    return rotated(load(d_head, half, i, some), angles.cosines(i, some),
                   _mm512_sub_ps(_mm512_setzero_ps(), sines));
  };
  if (gain == nullptr) {
    for (int64_t i = 0; i < half; i += 16) {
      const __mmask16 some = lanes16(half - i);
      store(d_head, half, i, some, unrotated(i, some));
    }
    return;
  }
  const float r = inverse_rms(head, shape.size, shape.epsilon);
  __m512 total = _mm512_setzero_ps();
  for (int64_t i = 0; i < half; i += 16) {
    const __mmask16 some = lanes16(half - i);
    const Pairs along = times(unrotated(i, some), scaled(load(head, half, i, some), r));
    const Pairs before = load(d_gain, half, i, some);
    _mm512_mask_storeu_ps(d_gain + i, some, _mm512_add_ps(before.first, along.first));
    _mm512_mask_storeu_ps(d_gain + half + i, some, _mm512_add_ps(before.second, along.second));
    total = add_products(total, along, load(gain, half, i, some));
  }
  const __m512 mean =
      _mm512_set1_ps(_mm512_reduce_add_ps(total) / static_cast<float>(shape.size));
  for (int64_t i = 0; i < half; i += 16) {
    const __mmask16 some = lanes16(half - i);
    const Pairs unit = scaled(load(head, half, i, some), r);
    const Pairs across = times(unrotated(i, some), load(gain, half, i, some));
    const Pairs d_x{_mm512_fnmadd_ps(unit.first, mean, across.first),
                    _mm512_fnmadd_ps(unit.second, mean, across.second)};
    store(d_head, half, i, some, scaled(d_x, r));
  }
}

int64_t parts_of(const HeadsShape& shape) { return (shape.tokens + kRows - 1) / kRows; }

Angles angles_of(const HeadsShape& shape, const HeadsParameters& parameters, int64_t token) {
  const int64_t at = token % shape.window * (shape.size / 2);
  return {parameters.cos + at, parameters.sin + at};
}

}  // namespace

void rotate_heads(const HeadsShape& shape, const HeadsParameters& parameters, const bf16* heads,
                  bf16* out, int64_t stride) {
  const int64_t width = (shape.heads + 2 * shape.key_heads) * shape.size;
  at::parallel_for(0, shape.tokens, kRows, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const Angles angles = angles_of(shape, parameters, t);
      for (int64_t h = 0; h < shape.heads + shape.key_heads; ++h)
        rotate_head(shape, h < shape.heads ? parameters.q_gain : parameters.k_gain, angles,
                    heads + t * width + h * shape.size, out + t * stride + h * shape.size);
    }
  });
}

int64_t rotate_heads_backward_scratch(const HeadsShape& shape) {
  Scratch counted(nullptr);
  counted.take<float>(2 * parts_of(shape) * shape.size);
  return counted.used();
}

void rotate_heads_backward(const HeadsShape& shape, const HeadsParameters& parameters,
                           const bf16* heads, bf16* d_heads, float* d_q_gain, float* d_k_gain,
                           char* scratch) {
  const int64_t width = (shape.heads + 2 * shape.key_heads) * shape.size, parts = parts_of(shape);
  Scratch all(scratch);
  float* d_q = all.take<float>(2 * parts * shape.size);
  float* d_k = d_q + parts * shape.size;
  at::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) {
      float *own_q = d_q + part * shape.size, *own_k = d_k + part * shape.size;
      std::fill_n(own_q, shape.size, 0.f), std::fill_n(own_k, shape.size, 0.f);
      for (int64_t t = part * kRows; t < std::min(shape.tokens, (part + 1) * kRows); ++t) {
        const Angles angles = angles_of(shape, parameters, t);
        for (int64_t h = 0; h < shape.heads + shape.key_heads; ++h) {
          const bool is_query = h < shape.heads;
          const int64_t at = t * width + h * shape.size;
          rotate_head_backward(shape, is_query ? parameters.q_gain : parameters.k_gain, angles,
                               heads + at, d_heads + at, is_query ? own_q : own_k);
        }
      }
    }
  });
  if (parameters.q_gain == nullptr) return;
  add_parts(d_q, parts, shape.size, d_q_gain), add_parts(d_k, parts, shape.size, d_k_gain);
}

}  // namespace llmtrain
