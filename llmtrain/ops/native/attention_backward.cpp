// The backward of flash attention (Dao 2023), for one (sequence, key head) at a time.
//
// Scores are computed transposed, keys as rows, so that Pᵀ and dSᵀ are left operands as they are
// written: dV += Pᵀ dY, dK += dSᵀ Q. dSᵀ is written a second time as the right operand of
// dQᵀ += Kᵀ dSᵀ. With dS = P ∘ (dP − δ), δ = Σ dY ∘ Y of each row.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "attention.h"
#include "attention_tasks.h"
#include "vectors.h"

namespace llmtrain {
namespace {

constexpr int64_t kBlock = 128;  // of queries, and of keys

struct Buffers {
  bf16 *q_t, *d_y_t;  // packed Qᵀ and dYᵀ, a block of queries at a time
  bf16 *q, *d_y;      // packed
  bf16* k_t;          // Kᵀ, a block of keys at a time
  float *lse, *delta;
  int32_t* end;  // of each key: one past the last query that attends to it
  float *d_k, *d_v;
  float *scores, *d_p;
  bf16 *p, *d_s, *d_s_packed;  // transposed: keys are rows
};

Buffers buffers_in(Scratch& scratch, const AttentionShape& shape) {
  const int64_t tokens = round_up(shape.tokens, kBlock), size = round_up(shape.size, 32);
  const auto matrix = [&] { return scratch.take<bf16>(tokens * size); };
  const auto block = [&] { return scratch.take<bf16>(kBlock * kBlock); };
  Buffers b{};
  b.q_t = matrix(), b.d_y_t = matrix(), b.q = matrix(), b.d_y = matrix(), b.k_t = matrix();
  b.lse = scratch.take<float>(tokens), b.delta = scratch.take<float>(tokens);
  b.end = scratch.take<int32_t>(tokens);
  b.d_k = scratch.take<float>(tokens * size), b.d_v = scratch.take<float>(tokens * size);
  b.scores = scratch.take<float>(kBlock * kBlock), b.d_p = scratch.take<float>(kBlock * kBlock);
  b.p = block(), b.d_s = block(), b.d_s_packed = block();
  return b;
}

class Backward {
 public:
  Backward(const AttentionShape& shape, HeadsOf d_y, HeadsOf q, HeadsOf k, HeadsOf v, HeadsOf y,
           const float* lse, const int32_t* first, HeadsOf d_q, HeadsOf d_k, HeadsOf d_v)
      : shape_(shape), d_y_(d_y), q_(q), k_(k), v_(v), y_(y), d_q_(d_q), d_k_(d_k), d_v_(d_v),
        lse_(lse), first_(first), size_(round_up(shape.size, 32)),
        tokens_(round_up(shape.tokens, kBlock)), scale_(1.f / std::sqrt(float(shape.size))) {}

  Buffers buffers(Scratch& scratch) const { return buffers_in(scratch, shape_); }
  void finish() const { brgemm_release(); }

  // The sums of a task alone are set by its first product.
  void begin_queries(float* d_q_t, int64_t floats, bool is_shared) const {
    if (is_shared) std::fill_n(d_q_t, floats, 0.f);
  }

  void prepare_keys(const Buffers& b, int64_t sequence, int64_t key_head) const {
    const bf16* k = k_.at(sequence, key_head);
    for (int64_t j = 0; j < shape_.tokens; j += kBlock)
      transpose(k + j * k_.token_stride, k_.token_stride, std::min(kBlock, shape_.tokens - j),
                shape_.size, b.k_t + j * size_, kBlock);
    const int32_t* first = first_ == nullptr ? nullptr : first_ + sequence * shape_.tokens;
    std::fill_n(b.end, tokens_, 0);
    for (int64_t key = 0, query = 0; key < shape_.tokens; ++key) {
      if (first == nullptr) query = shape_.tokens;
      while (query < shape_.tokens && first[query] <= key) ++query;
      b.end[key] = static_cast<int32_t>(query);
    }
  }

  void prepare_queries(const Buffers& b, int64_t sequence, int64_t head) const {
    const bf16 *q = q_.at(sequence, head), *d_y = d_y_.at(sequence, head);
    for (int64_t i = 0; i < shape_.tokens; i += kBlock) {
      const int64_t rows = std::min(kBlock, shape_.tokens - i);
      pack_transposed(q + i * q_.token_stride, q_.token_stride, rows, shape_.size,
                      b.q_t + i * size_, kBlock);
      pack_transposed(d_y + i * d_y_.token_stride, d_y_.token_stride, rows, shape_.size,
                      b.d_y_t + i * size_, kBlock);
    }
    pack_whole(q, q_.token_stride, b.q), pack_whole(d_y, d_y_.token_stride, b.d_y);
    const bf16* y = y_.at(sequence, head);
    const float* lse = lse_ + (sequence * shape_.heads + head) * shape_.tokens;
    for (int64_t t = 0; t < shape_.tokens; ++t) {
      b.lse[t] = lse[t];
      b.delta[t] = dot(d_y + t * d_y_.token_stride, y + t * y_.token_stride, shape_.size);
    }
    std::fill(b.lse + shape_.tokens, b.lse + tokens_, 0.f);
    std::fill(b.delta + shape_.tokens, b.delta + tokens_, 0.f);
  }

  // Add what a block of keys and the queries of one head give. `d_q_t`: a block of queries at a
  // time; it is set by the first key block that `d_q_is_set` does not say to have been there.
  void key_block(const Buffers& b, int64_t sequence, int64_t key_head, int64_t j, bool adds,
                 float* d_q_t, bool d_q_is_set) const {
    const int64_t keys = std::min(kBlock, shape_.tokens - j), even = round_up(keys, 2);
    const bf16* k = k_.at(sequence, key_head) + j * k_.token_stride;
    const bf16* v = v_.at(sequence, key_head) + j * v_.token_stride;
    const int64_t last = b.end[j + keys - 1];
    for (int64_t i = j; i < last; i += kBlock) {
      const int64_t queries = round_up(std::min(kBlock, shape_.tokens - i), 32);
      brgemm(keys, queries, shape_.size, k_.token_stride, kBlock, kBlock, false, k,
             b.q_t + i * size_, b.scores);
      brgemm(keys, queries, shape_.size, v_.token_stride, kBlock, kBlock, false, v,
             b.d_y_t + i * size_, b.d_p);
      differentiate_scores(b, i, queries, j, even);
      const bool adds_now = adds || i > j;
      brgemm(keys, size_, queries, kBlock, size_, size_, adds_now, b.p, b.d_y + i * size_,
             b.d_v + j * size_);
      brgemm(keys, size_, queries, kBlock, size_, size_, adds_now, b.d_s, b.q + i * size_,
             b.d_k + j * size_);
      const bool is_first_key = !d_q_is_set && is_first_block(sequence, i, j);
      brgemm(size_, queries, even, kBlock, kBlock, kBlock, !is_first_key, b.k_t + j * size_,
             b.d_s_packed, d_q_t + i * size_);
    }
  }

  void store_keys(const Buffers& b, int64_t sequence, int64_t key_head, int64_t j) const {
    const int64_t keys = std::min(kBlock, shape_.tokens - j);
    bf16 *d_k = d_k_.at(sequence, key_head), *d_v = d_v_.at(sequence, key_head);
    for (int64_t t = j; t < j + keys; ++t) {
      store_scaled(d_k + t * d_k_.token_stride, b.d_k + t * size_, shape_.size, scale_);
      store_scaled(d_v + t * d_v_.token_stride, b.d_v + t * size_, shape_.size, 1.f);
    }
  }

  // Store the sum of several dQᵀ, `stride` floats apart.
  void store_queries(const float* d_q_t, int64_t parts, int64_t stride, int64_t sequence,
                     int64_t head) const {
    for (int64_t i = 0; i < shape_.tokens; i += 16)
      store_sixteen(d_q_t, parts, stride, sequence, head, i);
  }

 private:
  // Store the sum of several dQᵀ, `stride` floats apart, of 16 queries from i on.
  void store_sixteen(const float* d_q_t, int64_t parts, int64_t stride, int64_t sequence,
                     int64_t head, int64_t i) const {
    alignas(64) float rows[16 * 32];
    const int64_t block = i / kBlock * kBlock, count = std::min<int64_t>(16, shape_.tokens - i);
    for (int64_t d = 0; d < size_; d += 32) {
      for (int half = 0; half < 2; ++half) {
        __m512i r[16];
        for (int n = 0; n < 16; ++n) {
          const float* from = d_q_t + block * size_ + (d + 16 * half + n) * kBlock + (i - block);
          __m512 sum = _mm512_loadu_ps(from);
          for (int64_t part = 1; part < parts; ++part)
            sum = _mm512_add_ps(sum, _mm512_loadu_ps(from + part * stride));
          r[n] = _mm512_castps_si512(sum);
        }
        transpose16(r);
        for (int n = 0; n < 16; ++n) _mm512_store_si512(rows + 32 * n + 16 * half, r[n]);
      }
      bf16* out = d_q_.at(sequence, head) + i * d_q_.token_stride + d;
      for (int64_t n = 0; n < count; ++n)
        store_scaled(out + n * d_q_.token_stride, rows + 32 * n,
                     std::min<int64_t>(32, shape_.size - d), scale_);
    }
  }

  void pack_whole(const bf16* from, int64_t stride, bf16* out) const {
    pack(from, stride, shape_.tokens, shape_.size, out, size_);
    const int64_t done = round_up(shape_.tokens, 2);
    std::memset(out + done * size_, 0, (tokens_ - done) * size_ * sizeof(bf16));
  }

  // Whether no block of keys before j has queries in block i.
  bool is_first_block(int64_t sequence, int64_t i, int64_t j) const {
    if (first_ == nullptr) return j == 0;
    return first_[sequence * shape_.tokens + i] / kBlock * kBlock == j;
  }

  void differentiate_scores(const Buffers& b, int64_t i, int64_t queries, int64_t j,
                            int64_t keys) const {
    const Interleave interleave;
    const __m512 scale = _mm512_set1_ps(scale_ * kLog2E);
    for (int64_t r = 0; r < keys; r += 2)
      for (int64_t e = 0; e < queries; e += 32) {
        const __m512 lse0 = _mm512_loadu_ps(b.lse + i + e);
        const __m512 lse1 = _mm512_loadu_ps(b.lse + i + e + 16);
        const __m512 delta0 = _mm512_loadu_ps(b.delta + i + e);
        const __m512 delta1 = _mm512_loadu_ps(b.delta + i + e + 16);
        __m512i both[2];
        for (int half = 0; half < 2; ++half) {
          const int64_t key = j + r + half, at = (r + half) * kBlock + e;
          // queries from the key itself on, up to the last that attends to it
          const __mmask32 seen = lanes32(b.end[key] - (i + e)) & ~lanes32(key - (i + e));
          const __mmask16 seen0 = static_cast<__mmask16>(seen);
          const __mmask16 seen1 = static_cast<__mmask16>(seen >> 16);
          const __m512 s0 = _mm512_loadu_ps(b.scores + at);
          const __m512 s1 = _mm512_loadu_ps(b.scores + at + 16);
          const __m512 p0 = _mm512_maskz_mov_ps(seen0, exp2(_mm512_fmsub_ps(s0, scale, lse0)));
          const __m512 p1 = _mm512_maskz_mov_ps(seen1, exp2(_mm512_fmsub_ps(s1, scale, lse1)));
          const __m512 dp0 = _mm512_loadu_ps(b.d_p + at), dp1 = _mm512_loadu_ps(b.d_p + at + 16);
          const __m512 ds0 = _mm512_maskz_mul_ps(seen0, p0, _mm512_sub_ps(dp0, delta0));
          const __m512 ds1 = _mm512_maskz_mul_ps(seen1, p1, _mm512_sub_ps(dp1, delta1));
          both[half] = to_bf16(ds0, ds1);
          _mm512_storeu_si512(b.p + at, to_bf16(p0, p1));
          _mm512_storeu_si512(b.d_s + at, both[half]);
        }
        interleave.store(b.d_s_packed + r * kBlock + 2 * e, both[0], both[1]);
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
  return KeyBlocks(shape, threads, kBlock, round_up(shape.size, 32));
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

}  // namespace llmtrain
