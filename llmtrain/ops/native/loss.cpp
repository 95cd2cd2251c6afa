// Cross-entropy of a linear head in one sweep over the vocabulary for each chunk of tokens.
//
// Logits are computed transposed, Lᵀ = W Hᵀ, a tile at a time, and exponentiated against a reference
// logit of each token instead of its maximum, which is not yet known. The tile is multiplied at once
// into dHᵀ += Wᵀ Eᵀ, and written once, in bf16, for dW += Eᵀ (H / Σ) after the sweep. A target's own
// exponential is left out of both: its part, p − 1, is added in fp32.
#include "loss.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "rows.h"
#include "tasks.h"

namespace llmtrain {
namespace {

constexpr int64_t kRun = 512;    // tokens that are next to each other in the kept exponentials
constexpr int64_t kSubTile = 128;  // rows of vocabulary whose logits exist at once
constexpr int64_t kWeightTile = 256;  // rows of vocabulary in a task of the head's gradient
constexpr int64_t kTokens = 32;       // in a task before the sweep, and after it
// Tasks of the sweep for a thread, so that all end at about one time: of 1, 2, 3, 4 and 6 the
// fastest on sixteen Xeon cores; on two Zen 4 cores they are as fast as one.
constexpr int64_t kTasks = 4;
// A token whose largest logit is further above the reference (base 2) is computed again: products
// of smaller numbers would be flushed to zero.
constexpr float kFarAbove = 60.f;

// The sizes of tiles, so that what one task works with stays in its core's cache.
struct Tiling {
  Tiling(const LossShape& shape, int threads) {
    const bool is_large = second_cache_bytes() >= (int64_t{2} << 20) && shape.size <= 512;
    block = is_large ? 256 : shape.size <= 768 ? 128 : 64;
    tile = is_large ? 512 : 256;
    block = std::min(block, std::min(shape.chunk, round_up(shape.tokens, 32)));
    const int64_t chunk = std::min(shape.chunk, round_up(shape.tokens, 32));
    blocks = (chunk + block - 1) / block;
    // Slices of the vocabulary, so that every thread has as many tasks as the others.
    const int64_t most = std::max<int64_t>(1, shape.vocabulary / (2 * tile));
    const int64_t even = threads / std::gcd<int64_t, int64_t>(blocks, threads);
    slices = std::min(most, round_up((kTasks * threads + blocks - 1) / blocks, even));
    slice = round_up((shape.vocabulary + slices - 1) / slices, tile);
    slices = (shape.vocabulary + slice - 1) / slice;
  }
  int64_t block, blocks, tile, slice, slices;
};

struct Own {  // of a thread
  float* logits;
  bf16 *exponentials, *weight_t;
};

struct Shared {
  bf16* hidden_t;    // packed Hᵀ of the chunk, a block at a time
  bf16* scaled;      // packed H / Σ
  bf16* kept;        // Eᵀ of the chunk: (runs, V, kRun)
  float* reference;  // logits to base 2, of each token of the chunk
  float *own, *probability;  // of the target: its logit to base 2; p − 1
  float *sum, *largest;      // (slices, chunk)
  float* d_hidden_t;         // (slices, blocks, D, block)
};

Own own_in(Scratch& scratch, const LossShape& shape, const Tiling& tiling) {
  return {scratch.take<float>(kSubTile * tiling.block),
          scratch.take<bf16>(tiling.tile * tiling.block),
          scratch.take<bf16>(tiling.tile * shape.size)};
}

Shared shared_in(Scratch& scratch, const LossShape& shape, const Tiling& tiling) {
  const int64_t chunk = tiling.blocks * tiling.block, runs = round_up(chunk, kRun);
  Shared s{};
  s.hidden_t = scratch.take<bf16>(chunk * shape.size);
  s.reference = scratch.take<float>(chunk), s.own = scratch.take<float>(chunk);
  s.probability = scratch.take<float>(chunk);
  s.sum = scratch.take<float>(tiling.slices * chunk);
  s.largest = scratch.take<float>(tiling.slices * chunk);
  if (shape.differentiates_hidden)
    s.d_hidden_t = scratch.take<float>(tiling.slices * chunk * shape.size);
  if (shape.differentiates_weight) {
    s.scaled = scratch.take<bf16>(chunk * shape.size);
    s.kept = scratch.take<bf16>(shape.vocabulary * (chunk > kRun ? runs : chunk));
  }
  return s;
}

class Chunk {
 public:
  Chunk(const LossShape& shape, const Tiling& tiling, const bf16* hidden, const bf16* weight,
        const int64_t* targets, int64_t tokens, const Shared& shared)
      : shape_(shape), tiling_(tiling), hidden_(hidden), weight_(weight), targets_(targets),
        tokens_(tokens), padded_(round_up(tokens, 32)), run_(std::min(kRun, padded_)), s_(shared),
        stride_(tiling.blocks * tiling.block) {}

  int64_t blocks() const { return (tokens_ + tiling_.block - 1) / tiling_.block; }
  int64_t padded() const { return padded_; }

  // Pack kTokens hidden states from `start` on, and choose the reference logit of each.
  void prepare(int64_t start, const Own& own) const {
    const int64_t block = start / tiling_.block * tiling_.block;
    bf16* hidden_t = s_.hidden_t + block * shape_.size + 2 * (start - block);
    pack_transposed(hidden_ + start * shape_.size, shape_.size, std::min(kTokens, tokens_ - start),
                    shape_.size, hidden_t, tiling_.block);
    const int64_t rows = std::min(kSubTile, shape_.vocabulary);
    multiply(0, rows, kTokens, hidden_t, own.logits);
    for (int64_t t = 0; t < kTokens; t += 16) {
      __m512 top = _mm512_set1_ps(-INFINITY);
      for (int64_t i = 0; i < rows; ++i)
        top = _mm512_max_ps(top, _mm512_loadu_ps(own.logits + i * tiling_.block + t));
      _mm512_storeu_ps(s_.reference + start + t, _mm512_mul_ps(top, _mm512_set1_ps(kLog2E)));
    }
    for (int64_t t = start; t < start + kTokens; ++t) {
      if (!counts(t)) continue;
      const bf16* row = weight_ + targets_[t] * shape_.size;
      s_.own[t] = dot(hidden_ + t * shape_.size, row, shape_.size) * kLog2E;
      s_.reference[t] = std::max(s_.reference[t], s_.own[t]);
    }
  }

  // Sweep over one slice of the vocabulary for one block of tokens.
  void sweep(int64_t block, int64_t slice, const Own& own) const {
    const int64_t start = block * tiling_.block, width = width_of(block);
    float *sum = s_.sum + slice * stride_ + start, *largest = s_.largest + slice * stride_ + start;
    std::fill_n(sum, width, 0.f), std::fill_n(largest, width, -INFINITY);
    const int64_t first = slice * tiling_.slice;
    const int64_t stop = std::min(shape_.vocabulary, first + tiling_.slice);
    const bf16* hidden_t = s_.hidden_t + start * shape_.size;
    for (int64_t v = first; v < stop; v += tiling_.tile) {
      const int64_t rows = std::min(tiling_.tile, stop - v);
      for (int64_t u = 0; u < rows; u += kSubTile) {
        const int64_t some = std::min(kSubTile, rows - u);
        multiply(v + u, some, width, hidden_t, own.logits);
        if (shape_.differentiates_hidden)
          transpose(weight_ + (v + u) * shape_.size, shape_.size, some, shape_.size,
                    own.weight_t + u, tiling_.tile);
        exponentiate(own, start, width, v + u, u, some, sum, largest);
      }
      leave_targets_out(own.exponentials, start, width, v, rows);
      if (shape_.differentiates_hidden)
        brgemm(shape_.size, width, round_up(rows, 2), tiling_.tile, tiling_.block, tiling_.block,
               v > first, own.weight_t, own.exponentials, d_hidden_t(slice, start));
    }
    _mm_sfence();  // streamed stores are ordered by nothing else, and other threads read them
  }

  // Raise references that a logit is far above; return whether there are any.
  bool raise_references(int64_t block) const {
    bool any = false;
    const int64_t start = block * tiling_.block, stop = start + width_of(block);
    for (int64_t t = start; t < stop; ++t) {
      float top = -INFINITY;
      for (int64_t i = 0; i < tiling_.slices; ++i)
        top = std::max(top, s_.largest[i * stride_ + t] * kLog2E);
      if (top - s_.reference[t] > kFarAbove) s_.reference[t] = top, any = true;
    }
    return any;
  }

  // Write losses of kTokens tokens from `start` on, the operand of the head's gradient and the
  // gradients of hidden states.
  void finish(int64_t start, float* losses, bf16* d_hidden) const {
    float* inverse = s_.sum + start;  // in place of the first slice's
    for (int64_t t = start; t < start + kTokens; ++t) {
      float sum = 0.f;
      for (int64_t i = 0; i < tiling_.slices; ++i) sum += s_.sum[i * stride_ + t];
      inverse[t - start] = counts(t) ? 1.f / sum : 0.f;
      const float lse = s_.reference[t] + std::log2(sum);
      s_.probability[t] = counts(t) ? std::exp2(s_.own[t] - lse) - 1.f : 0.f;
      if (t < tokens_) losses[t] = counts(t) ? (lse - s_.own[t]) * kLn2 : 0.f;
    }
    if (shape_.differentiates_weight) scale_hidden(start, inverse);
    if (shape_.differentiates_hidden)
      for (int64_t t = start; t < start + kTokens; t += 16)
        store_d_hidden(t, inverse + (t - start), d_hidden);
  }

  // Add this chunk's part of some rows of the head's gradient, or set them.
  void differentiate_weight(int64_t first, float* d_weight, bool adds) const {
    const int64_t rows = std::min(kWeightTile, shape_.vocabulary - first);
    float* out = d_weight + first * shape_.size;
    for (int64_t r = 0; r < padded_; r += run_) {
      const int64_t count = std::min(run_, padded_ - r);
      brgemm(rows, shape_.size, count, run_, shape_.size, shape_.size, adds || r > 0,
             s_.kept + r * shape_.vocabulary + first * run_, s_.scaled + r * shape_.size, out);
    }
    for (int64_t t = 0; t < tokens_; ++t)
      if (counts(t) && first <= targets_[t] && targets_[t] < first + rows)
        add_row(out + (targets_[t] - first) * shape_.size, hidden_ + t * shape_.size,
                s_.probability[t]);
  }

 private:
  bool counts(int64_t t) const { return t < tokens_ && targets_[t] >= 0; }
  int64_t width_of(int64_t block) const {
    return std::min(tiling_.block, padded_ - block * tiling_.block);
  }
  float* d_hidden_t(int64_t slice, int64_t start) const {
    return s_.d_hidden_t + (slice * stride_ + start) * shape_.size;
  }
  bf16* kept(int64_t row, int64_t token) const {
    const int64_t run = token / run_;
    return s_.kept + (run * shape_.vocabulary + row) * run_ + token % run_;
  }

  void multiply(int64_t row, int64_t rows, int64_t width, const bf16* hidden_t,
                float* logits) const {
    brgemm(rows, width, shape_.size, shape_.size, tiling_.block, tiling_.block, false,
           weight_ + row * shape_.size, hidden_t, logits);
  }

  // Exponentiate the logits of vocabulary rows v … v + rows, which begin at row u of the tile, and
  // stream what is kept past the cache.
  void exponentiate(const Own& own, int64_t start, int64_t width, int64_t v, int64_t u,
                    int64_t rows, float* sum, float* largest) const {
    const Interleave interleave;
    const __m512 base = _mm512_set1_ps(kLog2E);
    // The rows that are multiplied next, a share for each step of the loop: all at once would wait.
    const int64_t ahead = std::min(kSubTile, shape_.vocabulary - v - rows) * shape_.size;
    const int64_t share = round_up(ahead, width) / width * 32;
    for (int64_t t = 0; t < width; t += 32) {
      prefetch(weight_ + (v + rows) * shape_.size + share * (t / 32),
               std::min(share, ahead - share * (t / 32)));
      const __m512 reference0 = _mm512_loadu_ps(s_.reference + start + t);
      const __m512 reference1 = _mm512_loadu_ps(s_.reference + start + t + 16);
      __m512 sum0 = _mm512_loadu_ps(sum + t), sum1 = _mm512_loadu_ps(sum + t + 16);
      __m512 top0 = _mm512_loadu_ps(largest + t), top1 = _mm512_loadu_ps(largest + t + 16);
      for (int64_t i = 0; i < rows; i += 2) {
        __m512i both[2] = {_mm512_setzero_si512(), _mm512_setzero_si512()};
        for (int k = 0; k < 2 && i + k < rows; ++k) {
          const float* logits = own.logits + (i + k) * tiling_.block + t;
          const __m512 x0 = _mm512_loadu_ps(logits), x1 = _mm512_loadu_ps(logits + 16);
          top0 = _mm512_max_ps(top0, x0), top1 = _mm512_max_ps(top1, x1);
          const __m512 e0 = exp2(_mm512_fmsub_ps(x0, base, reference0));
          const __m512 e1 = exp2(_mm512_fmsub_ps(x1, base, reference1));
          sum0 = _mm512_add_ps(sum0, e0), sum1 = _mm512_add_ps(sum1, e1);
          both[k] = to_bf16(e0, e1);
          if (shape_.differentiates_weight)
            _mm512_stream_si512(reinterpret_cast<__m512i*>(kept(v + i + k, start + t)), both[k]);
        }
        interleave.store(own.exponentials + (u + i) * tiling_.block + 2 * t, both[0], both[1]);
      }
      _mm512_storeu_ps(sum + t, sum0), _mm512_storeu_ps(sum + t + 16, sum1);
      _mm512_storeu_ps(largest + t, top0), _mm512_storeu_ps(largest + t + 16, top1);
    }
  }

  void leave_targets_out(bf16* exponentials, int64_t start, int64_t width, int64_t v,
                         int64_t rows) const {
    for (int64_t t = start; t < start + width; ++t) {
      if (!counts(t) || targets_[t] < v || targets_[t] >= v + rows) continue;
      const int64_t i = targets_[t] - v;
      exponentials[i / 2 * 2 * tiling_.block + 2 * (t - start) + i % 2] = 0.f;
      if (shape_.differentiates_weight) *kept(targets_[t], t) = 0.f;
    }
  }

  void scale_hidden(int64_t start, const float* inverse) const {
    const Interleave interleave;
    for (int64_t t = 0; t < kTokens; t += 2)
      for (int64_t d = 0; d < shape_.size; d += 32) {
        __m512i both[2];
        for (int k = 0; k < 2; ++k) {
          const __mmask32 some = start + t + k < tokens_ ? ~0u : 0u;
          const __m512i x =
              _mm512_maskz_loadu_epi16(some, hidden_ + (start + t + k) * shape_.size + d);
          const __m512 f = _mm512_set1_ps(inverse[t + k]);
          both[k] = to_bf16(_mm512_mul_ps(low_half(x), f), _mm512_mul_ps(high_half(x), f));
        }
        interleave.store(s_.scaled + (start + t) * shape_.size + 2 * d, both[0], both[1]);
      }
  }

  // Store the gradients of 16 hidden states from token t of the chunk on.
  void store_d_hidden(int64_t t, const float* inverse, bf16* d_hidden) const {
    const int64_t start = t / tiling_.block * tiling_.block;
    for (int64_t d = 0; d < shape_.size; d += 16) {
      __m512i r[16];
      for (int n = 0; n < 16; ++n) {
        const int64_t at = (d + n) * tiling_.block + (t - start);
        __m512 sum = _mm512_loadu_ps(d_hidden_t(0, start) + at);
        for (int64_t i = 1; i < tiling_.slices; ++i)
          sum = _mm512_add_ps(sum, _mm512_loadu_ps(d_hidden_t(i, start) + at));
        r[n] = _mm512_castps_si512(sum);
      }
      transpose16(r);
      for (int n = 0; n < 16 && t + n < tokens_; ++n) {
        const int64_t row = counts(t + n) ? targets_[t + n] : 0;
        const __m512 w = widened(_mm256_loadu_si256(
            reinterpret_cast<const __m256i*>(weight_ + row * shape_.size + d)));
        const __m512 scaled = _mm512_mul_ps(_mm512_castsi512_ps(r[n]),
                                            _mm512_set1_ps(inverse[n]));
        const __m512 x = _mm512_fmadd_ps(w, _mm512_set1_ps(s_.probability[t + n]), scaled);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(d_hidden + (t + n) * shape_.size + d),
                            _mm512_castsi512_si256(to_bf16(x, x)));
      }
    }
  }

  void add_row(float* out, const bf16* row, float factor) const {
    const __m512 f = _mm512_set1_ps(factor);
    for (int64_t d = 0; d < shape_.size; d += 32) {
      const __m512i x = _mm512_loadu_si512(row + d);
      _mm512_storeu_ps(out + d, _mm512_fmadd_ps(low_half(x), f, _mm512_loadu_ps(out + d)));
      _mm512_storeu_ps(out + d + 16,
                       _mm512_fmadd_ps(high_half(x), f, _mm512_loadu_ps(out + d + 16)));
    }
  }

  LossShape shape_;
  Tiling tiling_;
  const bf16 *hidden_, *weight_;
  const int64_t* targets_;
  int64_t tokens_, padded_, run_;
  Shared s_;
  int64_t stride_;
};

}  // namespace

int64_t linear_cross_entropy_scratch(const LossShape& shape, int threads) {
  const Tiling tiling(shape, threads);
  Scratch own(nullptr), shared(nullptr);
  own_in(own, shape, tiling), shared_in(shared, shape, tiling);
  return threads * own.used() + shared.used();
}

void linear_cross_entropy(const LossShape& shape, const bf16* hidden, const bf16* weight,
                          const int64_t* targets, float* losses, bf16* d_hidden, float* d_weight,
                          char* scratch, int threads) {
  const Tiling tiling(shape, threads);
  Scratch counted(nullptr);
  own_in(counted, shape, tiling);
  const int64_t own_bytes = counted.used();
  const auto own_of_thread = [&] {
    Scratch own(scratch + at::get_thread_num() * own_bytes);
    return own_in(own, shape, tiling);
  };
  Scratch rest(scratch + threads * own_bytes);
  const Shared shared = shared_in(rest, shape, tiling);
  const int64_t weight_tiles = (shape.vocabulary + kWeightTile - 1) / kWeightTile;
  for (int64_t start = 0; start < shape.tokens; start += shape.chunk) {
    const Chunk chunk(shape, tiling, hidden + start * shape.size, weight, targets + start,
                      std::min(shape.chunk, shape.tokens - start), shared);
    share_tasks(chunk.padded() / kTokens, [&](Tasks& tasks) {
      const Own own = own_of_thread();
      for (int64_t task; tasks.take(task);) chunk.prepare(task * kTokens, own);
      brgemm_release();
    });
    const auto sweep = [&] {
      share_tasks(chunk.blocks() * tiling.slices, [&](Tasks& tasks) {
        const Own own = own_of_thread();
        for (int64_t task; tasks.take(task);)  // of one slice at about one time: it is read once
          chunk.sweep(task % chunk.blocks(), task / chunk.blocks(), own);
        brgemm_release();
      });
    };
    sweep();
    bool again = false;
    for (int64_t block = 0; block < chunk.blocks(); ++block) again |= chunk.raise_references(block);
    if (again) sweep();
    bf16* const d_rows = d_hidden == nullptr ? nullptr : d_hidden + start * shape.size;
    share_tasks(chunk.padded() / kTokens, [&](Tasks& tasks) {
      for (int64_t task; tasks.take(task);) chunk.finish(task * kTokens, losses + start, d_rows);
    });
    if (shape.differentiates_weight)
      share_tasks(weight_tiles, [&](Tasks& tasks) {
        for (int64_t tile; tasks.take(tile);)
          chunk.differentiate_weight(tile * kWeightTile, d_weight, start > 0);
        brgemm_release();
      });
  }
}

}  // namespace llmtrain
