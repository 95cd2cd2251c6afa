// Flash attention (Dao 2023) for one (sequence, head) at a time: blocks of queries against blocks
// of keys, with a running maximum and sum of each row. Tiles of scores that no row of them sees are
// neither computed nor multiplied.
#include <algorithm>
#include <cmath>

#include "../attention_tasks.h"
#include "attention.h"
#include "products.h"
#include "visible.h"

namespace llmtrain::fp32 {
namespace {

constexpr int64_t kKeyBlock = 2 * kBlock;

struct Buffers {
  float *k, *v;  // packed Kᵀ and V
  float *rows, *q;
  float *scores, *sums, *largest, *total;
};

Buffers buffers_in(Scratch& scratch, const AttentionShape& shape) {
  const int64_t tokens = round_up(shape.tokens, kKeyBlock), size = round_up(shape.size, kTileColumns);
  const auto floats = [&](int64_t count) { return scratch.take<float>(count); };
  Buffers b{};
  b.k = floats(tokens * shape.size), b.v = floats(tokens * size);
  b.rows = floats(tokens * shape.size), b.q = floats(kBlock * shape.size);
  b.scores = floats(kBlock * kKeyBlock), b.sums = floats(kBlock * size);
  b.largest = floats(kBlock), b.total = floats(kBlock);
  return b;
}

// Replace one row of scores by exponentials relative to its running maximum; the row sees keys
// [low, high) of the block. Returns the factor for what was summed before.
float exponentiate(float* scores, int64_t low, int64_t high, float scale, float* largest,
                   float* total) {
  const int64_t begin = low / kLanes * kLanes;
  const auto is_whole = [&](int64_t e) { return low <= e && e + kLanes <= high; };
  Vector top = all_of(-INFINITY);
  for (int64_t e = begin; e < high; e += kLanes) {
    Vector x = load(scores + e);
    if (!is_whole(e)) x = where(lanes(low - e, high - e), x, top);
    top = x > top ? x : top;
  }
  const float before = *largest, now = std::max(before, largest_of(top) * scale);
  Vector sum{};
  for (int64_t e = begin; e < high; e += kLanes) {
    Vector x = exp2(load(scores + e) * scale - now);
    if (!is_whole(e)) x = where(lanes(low - e, high - e), x, Vector{});
    sum += x;
    store(scores + e, x);
  }
  const float factor = std::exp2(before - now);
  *total = *total * factor + sum_of(sum);
  *largest = now;
  return factor;
}

class Forward {
 public:
  Forward(const AttentionShape& shape, HeadsOf q, HeadsOf k, HeadsOf v, const int32_t* first,
          HeadsOf y, float* lse)
      : shape_(shape), q_(q), k_(k), v_(v), first_(first), y_(y), lse_(lse),
        tokens_(round_up(shape.tokens, kKeyBlock)), size_(round_up(shape.size, kTileColumns)),
        scale_(kLog2E / std::sqrt(static_cast<float>(shape.size))) {}

  Buffers buffers(Scratch& scratch) const { return buffers_in(scratch, shape_); }
  void finish() const {}

  void pack_keys(const Buffers& b, int64_t sequence, int64_t key_head) const {
    const auto copy = [&](const HeadsOf& from) {
      copy_rows(from.at(sequence, key_head), from.token_stride, shape_.tokens, shape_.size, b.rows,
                tokens_);
    };
    copy(k_), pack_transposed(b.rows, tokens_, shape_.size, b.k);
    copy(v_), pack(b.rows, tokens_, shape_.size, b.v);
  }

  void query_block(const Buffers& b, int64_t sequence, int64_t head, int64_t start) const {
    const int64_t rows = std::min(kBlock, shape_.tokens - start), stop = start + rows;
    const int32_t* first = first_ == nullptr ? nullptr : first_ + sequence * shape_.tokens;
    const int64_t first_key = first == nullptr ? 0 : first[start] / kKeyBlock * kKeyBlock;
    std::fill_n(b.largest, rows, -INFINITY), std::fill_n(b.total, rows, 0.f);
    std::fill_n(b.sums, kBlock * size_, 0.f);
    copy_rows(q_.at(sequence, head) + start * q_.token_stride, q_.token_stride, rows, shape_.size,
              b.q, kBlock);
    for (int64_t j = first_key; j < stop; j += kKeyBlock) {
      const Visible visible{first, start, stop, j, std::min(kKeyBlock, stop - j)};
      score(b, visible, rows);
      for (int64_t r = 0; r < rows; ++r) {
        const auto [low, high] = visible.of_row(r);
        const Depths read = visible.of_tile(r / kTileRows * kTileRows);
        float* row = b.scores + r * kKeyBlock;
        float factor = 1.f;
        if (low < high)
          factor = exponentiate(row, low, high, scale_, b.largest + r, b.total + r);
        if (factor != 1.f && j > first_key) multiply(b.sums + r * size_, factor);
        fill_unseen(row, visible.of_row(r), read);
      }
      add_product<Rows>(rows, size_, {b.scores, kKeyBlock},
                        {b.v + j * kTileColumns, tokens_ * kTileColumns}, b.sums, size_,
                        [&](int64_t m, int64_t) { return visible.of_tile(m); });
    }
    float* lse = lse_ + (sequence * shape_.heads + head) * shape_.tokens + start;
    float* y = y_.at(sequence, head) + start * y_.token_stride;
    for (int64_t r = 0; r < rows; ++r) {
      const float factor = 1.f / b.total[r];
      for (int64_t d = 0; d < shape_.size; ++d)
        y[r * y_.token_stride + d] = b.sums[r * size_ + d] * factor;
      lse[r] = b.largest[r] + std::log2(b.total[r]);
    }
  }

 private:
  void score(const Buffers& b, const Visible& visible, int64_t rows) const {
    set_product(rows, visible.keys, {b.q, shape_.size},
                {b.k + visible.key * shape_.size, shape_.size * kTileColumns}, b.scores, kKeyBlock,
                [&](int64_t m, int64_t n) {
                  return Depths{0, visible.in_tile(m, n) ? shape_.size : 0};
                });
  }

  void multiply(float* row, float factor) const {
    for (int64_t d = 0; d < size_; d += kLanes) store(row + d, load(row + d) * factor);
  }

  AttentionShape shape_;
  HeadsOf q_, k_, v_;
  const int32_t* first_;
  HeadsOf y_;
  float* lse_;
  int64_t tokens_, size_;
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
  for_query_blocks(shape, forward, kBlock, scratch, bytes_per_thread(shape), threads);
}

}  // namespace llmtrain::fp32
