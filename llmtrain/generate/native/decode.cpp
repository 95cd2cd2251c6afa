// torch.ops.llmtrain_decode.step: the next token's logits of several sequences with cached keys and
// values, in bf16 with AVX-512; matrices may be in int8, with a scale for each row.
//
// Shapes: B sequences, C hidden features, H query heads, G key heads, D features a head, V the
// vocabulary, L layers, S slots, T the context. One region of threads does the whole step: each
// thread reads its own rows of every matrix once, for all B sequences, and waits for the others
// only between the products of a layer.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <immintrin.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#ifdef _OPENMP
#include <omp.h>
#endif

namespace {

using at::Tensor;
using bf16 = at::BFloat16;

constexpr int kRows = 4;       // of a matrix, that are multiplied together
constexpr int kSequences = 4;  // that are multiplied by them together
constexpr int kAhead = 3;      // blocks of rows, which are asked of memory before their turn

// In bf16, or in bytes (int8 and 128 more) with a scale for each row; the others are null.
struct Matrix {
  const bf16* numbers;
  const uint8_t* bytes;
  const float* scales;
};

struct Layer {
  const float* attention_gain;
  Matrix query_key_value;
  const float* query_gain;  // null: queries and keys are not normed
  const float* key_gain;
  Matrix output;
  const float* feed_forward_gain;
  Matrix gate_up;
  Matrix down;
};

struct Shape {
  int64_t batch, hidden, inner, heads, key_heads, size, vocabulary, slots, context;
  int64_t width() const { return heads * size; }
  int64_t key_width() const { return key_heads * size; }
  int64_t projected() const { return width() + 2 * key_width(); }
};

// The first n of 16 or 32 lanes.
inline __mmask16 lanes16(int64_t n) {
  return n >= 16 ? 0xffff : n <= 0 ? 0 : static_cast<__mmask16>((1u << n) - 1);
}
inline __mmask32 lanes32(int64_t n) {
  return n >= 32 ? ~0u : n <= 0 ? 0u : (1u << n) - 1;
}

inline __m512 widened(__m256i x) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16));
}

// e^x = 2^n · e^r with |r| <= ln 2 / 2, by a polynomial: a relative error below 1e-6; NaN of NaN.
inline __m512 exponential(__m512 x) {
  const __m512 bounded = _mm512_max_ps(_mm512_set1_ps(-126.f), _mm512_min_ps(
      _mm512_set1_ps(88.f), x));  // of a NaN, the second operand is returned
  const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(bounded, _mm512_set1_ps(1.44269504f)), 0);
  __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), bounded);
  r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
  __m512 p = _mm512_set1_ps(1.f / 720);
  for (const float each : {1.f / 120, 1.f / 24, 1.f / 6, 0.5f, 1.f, 1.f})
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(each));
  return _mm512_scalef_ps(p, n);
}

inline __m256i rounded(__m512 x) { return (__m256i)_mm512_cvtneps_pbh(x); }

inline __m512bh load_pairs(const bf16* from, int64_t left) {
  return (__m512bh)_mm512_maskz_loadu_epi16(lanes32(left), from);
}

// Add weight[row] · x[b], of the columns from `start` on that `load` loads, to sums[row][b].
template <int R, int B, class Load>
inline void accumulate(const bf16* weight, const bf16* x, int64_t columns, int64_t start,
                       __m512 (&sums)[R][B], const Load& load) {
  __m512bh inputs[B];
#pragma GCC unroll 4
  for (int b = 0; b < B; ++b) inputs[b] = load(x + b * columns + start);
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) {
    const __m512bh row = load(weight + r * columns + start);
    _mm_prefetch(weight + (r + kAhead * R) * columns + start, _MM_HINT_T0);
#pragma GCC unroll 4
    for (int b = 0; b < B; ++b) sums[r][b] = _mm512_dpbf16_ps(sums[r][b], row, inputs[b]);
  }
}

// out[b][row] = weight[row] · x[b], or more by that much.
template <int R, int B>
inline void multiply_block(const bf16* weight, const bf16* x, int64_t columns, float* out,
                           int64_t out_stride, bool adds) {
  __m512 sums[R][B];
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int b = 0; b < B; ++b) sums[r][b] = _mm512_setzero_ps();
  const int64_t whole = columns / 32 * 32;
  for (int64_t i = 0; i < whole; i += 32)
    accumulate(weight, x, columns, i, sums,
               [](const bf16* from) { return (__m512bh)_mm512_loadu_si512(from); });
  if (whole < columns)
    accumulate(weight, x, columns, whole, sums,
               [&](const bf16* from) { return load_pairs(from, columns - whole); });
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int b = 0; b < B; ++b) {
      const float sum = _mm512_reduce_add_ps(sums[r][b]);
      out[b * out_stride + r] = adds ? out[b * out_stride + r] + sum : sum;
    }
}

// Inputs in 16 bits, as two signed bytes each, with a scale and a sum for each sequence: products
// with bytes are then exact. `high` and `low` have rows of `stride` bytes, filled up with zeros.
struct Whole {
  int8_t *high, *low;
  float* scales;
  float* offsets;  // what the 128 that weights have more add to a product
  int64_t stride;
};

constexpr float kLargest = 127 * 256;  // of 16 bits, so that the high byte does not overflow

void split_inputs(const bf16* x, int64_t columns, int64_t batch, const Whole& to) {
  for (int64_t b = 0; b < batch; ++b) {
    const bf16* row = x + b * columns;
    __m512 highest = _mm512_setzero_ps();
    __mmask16 are_nan = 0;
    for (int64_t i = 0; i < columns; i += 16) {
      const __m512 each = widened(_mm256_maskz_loadu_epi16(lanes16(columns - i), row + i));
      highest = _mm512_max_ps(highest, _mm512_abs_ps(each));
      are_nan |= _mm512_cmp_ps_mask(each, each, _CMP_UNORD_Q);
    }
    const float of_row = _mm512_reduce_max_ps(highest);
    const __m512 factor = _mm512_set1_ps(of_row > 0 ? kLargest / of_row : 0.f);
    __m512i sums = _mm512_setzero_si512();
    for (int64_t i = 0; i < to.stride; i += 16) {
      const __m512 each = widened(_mm256_maskz_loadu_epi16(lanes16(columns - i), row + i));
      const __m512i whole = _mm512_cvtps_epi32(_mm512_mul_ps(each, factor));
      const __m512i high = _mm512_srai_epi32(_mm512_add_epi32(whole, _mm512_set1_epi32(128)), 8);
      const __m512i low = _mm512_sub_epi32(whole, _mm512_slli_epi32(high, 8));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(to.high + b * to.stride + i),
                       _mm512_cvtepi32_epi8(high));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(to.low + b * to.stride + i),
                       _mm512_cvtepi32_epi8(low));
      sums = _mm512_add_epi32(sums, whole);
    }
    to.scales[b] = are_nan || !std::isfinite(of_row) ? NAN : of_row / kLargest;
    to.offsets[b] = 128.f * static_cast<float>(_mm512_reduce_add_epi32(sums));
  }
}

template <int R, int B, class Load>
inline void accumulate(const uint8_t* weight, int64_t columns, int64_t first, const Whole& x,
                       int64_t start, __m512i (&high)[R][B], __m512i (&low)[R][B],
                       const Load& load) {
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) {
    const __m512i row = load(weight + r * columns + start);
    _mm_prefetch(weight + (r + kAhead * R) * columns + start, _MM_HINT_T0);
#pragma GCC unroll 2
    for (int b = 0; b < B; ++b) {
      const int64_t at = (first + b) * x.stride + start;
      high[r][b] = _mm512_dpbusd_epi32(high[r][b], row, _mm512_loadu_si512(x.high + at));
      low[r][b] = _mm512_dpbusd_epi32(low[r][b], row, _mm512_loadu_si512(x.low + at));
    }
  }
}

// As above, of a matrix in bytes and the sequences from `first` on.
template <int R, int B>
inline void multiply_block(const uint8_t* weight, const float* scales, const Whole& x,
                           int64_t first, int64_t columns, float* out, int64_t out_stride,
                           bool adds) {
  __m512i high[R][B], low[R][B];
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
    for (int b = 0; b < B; ++b) high[r][b] = low[r][b] = _mm512_setzero_si512();
  const int64_t whole = columns / 64 * 64;
  for (int64_t i = 0; i < whole; i += 64)
    accumulate(weight, columns, first, x, i, high, low,
               [](const uint8_t* from) { return _mm512_loadu_si512(from); });
  if (whole < columns) {
    const __mmask64 some = (uint64_t{1} << (columns - whole)) - 1;
    accumulate(weight, columns, first, x, whole, high, low,
               [&](const uint8_t* from) { return _mm512_maskz_loadu_epi8(some, from); });
  }
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
    for (int b = 0; b < B; ++b) {
      const __m512 both = _mm512_fmadd_ps(_mm512_cvtepi32_ps(high[r][b]), _mm512_set1_ps(256.f),
                                          _mm512_cvtepi32_ps(low[r][b]));
      const float sum = (_mm512_reduce_add_ps(both) - x.offsets[first + b]) * scales[r] *
                        x.scales[first + b];
      float* to = out + (first + b) * out_stride + r;
      *to = adds ? *to + sum : sum;
    }
}

template <int R>
inline void multiply_rows(const bf16* weight, const bf16* x, int64_t columns, int64_t batch,
                          float* out, int64_t out_stride, bool adds) {
  int64_t b = 0;
  for (; b + kSequences <= batch; b += kSequences)
    multiply_block<R, kSequences>(weight, x + b * columns, columns, out + b * out_stride,
                                  out_stride, adds);
  for (; b < batch; ++b)
    multiply_block<R, 1>(weight, x + b * columns, columns, out + b * out_stride, out_stride, adds);
}

template <int R>
inline void multiply_rows(const uint8_t* weight, const float* scales, const Whole& x,
                          int64_t columns, int64_t batch, float* out, int64_t out_stride,
                          bool adds) {
  int64_t b = 0;
  for (; b + 2 <= batch; b += 2)
    multiply_block<R, 2>(weight, scales, x, b, columns, out, out_stride, adds);
  for (; b < batch; ++b)
    multiply_block<R, 1>(weight, scales, x, b, columns, out, out_stride, adds);
}

// What a thread multiplies by: inputs of its own, in two forms.
struct Inputs {
  bf16* numbers;
  Whole whole;
};

// This thread's rows of out = weight · x, or of out += weight · x.
void multiply(const Matrix& weight, const bf16* x, const Inputs& own, int64_t rows,
              int64_t columns, int64_t batch, float* out, bool adds, int64_t thread,
              int64_t threads) {
  const int64_t share = (rows + threads - 1) / threads;
  const int64_t rounded = (share + kRows - 1) / kRows * kRows;
  const int64_t end = std::min(rows, (thread + 1) * rounded);
  Whole whole = own.whole;
  whole.stride = (columns + 63) / 64 * 64;
  if (weight.bytes != nullptr) split_inputs(x, columns, batch, whole);
  const auto block = [&]<int R>(int64_t row) {
    if (weight.bytes == nullptr)
      multiply_rows<R>(weight.numbers + row * columns, x, columns, batch, out + row, rows, adds);
    else
      multiply_rows<R>(weight.bytes + row * columns, weight.scales + row, whole, columns, batch,
                       out + row, rows, adds);
  };
  int64_t row = thread * rounded;
  for (; row + kRows <= end; row += kRows) block.template operator()<kRows>(row);
  for (; row < end; ++row) block.template operator()<1>(row);
}

// out = gain · x / rms(x)
template <class T>
void norm(const float* x, const float* gain, int64_t size, float epsilon, T* out) {
  __m512 squares = _mm512_setzero_ps();
  for (int64_t i = 0; i < size; i += 16) {
    const __m512 some = _mm512_maskz_loadu_ps(static_cast<__mmask16>(lanes32(size - i)), x + i);
    squares = _mm512_fmadd_ps(some, some, squares);
  }
  const float mean = _mm512_reduce_add_ps(squares) / static_cast<float>(size);
  const float scale = 1.f / std::sqrt(mean + epsilon);
  for (int64_t i = 0; i < size; ++i) out[i] = static_cast<T>(x[i] * scale * gain[i]);
}

// Norm a head if it has a gain, then rotate it by its position's angles.
void place_head(float* head, const float* gain, const float* cosines, const float* sines,
                int64_t size, float epsilon) {
  if (gain != nullptr) norm(head, gain, size, epsilon, head);
  for (int64_t i = 0; i < size / 2; ++i) {
    const float first = head[i], second = head[i + size / 2];
    head[i] = first * cosines[i] - second * sines[i];
    head[i + size / 2] = second * cosines[i] + first * sines[i];
  }
}

// Attention of one query over `length` cached tokens; `scores` holds as many floats.
void attend(const float* query, const bf16* keys, const bf16* values, int64_t length, int64_t size,
            float* scores, bf16* rounded_query, bf16* out) {
  for (int64_t i = 0; i < size; ++i) rounded_query[i] = static_cast<bf16>(query[i]);
  const float scale = 1.f / std::sqrt(static_cast<float>(size));
  float highest = -INFINITY;
  for (int64_t t = 0; t < length; ++t) {
    multiply_block<1, 1>(keys + t * size, rounded_query, size, scores + t, 1, false);
    scores[t] *= scale;
    highest = std::max(highest, scores[t]);
  }
  __m512 totals = _mm512_setzero_ps();
  for (int64_t t = 0; t < length; t += 16) {
    const __mmask16 some = lanes16(length - t);
    const __m512 below = _mm512_sub_ps(_mm512_maskz_loadu_ps(some, scores + t),
                                       _mm512_set1_ps(highest));
    const __m512 share = exponential(below);
    _mm512_mask_storeu_ps(scores + t, some, share);
    totals = _mm512_mask_add_ps(totals, some, totals, share);
  }
  const __m512 scale_down = _mm512_set1_ps(1.f / _mm512_reduce_add_ps(totals));
  for (int64_t i = 0; i < size; i += 16) {
    const __mmask16 some = lanes16(size - i);
    __m512 mixed = _mm512_setzero_ps();
    for (int64_t t = 0; t < length; ++t) {
      const __m256i value = _mm256_maskz_loadu_epi16(some, values + t * size + i);
      mixed = _mm512_fmadd_ps(_mm512_set1_ps(scores[t]), widened(value), mixed);
    }
    _mm256_mask_storeu_epi16(out + i, some, rounded(_mm512_mul_ps(mixed, scale_down)));
  }
}

struct Step {
  Shape shape;
  std::vector<Layer> layers;
  const float* gain;
  Matrix head;
  const float *cosines, *sines;
  float epsilon;
  bf16 *keys, *values;  // (L, S, G, T, D)
  const int64_t *slots, *positions;

  float *x, *projected, *inner, *logits;  // of the batch
  bf16 *attended, *gated;
  float* scores;  // of each thread
  bf16* queries;

  bf16* cached(bf16* cache, int64_t layer, int64_t b, int64_t group) const {
    const int64_t row = (layer * shape.slots + slots[b]) * shape.key_heads + group;
    return cache + row * shape.context * shape.size;
  }

  // Attention of the heads that share one key head, for one sequence.
  void attend_group(int64_t index, int64_t b, int64_t group, int64_t thread) const {
    const Layer& layer = layers[index];
    const int64_t size = shape.size, position = positions[b], share = shape.heads / shape.key_heads;
    const float* cosine = cosines + position * size / 2;
    const float* sine = sines + position * size / 2;
    float* of_sequence = projected + b * shape.projected();
    float* key = of_sequence + shape.width() + group * size;
    const float* value = key + shape.key_width();
    bf16* key_cache = cached(keys, index, b, group);
    bf16* value_cache = cached(values, index, b, group);
    place_head(key, layer.key_gain, cosine, sine, size, epsilon);
    for (int64_t i = 0; i < size; ++i) {
      key_cache[position * size + i] = static_cast<bf16>(key[i]);
      value_cache[position * size + i] = static_cast<bf16>(value[i]);
    }
    for (int64_t h = group * share; h < (group + 1) * share; ++h) {
      float* query = of_sequence + h * size;
      place_head(query, layer.query_gain, cosine, sine, size, epsilon);
      attend(query, key_cache, value_cache, position + 1, size, scores + thread * shape.context,
             queries + thread * size, attended + b * shape.width() + h * size);
    }
  }

  // This thread's part of silu(gate) · up.
  void gate_all(int64_t thread, int64_t threads) const {
    const int64_t size = shape.inner, blocks = (size + 15) / 16;
    for (int64_t i = thread; i < shape.batch * blocks; i += threads) {
      const int64_t b = i / blocks, start = i % blocks * 16;
      const __mmask16 some = lanes16(size - start);
      const float* row = inner + b * 2 * size + start;
      const __m512 gate = _mm512_maskz_loadu_ps(some, row);
      const __m512 up = _mm512_maskz_loadu_ps(some, row + size);
      const __m512 one = _mm512_set1_ps(1.f);
      const __m512 inverse = exponential(_mm512_sub_ps(_mm512_setzero_ps(), gate));
      const __m512 silu = _mm512_div_ps(gate, _mm512_add_ps(one, inverse));
      _mm256_mask_storeu_epi16(gated + b * size + start, some, rounded(_mm512_mul_ps(silu, up)));
    }
  }

  // Each thread norms what it multiplies by itself: waiting for others would take longer.
  void run(int64_t thread, int64_t threads, const Inputs& own, const auto& wait) const {
    const int64_t batch = shape.batch, hidden = shape.hidden;
    const auto norm_all = [&](const float* of_layer) {
      for (int64_t b = 0; b < batch; ++b)
        norm(x + b * hidden, of_layer, hidden, epsilon, own.numbers + b * hidden);
    };
    for (int64_t index = 0; index < static_cast<int64_t>(layers.size()); ++index) {
      const Layer& layer = layers[index];
      norm_all(layer.attention_gain);
      multiply(layer.query_key_value, own.numbers, own, shape.projected(), hidden, batch,
               projected, false, thread, threads);
      wait();
      const int64_t groups = batch * shape.key_heads;
      for (int64_t i = thread; i < groups; i += threads)
        attend_group(index, i / shape.key_heads, i % shape.key_heads, thread);
      wait();
      multiply(layer.output, attended, own, hidden, shape.width(), batch, x, true, thread,
               threads);
      wait();
      norm_all(layer.feed_forward_gain);
      multiply(layer.gate_up, own.numbers, own, 2 * shape.inner, hidden, batch, inner, false,
               thread, threads);
      wait();
      gate_all(thread, threads);
      wait();
      multiply(layer.down, gated, own, hidden, shape.inner, batch, x, true, thread, threads);
      wait();
    }
    norm_all(gain);
    multiply(head, own.numbers, own, shape.vocabulary, hidden, batch, logits, false, thread,
             threads);
  }
};

template <class T>
const T* data_of(const Tensor& tensor, int64_t numbers) {
  TORCH_CHECK(tensor.is_contiguous() && tensor.device().is_cpu() && tensor.numel() == numbers,
              "expected ", numbers, " dense numbers on the CPU, not ", tensor.sizes());
  return tensor.const_data_ptr<T>();
}

const float* gain_of(const Tensor& tensor, int64_t numbers) {
  return tensor.numel() == 0 ? nullptr : data_of<float>(tensor, numbers);
}

// The matrix of `rows` by `columns` in bf16 or, where there are scales of rows, in int8.
Matrix matrix_of(const Tensor& tensor, const Tensor* scales, int64_t rows, int64_t columns) {
  if (scales == nullptr) return {data_of<bf16>(tensor, rows * columns), nullptr, nullptr};
  return {nullptr, data_of<uint8_t>(tensor, rows * columns), data_of<float>(*scales, rows)};
}

// `weights`: eight tensors a layer in the order of `Layer`, then the last gain and the head. Gains
// of queries and keys may be empty. `scales`: none, or those of the rows of each matrix, which then
// are in int8. The keys and values of the new tokens are written to the cache.
Tensor step(const Tensor& embedded, at::TensorList weights, at::TensorList scales,
            const Tensor& keys, const Tensor& values, const Tensor& cosines,
            const Tensor& sines, const Tensor& slots, const Tensor& positions, int64_t heads,
            int64_t inner, double epsilon) {
  TORCH_CHECK(keys.dim() == 5 && embedded.dim() == 2 && weights.size() % 8 == 2);
  Step s;
  s.shape = {embedded.size(0), embedded.size(1), inner,        heads,       keys.size(2),
             keys.size(4),     weights.back().size(0), keys.size(1), keys.size(3)};
  const Shape& shape = s.shape;
  TORCH_CHECK(keys.size(0) * 8 + 2 == static_cast<int64_t>(weights.size()));
  TORCH_CHECK(scales.empty() || static_cast<int64_t>(scales.size()) == keys.size(0) * 4 + 1,
              scales.size(), " scales");
  const auto of = [&](size_t index) { return scales.empty() ? nullptr : &scales[index]; };
  for (size_t i = 0; i + 2 < weights.size(); i += 8)
    s.layers.push_back({data_of<float>(weights[i], shape.hidden),
                        matrix_of(weights[i + 1], of(i / 2), shape.projected(), shape.hidden),
                        gain_of(weights[i + 2], shape.size), gain_of(weights[i + 3], shape.size),
                        matrix_of(weights[i + 4], of(i / 2 + 1), shape.hidden, shape.width()),
                        data_of<float>(weights[i + 5], shape.hidden),
                        matrix_of(weights[i + 6], of(i / 2 + 2), 2 * inner, shape.hidden),
                        matrix_of(weights[i + 7], of(i / 2 + 3), shape.hidden, inner)});
  s.gain = data_of<float>(weights[weights.size() - 2], shape.hidden);
  s.head = matrix_of(weights.back(), of(scales.size() - 1), shape.vocabulary, shape.hidden);
  s.cosines = data_of<float>(cosines, shape.context * shape.size / 2);
  s.sines = data_of<float>(sines, shape.context * shape.size / 2);
  s.epsilon = static_cast<float>(epsilon);
  s.keys = const_cast<bf16*>(data_of<bf16>(keys, keys.numel()));
  s.values = const_cast<bf16*>(data_of<bf16>(values, keys.numel()));
  s.slots = data_of<int64_t>(slots, shape.batch);
  s.positions = data_of<int64_t>(positions, shape.batch);
  for (int64_t b = 0; b < shape.batch; ++b)
    TORCH_CHECK_INDEX(s.slots[b] >= 0 && s.slots[b] < shape.slots && s.positions[b] >= 0 &&
                          s.positions[b] < shape.context,
                      "slot ", s.slots[b], " position ", s.positions[b]);

  const int64_t threads = at::get_num_threads(), batch = shape.batch;
  Tensor logits = at::empty({batch, shape.vocabulary}, embedded.options());
  s.logits = logits.mutable_data_ptr<float>();
  const float* rows = data_of<float>(embedded, batch * shape.hidden);
  std::vector<float> x(rows, rows + batch * shape.hidden);
  std::vector<float> projected(batch * shape.projected()), gate_up(batch * 2 * inner);
  std::vector<float> scores(threads * shape.context);
  std::vector<bf16> attended(batch * shape.width()), gated(batch * inner);
  std::vector<bf16> queries(threads * shape.size), normed(threads * batch * shape.hidden);
  const int64_t widest = std::max({shape.hidden, shape.width(), inner});
  const int64_t bytes = scales.empty() ? 0 : batch * ((widest + 63) / 64 * 64);
  std::vector<int8_t> split(threads * 2 * bytes);
  std::vector<float> input_scales(threads * batch);
  std::vector<float> input_offsets(threads * batch);
  const auto own = [&](int64_t thread) {
    int8_t* high = split.data() + thread * 2 * bytes;
    return Inputs{normed.data() + thread * batch * shape.hidden,
                  {high, high + bytes, input_scales.data() + thread * batch,
                   input_offsets.data() + thread * batch, 0}};
  };
  s.x = x.data(), s.projected = projected.data(), s.inner = gate_up.data();
  s.scores = scores.data(), s.queries = queries.data();
  s.attended = attended.data(), s.gated = gated.data();
#ifdef _OPENMP
#pragma omp parallel num_threads(threads)
  {
    const int64_t thread = omp_get_thread_num(), found = omp_get_num_threads();
    const auto wait = [] {
#pragma omp barrier
    };
    s.run(thread, found, own(thread), wait);
  }
#else
  s.run(0, 1, own(0), [] {});
#endif
  return logits;
}

}  // namespace

TORCH_LIBRARY(llmtrain_decode, m) {
  m.def(
      "step(Tensor embedded, Tensor[] weights, Tensor[] scales, Tensor(a!) keys, "
      "Tensor(b!) values, Tensor cosines, Tensor sines, Tensor slots, Tensor positions, int heads, "
      "int inner, float epsilon) -> Tensor",
      &step);
}
