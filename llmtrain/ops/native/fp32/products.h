// Products of fp32 matrices that fit a cache, in tiles that fit the registers.
#pragma once

#include <algorithm>

#include "vectors.h"

namespace llmtrain::fp32 {

// A left operand: its rows, or its columns where they are what is dense, are `stride` apart. It is
// read up to a multiple of kTileRows.
struct Left {
  const float* data;
  int64_t stride;
};

// A right operand: panels of kTileColumns columns, `stride` apart, whose rows are dense.
struct Right {
  const float* data;
  int64_t stride;
};

struct Depths {  // of a product's inner dimension
  int64_t begin, end;
};

enum LeftLayout { Rows, Columns };

// Set a tile of `out` to left · right, or add it: after it is summed, so that long sums are sums of
// short ones, which rounds less.
template <LeftLayout Layout, bool Adds>
[[gnu::noinline]] void multiply_tile(Depths depths, Left left, const float* right, float* out,
                                     int64_t stride) {
  Vector sums[kTileRows][kTileVectors] = {};
  for (int64_t k = depths.begin; k < depths.end; ++k) {
    Vector row[kTileVectors];
#pragma GCC unroll 4
    for (int64_t n = 0; n < kTileVectors; ++n) row[n] = load(right + k * kTileColumns + n * kLanes);
#pragma GCC unroll 16
    for (int64_t r = 0; r < kTileRows; ++r) {
      const float x = left.data[Layout == Rows ? r * left.stride + k : k * left.stride + r];
#pragma GCC unroll 4
      for (int64_t n = 0; n < kTileVectors; ++n) sums[r][n] += x * row[n];
    }
  }
#pragma GCC unroll 16
  for (int64_t r = 0; r < kTileRows; ++r)
#pragma GCC unroll 4
    for (int64_t n = 0; n < kTileVectors; ++n) {
      float* to = out + r * stride + n * kLanes;
      store(to, Adds ? load(to) + sums[r][n] : sums[r][n]);
    }
}

// Multiply into rows × columns of `out`, rounded up to tiles. `depths_of(row, column)` says what of
// the inner dimension counts for the tile that begins there; where nothing does, it stays.
template <LeftLayout Layout, bool Adds, class DepthsOf>
void multiply(int64_t rows, int64_t columns, Left left, Right right, float* out, int64_t stride,
              const DepthsOf& depths_of) {
  for (int64_t n = 0; n < columns; n += kTileColumns) {
    const float* panel = right.data + n / kTileColumns * right.stride;
    for (int64_t m = 0; m < rows; m += kTileRows) {
      const Depths depths = depths_of(m, n);
      if (depths.begin >= depths.end) continue;
      const Left tile{left.data + (Layout == Rows ? m * left.stride : m), left.stride};
      multiply_tile<Layout, Adds>(depths, tile, panel, out + m * stride + n, stride);
    }
  }
}

template <class DepthsOf>
void set_product(int64_t rows, int64_t columns, Left left, Right right, float* out, int64_t stride,
                 const DepthsOf& depths_of) {
  multiply<Rows, false>(rows, columns, left, right, out, stride, depths_of);
}
template <LeftLayout Layout, class DepthsOf>
void add_product(int64_t rows, int64_t columns, Left left, Right right, float* out, int64_t stride,
                 const DepthsOf& depths_of) {
  multiply<Layout, true>(rows, columns, left, right, out, stride, depths_of);
}

// Copy rows × columns densely; zeros beyond `rows`, up to `padded`. Rows that lie far apart come
// into the cache several times as fast in this order as in that of packing, which then reads these.
inline void copy_rows(const float* from, int64_t stride, int64_t rows, int64_t columns, float* out,
                      int64_t padded) {
  for (int64_t r = 0; r < rows; ++r)
    std::memcpy(out + r * columns, from + r * stride, columns * sizeof(float));
  std::fill(out + rows * columns, out + padded * columns, 0.f);
}

// Copy dense rows × columns into panels.
inline void pack(const float* from, int64_t rows, int64_t columns, float* out) {
  for (int64_t n = 0; n < columns; n += kTileColumns) {
    const int64_t width = std::min(kTileColumns, columns - n);
    for (int64_t k = 0; k < rows; ++k, out += kTileColumns) {
      const float* row = from + k * columns + n;
      if (width == kTileColumns) {
        for (int64_t i = 0; i < kTileColumns; i += kLanes) store(out + i, load(row + i));
      } else {
        std::memcpy(out, row, width * sizeof(float));
        std::fill(out + width, out + kTileColumns, 0.f);
      }
    }
  }
}

// Choose of the numbers of two vectors: clang's builtin, which GCC has from 12 on, or GCC's own.
#if defined(__clang__)
#define LLMTRAIN_SHUFFLE(x, y, ...) __builtin_shufflevector(x, y, __VA_ARGS__)
#else
#define LLMTRAIN_SHUFFLE(x, y, ...) __builtin_shuffle(x, y, Indices{__VA_ARGS__})
#endif

// Write the transpose of four numbers of each of four rows.
inline void transpose4(const float* from, int64_t stride, float* out, int64_t out_stride) {
  using Four [[gnu::vector_size(16)]] = float;
  using Indices [[gnu::vector_size(16), maybe_unused]] = int32_t;
  Four r[4];
  for (int64_t i = 0; i < 4; ++i) std::memcpy(&r[i], from + i * stride, sizeof(Four));
  const Four a = LLMTRAIN_SHUFFLE(r[0], r[1], 0, 4, 1, 5);
  const Four b = LLMTRAIN_SHUFFLE(r[0], r[1], 2, 6, 3, 7);
  const Four c = LLMTRAIN_SHUFFLE(r[2], r[3], 0, 4, 1, 5);
  const Four d = LLMTRAIN_SHUFFLE(r[2], r[3], 2, 6, 3, 7);
  const Four columns[4] = {LLMTRAIN_SHUFFLE(a, c, 0, 1, 4, 5), LLMTRAIN_SHUFFLE(a, c, 2, 3, 6, 7),
                           LLMTRAIN_SHUFFLE(b, d, 0, 1, 4, 5), LLMTRAIN_SHUFFLE(b, d, 2, 3, 6, 7)};
  for (int64_t k = 0; k < 4; ++k) std::memcpy(out + k * out_stride, &columns[k], sizeof(Four));
}

// Copy the transpose of dense rows × columns into panels; rows are a multiple of kTileColumns.
inline void pack_transposed(const float* from, int64_t rows, int64_t columns, float* out) {
  for (int64_t n = 0; n < rows; n += kTileColumns, out += kTileColumns * columns)
    for (int64_t i = 0; i < kTileColumns; i += 4) {
      const float* some = from + (n + i) * columns;
      int64_t k = 0;
      for (; k + 4 <= columns; k += 4)
        transpose4(some + k, columns, out + k * kTileColumns + i, kTileColumns);
      for (; k < columns; ++k)
        for (int64_t r = 0; r < 4; ++r) out[k * kTileColumns + i + r] = some[r * columns + k];
    }
}

}  // namespace llmtrain::fp32
