// RMSNorm and LayerNorm over rows (src/norm/mod.rs): one warp a row, so that a row's bits depend on that row alone.
// The gradients of the parameters are one chain over the rows ascending for each column.
#include "common.cuh"

constexpr int WARPS = 8;       // rows of a block
constexpr int TILE_ROWS = 64;  // rows whose products wait in shared memory
constexpr int TILE_COLS = 32;  // columns of a block of the parameters' gradients

// Mean (zero if not CENTRED) and 1 / sqrt(variance + eps) of a row, in every lane.
template <bool CENTRED>
__device__ __forceinline__ float2 statistics(const bf16* x, int dim, float eps, bool vector) {
  const int first = threadIdx.x % WARP * 8;
  float v[8], mean = 0.f, squares = 0.f;
  if (CENTRED) {
    for (int c = first; c < dim; c += WARP * 8) {
      load8(v, x + c, dim - c, vector);
#pragma unroll
      for (int i = 0; i < 8; i++) mean += v[i];
    }
    mean = warp_sum(mean) / dim;
  }
  for (int c = first; c < dim; c += WARP * 8) {
    load8(v, x + c, dim - c, vector);
#pragma unroll
    for (int i = 0; i < 8; i++) {
      // A missing element is not an element of value zero once the mean is taken off.
      const float centred = c + i < dim ? v[i] - mean : 0.f;
      squares += centred * centred;
    }
  }
  return make_float2(mean, 1.f / sqrtf(warp_sum(squares) / dim + eps));
}

template <bool CENTRED>
__device__ __forceinline__ void forward(const bf16* x, unsigned x_stride, const float* weight, const float* bias,
                                        float eps, bf16* y, unsigned y_stride, int rows, int dim) {
  const int row = blockIdx.x * WARPS + threadIdx.x / WARP;
  if (row >= rows) return;
  const bool x_vector = aligned16(x, x_stride), y_vector = aligned16(y, y_stride);
  x += (size_t)row * x_stride;
  y += (size_t)row * y_stride;
  const float2 s = statistics<CENTRED>(x, dim, eps, x_vector);
  for (int c = threadIdx.x % WARP * 8; c < dim; c += WARP * 8) {
    float v[8], w[8], b[8] = {};
#ifdef FAULT_NORM_TAIL
    const int n = 8;
#else
    const int n = dim - c;
#endif
    load8(v, x + c, n, x_vector);
    load8(w, weight + c, n, true);
    if (CENTRED) load8(b, bias + c, n, true);
#pragma unroll
    for (int i = 0; i < 8; i++) v[i] = (v[i] - s.x) * s.y * w[i] + b[i];
    store8(y + c, v, n, y_vector);
  }
}

// With x̂ = (x - mean) r and g = w dy: dx += r (g - [mean(g)] - x̂ mean(g x̂)).
template <bool CENTRED>
__device__ __forceinline__ void backward(const bf16* x, unsigned x_stride, const bf16* dy, unsigned dy_stride,
                                         const float* weight, float eps, bf16* dx, unsigned dx_stride, int rows,
                                         int dim) {
  const int row = blockIdx.x * WARPS + threadIdx.x / WARP;
  if (row >= rows) return;
  const bool x_vector = aligned16(x, x_stride), dy_vector = aligned16(dy, dy_stride);
  const bool dx_vector = aligned16(dx, dx_stride);
  x += (size_t)row * x_stride;
  dy += (size_t)row * dy_stride;
  dx += (size_t)row * dx_stride;
  const float2 s = statistics<CENTRED>(x, dim, eps, x_vector);
  float v[8], g[8], w[8], sum_g = 0.f, sum_gx = 0.f;
  for (int c = threadIdx.x % WARP * 8; c < dim; c += WARP * 8) {
    load8(v, x + c, dim - c, x_vector);
    load8(g, dy + c, dim - c, dy_vector);
    load8(w, weight + c, dim - c, true);
#pragma unroll
    for (int i = 0; i < 8; i++) {
      g[i] *= w[i];
      sum_g += g[i];
      sum_gx += g[i] * (v[i] - s.x);
    }
  }
  const float mean_g = CENTRED ? warp_sum(sum_g) / dim : 0.f;
  const float along = warp_sum(sum_gx) / dim * s.y * s.y;
  for (int c = threadIdx.x % WARP * 8; c < dim; c += WARP * 8) {
    float d[8];
    load8(v, x + c, dim - c, x_vector);
    load8(g, dy + c, dim - c, dy_vector);
    load8(w, weight + c, dim - c, true);
    load8(d, dx + c, dim - c, dx_vector);
#pragma unroll
    for (int i = 0; i < 8; i++) d[i] += (g[i] * w[i] - mean_g - (v[i] - s.x) * along) * s.y;
    store8(dx + c, d, dim - c, dx_vector);
  }
}

template <bool CENTRED>
__device__ __forceinline__ void all_statistics(const bf16* x, unsigned x_stride, float eps, float2* out, int rows,
                                               int dim) {
  const int row = blockIdx.x * WARPS + threadIdx.x / WARP;
  if (row >= rows) return;
  const float2 s = statistics<CENTRED>(x + (size_t)row * x_stride, dim, eps, aligned16(x, x_stride));
  if (threadIdx.x % WARP == 0) out[row] = s;
}

#define NORM_ENTRIES(kind, centred)                                                                                  \
  extern "C" __global__ void __launch_bounds__(WARPS* WARP)                                                          \
      norm_forward_##kind(const bf16* x, unsigned x_stride, const float* weight, const float* bias, float eps,       \
                          bf16* y, unsigned y_stride, int rows, int dim) {                                           \
    forward<centred>(x, x_stride, weight, bias, eps, y, y_stride, rows, dim);                                        \
  }                                                                                                                  \
  ENTRY(norm_forward_##kind)                                                                                         \
  extern "C" __global__ void __launch_bounds__(WARPS* WARP)                                                          \
      norm_backward_##kind(const bf16* x, unsigned x_stride, const bf16* dy, unsigned dy_stride,                     \
                           const float* weight, float eps, bf16* dx, unsigned dx_stride, int rows, int dim) {        \
    backward<centred>(x, x_stride, dy, dy_stride, weight, eps, dx, dx_stride, rows, dim);                            \
  }                                                                                                                  \
  ENTRY(norm_backward_##kind)                                                                                        \
  extern "C" __global__ void __launch_bounds__(WARPS* WARP)                                                          \
      norm_statistics_##kind(const bf16* x, unsigned x_stride, float eps, float2* out, int rows, int dim) {          \
    all_statistics<centred>(x, x_stride, eps, out, rows, dim);                                                       \
  }                                                                                                                  \
  ENTRY(norm_statistics_##kind)

NORM_ENTRIES(rms, false)
NORM_ENTRIES(layer, true)

// dw[c] += Σ_t dy[t, c] x̂[t, c] and, if `bias` is there, db[c] += Σ_t dy[t, c]. A block owns TILE_COLS columns: all its
// warps compute the terms of TILE_ROWS rows, then one warp adds them to its chain of each column, in the rows' order.
extern "C" __global__ void __launch_bounds__(WARPS* WARP)
    norm_gradient(const bf16* x, unsigned x_stride, const bf16* dy, unsigned dy_stride, const float2* statistics,
                  float* weight, float* bias, int rows, int dim) {
  __shared__ float terms[2][TILE_ROWS][TILE_COLS];
  const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, c = blockIdx.x * TILE_COLS + lane;
  float* to = warp == 0 ? weight : bias;
  const bool adds = warp < 2 && to != nullptr && c < dim;
  float sum = adds ? to[c] : 0.f;
  for (int first = 0; first < rows; first += TILE_ROWS) {
    const int count = min(TILE_ROWS, rows - first);
    for (int i = warp; i < count; i += WARPS) {
      const size_t row = first + i;
      if (c < dim) {
        const float2 s = statistics[row];
        const float d = to_f32(dy[row * dy_stride + c]);
        terms[0][i][lane] = d * ((to_f32(x[row * x_stride + c]) - s.x) * s.y);
        terms[1][i][lane] = d;
      }
    }
    __syncthreads();
    if (adds)
      for (int i = 0; i < count; i++) sum += terms[warp][i][lane];
#ifndef FAULT_NORM_SYNC
    __syncthreads();
#endif
  }
  if (adds) to[c] = sum;
}
ENTRY(norm_gradient)
