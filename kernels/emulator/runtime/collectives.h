// Barriers, shuffles, votes, atomics and fences under CUDA's names.
#pragma once
#include <type_traits>

#define __syncthreads() ((void)cpu::sync_block(false, "__syncthreads", CPU_HERE))

static inline int __syncthreads_count(int predicate, cpu::Site site = CPU_HERE) {
  return static_cast<int>(cpu::sync_block(predicate != 0, "__syncthreads_count", site));
}
static inline int __syncthreads_or(int predicate, cpu::Site site = CPU_HERE) {
  return cpu::sync_block(predicate != 0, "__syncthreads_or", site) != 0;
}
static inline int __syncthreads_and(int predicate, cpu::Site site = CPU_HERE) {
  return cpu::sync_block(predicate == 0, "__syncthreads_and", site) == 0;
}
static inline void __syncwarp(uint32_t mask = 0xffffffffu, cpu::Site site = CPU_HERE) { cpu::sync_warp(mask, site); }

namespace cpu {
// Any plain value of up to 8 bytes, word by word.
template <class T> T shuffle_value(uint32_t mask, T value, uint32_t source, const char* op, Site site) {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= 8, "a shuffle moves a plain value of up to 8 bytes");
  uint32_t words[2] = {0, 0};
  memcpy(words, &value, sizeof(T));
  for (unsigned k = 0; k < (sizeof(T) + 3) / 4; k++) words[k] = shuffle(mask, words[k], source, op, site);
  memcpy(&value, words, sizeof(T));
  return value;
}
}  // namespace cpu

// `width` divides the warp into groups; a source outside the lane's group is the lane itself.
template <class T> T __shfl_sync(uint32_t mask, T value, int source, int width = 32, cpu::Site site = CPU_HERE) {
  const unsigned first = cpu::here.thread.lane & ~(width - 1);
  return cpu::shuffle_value(mask, value, first | (source & (width - 1)), "__shfl_sync", site);
}
template <class T> T __shfl_xor_sync(uint32_t mask, T value, int bits, int width = 32, cpu::Site site = CPU_HERE) {
  const unsigned lane = cpu::here.thread.lane;
  unsigned source = lane ^ static_cast<unsigned>(bits);
  if ((source & ~(width - 1u)) > (lane & ~(width - 1u))) source = lane;
  return cpu::shuffle_value(mask, value, source, "__shfl_xor_sync", site);
}
template <class T>
T __shfl_down_sync(uint32_t mask, T value, unsigned delta, int width = 32, cpu::Site site = CPU_HERE) {
  const unsigned lane = cpu::here.thread.lane;
  unsigned source = lane + delta;
  if (source > (lane | (width - 1u))) source = lane;
  return cpu::shuffle_value(mask, value, source, "__shfl_down_sync", site);
}
template <class T>
T __shfl_up_sync(uint32_t mask, T value, unsigned delta, int width = 32, cpu::Site site = CPU_HERE) {
  const unsigned lane = cpu::here.thread.lane, first = lane & ~(width - 1u);
  const unsigned source = lane - first < delta ? lane : lane - delta;
  return cpu::shuffle_value(mask, value, source, "__shfl_up_sync", site);
}

static inline uint32_t __ballot_sync(uint32_t mask, int predicate, cpu::Site site = CPU_HERE) {
  return cpu::ballot(mask, predicate != 0, "__ballot_sync", site);
}
static inline int __any_sync(uint32_t mask, int predicate, cpu::Site site = CPU_HERE) {
  return cpu::ballot(mask, predicate != 0, "__any_sync", site) != 0;
}
static inline int __all_sync(uint32_t mask, int predicate, cpu::Site site = CPU_HERE) {
  return cpu::ballot(mask, predicate != 0, "__all_sync", site) == mask;
}

// One host thread runs all fibers: an atomic is a plain read-modify-write that the checker is told of.
#define CPU_ATOMIC(NAME, UPDATE)                                                                  \
  template <class T>                                                                              \
  __attribute__((no_sanitize("thread"), noinline)) T NAME(T* address, std::common_type_t<T> value) { \
    cpu::note_atomic(address, sizeof(T));                                                         \
    const T old = *address;                                                                       \
    *address = UPDATE;                                                                            \
    return old;                                                                                   \
  }
CPU_ATOMIC(atomicAdd, old + value)
CPU_ATOMIC(atomicMax, value > old ? value : old)
CPU_ATOMIC(atomicMin, value < old ? value : old)
CPU_ATOMIC(atomicOr, old | value)
CPU_ATOMIC(atomicAnd, old & value)
CPU_ATOMIC(atomicExch, value)
#undef CPU_ATOMIC
template <class T>
__attribute__((no_sanitize("thread"), noinline)) T atomicCAS(T* address, std::common_type_t<T> expected,
                                                             std::common_type_t<T> value) {
  cpu::note_atomic(address, sizeof(T));
  const T old = *address;
  if (old == expected) *address = value;
  return old;
}

static inline void __threadfence() {}
static inline void __threadfence_block() {}
