// Flash attention (Dao 2023) for one (sequence, head) at a time: blocks of queries against blocks
// of keys, with a running maximum and sum of each row.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "attention.h"
#include "attention_tasks.h"
#include "vectors.h"

namespace llmtrain {
namespace {

constexpr int64_t kQueryBlock = 128, kKeyBlock = 512;

struct Buffers {
  bf16 *k, *v;  // packed: Kᵀ a block of keys at a time, and V
  float* scores;
  bf16* probabilities;
  float *sums, *largest, *total;
};

Buffers buffers_in(Scratch& scratch, const AttentionShape& shape) {
  const int64_t tokens = round_up(shape.tokens, kKeyBlock), size = round_up(shape.size, 32);
  return {scratch.take<bf16>(tokens * size),
          scratch.take<bf16>(tokens * size),
          scratch.take<float>(kQueryBlock * kKeyBlock),
          scratch.take<bf16>(kQueryBlock * kKeyBlock),
          scratch.take<float>(kQueryBlock * size),
          scratch.take<float>(kQueryBlock),
          scratch.take<float>(kQueryBlock)};
}

// Replace one row of scores by exponentials relative to its running maximum. The row sees keys
// [low, high) of `keys`, a multiple of 32. Returns the factor for what was summed before.
float exponentiate(const float* scores, bf16* out, int64_t keys, int64_t low, int64_t high,
                   float scale, float* largest, float* total) {
  if (low >= high) {
    std::memset(out, 0, keys * sizeof(bf16));
    return 1.f;
  }
  __m512 top = _mm512_set1_ps(-INFINITY);
  const int64_t begin = low / 32 * 32, end = round_up(high, 32);
  for (int64_t e = begin; e < end; e += 16) {
    const __mmask16 seen = lanes16(high - e) & ~lanes16(low - e);
    top = _mm512_mask_max_ps(top, seen, top, _mm512_loadu_ps(scores + e));
  }
  const float before = *largest, now = std::max(before, _mm512_reduce_max_ps(top) * scale);
  const __m512 now16 = _mm512_set1_ps(now), scale16 = _mm512_set1_ps(scale);
  std::memset(out, 0, begin * sizeof(bf16));
  std::memset(out + end, 0, (keys - end) * sizeof(bf16));
  __m512 sum = _mm512_setzero_ps();
  for (int64_t e = begin; e < end; e += 32) {
    const __m512 a = exp2(_mm512_fmsub_ps(_mm512_loadu_ps(scores + e), scale16, now16));
    const __m512 b = exp2(_mm512_fmsub_ps(_mm512_loadu_ps(scores + e + 16), scale16, now16));
    const __mmask32 seen = lanes32(high - e) & ~lanes32(low - e);
    const __m512 a_seen = _mm512_maskz_mov_ps(static_cast<__mmask16>(seen), a);
    const __m512 b_seen = _mm512_maskz_mov_ps(static_cast<__mmask16>(seen >> 16), b);
    sum = _mm512_add_ps(sum, _mm512_add_ps(a_seen, b_seen));
    _mm512_storeu_si512(out + e, to_bf16(a_seen, b_seen));
  }
  const float factor = std::exp2(before - now);
  *total = *total * factor + _mm512_reduce_add_ps(sum);
  *largest = now;
  return factor;
}

class Forward {
 public:
  Forward(const AttentionShape& shape, HeadsOf q, HeadsOf k, HeadsOf v, const int32_t* first,
          HeadsOf y, float* lse)
      : shape_(shape), q_(q), k_(k), v_(v), first_(first), y_(y), lse_(lse),
        size_(round_up(shape.size, 32)), scale_(kLog2E / std::sqrt(float(shape.size))) {}

  Buffers buffers(Scratch& scratch) const { return buffers_in(scratch, shape_); }
  void finish() const { brgemm_release(); }

  void pack_keys(const Buffers& b, int64_t sequence, int64_t key_head) const {
    const bf16 *k = k_.at(sequence, key_head), *v = v_.at(sequence, key_head);
    for (int64_t j = 0; j < shape_.tokens; j += kKeyBlock) {
      const int64_t keys = std::min(kKeyBlock, shape_.tokens - j);
      pack_transposed(k + j * k_.token_stride, k_.token_stride, keys, shape_.size, b.k + j * size_,
                      kKeyBlock);
    }
    // up to a multiple of 32 rows, as products take so many
    pack(v, v_.token_stride, shape_.tokens, shape_.size, b.v, size_);
    for (int64_t row = round_up(shape_.tokens, 2); row < round_up(shape_.tokens, 32); row += 2)
      std::memset(b.v + row * size_, 0, 2 * size_ * sizeof(bf16));
  }

  void query_block(const Buffers& b, int64_t sequence, int64_t head, int64_t start) const {
    const int64_t rows = std::min(kQueryBlock, shape_.tokens - start), stop = start + rows;
    const int32_t* first = first_ == nullptr ? nullptr : first_ + sequence * shape_.tokens;
    const int64_t first_key = first == nullptr ? 0 : first[start] / kKeyBlock * kKeyBlock;
    std::fill_n(b.largest, rows, -INFINITY), std::fill_n(b.total, rows, 0.f);
    const bf16* q = q_.at(sequence, head) + start * q_.token_stride;
    for (int64_t j = first_key; j < stop; j += kKeyBlock) {
      const int64_t keys = round_up(std::min(kKeyBlock, stop - j), 32);
      brgemm(rows, keys, shape_.size, q_.token_stride, kKeyBlock, kKeyBlock, false, q,
             b.k + j * size_, b.scores);
      for (int64_t r = 0; r < rows; ++r) {
        const int64_t row = start + r, low = first == nullptr ? 0 : first[row] - j;
        const float factor =
            exponentiate(b.scores + r * kKeyBlock, b.probabilities + r * kKeyBlock, keys,
                         std::max<int64_t>(0, low), std::min(keys, row + 1 - j), scale_,
                         b.largest + r, b.total + r);
        if (j > first_key && factor != 1.f) multiply(b.sums + r * size_, factor);
      }
      brgemm(rows, size_, keys, kKeyBlock, size_, size_, j > first_key, b.probabilities,
             b.v + j * size_, b.sums);
    }
    float* lse = lse_ + (sequence * shape_.heads + head) * shape_.tokens + start;
    bf16* y = y_.at(sequence, head) + start * y_.token_stride;
    for (int64_t r = 0; r < rows; ++r) {
      store_scaled(y + r * y_.token_stride, b.sums + r * size_, shape_.size, 1.f / b.total[r]);
      lse[r] = b.largest[r] + std::log2(b.total[r]);
    }
  }

 private:
  void multiply(float* row, float factor) const {
    const __m512 f = _mm512_set1_ps(factor);
    for (int64_t d = 0; d < size_; d += 16)
      _mm512_storeu_ps(row + d, _mm512_mul_ps(_mm512_loadu_ps(row + d), f));
  }

  AttentionShape shape_;
  HeadsOf q_, k_, v_;
  const int32_t* first_;
  HeadsOf y_;
  float* lse_;
  int64_t size_;
  float scale_;
};

int64_t bytes_per_thread(const AttentionShape& shape) {
  Scratch counted(nullptr);
  buffers_in(counted, shape);
  return counted.used();
}

}  // namespace

int64_t attention_forward_scratch(const AttentionShape& shape, int threads) {
  return threads * bytes_per_thread(shape);
}

void attention_forward(const AttentionShape& shape, HeadsOf q, HeadsOf k, HeadsOf v,
                       const int32_t* first, HeadsOf y, float* lse, char* scratch, int threads) {
  const Forward forward(shape, q, k, v, first, y, lse);
  for_query_blocks(shape, forward, kQueryBlock, scratch, bytes_per_thread(shape), threads);
}

}  // namespace llmtrain
