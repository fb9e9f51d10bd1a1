// Sums of rows, one block a row, two uses of the same shared memory: y[row] = sum x[row, :], n[row] = count of x > 0.
#include "ptx.cuh"

template <int WARPS> __device__ __forceinline__ float block_total(float v, float* partial) {
  for (int o = 16; o > 0; o >>= 1) v += __shfl_xor_sync(0xffffffffu, v, o);
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = v;
#ifndef FAULT_NO_BARRIER
  __syncthreads();
#endif
  v = threadIdx.x % 32 < WARPS ? partial[threadIdx.x % 32] : 0.0f;
  for (int o = 16; o > 0; o >>= 1) v += __shfl_xor_sync(0xffffffffu, v, o);
#ifndef FAULT_REUSE
  __syncthreads();
#endif
  return v;
}

extern "C" __global__ void __launch_bounds__(128)
    row_sums(const float* __restrict__ x, float* __restrict__ y, float* __restrict__ positive, int columns) {
  __shared__ float partial[4];
#ifdef FAULT_PAST_END
  const int end = columns + (blockIdx.x + 1 == gridDim.x ? 1 : 0);
#else
  const int end = columns;
#endif
  const float* row = x + static_cast<size_t>(blockIdx.x) * columns;
  float sum = 0.0f, count = 0.0f;
  for (int i = threadIdx.x; i < end; i += 128) {
    sum += row[i];
    count += row[i] > 0.0f ? 1.0f : 0.0f;
  }
  sum = block_total<4>(sum, partial);
  count = block_total<4>(count, partial);
  if (threadIdx.x == 0) {
#ifdef FAULT_ONE_ROW
    y[0] = sum;
#else
    y[blockIdx.x] = sum;
#endif
    positive[blockIdx.x] = count;
  }
}
ENTRY(row_sums)
