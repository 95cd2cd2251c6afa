// The root-mean-square norm of rows, and its gradient.
#include <ATen/Parallel.h>

#include "norm_rows.h"
#include "projections.h"

namespace llmtrain {
namespace {

constexpr int64_t kRows = 128;  // whose gradient of the gain is one part of the sum

struct Buffers {
  float *d_gain, *zeros;  // (parts, C), (C)
};

int64_t parts_of(int64_t tokens) { return (tokens + kRows - 1) / kRows; }

Buffers buffers_in(Scratch& scratch, int64_t tokens, int64_t size) {
  return {scratch.take<float>(parts_of(tokens) * size), scratch.take<float>(size)};
}

}  // namespace

void normalize(const float* x, const float* gain, int64_t tokens, int64_t size, float epsilon,
               bf16* out) {
  at::parallel_for(0, tokens, kRows, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t)
      normalize_row(x + t * size, gain, size, epsilon, out + t * size);
  });
}

int64_t normalize_backward_scratch(int64_t tokens, int64_t size) {
  Scratch counted(nullptr);
  buffers_in(counted, tokens, size);
  // Rows of threads follow.
  return counted.used() + at::get_num_threads() * round_up(size * sizeof(float), 64);
}

void normalize_backward(const bf16* d_normed, const float* x, const float* gain, int64_t tokens,
                        int64_t size, float epsilon, const float* residual, float* d_x,
                        float* d_gain, char* scratch) {
  Scratch all(scratch);
  const Buffers shared = buffers_in(all, tokens, size);
  std::fill_n(shared.zeros, size, 0.f);
  at::parallel_for(0, parts_of(tokens), 1, [&](int64_t begin, int64_t end) {
    Scratch mine(scratch + all.used() + at::get_thread_num() * round_up(size * sizeof(float), 64));
    float* wide = mine.take<float>(size);
    for (int64_t part = begin; part < end; ++part) {
      float* own = shared.d_gain + part * size;
      std::fill_n(own, size, 0.f);
      for (int64_t t = part * kRows; t < std::min(tokens, (part + 1) * kRows); ++t) {
        for (int64_t d = 0; d < size; d += 32) {
          const __m512i both = _mm512_loadu_si512(d_normed + t * size + d);
          _mm512_storeu_ps(wide + d, low_half(both)), _mm512_storeu_ps(wide + d + 16, high_half(both));
        }
        const float* row = x + t * size;
        normalize_row_backward(wide, row, gain, inverse_rms(row, size, epsilon), size,
                               residual == nullptr ? shared.zeros : residual + t * size,
                               d_x + t * size, own);
      }
    }
  });
  add_parts(shared.d_gain, parts_of(tokens), size, d_gain);
}

}  // namespace llmtrain
