// Means over ranges of rows and their backward (src/pool/mod.rs): a thread owns up to eight columns of a range.
#include "common.cuh"

constexpr int THREADS = 128;
constexpr int SPLITS = 8;  // blocks that share the rows of a range in the backward

// First row and number of rows.
struct Range {
  unsigned start, len;
};

// y[j] = Σ x[i] / len over the rows of range j ascending; zero for an empty range.
extern "C" __global__ void __launch_bounds__(THREADS)
    pool_mean(const bf16* x, unsigned x_stride, const Range* ranges, bf16* y, unsigned y_stride, unsigned rows,
              int dim, unsigned long long* refused) {
  const int j = blockIdx.x, c = (blockIdx.y * blockDim.x + threadIdx.x) * 8, n = dim - c;
  if (n <= 0) return;
  const Range range = ranges[j];
  if (range.start > rows || range.len > rows - range.start) {
    if (c == 0) refuse(refused, REFUSED_POOL_RANGE, j, range.start + range.len);
    return;
  }
  const bool vector = aligned16(x, x_stride);
  float sum[8] = {}, v[8];
  for (unsigned i = 0; i < range.len; i++) {
    load8(v, x + (size_t)(range.start + i) * x_stride + c, n, vector);
#pragma unroll
    for (int k = 0; k < 8; k++) sum[k] += v[k];
  }
#ifdef FAULT_POOL_EMPTY
  if (range.len == 0) return;
#endif
  if (range.len > 0) {
#pragma unroll
    for (int k = 0; k < 8; k++) sum[k] /= (float)range.len;
  }
  store8(y + (size_t)j * y_stride + c, sum, n, aligned16(y, y_stride));
}
ENTRY(pool_mean)

// dx[i] (=|+=) dy[j] / len for the rows i of range j; the ranges ascend and do not overlap.
extern "C" __global__ void __launch_bounds__(THREADS)
    pool_mean_backward(const bf16* dy, unsigned dy_stride, const Range* ranges, bf16* dx, unsigned dx_stride,
                       unsigned accumulate, unsigned rows, int dim, unsigned long long* refused) {
  const int j = blockIdx.x, c = (blockIdx.y * blockDim.x + threadIdx.x) * 8, n = dim - c;
  if (n <= 0) return;
  const Range range = ranges[j];
  const bool leads = c == 0 && blockIdx.z == 0;
  if (range.start > rows || range.len > rows - range.start) {
    if (leads) refuse(refused, REFUSED_POOL_RANGE, j, range.start + range.len);
    return;
  }
  if (j > 0 && range.start < ranges[j - 1].start + ranges[j - 1].len) {
    if (leads) refuse(refused, REFUSED_POOL_OVERLAP, j, range.start);
    return;
  }
  const bool vector = aligned16(dx, dx_stride);
  float g[8];
  load8(g, dy + (size_t)j * dy_stride + c, n, aligned16(dy, dy_stride));
#pragma unroll
  for (int k = 0; k < 8; k++) g[k] /= (float)range.len;
  for (unsigned i = blockIdx.z; i < range.len; i += SPLITS) {
    bf16* to = dx + (size_t)(range.start + i) * dx_stride + c;
    float v[8] = {};
    if (accumulate) load8(v, to, n, vector);
#pragma unroll
    for (int k = 0; k < 8; k++) v[k] += g[k];
    store8(to, v, n, vector);
  }
}
ENTRY(pool_mean_backward)
