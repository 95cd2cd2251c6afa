// The gradients of weights: products over all tokens.
#include "projections.h"

#include "rows.h"
#include "tasks.h"

namespace llmtrain {
namespace {

constexpr int64_t kRun = 512;      // tokens in one product of a weight's gradient
constexpr int64_t kColumns = 512;  // of its result
// Rows of it in a task, at least: fewer read the other operand too often (sixteen Xeon cores).
constexpr int64_t kFewestRows = 96;
constexpr int64_t kPacked = 64;    // tokens packed at once; a divisor of a run

int64_t divided(int64_t count, int64_t parts) { return (count + parts - 1) / parts; }

// Tasks of a weight's gradient: some rows of it, and where these are too few for all threads, some
// of their columns.
struct Tiles {
  Tiles(const ProjectionShape& shape, int threads) {
    const int64_t share = std::max(kFewestRows, round_up(divided(shape.size, threads), 32));
    rows = round_up(divided(share, divided(share, 192)), 32);
    down = divided(shape.size, rows);
    columns = round_up(divided(shape.width, divided(threads, down)), 32);
    across = divided(shape.width, columns);
  }
  int64_t rows, columns, down, across;
};

struct Operands {
  bf16* x;  // packed, of all tokens
};

Operands operands_in(Scratch& scratch, const ProjectionShape& shape) {
  return {scratch.take<bf16>(round_up(shape.tokens, 32) * shape.width)};
}

}  // namespace

int64_t weight_gradient_scratch(const ProjectionShape& shape, int threads) {
  Scratch counted(nullptr);
  operands_in(counted, shape);
  return counted.used() + threads * Tiles(shape, threads).rows * kRun * sizeof(bf16);
}

void weight_gradient(const ProjectionShape& shape, const bf16* d_y, const bf16* x, float* d_weight,
                     char* scratch, int threads) {
  const int64_t size = shape.size, width = shape.width, padded = round_up(shape.tokens, 32);
  Scratch all(scratch);
  const Operands operands = operands_in(all, shape);
  share_tasks((shape.tokens + kPacked - 1) / kPacked, [&](Tasks& tasks) {
    for (int64_t task; tasks.take(task);) {
      const int64_t t = task * kPacked;
      const int64_t some = std::min(kPacked, shape.tokens - t);
      pack(x + t * width, width, some, width, operands.x + t * width, width);
      const int64_t filled = round_up(some, 2);
      std::fill_n(operands.x + (t + filled) * width, (round_up(some, 32) - filled) * width, bf16(0.f));
    }
  });
  const Tiles tiles(shape, threads);
  bf16* const d_y_t = reinterpret_cast<bf16*>(scratch + all.used());
  share_tasks(tiles.down * tiles.across, [&](Tasks& tasks) {
    bf16* mine = d_y_t + at::get_thread_num() * tiles.rows * kRun;
    for (int64_t task; tasks.take(task);) {
      const int64_t first = task / tiles.across * tiles.rows;
      const int64_t count = std::min(tiles.rows, size - first);
      const int64_t left = task % tiles.across * tiles.columns;
      const int64_t right = std::min(width, left + tiles.columns);
      for (int64_t run = 0; run < padded; run += kRun) {
        const int64_t tokens = std::min(kRun, padded - run);
        if (tiles.across == 1) prefetch(operands.x + run * width, tokens * width);
        transpose(d_y + run * size + first, size, std::min(kRun, shape.tokens - run), count, mine,
                  kRun);
        for (int64_t k = left; k < right; k += kColumns)
          brgemm(count, std::min(kColumns, right - k), tokens, kRun, width, width, run > 0, mine,
                 operands.x + run * width + 2 * k, d_weight + first * width + k);
      }
    }
    brgemm_release();
  });
}

}  // namespace llmtrain
