// What all kernels share: constants of logarithms, and the memory they work in.
#pragma once

#include <cstdint>

namespace llmtrain {

constexpr float kLog2E = 1.4426950408889634f;
constexpr float kLn2 = 0.6931471805599453f;

inline int64_t round_up(int64_t n, int64_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

// Parts of one block of memory, aligned to cache lines. Without memory it counts what is needed.
class Scratch {
 public:
  explicit Scratch(char* base) : base_(base) {}
  template <class T>
  T* take(int64_t count) {
    const int64_t at = used_;
    used_ += round_up(count * static_cast<int64_t>(sizeof(T)), 64);
    return base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + at);
  }
  int64_t used() const { return used_; }

 private:
  char* base_;
  int64_t used_ = 0;
};

}  // namespace llmtrain
