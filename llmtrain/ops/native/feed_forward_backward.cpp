// The gradients of a SwiGLU layer.
//
//     pack         rows of n(x) and dy as operands, both ways; weights transposed
//     by features  gates, again if they were not kept, their gradients, and the gradients of all
//                  weights, some features of all tokens at a time: sums of weights' gradients stay
//                  in a core's cache
//     by rows      the gradient of n(x) and of x, some tokens at a time
//
// Of what has width F only gates that were kept and the gates' gradient go through memory, once.
#include <cstring>

#include "feed_forward.h"
#include "norm_rows.h"
#include "rows.h"
#include "swiglu.h"
#include "tasks.h"

namespace llmtrain {
namespace {

constexpr int64_t kRun = 512;    // tokens in one product of weights' gradients
constexpr int64_t kBlock = kGateBlock;  // tokens whose gates exist at once; divides the others
constexpr int64_t kPiece = 512;  // features in one product of the rows' gradient
constexpr int64_t kPacked = 32;  // rows or features packed at once

struct Tiling {
  Tiling(const FeedForwardShape& shape, int threads) {
    padded = round_up(shape.tokens, 32);
    const bool is_small = shape.size > 512 || second_cache_bytes() < (int64_t{2} << 20);
    features = is_small ? 64 : 128;
    while (features > 32 && shape.features / features < threads) features /= 2;
    rows = is_small || (padded + 255) / 256 < 2 * threads ? 128 : 256;
    row_tasks = (padded + rows - 1) / rows;
    feature_tasks = (shape.features + features - 1) / features;
  }
  int64_t padded, features, rows, row_tasks, feature_tasks;
};

struct Shared {
  bf16 *normed_t, *normed;  // n(x): transposed in blocks of kBlock tokens, and as it is; packed
  bf16 *d_y_t, *d_y;        // the same of dy
  bf16 *down_t;             // (F, C)
  bf16 *gates_t;            // gate and up transposed, in pieces (C, kPiece)
  bf16 *d_gates;            // packed, in blocks (2F, rows)
  float *inverse, *d_gain;  // 1 / rms of each token; (row tasks, C)
};

struct OfFeatures {
  float *gate, *up, *d_hidden;       // (features, kBlock); the former if they were not kept
  bf16 *hidden, *d_gate, *d_up;      // (features, kRun)
  float *sum_gate, *sum_up, *sum_down;  // (features, C)
};

struct Gates {
  __m512i gate, up;  // of 32 tokens
};

struct OfRows {
  float *d_normed_t, *d_normed;  // (C, rows), (rows, C)
};

struct OfPacking {
  bf16 *normed, *d_y;  // (kPacked, C)
};

Shared shared_in(Scratch& scratch, const FeedForwardShape& shape, const Tiling& tiling) {
  const int64_t blocks = round_up(tiling.padded, kBlock), rows = tiling.row_tasks * tiling.rows;
  const int64_t pieces = round_up(2 * shape.features, kPiece);
  Shared s{};
  s.normed_t = scratch.take<bf16>(blocks * shape.size);
  s.normed = scratch.take<bf16>(blocks * shape.size);
  s.d_y_t = scratch.take<bf16>(blocks * shape.size);
  s.d_y = scratch.take<bf16>(blocks * shape.size);
  s.down_t = scratch.take<bf16>(shape.features * shape.size);
  s.gates_t = scratch.take<bf16>(pieces * shape.size);
  s.d_gates = scratch.take<bf16>(2 * shape.features * rows);
  s.inverse = scratch.take<float>(tiling.padded);
  s.d_gain = scratch.take<float>(tiling.row_tasks * shape.size);
  return s;
}

OfFeatures features_in(Scratch& scratch, const FeedForwardShape& shape, const Tiling& tiling) {
  const int64_t count = tiling.features;
  OfFeatures own{};
  for (float** each : {&own.gate, &own.up, &own.d_hidden})
    *each = scratch.take<float>(count * kBlock);
  for (bf16** each : {&own.hidden, &own.d_gate, &own.d_up})
    *each = scratch.take<bf16>(count * kRun);
  for (float** each : {&own.sum_gate, &own.sum_up, &own.sum_down})
    *each = scratch.take<float>(count * shape.size);
  return own;
}

OfRows rows_in(Scratch& scratch, const FeedForwardShape& shape, const Tiling& tiling) {
  return {scratch.take<float>(tiling.rows * shape.size),
          scratch.take<float>(tiling.rows * shape.size)};
}

OfPacking packing_in(Scratch& scratch, const FeedForwardShape& shape) {
  return {scratch.take<bf16>(kPacked * shape.size), scratch.take<bf16>(kPacked * shape.size)};
}

class Backward {
 public:
  Backward(const FeedForwardShape& shape, const Tiling& tiling, const FeedForwardWeights& weights,
           const float* d_y, const float* x, const bf16* gates,
           const FeedForwardGradients& gradients, const Shared& shared)
      : shape_(shape), tiling_(tiling), weights_(weights), d_y_(d_y), x_(x), gates_(gates),
        d_(gradients), s_(shared) {}

  // Pack 32 tokens from `start` on; beyond the last one zeros.
  void pack_rows(int64_t start, const OfPacking& own) const {
    const int64_t size = shape_.size, block = start / kBlock * kBlock;
    for (int64_t t = 0; t < kPacked; ++t) {
      bf16 *normed = own.normed + t * size, *d_y = own.d_y + t * size;
      if (start + t >= shape_.tokens) {
        std::memset(normed, 0, size * sizeof(bf16)), std::memset(d_y, 0, size * sizeof(bf16));
        continue;
      }
      const int64_t at = (start + t) * size;
      s_.inverse[start + t] = normalize_row(x_ + at, weights_.gain, size, shape_.epsilon, normed);
      store_scaled(d_y, d_y_ + at, size, 1.f);
    }
    const int64_t at = block * size + 2 * (start - block);
    pack_transposed(own.normed, size, kPacked, size, s_.normed_t + at, kBlock);
    pack_transposed(own.d_y, size, kPacked, size, s_.d_y_t + at, kBlock);
    pack(own.normed, size, kPacked, size, s_.normed + start * size, size);
    pack(own.d_y, size, kPacked, size, s_.d_y + start * size, size);
  }

  // Transpose 32 features of the gates from `first` on, of 2F.
  void transpose_features(int64_t first) const {
    const int64_t size = shape_.size, features = shape_.features;
    const bool is_gate = first < features;
    const bf16* rows = is_gate ? weights_.gate + first * size
                               : weights_.up + (first - features) * size;
    const int64_t piece = first / kPiece * kPiece;
    transpose(rows, size, kPacked, size, s_.gates_t + piece * size + first - piece, kPiece);
    if (is_gate)
      transpose(weights_.down + first, features, size, kPacked, s_.down_t + first * size, size);
  }

  void by_features(int64_t task, const OfFeatures& own) const {
    const int64_t first = task * tiling_.features, size = shape_.size;
    const int64_t count = std::min(tiling_.features, shape_.features - first);
    for (int64_t run = 0; run < tiling_.padded; run += kRun) {
      const int64_t tokens = std::min(kRun, tiling_.padded - run);
      for (int64_t u = 0; u < tokens; u += kBlock)
        differentiate_gates(first, count, run, u, std::min(kBlock, tokens - u), own);
      const bf16 *normed = s_.normed + run * size, *d_y = s_.d_y + run * size;
      const bool adds = run > 0;
      brgemm(count, size, tokens, kRun, size, size, adds, own.d_gate, normed, own.sum_gate);
      brgemm(count, size, tokens, kRun, size, size, adds, own.d_up, normed, own.sum_up);
      brgemm(count, size, tokens, kRun, size, size, adds, own.hidden, d_y, own.sum_down);
    }
    std::memcpy(d_.gate + first * size, own.sum_gate, count * size * sizeof(float));
    std::memcpy(d_.up + first * size, own.sum_up, count * size * sizeof(float));
    for_rows_of(own.sum_down, size, size, count, [&](int64_t d, int64_t f, __m512 values) {
      _mm512_storeu_ps(d_.down + d * shape_.features + first + f, values);
    });
  }

  void by_rows(int64_t task, const OfRows& own) const {
    const int64_t start = task * tiling_.rows, size = shape_.size, rows = tiling_.rows;
    const int64_t width = std::min(rows, tiling_.padded - start), both = 2 * shape_.features;
    for (int64_t k = 0; k < both; k += kPiece)
      brgemm(size, width, std::min(kPiece, both - k), kPiece, rows, rows, k > 0,
             s_.gates_t + k * size, s_.d_gates + start * both + k * rows, own.d_normed_t);
    const int64_t tokens = std::min(rows, shape_.tokens - start);
    for_rows_of(own.d_normed_t, rows, tokens, size, [&](int64_t t, int64_t d, __m512 values) {
      _mm512_storeu_ps(own.d_normed + t * size + d, values);
    });
    float* d_gain = s_.d_gain + task * size;
    std::fill_n(d_gain, size, 0.f);
    for (int64_t t = 0; t < tokens; ++t) {
      const int64_t at = (start + t) * size;
      normalize_row_backward(own.d_normed + t * size, x_ + at, weights_.gain,
                             s_.inverse[start + t], size, d_y_ + at, d_.x + at, d_gain);
    }
  }

 private:
  // `width` tokens from run + u on: gates, and their gradients as both operands that they become.
  void differentiate_gates(int64_t first, int64_t count, int64_t run, int64_t u, int64_t width,
                           const OfFeatures& own) const {
    if (gates_ == nullptr) {
      const bf16* normed_t = s_.normed_t + (run + u) * shape_.size;
      multiply(weights_.gate, first, count, normed_t, width, own.gate);
      multiply(weights_.up, first, count, normed_t, width, own.up);
      differentiate_gates(first, count, run, u, width, own, [&](int64_t at) {
        const auto rounded = [&](const float* from) {
          return to_bf16(_mm512_loadu_ps(from + at), _mm512_loadu_ps(from + at + 16));
        };
        return Gates{rounded(own.gate), rounded(own.up)};
      });
    } else {
      const int64_t block = (run + u) / kGateBlock;
      const bf16* gate = gates_ + (2 * block * shape_.features + first) * kGateBlock;
      const bf16* up = gate + shape_.features * kGateBlock;
      differentiate_gates(first, count, run, u, width, own, [&](int64_t at) {
        return Gates{_mm512_loadu_si512(gate + at), _mm512_loadu_si512(up + at)};
      });
    }
  }

  // `gates_at(i)`: those of 32 tokens, from the i-th of a block (count, kBlock) on.
  template <class GatesAt>
  void differentiate_gates(int64_t first, int64_t count, int64_t run, int64_t u, int64_t width,
                           const OfFeatures& own, const GatesAt& gates_at) const {
    const int64_t size = shape_.size, start = run + u;
    const bf16 *normed_t = s_.normed_t + start * size, *d_y_t = s_.d_y_t + start * size;
    multiply(s_.down_t, first, count, d_y_t, width, own.d_hidden);
    const int64_t block = start / tiling_.rows * tiling_.rows, stride = tiling_.rows;
    bf16* d_gate = s_.d_gates + 2 * block * shape_.features + first * stride + 2 * (start - block);
    bf16* d_up = d_gate + shape_.features * stride;
    // The operands of the products to come: asked for meanwhile.
    const bf16* next[4] = {s_.normed + start * size, s_.d_y + start * size,
                           normed_t + kBlock * size, d_y_t + kBlock * size};
    int64_t lines = start + kBlock < tiling_.padded ? width * size / 32 : 0, line = 0;
    const Interleave interleave;
    for (int64_t i = 0; i < count; i += 2)
      for (int64_t t = 0; t < width; t += 32) {
        for (int n = 0; n < 6 && line < lines; ++n, ++line)
          for (const bf16* each : next)
            _mm_prefetch(reinterpret_cast<const char*>(each + 32 * line), _MM_HINT_T1);
        __m512i gates[2], ups[2];
        for (int k = 0; k < 2; ++k)
          differentiate(gates_at((i + k) * kBlock + t), own, (i + k) * kBlock + t,
                        (i + k) * kRun + u + t, gates[k], ups[k]);
        interleave.store(d_gate + i * stride + 2 * t, gates[0], gates[1]);
        interleave.store(d_up + i * stride + 2 * t, ups[0], ups[1]);
      }
  }

  // Of `rows` (…, C) those of features from `first` on, by a block of tokens (C, kBlock).
  void multiply(const bf16* rows, int64_t first, int64_t count, const bf16* tokens, int64_t width,
                float* out) const {
    const int64_t size = shape_.size;
    brgemm(count, width, size, size, kBlock, kBlock, false, rows + first * size, tokens, out);
  }

  // 32 tokens of one feature, at `from` of the block and `to` of the run.
  static void differentiate(const Gates& gates, const OfFeatures& own, int64_t from, int64_t to,
                            __m512i& d_gate, __m512i& d_up) {
    __m512 hidden[2], d_gates[2], d_ups[2];
    for (int e = 0; e < 2; ++e) {
      const __m512 gate = e == 0 ? low_half(gates.gate) : high_half(gates.gate);
      const __m512 up = e == 0 ? low_half(gates.up) : high_half(gates.up);
      const __m512 d_hidden = _mm512_loadu_ps(own.d_hidden + from + 16 * e);
      const __m512 s = sigmoid(gate), silu = _mm512_mul_ps(gate, s);
      hidden[e] = _mm512_mul_ps(silu, up);
      d_ups[e] = _mm512_mul_ps(d_hidden, silu);
      d_gates[e] = _mm512_mul_ps(_mm512_mul_ps(d_hidden, up), silu_slope(s, silu));
    }
    d_gate = to_bf16(d_gates[0], d_gates[1]), d_up = to_bf16(d_ups[0], d_ups[1]);
    _mm512_storeu_si512(own.hidden + to, to_bf16(hidden[0], hidden[1]));
    _mm512_storeu_si512(own.d_gate + to, d_gate);
    _mm512_storeu_si512(own.d_up + to, d_up);
  }

  FeedForwardShape shape_;
  Tiling tiling_;
  FeedForwardWeights weights_;
  const float *d_y_, *x_;
  const bf16* gates_;
  FeedForwardGradients d_;
  Shared s_;
};

int64_t own_bytes(const FeedForwardShape& shape, const Tiling& tiling) {
  Scratch features(nullptr), rows(nullptr), packing(nullptr);
  features_in(features, shape, tiling), rows_in(rows, shape, tiling), packing_in(packing, shape);
  return std::max({features.used(), rows.used(), packing.used()});
}

}  // namespace

int64_t feed_forward_backward_scratch(const FeedForwardShape& shape, int threads) {
  const Tiling tiling(shape, threads);
  Scratch shared(nullptr);
  shared_in(shared, shape, tiling);
  return shared.used() + threads * own_bytes(shape, tiling);
}

void feed_forward_backward(const FeedForwardShape& shape, const FeedForwardWeights& weights,
                           const float* d_y, const float* x, const bf16* gates,
                           const FeedForwardGradients& gradients, char* scratch, int threads) {
  const Tiling tiling(shape, threads);
  Scratch all(scratch);
  const Shared shared = shared_in(all, shape, tiling);
  const int64_t each = own_bytes(shape, tiling);
  const auto own = [&] { return Scratch(scratch + all.used() + at::get_thread_num() * each); };
  const Backward backward(shape, tiling, weights, d_y, x, gates, gradients, shared);
  share_tasks(tiling.padded / kPacked, [&](Tasks& tasks) {
    Scratch mine = own();
    const OfPacking packing = packing_in(mine, shape);
    for (int64_t task; tasks.take(task);) backward.pack_rows(task * kPacked, packing);
  });
  share_tasks(2 * shape.features / kPacked, [&](Tasks& tasks) {
    for (int64_t task; tasks.take(task);) backward.transpose_features(task * kPacked);
  });
  share_tasks(tiling.feature_tasks, [&](Tasks& tasks) {
    Scratch mine = own();
    const OfFeatures features = features_in(mine, shape, tiling);
    for (int64_t task; tasks.take(task);) backward.by_features(task, features);
    brgemm_release();
  });
  share_tasks(tiling.row_tasks, [&](Tasks& tasks) {
    Scratch mine = own();
    const OfRows rows = rows_in(mine, shape, tiling);
    for (int64_t task; tasks.take(task);) backward.by_rows(task, rows);
    brgemm_release();
  });
  add_parts(shared.d_gain, tiling.row_tasks, shape.size, gradients.gain);
}

}  // namespace llmtrain
