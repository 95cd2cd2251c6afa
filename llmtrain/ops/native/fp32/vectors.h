// fp32 in the registers of whatever processor this is compiled for, by the compiler's vectors.
#pragma once

#include <cstdint>
#include <cstring>

#include "../scratch.h"

namespace llmtrain::fp32 {

// A tile of a product: so many rows and vectors of columns that its sums fill the registers, but
// for a row of the right operand and one number of the left.
#if defined(__AVX512F__)
constexpr int64_t kLanes = 16, kTileRows = 12, kTileVectors = 2;  // of 32 registers
#elif defined(__AVX2__)
constexpr int64_t kLanes = 8, kTileRows = 6, kTileVectors = 2;  // of 16
#else
constexpr int64_t kLanes = 4, kTileRows = 6, kTileVectors = 4;  // of 32, as NEON has
#endif
constexpr int64_t kTileColumns = kLanes * kTileVectors;
constexpr int64_t kBlock = 96;  // a multiple of rows and columns of all tiles

using Vector [[gnu::vector_size(4 * kLanes)]] = float;
using Integers [[gnu::vector_size(4 * kLanes)]] = int32_t;

inline Vector load(const float* from) {
  Vector x;
  std::memcpy(&x, from, sizeof(x));
  return x;
}
inline void store(float* to, Vector x) { std::memcpy(to, &x, sizeof(x)); }
inline Vector all_of(float x) { return Vector{} + x; }

// Ones in the lanes from `low` up to `high`, that one left out.
inline Integers lanes(int64_t low, int64_t high) {
  Integers number;
  for (int32_t i = 0; i < kLanes; ++i) number[i] = i;
  const auto bound = [](int64_t n) {
    return Integers{} + static_cast<int32_t>(n < 0 ? 0 : n > kLanes ? kLanes : n);
  };
  return (number >= bound(low)) & (number < bound(high));
}
inline Vector where(Integers mask, Vector x, Vector other) {
  return (Vector)(((Integers)x & mask) | ((Integers)other & ~mask));
}

inline float sum_of(Vector x) {
  float sum = 0.f;
  for (int i = 0; i < kLanes; ++i) sum += x[i];
  return sum;
}
inline float largest_of(Vector x) {
  float largest = x[0];
  for (int i = 1; i < kLanes; ++i) largest = x[i] > largest ? x[i] : largest;
  return largest;
}

// 2^x of x up to 127, with a relative error of 1e-7 (a polynomial on [-0.5, 0.5]); 2^-126 from
// there down, NaN of NaN.
inline Vector exp2(Vector x) {
  const Vector least = all_of(-126.f), round = all_of(12582912.f);  // 1.5 · 2^23: no fraction fits
  x = x < least ? least : x;
  const Vector whole = (x + round) - round, rest = x - whole;
  Vector p = all_of(1.54614448e-4f);
  p = p * rest + 1.34004280e-3f;
  p = p * rest + 9.61805694e-3f;
  p = p * rest + 5.55032715e-2f;
  p = p * rest + 2.40226507e-1f;
  p = p * rest + 6.93147182e-1f;
  p = p * rest + 1.f;
  return p * (Vector)((__builtin_convertvector(whole, Integers) + 127) << 23);
}

inline float dot(const float* a, const float* b, int64_t count) {
  Vector sum{};
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) sum += load(a + i) * load(b + i);
  float total = sum_of(sum);
  for (; i < count; ++i) total += a[i] * b[i];
  return total;
}

}  // namespace llmtrain::fp32
