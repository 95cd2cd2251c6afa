// Work divided among threads: each takes another task when it is done with one. Cores are not
// equally fast where other programs or other machines use them too, and no result depends on who
// computes it.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>
#include <cstdint>

namespace llmtrain {

// The tasks that nobody has taken yet, of 0 … count − 1.
class Tasks {
 public:
  explicit Tasks(int64_t count) : count_(count) {}

  // Set `task` to one that is this thread's alone; return false if none is left.
  bool take(int64_t& task) {
    task = next_.fetch_add(1, std::memory_order_relaxed);
    return task < count_;
  }

 private:
  std::atomic<int64_t> next_{0};
  const int64_t count_;
};

// Call `work(tasks)` once in every thread, or in as many threads as there are tasks.
template <class Work>
void share_tasks(int64_t count, const Work& work) {
  Tasks tasks(count);
  const int64_t threads = std::min<int64_t>(count, at::get_num_threads());
  at::parallel_for(0, threads, 1, [&](int64_t, int64_t) { work(tasks); });
}

}  // namespace llmtrain
