// The border between the kernels and the machine: all inline PTX, and the only place that knows that the same
// sources are also compiled for the CPU (CUDA_CPU: the emulator's cuda_cpu.h then defines the same names).
//
// Compiled by nvcc (sm_80 and later), by NVRTC without any header of the host or of CUDA, and by g++.
// Wrappers take ordinary pointers, never 32-bit shared addresses, and register arrays of fixed size. Those named
// after `.sync.aligned` instructions (ldmatrix, mma) are warp-collective: all 32 lanes call them at the same place.
//
// Also here, because their meaning differs between the compilers:
//   ENTRY(name)            after each `extern "C" __global__` definition; makes the entry known to the emulator
//   DYNAMIC_SHARED(name)   `unsigned char* name`, the launch's dynamic shared memory, aligned to 1024; once a kernel
#pragma once

#ifdef CUDA_CPU
#include "cuda_cpu.h"
#else

#ifdef __CUDACC_RTC__
using uint8_t = unsigned char;
using uint16_t = unsigned short;
using uint32_t = unsigned int;
using uint64_t = unsigned long long;
using int8_t = signed char;
using int16_t = short;
using int32_t = int;
using int64_t = long long;
using size_t = unsigned long;
using uintptr_t = unsigned long;
#define INFINITY __int_as_float(0x7f800000)
#else
#include <math.h>
#include <stdint.h>
#endif

#define ENTRY(name)
#define DYNAMIC_SHARED(name) extern __shared__ __align__(1024) unsigned char name[]

namespace ptx {

__device__ __forceinline__ uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// ---- Asynchronous copies, global -> shared. Both addresses must be multiples of the size. A copy belongs to the
// calling thread's open group; other threads see it after the owner's wait and a barrier.

// 16 bytes past L1. `pred` false reads nothing and writes zeros (the source must still be a valid pointer).
__device__ __forceinline__ void cp_async16(void* shared, const void* global, bool pred = true) {
  const int bytes = pred ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global), "r"(bytes)
               : "memory");
}
// 8 and 4 bytes, through L1: rows that are not aligned to 16 bytes.
__device__ __forceinline__ void cp_async8(void* shared, const void* global, bool pred = true) {
  const int bytes = pred ? 8 : 0;
  asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(shared_address(shared)), "l"(global), "r"(bytes)
               : "memory");
}
__device__ __forceinline__ void cp_async4(void* shared, const void* global, bool pred = true) {
  const int bytes = pred ? 4 : 0;
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(shared_address(shared)), "l"(global), "r"(bytes)
               : "memory");
}
// Closes the thread's open group (which may be empty).
__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most KEEP of the thread's closed groups are still on the way.
template <int KEEP> __device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(KEEP) : "memory");
}

// ---- ldmatrix: 8x8 tiles of 16-bit elements. Lane 8m + i brings the address (16-byte aligned) of row i of tile m;
// lane l receives of tile m the elements (l / 4, 2 (l % 4)) and its right neighbour in r[m], low half first;
// `_trans` gives it (2 (l % 4), l / 4) and the one below. For x1 and x2 the addresses of the other lanes are unused.

#define LDMATRIX(NAME, COUNT, SUFFIX, OUTPUTS, ADDRESS, ...)                                                       \
  __device__ __forceinline__ void NAME(uint32_t (&r)[COUNT], const void* shared) {                                 \
    asm volatile("ldmatrix.sync.aligned.m8n8.x" #COUNT SUFFIX ".shared.b16 {" OUTPUTS "}, [" ADDRESS "];"          \
                 : __VA_ARGS__                                                                                     \
                 : "r"(shared_address(shared))                                                                     \
                 : "memory");                                                                                      \
  }
LDMATRIX(ldmatrix_x1, 1, "", "%0", "%1", "=r"(r[0]))
LDMATRIX(ldmatrix_x2, 2, "", "%0,%1", "%2", "=r"(r[0]), "=r"(r[1]))
LDMATRIX(ldmatrix_x4, 4, "", "%0,%1,%2,%3", "%4", "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]))
LDMATRIX(ldmatrix_x1_trans, 1, ".trans", "%0", "%1", "=r"(r[0]))
LDMATRIX(ldmatrix_x2_trans, 2, ".trans", "%0,%1", "%2", "=r"(r[0]), "=r"(r[1]))
LDMATRIX(ldmatrix_x4_trans, 4, ".trans", "%0,%1,%2,%3", "%4", "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]))
#undef LDMATRIX

// ---- Tensor core products, with g = lane / 4 and t = lane % 4:
// d: rows g (d[0], d[1]) and g + 8 (d[2], d[3]), columns 2t and 2t + 1.

// d[16,8] += a[16,16] b[16,8]; bf16 x bf16 -> f32. a (row-major pairs): a[0] row g, columns 2t, 2t+1; a[1] row g+8;
// a[2], a[3] the same rows, columns + 8. b: b0 rows 2t, 2t+1 of column g; b1 rows + 8.
__device__ __forceinline__ void mma_bf16_16816(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
// d[16,8] += a[16,8] b[8,8]; tf32 x tf32 -> f32. a[0] (g, t), a[1] (g+8, t), a[2] (g, t+4), a[3] (g+8, t+4);
// b0 (t, g), b1 (t+4, g). Operands come from cvt_tf32; other f32 bits are cut off, not rounded.
__device__ __forceinline__ void mma_tf32_1688(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// ---- Conversions and approximations.

// Nearest tf32, ties away from zero.
__device__ __forceinline__ uint32_t cvt_tf32(float x) {
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return bits;
}
// Two bf16, nearest even: `low` in bits 0-15.
__device__ __forceinline__ uint32_t pack_bf16(float low, float high) {
  uint32_t bits;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
  return bits;
}
// 2^x, relative error about 2^-22; results and inputs below the normal range become 0.
__device__ __forceinline__ float ex2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

}  // namespace ptx
#endif  // CUDA_CPU

namespace ptx {
// The two f32 of a packed bf16 pair; exact.
__device__ __forceinline__ float low_bf16(uint32_t pair) { return __uint_as_float(pair << 16); }
__device__ __forceinline__ float high_bf16(uint32_t pair) { return __uint_as_float(pair & 0xffff0000u); }
}  // namespace ptx
