// The CUDA dialect of the kernels as plain C++17. kernels/cu/ptx.cuh includes this file when CUDA_CPU is defined;
// nothing else needs it. Start reading at machine.h (what the runtime gives) and then collectives.h, numbers.h and
// ptx_twin.h (the names that kernels use).
#pragma once
#include <math.h>
#include <stdint.h>
#include <string.h>

#include <utility>

#include "machine.h"

#define __global__
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
// A module has no other uninitialised static data, so its .bss is exactly its static shared memory (module.cpp).
#define __shared__ static

#define threadIdx (cpu::here.thread.index)
#define blockIdx (cpu::here.block_index)
#define blockDim (cpu::here.block_dim)
#define gridDim (cpu::here.grid_dim)
#define warpSize 32

#define DYNAMIC_SHARED(name) unsigned char* const name = cpu::here.dynamic_shared

// Exports `const cpu::Entry emulator_entry_<name>`. The call itself is not instrumented: it reads host memory.
#define ENTRY(name)                                                                                \
  template <class... A> struct cpu_call_##name {                                                   \
    template <size_t... I>                                                                         \
    __attribute__((no_sanitize("thread", "undefined"))) static void at(void** p, std::index_sequence<I...>) {\
      name(*static_cast<A*>(p[I])...);                                                             \
    }                                                                                              \
    __attribute__((no_sanitize("thread", "undefined"))) static void run(void** p) {                \
      at(p, std::index_sequence_for<A...>());                                                      \
    }                                                                                              \
  };                                                                                               \
  template <class... A> constexpr cpu::Entry cpu_entry_##name(void (*)(A...)) {                    \
    return {cpu_call_##name<A...>::run, cpu::Sizes<A...>::count, cpu::Sizes<A...>::bytes};         \
  }                                                                                                \
  extern "C" __attribute__((visibility("default"), used)) const cpu::Entry emulator_entry_##name = \
      cpu_entry_##name(name);

// Vector types with CUDA's alignments.
#define CPU_VECTORS(T, NAME, ALIGN4)                                                               \
  struct __align__(2 * sizeof(T)) NAME##2 { T x, y; };                                             \
  struct NAME##3 { T x, y, z; };                                                                   \
  struct __align__(ALIGN4) NAME##4 { T x, y, z, w; };                                              \
  static inline NAME##2 make_##NAME##2(T x, T y) { return {x, y}; }                                \
  static inline NAME##3 make_##NAME##3(T x, T y, T z) { return {x, y, z}; }                        \
  static inline NAME##4 make_##NAME##4(T x, T y, T z, T w) { return {x, y, z, w}; }
CPU_VECTORS(float, float, 16)
CPU_VECTORS(int, int, 16)
CPU_VECTORS(unsigned short, ushort, 8)
CPU_VECTORS(unsigned char, uchar, 4)
#undef CPU_VECTORS
struct __align__(8) uint2 { unsigned x, y; };
struct __align__(16) uint4 { unsigned x, y, z, w; };
static inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
static inline uint3 make_uint3(unsigned x, unsigned y, unsigned z) { return {x, y, z}; }
static inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

#include "collectives.h"
#include "numbers.h"
#include "ptx_twin.h"
