// Runs the native kernels for fp32 on random shapes, as native_kernels.cpp does those for bf16.
#include <ATen/Parallel.h>


#include "attention.h"
#include "random_shapes.h"

using namespace llmtrain;

namespace {

std::vector<float> normal(int64_t count) { return normal_of<float>(count); }

void try_attention(int threads) {
  AttentionShape s{};
  s.sequences = between(1, 2), s.key_heads = between(1, 2);
  s.heads = s.key_heads * between(1, 3), s.tokens = between(1, 700), s.size = between(1, 128);
  const int64_t q_count = s.sequences * s.heads * s.tokens * s.size;
  const int64_t k_count = s.sequences * s.key_heads * s.tokens * s.size;
  auto q = normal(q_count), k = normal(k_count), v = normal(k_count), d_y = normal(q_count);
  std::vector<float> y(q_count), d_q(q_count), d_k(k_count), d_v(k_count);
  std::vector<float> lse(s.sequences * s.heads * s.tokens);
  std::vector<int32_t> first(s.sequences * s.tokens);
  for (int64_t i = 0; i < s.sequences * s.tokens; ++i) {
    const bool begins = i % s.tokens == 0 || between(0, 90) == 0;
    first[i] = static_cast<int32_t>(begins ? i % s.tokens : first[i - 1]);
  }
  const auto heads = [&](std::vector<float>& x, int64_t number) {  // (B, T, heads, D)
    return fp32::HeadsOf{x.data(), s.tokens * number * s.size, s.size, number * s.size};
  };
  const fp32::HeadsOf queries = heads(q, s.heads), keys = heads(k, s.key_heads);
  const int32_t* documents = between(0, 1) ? first.data() : nullptr;
  char* scratch = scratch_of(fp32::attention_forward_scratch(s, threads));
  fp32::attention_forward(s, queries, keys, heads(v, s.key_heads), documents, heads(y, s.heads),
                          lse.data(), scratch, threads);
  std::free(scratch);
  scratch = scratch_of(fp32::attention_backward_scratch(s, threads));
  fp32::attention_backward(s, heads(d_y, s.heads), queries, keys, heads(v, s.key_heads),
                           heads(y, s.heads), lse.data(), documents, heads(d_q, s.heads),
                           heads(d_k, s.key_heads), heads(d_v, s.key_heads), scratch, threads);
  std::free(scratch);
  require_finite(y, "attention"), require_finite(lse, "its normaliser");
  require_finite(d_q, "the gradient of queries"), require_finite(d_k, "the gradient of keys");
  require_finite(d_v, "the gradient of values");
}

}  // namespace

int main(int count, char** arguments) {
  const int64_t rounds = count > 1 ? std::atoll(arguments[1]) : 20;
  generator.seed(count > 2 ? std::atoi(arguments[2]) : 0);
  for (int64_t round = 0; round < rounds; ++round) {
    const int threads = static_cast<int>(between(1, 5));
    at::set_num_threads(threads);
    try_attention(threads);
  }
  std::printf("%lld rounds\n", static_cast<long long>(rounds));
}
