// Products that torch's own serve less well: with a residual, and of weights' gradients.
#include "projections.h"

#include <ATen/Parallel.h>

#include "rows.h"

namespace llmtrain {
namespace {

constexpr int64_t kRun = 512;      // tokens in one product of a weight's gradient
constexpr int64_t kColumns = 512;  // of its result
constexpr int64_t kPacked = 64;    // tokens packed at once; a divisor of a run

int64_t rows_of(const ProjectionShape& shape, int threads) {
  return rows_of_task(shape.tokens, shape.size <= 512 ? 256 : 128, threads);
}

struct Sums {
  bf16* y_t;     // packed transposed
  float* sum_t;  // (C, rows)
};

Sums sums_in(Scratch& scratch, const ProjectionShape& shape, int64_t rows) {
  return {scratch.take<bf16>(rows * shape.width), scratch.take<float>(rows * shape.size)};
}

// Rows of a weight's gradient in a task: of about equal parts for each thread.
int64_t gradient_rows(const ProjectionShape& shape, int threads) {
  const int64_t share = round_up((shape.size + threads - 1) / threads, 32);
  const int64_t tasks = (share + 191) / 192;
  return round_up((share + tasks - 1) / tasks, 32);
}

struct Operands {
  bf16* x;  // packed, of all tokens
};

Operands operands_in(Scratch& scratch, const ProjectionShape& shape) {
  return {scratch.take<bf16>(round_up(shape.tokens, 32) * shape.width)};
}

}  // namespace

int64_t add_projection_scratch(const ProjectionShape& shape, int threads) {
  Scratch own(nullptr);
  sums_in(own, shape, rows_of(shape, threads));
  return threads * own.used();
}

void add_projection(const ProjectionShape& shape, const float* x, const bf16* y,
                    const bf16* weight, float* out, char* scratch, int threads) {
  const int64_t rows = rows_of(shape, threads);
  const int64_t own_bytes = add_projection_scratch(shape, threads) / threads;
  at::parallel_for(0, (shape.tokens + rows - 1) / rows, 1, [&](int64_t begin, int64_t end) {
    Scratch mine(scratch + at::get_thread_num() * own_bytes);
    const Sums own = sums_in(mine, shape, rows);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t start = task * rows, tokens = std::min(rows, shape.tokens - start);
      pack_transposed(y + start * shape.width, shape.width, tokens, shape.width, own.y_t, rows);
      brgemm(shape.size, round_up(tokens, 32), shape.width, shape.width, rows, rows, false, weight,
             own.y_t, own.sum_t);
      for_rows_of(own.sum_t, rows, tokens, shape.size, [&](int64_t t, int64_t d, __m512 added) {
        const int64_t at = (start + t) * shape.size + d;
        _mm512_storeu_ps(out + at, _mm512_add_ps(_mm512_loadu_ps(x + at), added));
      });
    }
    brgemm_release();
  });
}

int64_t weight_gradient_scratch(const ProjectionShape& shape, int threads) {
  Scratch counted(nullptr);
  operands_in(counted, shape);
  return counted.used() + threads * gradient_rows(shape, threads) * kRun * sizeof(bf16);
}

void weight_gradient(const ProjectionShape& shape, const bf16* d_y, const bf16* x, float* d_weight,
                     char* scratch, int threads) {
  const int64_t size = shape.size, width = shape.width, padded = round_up(shape.tokens, 32);
  Scratch all(scratch);
  const Operands operands = operands_in(all, shape);
  at::parallel_for(0, (shape.tokens + kPacked - 1) / kPacked, 1, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin * kPacked; t < std::min(end * kPacked, shape.tokens); t += kPacked) {
      const int64_t some = std::min(kPacked, shape.tokens - t);
      pack(x + t * width, width, some, width, operands.x + t * width, width);
      const int64_t filled = round_up(some, 2);
      std::fill_n(operands.x + (t + filled) * width, (round_up(some, 32) - filled) * width, bf16(0.f));
    }
  });
  const int64_t rows = gradient_rows(shape, threads), own = rows * kRun;
  bf16* const d_y_t = reinterpret_cast<bf16*>(scratch + all.used());
  at::parallel_for(0, (size + rows - 1) / rows, 1, [&](int64_t begin, int64_t end) {
    bf16* mine = d_y_t + at::get_thread_num() * own;
    for (int64_t task = begin; task < end; ++task) {
      const int64_t first = task * rows, count = std::min(rows, size - first);
      for (int64_t run = 0; run < padded; run += kRun) {
        const int64_t tokens = std::min(kRun, padded - run);
        prefetch(operands.x + run * width, tokens * width);
        transpose(d_y + run * size + first, size, std::min(kRun, shape.tokens - run), count, mine,
                  kRun);
        for (int64_t k = 0; k < width; k += kColumns)
          brgemm(count, std::min(kColumns, width - k), tokens, kRun, width, width, run > 0, mine,
                 operands.x + run * width + 2 * k, d_weight + first * width + k);
      }
    }
    brgemm_release();
  });
}

}  // namespace llmtrain
