// Products of rows with matrices of a low rank R, which torch's own serve badly: adapters'.
//
// A (R, K) and B (M, R) are dense. What lies between them has P = padded_rank(R) columns, those
// beyond R zero. Rows have strides; K, M and the width of a gradient are multiples of 32.
#pragma once

#include <c10/util/BFloat16.h>

#include <cstdint>

namespace llmtrain {

int64_t padded_rank(int64_t rank);

struct RowsOf {
  const c10::BFloat16* data;
  int64_t count, width, stride;
};

// `scratch` has the bytes that the function of that name says.

int64_t low_rank_scratch(int64_t rows, int64_t width, int64_t rank, int threads);

// inner = x Aᵀ, and d_inner = dy B.
void to_rank(const RowsOf& x, const c10::BFloat16* a, int64_t rank, c10::BFloat16* inner,
             char* scratch);
void to_rank_of_output(const RowsOf& d_y, const c10::BFloat16* b, int64_t rank,
                       c10::BFloat16* d_inner, char* scratch);

// y += scale · inner Bᵀ, and dx += scale · d_inner A; y has `width` columns.
template <class T>
void add_from_rank(const c10::BFloat16* inner, const c10::BFloat16* b, int64_t rank, float scale,
                   T* y, int64_t rows, int64_t width, int64_t stride, char* scratch);
void add_from_rank_of_input(const c10::BFloat16* d_inner, const c10::BFloat16* a, int64_t rank,
                            float scale, c10::BFloat16* d_x, int64_t rows, int64_t width,
                            int64_t stride, char* scratch);

// dA = scale · d_innerᵀ x, (R, K), and dB = scale · dyᵀ inner, (M, R).
void gradient_of_a(const RowsOf& x, const c10::BFloat16* d_inner, int64_t rank, float scale,
                   float* d_a, char* scratch);
void gradient_of_b(const RowsOf& d_y, const c10::BFloat16* inner, int64_t rank, float scale,
                   float* d_b, char* scratch);

}  // namespace llmtrain
