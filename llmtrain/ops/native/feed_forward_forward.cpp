// The forward of a SwiGLU layer, some rows at a time: what has width F stays in a core's cache.
//
// Products are made transposed, so that weights are left operands as they lie in memory.
#include "feed_forward.h"
#include "norm_rows.h"
#include "rows.h"
#include "swiglu.h"
#include "tasks.h"

namespace llmtrain {
namespace {

constexpr int64_t kSubTile = 64;  // features whose gates exist at once

struct Tiling {
  Tiling(const FeedForwardShape& shape, int threads) {
    const bool is_large = second_cache_bytes() >= (int64_t{2} << 20) && shape.size <= 512;
    rows = rows_of_task(shape.tokens, is_large ? 256 : 128, threads);
    features = std::min<int64_t>(512, shape.features);
    tasks = (shape.tokens + rows - 1) / rows;
  }
  int64_t rows, features, tasks;
};

struct Buffers {
  bf16 *normed, *normed_t;  // rows, and packed transposed
  float *gate, *up;         // a sub-tile of features, by rows
  bf16* activations;        // packed, a tile of features by rows
  float* y_t;               // (C, rows)
};

Buffers buffers_in(Scratch& scratch, const FeedForwardShape& shape, const Tiling& tiling) {
  return {scratch.take<bf16>(tiling.rows * shape.size), scratch.take<bf16>(tiling.rows * shape.size),
          scratch.take<float>(kSubTile * tiling.rows), scratch.take<float>(kSubTile * tiling.rows),
          scratch.take<bf16>(tiling.features * tiling.rows),
          scratch.take<float>(shape.size * tiling.rows)};
}

// Where gates of a sub-tile are kept, from one feature and one token on.
struct Kept {
  bf16* gates;  // all of them; may be null
  int64_t features, feature, token;

  void store(int64_t f, int64_t t, __m512i gate, __m512i up) const {
    const int64_t block = (token + t) / kGateBlock, within = (token + t) % kGateBlock;
    bf16* at = gates + (2 * block * features + feature + f) * kGateBlock + within;
    _mm512_stream_si512(reinterpret_cast<__m512i*>(at), gate);
    _mm512_stream_si512(reinterpret_cast<__m512i*>(at + features * kGateBlock), up);
  }
};

// silu(gate) · up of `count` features, packed.
void activate(const Buffers& own, int64_t count, int64_t width, int64_t stride, bf16* out,
              const Kept& kept) {
  const Interleave interleave;
  for (int64_t i = 0; i < count; i += 2)
    for (int64_t t = 0; t < width; t += 32) {
      __m512i both[2];
      for (int k = 0; k < 2; ++k) {
        __m512 gates[2], ups[2], hidden[2];
        for (int e = 0; e < 2; ++e) {
          const int64_t at = (i + k) * stride + t + 16 * e;
          gates[e] = _mm512_loadu_ps(own.gate + at), ups[e] = _mm512_loadu_ps(own.up + at);
          hidden[e] = _mm512_mul_ps(_mm512_mul_ps(gates[e], sigmoid(gates[e])), ups[e]);
        }
        both[k] = to_bf16(hidden[0], hidden[1]);
        if (kept.gates != nullptr)
          kept.store(i + k, t, to_bf16(gates[0], gates[1]), to_bf16(ups[0], ups[1]));
      }
      interleave.store(out + i * stride + 2 * t, both[0], both[1]);
    }
}

// `tokens` of them from `start` on.
void compute_rows(const FeedForwardShape& shape, const Tiling& tiling,
                  const FeedForwardWeights& weights, const float* all_x, int64_t start,
                  int64_t tokens, float* all_y, bf16* gates, const Buffers& own) {
  const int64_t size = shape.size, rows = tiling.rows, width = round_up(tokens, 32);
  const float* x = all_x + start * size;
  float* y = all_y + start * size;
  for (int64_t t = 0; t < tokens; ++t)
    normalize_row(x + t * size, weights.gain, size, shape.epsilon, own.normed + t * size);
  pack_transposed(own.normed, size, tokens, size, own.normed_t, rows);
  for (int64_t f = 0; f < shape.features; f += tiling.features) {
    const int64_t some = std::min(tiling.features, shape.features - f);
    for (int64_t u = 0; u < some; u += kSubTile) {
      const int64_t count = std::min(kSubTile, some - u), first = (f + u) * size;
      brgemm(count, width, size, size, rows, rows, false, weights.gate + first, own.normed_t,
             own.gate);
      brgemm(count, width, size, size, rows, rows, false, weights.up + first, own.normed_t, own.up);
      activate(own, count, width, rows, own.activations + u * rows,
               {gates, shape.features, f + u, start});
    }
    brgemm(size, width, some, shape.features, rows, rows, f > 0, weights.down + f, own.activations,
           own.y_t);
  }
  for_rows_of(own.y_t, rows, tokens, size, [&](int64_t t, int64_t d, __m512 added) {
    const __m512 before = _mm512_loadu_ps(x + t * size + d);
    _mm512_storeu_ps(y + t * size + d, _mm512_add_ps(before, added));
  });
}

}  // namespace

int64_t feed_forward_scratch(const FeedForwardShape& shape, int threads) {
  Scratch own(nullptr);
  buffers_in(own, shape, Tiling(shape, threads));
  return threads * own.used();
}

void feed_forward(const FeedForwardShape& shape, const FeedForwardWeights& weights, const float* x,
                  float* y, bf16* gates, char* scratch, int threads) {
  const Tiling tiling(shape, threads);
  const int64_t own_bytes = feed_forward_scratch(shape, threads) / threads;
  share_tasks(tiling.tasks, [&](Tasks& tasks) {
    Scratch mine(scratch + at::get_thread_num() * own_bytes);
    const Buffers own = buffers_in(mine, shape, tiling);
    for (int64_t task; tasks.take(task);) {
      const int64_t start = task * tiling.rows;
      compute_rows(shape, tiling, weights, x, start, std::min(tiling.rows, shape.tokens - start), y,
                   gates, own);
    }
    _mm_sfence();  // streamed stores are ordered by nothing else, and other threads read them
    brgemm_release();
  });
}

}  // namespace llmtrain
