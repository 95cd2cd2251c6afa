// Rows of tokens as operands of products, and products' results as rows.
#pragma once

#include <algorithm>

#include "vectors.h"

#if defined(__linux__)
#include <unistd.h>
#endif

namespace llmtrain {

inline int64_t second_cache_bytes() {
#if defined(_SC_LEVEL2_CACHE_SIZE)
  const long found = sysconf(_SC_LEVEL2_CACHE_SIZE);
  if (found > 0) return found;
#endif
  return 1 << 20;
}

// Rows in a task: `most`, or fewer where threads would be without work, or down to 128 where each
// would have one task and all would wait for the slowest. A multiple of 32.
inline int64_t rows_of_task(int64_t tokens, int64_t most, int threads) {
  int64_t rows = most;
  while (rows > 32 && (tokens + rows - 1) / rows < (rows > 128 ? 2 : 1) * threads) rows /= 2;
  return std::max<int64_t>(32, std::min(rows, round_up(tokens, 32)));
}

// Ask for memory that a product is about to read: in order it comes several times as fast as by
// the product's own strided loads.
inline void prefetch(const bf16* from, int64_t count) {
  for (int64_t i = 0; i < count; i += 32)
    _mm_prefetch(reinterpret_cast<const char*>(from + i), _MM_HINT_T1);
}

// `by_feature` is a result (features, tokens). Call `store(token, feature, values)` with 16
// features of a token at a time; `size` is a multiple of 16.
template <class Store>
inline void for_rows_of(const float* by_feature, int64_t stride, int64_t tokens, int64_t size,
                        const Store& store) {
  for (int64_t t = 0; t < tokens; t += 16)
    for (int64_t d = 0; d < size; d += 16) {
      __m512i r[16];
      for (int n = 0; n < 16; ++n) r[n] = _mm512_loadu_si512(by_feature + (d + n) * stride + t);
      transpose16(r);
      for (int n = 0; n < 16 && t + n < tokens; ++n)
        store(t + n, d, _mm512_castsi512_ps(r[n]));
    }
}

}  // namespace llmtrain
