// One pass over memory each: these loops are as fast as it delivers.
//
// Work is cut into pieces of one size whatever the number of threads, and each number is computed
// by itself or summed within its piece, so that the number of threads does not change any bits.
#include "update.h"

#include <ATen/Parallel.h>
#include <immintrin.h>

#include <algorithm>
#include <numeric>

#include "vectors.h"

namespace llmtrain {
namespace {

constexpr int64_t kPiece = 1 << 14;  // elements
constexpr int64_t kAhead = 1024;     // elements that are fetched before they are needed

struct Piece {
  int64_t tensor, start, count;
};

template <class T, class Count>
std::vector<Piece> pieces_of(const std::vector<T>& tensors, const Count& count_of) {
  std::vector<Piece> pieces;
  for (size_t i = 0; i < tensors.size(); ++i)
    for (int64_t start = 0, count = count_of(tensors[i]); start < count; start += kPiece)
      pieces.push_back({static_cast<int64_t>(i), start, std::min(kPiece, count - start)});
  return pieces;
}

template <class Work>
void for_each_piece(const std::vector<Piece>& pieces, const Work& work) {
  at::parallel_for(0, static_cast<int64_t>(pieces.size()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) work(i, pieces[i]);
  });
}

int64_t vectors_in(int64_t count) { return (count + 15) / 16; }

inline void fetch(const void* from) { _mm_prefetch(static_cast<const char*>(from), _MM_HINT_T0); }

double squares(const float* x, int64_t count) {
  __m512 sums[4] = {_mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps(),
                    _mm512_setzero_ps()};
  for (int64_t i = 0; i < count; i += 64)
    for (int k = 0; k < 4; ++k) {
      fetch(x + i + 16 * k + kAhead);
      const __m512 v = _mm512_maskz_loadu_ps(lanes16(count - i - 16 * k), x + i + 16 * k);
      sums[k] = _mm512_fmadd_ps(v, v, sums[k]);
    }
  __m512d sum = _mm512_setzero_pd();
  for (const __m512& part : sums) {
    sum = _mm512_add_pd(sum, _mm512_cvtps_pd(_mm512_castps512_ps256(part)));
    sum = _mm512_add_pd(sum, _mm512_cvtps_pd(_mm512_extractf32x8_ps(part, 1)));
  }
  return _mm512_reduce_add_pd(sum);
}

// Rounded to the nearest, ties to even, as torch does it: the processor's own conversion makes
// subnormal numbers zero, and a weight must be rounded alike after a resume.
inline __m256i rounded(__m512 x) {
  const __m512i bits = _mm512_castps_si512(x);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i up = _mm512_add_epi32(_mm512_add_epi32(bits, odd), _mm512_set1_epi32(0x7fff));
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(up, 16));
}

void adamw_piece(const AdamwTensors& t, const AdamwFactors& f, int64_t start, int64_t count) {
  float* weight = t.weight + start;
  float *mean = t.mean + start, *mean_square = t.mean_square + start;
  const float* gradient = t.gradient + start;
  bf16* copy = t.copy == nullptr ? nullptr : t.copy + start;
  const __m512 scale = _mm512_set1_ps(f.gradient), keep = _mm512_set1_ps(f.keep);
  const __m512 less1 = _mm512_set1_ps(f.less1), less2 = _mm512_set1_ps(f.less2);
  const __m512 beta2 = _mm512_set1_ps(f.beta2), inverse_root = _mm512_set1_ps(f.inverse_root);
  const __m512 rate = _mm512_set1_ps(f.rate), eps = _mm512_set1_ps(f.eps);
  for (int64_t i = 0; i < count; i += 16) {
    const __mmask16 some = lanes16(count - i);
    fetch(gradient + i + kAhead), fetch(weight + i + kAhead);
    fetch(mean + i + kAhead), fetch(mean_square + i + kAhead);
    const __m512 g = _mm512_mul_ps(_mm512_maskz_loadu_ps(some, gradient + i), scale);
    __m512 m = _mm512_maskz_loadu_ps(some, mean + i);
    m = _mm512_fmadd_ps(_mm512_sub_ps(g, m), less1, m);
    __m512 v = _mm512_maskz_loadu_ps(some, mean_square + i);
    v = _mm512_fmadd_ps(_mm512_mul_ps(g, g), less2, _mm512_mul_ps(v, beta2));
    const __m512 root = _mm512_fmadd_ps(_mm512_sqrt_ps(v), inverse_root, eps);
    __m512 w = _mm512_mul_ps(_mm512_maskz_loadu_ps(some, weight + i), keep);
    w = _mm512_fnmadd_ps(_mm512_div_ps(m, root), rate, w);
    _mm512_mask_storeu_ps(mean + i, some, m);
    _mm512_mask_storeu_ps(mean_square + i, some, v);
    _mm512_mask_storeu_ps(weight + i, some, w);
    if (copy != nullptr) _mm256_mask_storeu_epi16(copy + i, some, rounded(w));
  }
}

}  // namespace

double sum_of_squares(const std::vector<Elements>& tensors) {
  const auto pieces = pieces_of(tensors, [](const Elements& t) { return t.count; });
  std::vector<double> sums(pieces.size());
  for_each_piece(pieces, [&](int64_t i, const Piece& piece) {
    sums[i] = squares(tensors[piece.tensor].data + piece.start, piece.count);
  });
  return std::accumulate(sums.begin(), sums.end(), 0.0);
}

void adamw(const std::vector<AdamwUpdate>& updates) {
  const auto pieces = pieces_of(updates, [](const AdamwUpdate& u) { return u.tensors.count; });
  for_each_piece(pieces, [&](int64_t, const Piece& piece) {
    const AdamwUpdate& update = updates[piece.tensor];
    adamw_piece(update.tensors, update.factors, piece.start, piece.count);
  });
}

void nesterov(const float* gradient, float* momentum, bf16* direction, int64_t count,
              float factor, float mu) {
  const __m512 scale = _mm512_set1_ps(factor), ahead = _mm512_set1_ps(mu);
  const __m512 less = _mm512_set1_ps(1.f - mu);
  at::parallel_for(0, vectors_in(count), kPiece / 16, [&](int64_t begin, int64_t end) {
    for (int64_t i = 16 * begin; i < 16 * end; i += 16) {
      const __mmask16 some = lanes16(count - i);
      fetch(gradient + i + kAhead), fetch(momentum + i + kAhead);
      const __m512 g = _mm512_mul_ps(_mm512_maskz_loadu_ps(some, gradient + i), scale);
      __m512 m = _mm512_maskz_loadu_ps(some, momentum + i);
      m = _mm512_fmadd_ps(_mm512_sub_ps(g, m), less, m);
      _mm512_mask_storeu_ps(momentum + i, some, m);
      const __m512 d = _mm512_fmadd_ps(_mm512_sub_ps(m, g), ahead, g);
      _mm256_mask_storeu_epi16(direction + i, some, rounded(d));
    }
  });
}

void descend(float* weight, const bf16* direction, bf16* copy, int64_t count, float keep,
             float rate) {
  const __m512 kept = _mm512_set1_ps(keep), step = _mm512_set1_ps(rate);
  at::parallel_for(0, vectors_in(count), kPiece / 16, [&](int64_t begin, int64_t end) {
    for (int64_t i = 16 * begin; i < 16 * end; i += 16) {
      const __mmask16 some = lanes16(count - i);
      fetch(weight + i + kAhead), fetch(direction + i + kAhead);
      const __m512 d = widened(_mm256_maskz_loadu_epi16(some, direction + i));
      const __m512 w = _mm512_fnmadd_ps(
          d, step, _mm512_mul_ps(_mm512_maskz_loadu_ps(some, weight + i), kept));
      _mm512_mask_storeu_ps(weight + i, some, w);
      if (copy != nullptr) _mm256_mask_storeu_epi16(copy + i, some, rounded(w));
    }
  });
}

}  // namespace llmtrain
