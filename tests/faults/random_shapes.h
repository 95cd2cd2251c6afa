// Random sizes and values, and memory without a byte to spare, for the programs beside this.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

inline std::mt19937 generator;

inline int64_t between(int64_t least, int64_t most) {
  return std::uniform_int_distribution<int64_t>(least, most)(generator);
}

template <class T>
std::vector<T> normal_of(int64_t count) {
  std::normal_distribution<float> drawn;
  std::vector<T> values(count);
  for (T& value : values) value = drawn(generator);
  return values;
}

inline char* scratch_of(int64_t bytes) {
  char* found = static_cast<char*>(std::aligned_alloc(64, (bytes + 63) / 64 * 64));
  if (found == nullptr) std::exit(2);
  return found;
}

template <class T>
void require_finite(const std::vector<T>& values, const char* what) {
  for (const T& value : values)
    if (!std::isfinite(static_cast<float>(value))) {
      std::printf("%s is not finite\n", what);
      std::exit(1);
    }
}
