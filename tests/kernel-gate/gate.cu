// Kernels with seeded bugs of the kind that scripts/check-kernels must find; their table is limits.toml beside this
// file, what is found in which one is `SEEDED` in scripts/kernels.py. `sound` has none.
#include "common.cuh"

constexpr int THREADS = 128;

// A tile product with everything that a table counts.
template <bool TENSOR_CORES> __device__ __forceinline__ void product(const bf16* x, float* y, bf16* tile) {
  const int lane = threadIdx.x % WARP;
  if constexpr (TENSOR_CORES) {
    ptx::cp_async16(tile + threadIdx.x * 8, x + threadIdx.x * 8);
    ptx::cp_async_commit();
    ptx::cp_async_wait<0>();
    __syncthreads();
    uint32_t a[4];
    ptx::ldmatrix_x4(a, tile + lane * 8);
    float sum[4] = {};
    ptx::mma_bf16_16816(sum, a, a[0], a[1]);
    for (int i = 0; i < 4; i++) y[threadIdx.x * 4 + i] = sum[i];
  } else {
    float sum = 0.f;
    for (int i = 0; i < 16; i++) sum += to_f32(x[lane * 16 + i]) * to_f32(tile[i]);
    y[threadIdx.x] = sum;
  }
}

extern "C" __global__ void __launch_bounds__(THREADS) sound(const bf16* x, float* y) {
  DYNAMIC_SHARED(shared);
  product<true>(x, y, reinterpret_cast<bf16*>(shared));
}
ENTRY(sound)

// The same without tensor cores, which the table asks for.
extern "C" __global__ void __launch_bounds__(THREADS) scalar(const bf16* x, float* y) {
  DYNAMIC_SHARED(shared);
  product<false>(x, y, reinterpret_cast<bf16*>(shared));
}
ENTRY(scalar)

// The table does not say how much shared memory a launch brings.
extern "C" __global__ void __launch_bounds__(THREADS) unsized(const bf16* x, float* y) {
  DYNAMIC_SHARED(shared);
  product<false>(x, y, reinterpret_cast<bf16*>(shared));
}
ENTRY(unsized)

// 96 sums are alive at once.
__device__ __forceinline__ void many_sums(const float* x, float* y, int n) {
  float sum[96];
#pragma unroll
  for (int i = 0; i < 96; i++) sum[i] = x[i];
  for (int step = 0; step < n; step++)
#pragma unroll
    for (int i = 0; i < 96; i++) sum[i] = sum[i] * sum[(i + 7) % 96] + x[threadIdx.x];
#pragma unroll
  for (int i = 0; i < 96; i++) y[i * blockDim.x + threadIdx.x] = sum[i];
}

// Two blocks of 1024 threads leave 32 registers.
extern "C" __global__ void __launch_bounds__(1024, 2) spills(const float* x, float* y, int n) { many_sums(x, y, n); }
ENTRY(spills)

// Enough registers, but more than the table allows, and fewer warps.
extern "C" __global__ void __launch_bounds__(THREADS) grown(const float* x, float* y, int n) { many_sums(x, y, n); }
ENTRY(grown)

// An array that is indexed at run time lies in local memory without a spill.
extern "C" __global__ void __launch_bounds__(THREADS) indexed(const int* x, int* y) {
  int seen[64];
  for (int i = 0; i < 64; i++) seen[i] = x[i];
  for (int i = 0; i < 64; i++) seen[x[i + threadIdx.x] & 63] += i;
  for (int i = 0; i < 64; i++) y[i] = seen[i];
}
ENTRY(indexed)

// Four bytes at a time.
extern "C" __global__ void __launch_bounds__(THREADS) narrow(const float* x, float* y) {
  y[threadIdx.x] = x[threadIdx.x];
}
ENTRY(narrow)

// 32 KiB of static shared memory, where the table allows less but as many warps.
extern "C" __global__ void __launch_bounds__(THREADS) roomy(const float* x, float* y) {
  __shared__ float all[8192];
  all[threadIdx.x * 64] = x[threadIdx.x];
  __syncthreads();
  y[threadIdx.x] = all[threadIdx.x ^ 1];
}
ENTRY(roomy)

// The same shared memory is allowed, but not so few warps.
extern "C" __global__ void __launch_bounds__(THREADS) crowded(const float* x, float* y) {
  __shared__ float all[8192];
  all[threadIdx.x * 64] = x[threadIdx.x];
  __syncthreads();
  y[threadIdx.x] = all[threadIdx.x ^ 1];
}
ENTRY(crowded)

// A sum in the order in which threads come.
extern "C" __global__ void __launch_bounds__(THREADS) adds(const float* x, float* y) { atomicAdd(y, x[threadIdx.x]); }
ENTRY(adds)

// The compiler does not know the block.
extern "C" __global__ void unbounded(const float* x, float* y) { y[threadIdx.x] = x[threadIdx.x]; }
ENTRY(unbounded)

// In no table.
extern "C" __global__ void __launch_bounds__(THREADS) unlisted(const float* x, float* y) {
  y[threadIdx.x] = x[threadIdx.x];
}
ENTRY(unlisted)
