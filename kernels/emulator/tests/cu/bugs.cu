// Small kernels, each with one seeded bug behind its FAULT_ name; without it the kernel is clean.
#include "ptx.cuh"

// y = x reversed inside each block of 128, through shared memory of which every element must be written.
extern "C" __global__ void reversed(const float* x, float* y) {
  DYNAMIC_SHARED(raw);
  float* s = reinterpret_cast<float*>(raw);
  const int i = threadIdx.x, first = blockIdx.x * 128;
#ifdef FAULT_HALF_WRITTEN
  if (i < 64)
#endif
    s[i] = x[first + i];
#ifdef FAULT_DIVERGENT_BARRIER
  if (i < 64) __syncthreads();
#else
  __syncthreads();
#endif
#ifdef FAULT_SHARED_END
  y[first + i] = s[128 - i];
#else
  y[first + i] = s[127 - i];
#endif
}
ENTRY(reversed)

// Neighbouring sums inside a warp: y[i] = x[i] + x[i ^ 1], ordered by a warp barrier alone.
extern "C" __global__ void pairs(const float* x, float* y) {
  __shared__ float s[64];
  s[threadIdx.x] = x[threadIdx.x];
#ifndef FAULT_WARP_BARRIER
  __syncwarp();
#endif
  y[threadIdx.x] = s[threadIdx.x] + s[threadIdx.x ^ 1];
}
ENTRY(pairs)

// y = x, 16 bytes a thread.
extern "C" __global__ void wide_copy(const float* x, float* y, int shift) {
  const uint4 v = *reinterpret_cast<const uint4*>(x + 4 * threadIdx.x + shift);
  *reinterpret_cast<uint4*>(y + 4 * threadIdx.x) = v;
}
ENTRY(wide_copy)

// y[0] = number of threads that ran.
extern "C" __global__ void counted(unsigned* y) {
#ifdef FAULT_NOT_ATOMIC
  *y += 1;
#else
  atomicAdd(y, 1u);
#endif
}
ENTRY(counted)

// y[i] = sum of the warp's x, by a shuffle whose lanes must all come.
extern "C" __global__ void warp_sums(const float* x, float* y) {
  float v = x[threadIdx.x];
#ifdef FAULT_DIVERGENT_WARP
  if (threadIdx.x % 32 < 16) v += __shfl_xor_sync(0xffffffffu, v, 1);
  else v += __shfl_xor_sync(0xffffffffu, v, 1);
#else
  v += __shfl_xor_sync(0xffffffffu, v, 1);
#endif
  for (int o = 16; o > 1; o >>= 1) v += __shfl_xor_sync(0xffffffffu, v, o);
#ifdef FAULT_MISSING_LANES
  if (threadIdx.x % 32 < 31) __syncwarp();
#endif
  y[threadIdx.x] = v;
}
ENTRY(warp_sums)

// y[i] = row * stride + i of a matrix whose size the caller gives.
extern "C" __global__ void addresses(int* y, int row, int stride) { y[threadIdx.x] = row * stride + static_cast<int>(threadIdx.x); }
ENTRY(addresses)

// The copies of the second group are read before they are waited for, or never waited for.
extern "C" __global__ void staged(const float* x, float* y) {
  __shared__ __align__(16) float s[2][128];
  ptx::cp_async16(&s[0][4 * threadIdx.x], x + 4 * threadIdx.x);
  ptx::cp_async_commit();
  ptx::cp_async16(&s[1][4 * threadIdx.x], x + 128 + 4 * threadIdx.x);
  ptx::cp_async_commit();
#ifdef FAULT_WAIT_ONE
  ptx::cp_async_wait<1>();
#else
  ptx::cp_async_wait<0>();
#endif
  for (int e = 0; e < 4; e++) {
    y[4 * threadIdx.x + e] = s[0][4 * threadIdx.x + e];
#ifndef FAULT_LEFT
    y[128 + 4 * threadIdx.x + e] = s[1][4 * threadIdx.x + e];
#endif
  }
#ifdef FAULT_LEFT
  ptx::cp_async16(&s[1][4 * threadIdx.x], x);
#endif
}
ENTRY(staged)
