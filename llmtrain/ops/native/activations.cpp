// SwiGLU of rows in memory, silu(gate) · up, and its gradients: bf16, computed in fp32.
#include <ATen/Parallel.h>

#include "projections.h"
#include "swiglu.h"

namespace llmtrain {
namespace {

constexpr int64_t kShare = 1 << 14;  // numbers that are worth a thread

// Call `compute(i)` at every 32 of `count` numbers, a multiple of 32.
template <class Compute>
void for_lines(int64_t count, const Compute& compute) {
  at::parallel_for(0, count / 32, kShare / 32, [&](int64_t begin, int64_t end) {
    for (int64_t line = begin; line < end; ++line) compute(32 * line);
  });
}

}  // namespace

void activate(int64_t count, bf16* gate, const bf16* up) {
  for_lines(count, [&](int64_t i) {
    const __m512i gates = _mm512_loadu_si512(gate + i), ups = _mm512_loadu_si512(up + i);
    const auto hidden = [](__m512 x, __m512 y) {
      return _mm512_mul_ps(_mm512_mul_ps(x, sigmoid(x)), y);
    };
    _mm512_storeu_si512(gate + i, to_bf16(hidden(low_half(gates), low_half(ups)),
                                          hidden(high_half(gates), high_half(ups))));
  });
}

void activate_backward(int64_t count, const bf16* d_hidden, bf16* gate, bf16* up) {
  for_lines(count, [&](int64_t i) {
    const __m512i gates = _mm512_loadu_si512(gate + i), ups = _mm512_loadu_si512(up + i);
    const __m512i ds = _mm512_loadu_si512(d_hidden + i);
    __m512 d_gates[2], d_ups[2];
    for (int half = 0; half < 2; ++half) {
      const auto of = [&](__m512i x) { return half == 0 ? low_half(x) : high_half(x); };
      const __m512 x = of(gates), d = of(ds), s = sigmoid(x), silu = _mm512_mul_ps(x, s);
      d_ups[half] = _mm512_mul_ps(d, silu);
      d_gates[half] = _mm512_mul_ps(_mm512_mul_ps(d, of(ups)), silu_slope(s, silu));
    }
    _mm512_storeu_si512(gate + i, to_bf16(d_gates[0], d_gates[1]));
    _mm512_storeu_si512(up + i, to_bf16(d_ups[0], d_ups[1]));
  });
}

}  // namespace llmtrain
