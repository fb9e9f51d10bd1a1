// What a kernel compiled for the CPU asks of the runtime. One CUDA thread is one fiber; blocks run one after another.
// Everything here is defined in the runtime's library and is not instrumented by the checker.
#pragma once
#include <stddef.h>
#include <stdint.h>

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

namespace cpu {

// A place in a kernel's source. `Site site = CPU_HERE` as a default argument names the caller: the built-ins must be
// default arguments themselves, in braces they would name this header.
struct Site {
  const char* file;
  int line;
  __attribute__((always_inline)) static inline Site here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    return {file, line};
  }
};
#define CPU_HERE cpu::Site::here()

struct Thread {
  uint3 index;
  unsigned linear, lane, warp;
};
// What a kernel reads of its place in the launch; in one piece, so that the checker knows these addresses.
struct Here {
  Thread thread;
  uint3 block_index;
  dim3 block_dim, grid_dim;
  unsigned char* dynamic_shared;
};
extern Here here;

// Barrier of the block; all its threads must come by the same source line. Returns how many brought a true predicate.
unsigned sync_block(bool predicate, const char* op, Site site);
// Barrier of the lanes in `mask`, which orders their memory accesses.
void sync_warp(uint32_t mask, Site site);
// The value that lane `source` brings; `source` must be in `mask`.
uint32_t shuffle(uint32_t mask, uint32_t value, uint32_t source, const char* op, Site site);
// One bit per lane of `mask` whose predicate is true.
uint32_t ballot(uint32_t mask, bool predicate, const char* op, Site site);

// ldmatrix of `count` (1, 2, 4) tiles, mma.m16n8k16 (bf16) and mma.m16n8k8 (tf32): layouts in ptx.cuh.
void ldmatrix(uint32_t* r, unsigned count, bool transposed, const void* row, Site site);
void mma_bf16(float* d, const uint32_t* a, uint32_t b0, uint32_t b1, Site site);
void mma_tf32(float* d, const uint32_t* a, uint32_t b0, uint32_t b1, Site site);

// The destination is poisoned at once and filled only at the wait.
void copy_async(void* shared, const void* global, unsigned bytes, bool pred, Site site);
void copy_commit();
void copy_wait(unsigned keep);

// Tells the checker of an access it cannot see: one read-modify-write.
void note_atomic(const void* address, unsigned bytes);

// One entry point as a module exports it: how to call it with an array of pointers to the arguments, and their sizes.
struct Entry {
  void (*run)(void** arguments);
  unsigned count;
  const unsigned* sizes;
};

template <class... A> struct Sizes {
  static constexpr unsigned count = sizeof...(A);
  static constexpr unsigned bytes[sizeof...(A) + 1] = {sizeof(A)..., 0};
};

}  // namespace cpu
