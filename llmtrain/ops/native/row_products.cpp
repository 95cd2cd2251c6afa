// Products of rows of tokens with a weight, which is packed once: what the rows are made from, and
// what becomes of the results, stays in a core's cache.
#include "norm_rows.h"
#include "projections.h"
#include "rows.h"
#include "tasks.h"

namespace llmtrain {
namespace {

constexpr int64_t kRows = 128;   // tokens in a task, at most
constexpr int64_t kPiece = 256;  // columns of a product at once
constexpr int64_t kPacked = 32;  // rows of a weight packed at once

struct Own {  // of a thread
  bf16* left;      // rows before the product
  float* product;  // (rows, kPiece), or whole rows
};

class RowProducts {
 public:
  RowProducts(const ProjectionShape& shape, int threads, char* base)
      : shape_(shape), rows_(rows_of_task(shape.tokens, kRows, threads)), base_(base) {
    Scratch shared(base), own(nullptr);
    packed_ = shared.take<bf16>(shape.size * shape.width);
    shared_bytes_ = shared.used();
    own_in(own);
    own_bytes_ = own.used();
  }

  int64_t scratch_bytes(int threads) const { return shared_bytes_ + threads * own_bytes_; }
  int64_t tasks() const { return (shape_.tokens + rows_ - 1) / rows_; }

  // Pack the weight (size, width) for rows of `size` values, or its transpose for those of `width`.
  void pack_weight(const bf16* weight, bool transposed) const {
    const auto [tokens, size, width] = shape_;
    share_tasks(size / kPacked, [&](Tasks& tasks) {
      for (int64_t task; tasks.take(task);) {
        const int64_t first = task * kPacked;
        const bf16* from = weight + first * width;
        if (transposed)
          pack_transposed(from, width, kPacked, width, packed_ + 2 * first, size);
        else
          pack(from, width, kPacked, width, packed_ + first * width, width);
      }
    });
  }

  // Call `work(own, task, first token, tokens)` for all tokens.
  template <class Work>
  void for_rows(const Work& work) const {
    share_tasks(tasks(), [&](Tasks& tasks) {
      Scratch mine(base_ + shared_bytes_ + at::get_thread_num() * own_bytes_);
      const Own own = own_in(mine);
      for (int64_t task; tasks.take(task);)
        work(own, task, task * rows_, std::min(rows_, shape_.tokens - task * rows_));
      brgemm_release();
    });
  }

  // Multiply `count` rows of `inner` values into rows of `columns`, and call
  // `store(row, column, columns, values)` with a piece of each.
  template <class Store>
  void multiply(const Own& own, const bf16* left, int64_t count, int64_t inner, int64_t columns,
                const Store& store) const {
    for (int64_t n = 0; n < columns; n += kPiece) {
      const int64_t some = std::min(kPiece, columns - n);
      brgemm(count, some, inner, inner, columns, kPiece, false, left, packed_ + 2 * n, own.product);
      for (int64_t t = 0; t < count; ++t) store(t, n, some, own.product + t * kPiece);
    }
  }

  // Multiply rows of `size` values into whole rows of `width`, in own.product.
  void multiply_whole(const Own& own, const bf16* left, int64_t count) const {
    const auto [tokens, size, width] = shape_;
    for (int64_t n = 0; n < width; n += kPiece)
      brgemm(count, std::min(kPiece, width - n), size, size, width, width, false, left,
             packed_ + 2 * n, own.product + n);
  }

 private:
  Own own_in(Scratch& scratch) const {
    return {scratch.take<bf16>(rows_ * std::max(shape_.size, shape_.width)),
            scratch.take<float>(rows_ * std::max(kPiece, shape_.width))};
  }

  ProjectionShape shape_;
  int64_t rows_;
  char* base_;
  bf16* packed_;
  int64_t shared_bytes_, own_bytes_;
};

}  // namespace

int64_t row_products_scratch(const ProjectionShape& shape, int threads) {
  const RowProducts products(shape, threads, nullptr);
  return products.scratch_bytes(threads) + products.tasks() * shape.width * int64_t{sizeof(float)};
}

void project_normed(const ProjectionShape& shape, const float* x, const float* gain, float epsilon,
                    const bf16* weight, bf16* out, char* scratch, int threads) {
  const int64_t size = shape.size, width = shape.width;
  const RowProducts products(shape, threads, scratch);
  products.pack_weight(weight, true);
  products.for_rows([&](const Own& own, int64_t, int64_t start, int64_t count) {
    for (int64_t t = 0; t < count; ++t)
      normalize_row(x + (start + t) * width, gain, width, epsilon, own.left + t * width);
    bf16* const rows = out + start * size;
    products.multiply(own, own.left, count, width, size,
                      [&](int64_t t, int64_t n, int64_t some, const float* values) {
                        store_scaled(rows + t * size + n, values, some, 1.f);
                      });
  });
}

void project_normed_backward(const ProjectionShape& shape, const bf16* d_out, const float* x,
                             const float* gain, float epsilon, const bf16* weight,
                             const float* residual, float* d_x, float* d_gain, char* scratch,
                             int threads) {
  const int64_t width = shape.width;
  const RowProducts products(shape, threads, scratch);
  float* const parts = reinterpret_cast<float*>(scratch + products.scratch_bytes(threads));
  products.pack_weight(weight, false);
  products.for_rows([&](const Own& own, int64_t task, int64_t start, int64_t count) {
    products.multiply_whole(own, d_out + start * shape.size, count);
    float* const part = parts + task * width;
    std::fill_n(part, width, 0.f);
    for (int64_t t = 0; t < count; ++t) {
      const int64_t at = (start + t) * width;
      normalize_row_backward(own.product + t * width, x + at, gain,
                             inverse_rms(x + at, width, epsilon), width, residual + at, d_x + at,
                             part);
    }
  });
  add_parts(parts, products.tasks(), width, d_gain);
}

void round_and_project(const ProjectionShape& shape, const float* d_y, const bf16* weight,
                       bf16* rounded, bf16* d_x, char* scratch, int threads) {
  const int64_t size = shape.size, width = shape.width;
  const RowProducts products(shape, threads, scratch);
  products.pack_weight(weight, false);
  products.for_rows([&](const Own& own, int64_t, int64_t start, int64_t count) {
    bf16* const left = rounded + start * size;
    store_scaled(left, d_y + start * size, count * size, 1.f);
    bf16* const rows = d_x + start * width;
    products.multiply(own, left, count, size, width,
                      [&](int64_t t, int64_t n, int64_t some, const float* values) {
                        store_scaled(rows + t * width + n, values, some, 1.f);
                      });
  });
}

void add_projection(const ProjectionShape& shape, const float* x, const bf16* y,
                    const bf16* weight, float* out, char* scratch, int threads) {
  const int64_t size = shape.size, width = shape.width;
  const RowProducts products(shape, threads, scratch);
  products.pack_weight(weight, true);
  products.for_rows([&](const Own& own, int64_t, int64_t start, int64_t count) {
    products.multiply(own, y + start * width, count, width, size,
                      [&](int64_t t, int64_t n, int64_t some, const float* values) {
                        const int64_t at = (start + t) * size + n;
                        for (int64_t d = 0; d < some; d += 16) {
                          const __m512 before = _mm512_loadu_ps(x + at + d);
                          const __m512 added = _mm512_loadu_ps(values + d);
                          _mm512_storeu_ps(out + at + d, _mm512_add_ps(before, added));
                        }
                      });
  });
}

}  // namespace llmtrain
