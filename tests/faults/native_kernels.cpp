// Runs the native kernels on random shapes, in buffers without a byte to spare. Built with the
// sanitizers of addresses and of undefined behaviour, which end the program at what they find.
#include <ATen/Parallel.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#include "attention.h"
#include "loss.h"

using namespace llmtrain;
using c10::BFloat16;

namespace {

std::mt19937 generator;

int64_t between(int64_t least, int64_t most) {
  return std::uniform_int_distribution<int64_t>(least, most)(generator);
}

std::vector<BFloat16> normal(int64_t count) {
  std::normal_distribution<float> drawn;
  std::vector<BFloat16> values(count);
  for (BFloat16& value : values) value = drawn(generator);
  return values;
}

char* scratch_of(int64_t bytes) {
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

void try_attention(int threads) {
  AttentionShape s{};
  s.sequences = between(1, 2), s.key_heads = between(1, 2);
  s.heads = s.key_heads * between(1, 3), s.tokens = between(1, 700), s.size = 2 * between(1, 64);
  const int64_t q_count = s.sequences * s.heads * s.tokens * s.size;
  const int64_t k_count = s.sequences * s.key_heads * s.tokens * s.size;
  auto q = normal(q_count), k = normal(k_count), v = normal(k_count), d_y = normal(q_count);
  std::vector<BFloat16> y(q_count), d_q(q_count), d_k(k_count), d_v(k_count);
  std::vector<float> lse(s.sequences * s.heads * s.tokens);
  std::vector<int32_t> first(s.sequences * s.tokens);
  for (int64_t i = 0; i < s.sequences * s.tokens; ++i) {
    const bool begins = i % s.tokens == 0 || between(0, 90) == 0;
    first[i] = static_cast<int32_t>(begins ? i % s.tokens : first[i - 1]);
  }
  const auto heads = [&](std::vector<BFloat16>& x, int64_t number) {  // (B, T, heads, D)
    return HeadsOf{x.data(), s.tokens * number * s.size, s.size, number * s.size};
  };
  const HeadsOf queries = heads(q, s.heads), keys = heads(k, s.key_heads);
  const int32_t* documents = between(0, 1) ? first.data() : nullptr;
  char* scratch = scratch_of(attention_forward_scratch(s, threads));
  attention_forward(s, queries, keys, heads(v, s.key_heads), documents, heads(y, s.heads),
                    lse.data(), scratch, threads);
  std::free(scratch);
  scratch = scratch_of(attention_backward_scratch(s, threads));
  attention_backward(s, heads(d_y, s.heads), queries, keys, heads(v, s.key_heads),
                     heads(y, s.heads), lse.data(), documents, heads(d_q, s.heads),
                     heads(d_k, s.key_heads), heads(d_v, s.key_heads), scratch, threads);
  std::free(scratch);
  require_finite(y, "attention"), require_finite(lse, "its normaliser");
  require_finite(d_q, "the gradient of queries"), require_finite(d_k, "the gradient of keys");
  require_finite(d_v, "the gradient of values");
}

void try_loss(int threads) {
  LossShape s{};
  s.tokens = between(1, 1500), s.size = 32 * between(1, 6), s.vocabulary = between(1, 3000);
  s.chunk = between(0, 1) ? 512 * between(1, 3) : 32 * between(1, 16);
  s.differentiates_hidden = between(0, 3) > 0, s.differentiates_weight = between(0, 3) > 0;
  auto hidden = normal(s.tokens * s.size), weight = normal(s.vocabulary * s.size);
  std::vector<int64_t> targets(s.tokens);
  for (int64_t& target : targets) target = between(-1, s.vocabulary - 1);
  std::vector<float> losses(s.tokens), d_weight(s.differentiates_weight ? weight.size() : 0);
  std::vector<BFloat16> d_hidden(s.differentiates_hidden ? hidden.size() : 0);
  char* scratch = scratch_of(linear_cross_entropy_scratch(s, threads));
  linear_cross_entropy(s, hidden.data(), weight.data(), targets.data(), losses.data(),
                       s.differentiates_hidden ? d_hidden.data() : nullptr,
                       s.differentiates_weight ? d_weight.data() : nullptr, scratch, threads);
  std::free(scratch);
  require_finite(losses, "the loss"), require_finite(d_hidden, "the gradient of hidden states");
  require_finite(d_weight, "the gradient of the weight");
}

}  // namespace

int main(int count, char** arguments) {
  const int64_t rounds = count > 1 ? std::atoll(arguments[1]) : 20;
  generator.seed(count > 2 ? std::atoi(arguments[2]) : 0);
  for (int64_t round = 0; round < rounds; ++round) {
    const int threads = static_cast<int>(between(1, 5));
    at::set_num_threads(threads);
    try_attention(threads), try_loss(threads);
  }
  std::printf("%lld rounds\n", static_cast<long long>(rounds));
}
