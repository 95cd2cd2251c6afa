// The backward of flash attention (Dao 2023), for one (sequence, key head) at a time.
//
// A block of P and of dS, queries as rows, is a left operand of dQ += dS K, and its columns are
// those of dV += Pᵀ dY and dK += dSᵀ Q. With dS = P ∘ (dP − δ), δ = Σ dY ∘ Y of each row.
#include <algorithm>
#include <cmath>

#include "../attention_tasks.h"
#include "attention.h"
#include "products.h"
#include "visible.h"

namespace llmtrain::fp32 {
namespace {

struct Buffers {
  float *k_t, *v_t, *k;  // packed Kᵀ, Vᵀ and K
  float *q, *d_y;        // rows, and packed:
  float *q_packed, *d_y_packed;
  float *lse, *delta;
  int32_t* ends;  // of each key: one past the last query that attends to it
  float *d_k, *d_v;
  float *p, *d_s;  // a block each
};

Buffers buffers_in(Scratch& scratch, const AttentionShape& shape) {
  const int64_t tokens = round_up(shape.tokens, kBlock), size = round_up(shape.size, kTileColumns);
  const auto floats = [&](int64_t count) { return scratch.take<float>(count); };
  Buffers b{};
  b.k_t = floats(tokens * shape.size), b.v_t = floats(tokens * shape.size);
  b.q = floats(tokens * shape.size), b.d_y = floats(tokens * shape.size);
  b.k = floats(tokens * size);
  b.q_packed = floats(tokens * size), b.d_y_packed = floats(tokens * size);
  b.lse = floats(tokens), b.delta = floats(tokens);
  b.ends = scratch.take<int32_t>(tokens);
  b.d_k = floats(tokens * size), b.d_v = floats(tokens * size);
  b.p = floats(kBlock * kBlock), b.d_s = floats(kBlock * kBlock);
  return b;
}

class Backward {
 public:
  Backward(const AttentionShape& shape, HeadsOf d_y, HeadsOf q, HeadsOf k, HeadsOf v, HeadsOf y,
           const float* lse, const int32_t* first, HeadsOf d_q, HeadsOf d_k, HeadsOf d_v)
      : shape_(shape), d_y_(d_y), q_(q), k_(k), v_(v), y_(y), d_q_(d_q), d_k_(d_k), d_v_(d_v),
        lse_(lse), first_(first), size_(round_up(shape.size, kTileColumns)),
        tokens_(round_up(shape.tokens, kBlock)),
        scale_(1.f / std::sqrt(static_cast<float>(shape.size))) {}

  Buffers buffers(Scratch& scratch) const { return buffers_in(scratch, shape_); }
  void finish() const {}
  void begin_queries(float* d_q, int64_t floats, bool) const { std::fill_n(d_q, floats, 0.f); }

  void prepare_keys(const Buffers& b, int64_t sequence, int64_t key_head) const {
    copy(k_, sequence, key_head, b.q), pack(b.q, tokens_, shape_.size, b.k);
    pack_transposed(b.q, tokens_, shape_.size, b.k_t);
    copy(v_, sequence, key_head, b.q), pack_transposed(b.q, tokens_, shape_.size, b.v_t);
    std::fill_n(b.d_k, tokens_ * size_, 0.f), std::fill_n(b.d_v, tokens_ * size_, 0.f);
    const int32_t* first = first_of(sequence);
    for (int64_t key = 0, query = 0; key < shape_.tokens; ++key) {
      if (first == nullptr) query = shape_.tokens;
      while (query < shape_.tokens && first[query] <= key) ++query;
      b.ends[key] = static_cast<int32_t>(query);
    }
  }

  void prepare_queries(const Buffers& b, int64_t sequence, int64_t head) const {
    const int64_t tokens = shape_.tokens, size = shape_.size;
    copy(q_, sequence, head, b.q), pack(b.q, tokens_, size, b.q_packed);
    copy(d_y_, sequence, head, b.d_y), pack(b.d_y, tokens_, size, b.d_y_packed);
    const float* y = y_.at(sequence, head);
    const float* lse = lse_ + (sequence * shape_.heads + head) * tokens;
    for (int64_t t = 0; t < tokens; ++t) {
      b.lse[t] = lse[t];
      b.delta[t] = dot(b.d_y + t * size, y + t * y_.token_stride, size);
    }
  }

  // Add what a block of keys and the queries of one head give, to `d_q` too.
  void key_block(const Buffers& b, int64_t sequence, int64_t, int64_t j, bool, float* d_q,
                 bool) const {
    const int64_t keys = std::min(kBlock, shape_.tokens - j), last = b.ends[j + keys - 1];
    const int64_t size = shape_.size, panel = tokens_ * kTileColumns;
    for (int64_t i = j; i < last; i += kBlock) {
      const int64_t stop = std::min(i + kBlock, shape_.tokens), rows = stop - i;
      const Visible visible{first_of(sequence), i, stop, j, keys};
      const auto of_scores = [&](int64_t m, int64_t n) {
        return Depths{0, visible.in_tile(m, n) ? size : 0};
      };
      const auto of_keys = [&](int64_t m, int64_t) { return visible.of_key_tile(m, b.ends); };
      set_product(rows, keys, {b.q + i * size, size}, {b.k_t + j * size, size * kTileColumns},
                  b.p, kBlock, of_scores);
      set_product(rows, keys, {b.d_y + i * size, size}, {b.v_t + j * size, size * kTileColumns},
                  b.d_s, kBlock, of_scores);
      differentiate_scores(b, visible, i, rows);
      add_product<Columns>(keys, size_, {b.p, kBlock}, {b.d_y_packed + i * kTileColumns, panel},
                           b.d_v + j * size_, size_, of_keys);
      add_product<Columns>(keys, size_, {b.d_s, kBlock}, {b.q_packed + i * kTileColumns, panel},
                           b.d_k + j * size_, size_, of_keys);
      add_product<Rows>(rows, size_, {b.d_s, kBlock}, {b.k + j * kTileColumns, panel},
                        d_q + i * size_, size_,
                        [&](int64_t m, int64_t) { return visible.of_tile(m); });
    }
  }

  void store_keys(const Buffers& b, int64_t sequence, int64_t key_head, int64_t j) const {
    float *d_k = d_k_.at(sequence, key_head), *d_v = d_v_.at(sequence, key_head);
    for (int64_t t = j; t < std::min(j + kBlock, shape_.tokens); ++t)
      for (int64_t d = 0; d < shape_.size; ++d) {
        d_k[t * d_k_.token_stride + d] = b.d_k[t * size_ + d] * scale_;
        d_v[t * d_v_.token_stride + d] = b.d_v[t * size_ + d];
      }
  }

  // Store the sum of several dQ, `stride` floats apart, of one head.
  void store_queries(const float* d_q, int64_t parts, int64_t stride, int64_t sequence,
                     int64_t head) const {
    float* out = d_q_.at(sequence, head);
    for (int64_t t = 0; t < shape_.tokens; ++t)
      for (int64_t d = 0; d < shape_.size; ++d) {
        const float* from = d_q + t * size_ + d;
        float sum = *from;
        for (int64_t part = 1; part < parts; ++part) sum += from[part * stride];
        out[t * d_q_.token_stride + d] = sum * scale_;
      }
  }

 private:
  void copy(const HeadsOf& from, int64_t sequence, int64_t head, float* rows) const {
    copy_rows(from.at(sequence, head), from.token_stride, shape_.tokens, shape_.size, rows,
              tokens_);
  }

  const int32_t* first_of(int64_t sequence) const {
    return first_ == nullptr ? nullptr : first_ + sequence * shape_.tokens;
  }

  void differentiate_scores(const Buffers& b, const Visible& visible, int64_t i,
                            int64_t rows) const {
    const float scale = scale_ * kLog2E;
    for (int64_t r = 0; r < rows; ++r) {
      const Depths seen = visible.of_row(r);
      const float lse = b.lse[i + r], delta = b.delta[i + r];
      float *p = b.p + r * kBlock, *d_s = b.d_s + r * kBlock;
      for (int64_t e = seen.begin / kLanes * kLanes; e < seen.end; e += kLanes) {
        const Vector probability = exp2(load(p + e) * scale - lse);
        store(p + e, probability);
        store(d_s + e, probability * (load(d_s + e) - delta));
      }
      const Depths read = visible.of_tiles_around(r);
      fill_unseen(p, seen, read), fill_unseen(d_s, seen, read);
    }
  }

  AttentionShape shape_;
  HeadsOf d_y_, q_, k_, v_, y_, d_q_, d_k_, d_v_;
  const float* lse_;
  const int32_t* first_;
  int64_t size_, tokens_;
  float scale_;
};

int64_t bytes_per_thread(const AttentionShape& shape) {
  Scratch counted(nullptr);
  buffers_in(counted, shape);
  return counted.used();
}

KeyBlocks key_blocks(const AttentionShape& shape, int threads) {
  return KeyBlocks(shape, threads, kBlock, round_up(shape.size, kTileColumns));
}

}  // namespace

int64_t attention_backward_scratch(const AttentionShape& shape, int threads) {
  return key_blocks(shape, threads).scratch_bytes(threads, bytes_per_thread(shape));
}

void attention_backward(const AttentionShape& shape, HeadsOf d_y, HeadsOf q, HeadsOf k, HeadsOf v,
                        HeadsOf y, const float* lse, const int32_t* first, HeadsOf d_q, HeadsOf d_k,
                        HeadsOf d_v, char* scratch, int threads) {
  const Backward backward(shape, d_y, q, k, v, y, lse, first, d_q, d_k, d_v);
  for_key_blocks(shape, backward, key_blocks(shape, threads), kBlock, scratch,
                 bytes_per_thread(shape), threads);
}

}  // namespace llmtrain::fp32
