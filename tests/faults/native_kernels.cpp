// Runs the native kernels on random shapes, in buffers without a byte to spare. Built with the
// sanitizers of addresses and of undefined behaviour, which end the program at what they find.
#include <ATen/Parallel.h>

#include <algorithm>

#include "attention.h"
#include "feed_forward.h"
#include "loss.h"
#include "low_rank.h"
#include "projections.h"
#include "random_shapes.h"

using namespace llmtrain;
using c10::BFloat16;

namespace {

std::vector<BFloat16> normal(int64_t count) { return normal_of<BFloat16>(count); }

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

std::vector<float> normal_floats(int64_t count) {
  const auto drawn = normal(count);
  return {drawn.begin(), drawn.end()};
}

void try_feed_forward(int threads) {
  const FeedForwardShape s{between(1, 700), 32 * between(1, 20), 32 * between(1, 40), 1e-6f};
  const auto x = normal_floats(s.tokens * s.size), d_y = normal_floats(s.tokens * s.size);
  const auto gain = normal_floats(s.size);
  const int64_t count = s.features * s.size;
  const auto gate = normal(count), up = normal(count), down = normal(count);
  const FeedForwardWeights weights{gain.data(), gate.data(), up.data(), down.data()};
  std::vector<float> y(x.size()), d_x(x.size()), d_gain(s.size);
  std::vector<float> d_gate(count), d_up(count), d_down(count);
  const int64_t kept_bytes = gate_blocks(s) * 2 * s.features * kGateBlock * sizeof(BFloat16);
  char* kept = between(0, 1) == 1 ? scratch_of(kept_bytes) : nullptr;
  auto* gates = reinterpret_cast<BFloat16*>(kept);
  char* scratch = scratch_of(feed_forward_scratch(s, threads));
  feed_forward(s, weights, x.data(), y.data(), gates, scratch, threads);
  std::free(scratch);
  scratch = scratch_of(feed_forward_backward_scratch(s, threads));
  feed_forward_backward(s, weights, d_y.data(), x.data(), gates,
                        {d_x.data(), d_gain.data(), d_gate.data(), d_up.data(), d_down.data()},
                        scratch, threads);
  std::free(scratch), std::free(kept);
  require_finite(y, "feed-forward"), require_finite(d_x, "its gradient");
  require_finite(d_gain, "that of the gain"), require_finite(d_down, "that of a weight");
}

void try_norms_and_heads() {
  const int64_t tokens = between(1, 700), size = 32 * between(1, 20), window = between(1, 90);
  const auto x = normal_floats(tokens * size), gain = normal_floats(size);
  std::vector<BFloat16> normed(x.size());
  std::vector<float> d_x(x.size()), d_gain(size);
  normalize(x.data(), gain.data(), tokens, size, 1e-6f, normed.data());
  char* scratch = scratch_of(normalize_backward_scratch(tokens, size));
  normalize_backward(normed.data(), x.data(), gain.data(), tokens, size, 1e-6f,
                     between(0, 1) ? x.data() : nullptr, d_x.data(), d_gain.data(), scratch);
  std::free(scratch);
  HeadsShape s{tokens, 0, between(1, 3), 2 * between(1, 64), window, 1e-6f};
  s.heads = s.key_heads * between(1, 3);
  const auto gains = normal_floats(2 * s.size), cos = normal_floats(window * s.size / 2);
  const auto sin = normal_floats(window * s.size / 2);
  const bool has_gains = between(0, 1);
  const HeadsParameters parameters{has_gains ? gains.data() : nullptr,
                                   has_gains ? gains.data() + s.size : nullptr, cos.data(),
                                   sin.data()};
  const int64_t stride = (s.heads + s.key_heads) * s.size;
  const auto heads = normal(tokens * (stride + s.key_heads * s.size));
  auto d_heads = normal(heads.size());
  std::vector<BFloat16> rotated(tokens * stride);
  rotate_heads(s, parameters, heads.data(), rotated.data(), stride);
  std::vector<float> d_q_gain(has_gains ? s.size : 0), d_k_gain(has_gains ? s.size : 0);
  scratch = scratch_of(rotate_heads_backward_scratch(s));
  rotate_heads_backward(s, parameters, heads.data(), d_heads.data(), d_q_gain.data(),
                        d_k_gain.data(), scratch);
  std::free(scratch);
  require_finite(normed, "a norm"), require_finite(d_x, "its gradient");
  require_finite(rotated, "rotated heads"), require_finite(d_heads, "the gradient of heads");
}

void try_projections(int threads) {
  const ProjectionShape s{between(1, 700), 32 * between(1, 20), 32 * between(1, 20)};
  const auto x = normal_floats(s.tokens * s.size);
  const auto y = normal(s.tokens * s.width), weight = normal(s.size * s.width);
  const auto d_y = normal(s.tokens * s.size);
  std::vector<float> sum(x.size()), d_weight(weight.size());
  char* scratch = scratch_of(row_products_scratch(s, threads));
  add_projection(s, x.data(), y.data(), weight.data(), sum.data(), scratch, threads);
  std::vector<BFloat16> rounded(x.size()), d_input(y.size()), out(x.size());
  round_and_project(s, x.data(), weight.data(), rounded.data(), d_input.data(), scratch, threads);
  const auto stream = normal_floats(y.size()), gain = normal_floats(s.width);
  project_normed(s, stream.data(), gain.data(), 1e-6f, weight.data(), out.data(), scratch, threads);
  std::vector<float> d_stream(y.size()), d_gain(s.width);
  project_normed_backward(s, out.data(), stream.data(), gain.data(), 1e-6f, weight.data(),
                          stream.data(), d_stream.data(), d_gain.data(), scratch, threads);
  std::free(scratch);
  require_finite(d_input, "the gradient of a projection's input");
  require_finite(d_stream, "the gradient of a normed input");
  require_finite(d_gain, "the gradient of its gain");
  scratch = scratch_of(weight_gradient_scratch(s, threads));
  weight_gradient(s, d_y.data(), y.data(), d_weight.data(), scratch, threads);
  std::free(scratch);
  auto gate = normal(s.tokens * s.size);
  activate(gate.size(), gate.data(), d_y.data());
  auto up = normal(gate.size());
  activate_backward(gate.size(), d_y.data(), gate.data(), up.data());
  require_finite(sum, "a projection"), require_finite(d_weight, "the gradient of its weight");
  require_finite(gate, "the gradient of gates"), require_finite(up, "the gradient beside it");
}

void try_adapter(int threads) {
  const int64_t rows = between(1, 2500), inputs = 32 * between(1, 20), outputs = 32 * between(1, 20);
  const int64_t rank = between(1, 70), stride = outputs + 32 * between(0, 3);
  const auto x = normal(rows * inputs), d_y = normal(rows * stride);
  const auto a = normal(rank * inputs), b = normal(outputs * rank);
  std::vector<BFloat16> inner(rows * padded_rank(rank)), d_inner(inner.size());
  auto y = normal(rows * stride), d_x = normal(rows * inputs);
  auto sum = normal_floats(rows * outputs);
  std::vector<float> d_a(a.size()), d_b(b.size());
  const RowsOf in{x.data(), rows, inputs, inputs}, out{d_y.data(), rows, outputs, stride};
  char* scratch = scratch_of(low_rank_scratch(rows, std::max(inputs, outputs), rank, threads));
  to_rank(in, a.data(), rank, inner.data(), scratch);
  to_rank_of_output(out, b.data(), rank, d_inner.data(), scratch);
  add_from_rank(inner.data(), b.data(), rank, 0.5f, y.data(), rows, outputs, stride, scratch);
  add_from_rank(inner.data(), b.data(), rank, 0.5f, sum.data(), rows, outputs, outputs, scratch);
  add_from_rank_of_input(d_inner.data(), a.data(), rank, 0.5f, d_x.data(), rows, inputs, inputs,
                         scratch);
  gradient_of_a(in, d_inner.data(), rank, 0.5f, d_a.data(), scratch);
  gradient_of_b(out, inner.data(), rank, 0.5f, d_b.data(), scratch);
  std::free(scratch);
  require_finite(y, "an adapter's output"), require_finite(sum, "its sum in fp32");
  require_finite(d_x, "the gradient of its input"), require_finite(d_a, "that of A");
  require_finite(d_b, "that of B");
}

}  // namespace

int main(int count, char** arguments) {
  const int64_t rounds = count > 1 ? std::atoll(arguments[1]) : 20;
  generator.seed(count > 2 ? std::atoi(arguments[2]) : 0);
  for (int64_t round = 0; round < rounds; ++round) {
    const int threads = static_cast<int>(between(1, 5));
    at::set_num_threads(threads);
    try_attention(threads), try_loss(threads), try_feed_forward(threads);
    try_norms_and_heads(), try_projections(threads), try_adapter(threads);
  }
  std::printf("%lld rounds\n", static_cast<long long>(rounds));
}
