// The ordered sum of virtual shards' gradients (src/nccl/lane.rs): total = ((p0 + p1) + p2) + ..., elementwise in f32.
// One thread owns an element, so the order is the arguments' whatever the grid. Memory-bound: num_parts reads, one write.
#include "common.cuh"

constexpr int SHARDS_THREADS = 256;
constexpr int SHARDS_PARTS = 16;

// Whether every pointer in use allows 16-byte accesses.
__device__ __forceinline__ bool shards_aligned(const float* total, const float* const (&parts)[SHARDS_PARTS],
                                               unsigned num_parts) {
  size_t bits = (size_t)total;
#pragma unroll
  for (unsigned p = 0; p < SHARDS_PARTS; p++) {
    if (p < num_parts) bits |= (size_t)parts[p];
  }
  return (bits & 15) == 0;
}

// Element i, the order of parts ascending; with `add` after total itself. No part beyond num_parts is read.
__device__ __forceinline__ float shards_one(const float* total, const float* const (&parts)[SHARDS_PARTS],
                                            unsigned num_parts, unsigned add, size_t i) {
#ifdef FAULT_SHARDS_ADD
  add = 0;
#endif
  float sum = add ? total[i] + parts[0][i] : parts[0][i];  // not 0 + p0: that would turn -0 into +0
#pragma unroll
  for (unsigned p = 1; p < SHARDS_PARTS; p++) {
#ifdef FAULT_SHARDS_ORDER
    if (p < num_parts) sum += parts[num_parts - p][i];
#else
    if (p < num_parts) sum += parts[p][i];
#endif
  }
  return sum;
}

// total (n) = or +=, parts (num_parts of SHARDS_PARTS, n each); num_parts >= 1, p0 may be total. Any grid.
extern "C" __global__ void __launch_bounds__(SHARDS_THREADS)
    shards_sum_f32(float* total, unsigned num_parts, unsigned add, unsigned long long n, const float* p0,
                   const float* p1, const float* p2, const float* p3, const float* p4, const float* p5,
                   const float* p6, const float* p7, const float* p8, const float* p9, const float* p10,
                   const float* p11, const float* p12, const float* p13, const float* p14, const float* p15) {
  const float* const parts[SHARDS_PARTS] = {p0, p1, p2, p3, p4, p5, p6, p7, p8, p9, p10, p11, p12, p13, p14, p15};
  const size_t thread = (size_t)blockIdx.x * blockDim.x + threadIdx.x, threads = (size_t)gridDim.x * blockDim.x;
  size_t quads = shards_aligned(total, parts, num_parts) ? n / 4 : 0;
#ifdef FAULT_SHARDS_ORDER
  quads = 0;
#elif defined(FAULT_SHARDS_TAIL)
  quads = quads > 0 ? (n + 3) / 4 : 0;
#endif
  for (size_t q = thread; q < quads; q += threads) {
    float4 sum = reinterpret_cast<const float4*>(add ? total : parts[0])[q];
#pragma unroll
    for (unsigned p = 0; p < SHARDS_PARTS; p++) {
      if ((p > 0 || add) && p < num_parts) {
        const float4 v = reinterpret_cast<const float4*>(parts[p])[q];
        sum.x += v.x, sum.y += v.y, sum.z += v.z, sum.w += v.w;
      }
    }
    reinterpret_cast<float4*>(total)[q] = sum;
  }
  for (size_t i = quads * 4 + thread; i < n; i += threads) total[i] = shards_one(total, parts, num_parts, add, i);
}
ENTRY(shards_sum_f32)
