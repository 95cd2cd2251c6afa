// How attention is divided into tasks for threads, whatever the type of its numbers is.
#pragma once

#include <algorithm>

#include "heads_shape.h"
#include "scratch.h"
#include "tasks.h"

namespace llmtrain {

// Call `kernel` for each block of queries of each head. Where there are fewer heads than threads,
// several share one: each takes every so-manieth block.
template <class Kernel>
void for_query_blocks(const AttentionShape& shape, const Kernel& kernel, int64_t block_rows,
                      char* scratch, int64_t bytes_per_thread, int threads) {
  const int64_t heads = shape.sequences * shape.heads, share = shape.heads / shape.key_heads;
  const int64_t blocks = (shape.tokens + block_rows - 1) / block_rows;
  const int64_t parts = std::min(blocks, heads >= threads ? 1 : (threads + heads - 1) / heads);
  share_tasks(heads * parts, [&](Tasks& tasks) {
    Scratch own(scratch + at::get_thread_num() * bytes_per_thread);
    const auto buffers = kernel.buffers(own);
    int64_t packed = -1;
    for (int64_t task; tasks.take(task);) {
      const int64_t sequence = task / parts / shape.heads, head = task / parts % shape.heads;
      const int64_t key_head = head / share, wanted = sequence * shape.key_heads + key_head;
      if (packed != wanted) kernel.pack_keys(buffers, sequence, key_head);
      packed = wanted;
      for (int64_t block = task % parts; block < blocks; block += parts)
        kernel.query_block(buffers, sequence, head, block * block_rows);
    }
    kernel.finish();
  });
}

// The tasks of the backward. Each has the queries of a key head; where there are fewer of those
// than threads, several tasks share one: each takes every so-manieth block of keys, and has sums of
// its own for the gradient of the queries.
struct KeyBlocks {
  KeyBlocks(const AttentionShape& shape, int threads, int64_t block_rows, int64_t columns)
      : key_heads(shape.sequences * shape.key_heads), share(shape.heads / shape.key_heads),
        blocks((shape.tokens + block_rows - 1) / block_rows),
        parts(std::min(blocks, key_heads >= threads ? 1 : (threads + key_heads - 1) / key_heads)),
        d_q_floats(round_up(shape.tokens, block_rows) * columns),
        // alone, a task needs that of one head at a time
        d_q_total(parts == 1 ? threads * d_q_floats : key_heads * parts * share * d_q_floats) {}

  int64_t scratch_bytes(int threads, int64_t bytes_per_thread) const {
    return threads * bytes_per_thread + d_q_total * int64_t{sizeof(float)};
  }

  int64_t key_heads, share, blocks, parts;
  int64_t d_q_floats, d_q_total;  // of the gradient of a head's queries, and of all that are kept
};

// Call `kernel` for each block of keys of each head, then store the sums of the queries' gradients.
template <class Kernel>
void for_key_blocks(const AttentionShape& shape, const Kernel& kernel, const KeyBlocks& division,
                    int64_t block_rows, char* scratch, int64_t bytes_per_thread, int threads) {
  const int64_t parts = division.parts, share = division.share;
  float* all_d_q = reinterpret_cast<float*>(scratch + threads * bytes_per_thread);
  const auto head_of = [&](int64_t task, int64_t member) {
    return task / parts % shape.key_heads * share + member;
  };
  share_tasks(division.key_heads * parts, [&](Tasks& tasks) {
    const int thread = at::get_thread_num();
    Scratch own(scratch + thread * bytes_per_thread);
    const auto buffers = kernel.buffers(own);
    for (int64_t task; tasks.take(task);) {
      const int64_t sequence = task / parts / shape.key_heads, part = task % parts;
      const int64_t key_head = task / parts % shape.key_heads;
      kernel.prepare_keys(buffers, sequence, key_head);
      for (int64_t member = 0; member < share; ++member) {
        const int64_t slot = parts == 1 ? thread : task * share + member;
        float* d_q = all_d_q + slot * division.d_q_floats;
        kernel.begin_queries(d_q, division.d_q_floats, parts > 1);
        kernel.prepare_queries(buffers, sequence, head_of(task, member));
        for (int64_t block = part; block < division.blocks; block += parts)
          kernel.key_block(buffers, sequence, key_head, block * block_rows, member > 0, d_q,
                           parts > 1);
        if (parts == 1) kernel.store_queries(d_q, 1, 0, sequence, head_of(task, member));
      }
      for (int64_t block = part; block < division.blocks; block += parts)
        kernel.store_keys(buffers, sequence, key_head, block * block_rows);
    }
    kernel.finish();
  });
  if (parts == 1) return;
  const int64_t stride = share * division.d_q_floats;  // between the parts of one head
  share_tasks(division.key_heads * share, [&](Tasks& tasks) {
    for (int64_t each; tasks.take(each);) {
      const int64_t task = each / share * parts, member = each % share;
      kernel.store_queries(all_d_q + (task * share + member) * division.d_q_floats, parts, stride,
                           task / parts / shape.key_heads, head_of(task, member));
    }
  });
}

}  // namespace llmtrain
