// Products with matrices of a low rank: some rows, or some columns, in a task; no sums over tasks.
#include "low_rank.h"

#include <algorithm>

#include "rows.h"
#include "tasks.h"

namespace llmtrain {
namespace {

constexpr int64_t kRows = 64;      // rows in a task
constexpr int64_t kColumns = 256;  // of one product of widening
constexpr int64_t kSlice = 64;     // columns of a gradient in a task
constexpr int64_t kRun = 1024;     // rows in one product of a gradient

struct Parts {
  bf16* operand;     // packed, of all tasks
  bf16* transposed;  // (P, rows)
  char* own;         // of the threads
  int64_t shared_bytes, own_bytes;
};

Parts parts_in(char* base, int64_t rows, int64_t width, int64_t rank) {
  const int64_t inner = padded_rank(rank);
  Scratch shared(base), narrowed(nullptr), widened(nullptr), summed(nullptr);
  Parts parts{};
  parts.operand = shared.take<bf16>(width * inner);
  parts.transposed = shared.take<bf16>(inner * round_up(rows, 32));
  narrowed.take<float>(kRows * inner);
  widened.take<float>(kRows * kColumns);
  summed.take<bf16>(kRun * kSlice), summed.take<float>(inner * kSlice);
  parts.own_bytes = std::max({narrowed.used(), widened.used(), summed.used()});
  parts.shared_bytes = shared.used();
  parts.own = base == nullptr ? nullptr : base + shared.used();
  return parts;
}

char* own_of(const Parts& parts) { return parts.own + at::get_thread_num() * parts.own_bytes; }

template <class Task>
void for_tasks(int64_t count, int64_t size, const Task& task) {
  share_tasks((count + size - 1) / size, [&](Tasks& tasks) {
    for (int64_t i; tasks.take(i);) task(i * size, std::min(size, count - i * size));
    brgemm_release();
  });
}

void narrow(const RowsOf& x, int64_t inner, const Parts& parts, bf16* out) {
  for_tasks(x.count, kRows, [&](int64_t first, int64_t count) {
    float* product = reinterpret_cast<float*>(own_of(parts));
    brgemm(count, inner, x.width, x.stride, inner, inner, false, x.data + first * x.stride,
           parts.operand, product);
    store_scaled(out + first * inner, product, count * inner, 1.f);
  });
}

void add(float* y, __m512 low, __m512 high, __m512 scale) {
  _mm512_storeu_ps(y, _mm512_fmadd_ps(low, scale, _mm512_loadu_ps(y)));
  _mm512_storeu_ps(y + 16, _mm512_fmadd_ps(high, scale, _mm512_loadu_ps(y + 16)));
}

void add(bf16* y, __m512 low, __m512 high, __m512 scale) {
  const __m512i before = _mm512_loadu_si512(y);
  _mm512_storeu_si512(y, to_bf16(_mm512_fmadd_ps(low, scale, low_half(before)),
                                 _mm512_fmadd_ps(high, scale, high_half(before))));
}

template <class T>
void widen(const bf16* inner, int64_t rank, float factor, T* y, int64_t rows, int64_t width,
           int64_t stride, const Parts& parts) {
  const __m512 scale = _mm512_set1_ps(factor);
  for_tasks(rows, kRows, [&](int64_t first, int64_t count) {
    float* product = reinterpret_cast<float*>(own_of(parts));
    for (int64_t m = 0; m < width; m += kColumns) {
      const int64_t some = std::min(kColumns, width - m);
      brgemm(count, some, rank, rank, width, kColumns, false, inner + first * rank,
             parts.operand + 2 * m, product);
      for (int64_t t = 0; t < count; ++t)
        for (int64_t i = 0; i < some; i += 32) {
          const float* from = product + t * kColumns + i;
          add(y + (first + t) * stride + m + i, _mm512_loadu_ps(from), _mm512_loadu_ps(from + 16),
              scale);
        }
    }
  });
}

// Call `store(i, at, values)` with 16 of row i of scale · innerᵀ rows, from column `at` on.
template <class Store>
void multiply_transposed(const RowsOf& x, const bf16* inner, int64_t rank, float factor,
                         const Parts& parts, const Store& store) {
  const int64_t columns = padded_rank(rank), padded = round_up(x.count, 32);
  transpose(inner, columns, x.count, columns, parts.transposed, padded);
  const __m512 scale = _mm512_set1_ps(factor);
  for_tasks(x.width, kSlice, [&](int64_t first, int64_t count) {
    Scratch mine(own_of(parts));
    bf16* packed = mine.take<bf16>(kRun * kSlice);
    float* product = mine.take<float>(columns * kSlice);
    for (int64_t run = 0; run < x.count; run += kRun) {
      const int64_t some = std::min(kRun, x.count - run), filled = round_up(some, 2);
      pack(x.data + run * x.stride + first, x.stride, some, count, packed, kSlice);
      std::fill_n(packed + filled * kSlice, (round_up(some, 32) - filled) * kSlice, bf16(0.f));
      brgemm(rank, count, round_up(some, 32), padded, kSlice, kSlice, run > 0,
             parts.transposed + run, packed, product);
    }
    for (int64_t i = 0; i < rank; ++i)
      for (int64_t n = 0; n < count; n += 16)
        store(i, first + n, _mm512_mul_ps(_mm512_loadu_ps(product + i * kSlice + n), scale));
  });
}

}  // namespace

int64_t padded_rank(int64_t rank) { return round_up(rank, 32); }

int64_t low_rank_scratch(int64_t rows, int64_t width, int64_t rank, int threads) {
  const Parts parts = parts_in(nullptr, rows, width, rank);
  return parts.shared_bytes + threads * parts.own_bytes;
}

void to_rank(const RowsOf& x, const bf16* a, int64_t rank, bf16* inner, char* scratch) {
  const Parts parts = parts_in(scratch, x.count, x.width, rank);
  pack_transposed(a, x.width, rank, x.width, parts.operand, padded_rank(rank));
  narrow(x, padded_rank(rank), parts, inner);
}

void to_rank_of_output(const RowsOf& d_y, const bf16* b, int64_t rank, bf16* d_inner,
                       char* scratch) {
  const Parts parts = parts_in(scratch, d_y.count, d_y.width, rank);
  pack(b, rank, d_y.width, rank, parts.operand, padded_rank(rank));
  narrow(d_y, padded_rank(rank), parts, d_inner);
}

template <class T>
void add_from_rank(const bf16* inner, const bf16* b, int64_t rank, float scale, T* y, int64_t rows,
                   int64_t width, int64_t stride, char* scratch) {
  const Parts parts = parts_in(scratch, rows, width, rank);
  pack_transposed(b, rank, width, rank, parts.operand, width);
  widen(inner, padded_rank(rank), scale, y, rows, width, stride, parts);
}
template void add_from_rank(const bf16*, const bf16*, int64_t, float, float*, int64_t, int64_t,
                            int64_t, char*);
template void add_from_rank(const bf16*, const bf16*, int64_t, float, bf16*, int64_t, int64_t,
                            int64_t, char*);

void add_from_rank_of_input(const bf16* d_inner, const bf16* a, int64_t rank, float scale,
                            bf16* d_x, int64_t rows, int64_t width, int64_t stride,
                            char* scratch) {
  const Parts parts = parts_in(scratch, rows, width, rank);
  std::fill_n(parts.operand, width * padded_rank(rank), bf16(0.f));
  pack(a, width, rank, width, parts.operand, width);
  widen(d_inner, padded_rank(rank), scale, d_x, rows, width, stride, parts);
}

void gradient_of_a(const RowsOf& x, const bf16* d_inner, int64_t rank, float scale, float* d_a,
                   char* scratch) {
  const Parts parts = parts_in(scratch, x.count, x.width, rank);
  multiply_transposed(x, d_inner, rank, scale, parts, [&](int64_t i, int64_t at, __m512 values) {
    _mm512_storeu_ps(d_a + i * x.width + at, values);
  });
}

void gradient_of_b(const RowsOf& d_y, const bf16* inner, int64_t rank, float scale, float* d_b,
                   char* scratch) {
  const Parts parts = parts_in(scratch, d_y.count, d_y.width, rank);
  const __m512i steps = _mm512_mullo_epi32(
      _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
      _mm512_set1_epi32(static_cast<int>(rank)));
  multiply_transposed(d_y, inner, rank, scale, parts, [&](int64_t i, int64_t at, __m512 values) {
    _mm512_i32scatter_ps(d_b + at * rank + i, steps, values, sizeof(float));
  });
}

}  // namespace llmtrain
