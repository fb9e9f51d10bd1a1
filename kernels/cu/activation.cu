// SwiGLU and gelu_new, forward and backward (src/activation/mod.rs): a thread computes up to eight columns of a row.
#include "common.cuh"

constexpr int THREADS = 256;
constexpr float TWICE_ROOT = 1.5957692f;  // 2 sqrt(2/pi): gelu_new(u) = u σ(2z), since 1 + tanh z = 2 σ(2z)
constexpr float CUBIC = 0.044715f;        // factor of u³

// σ(x) and σ(-x), both precise wherever they lie: exp(-|x|) cannot overflow.
__device__ __forceinline__ float2 sigmoids(float x) {
  const float e = expf(-fabsf(x)), large = 1.f / (1.f + e), small = e * large;
  return x < 0.f ? make_float2(small, large) : make_float2(large, small);
}

// 2z = 2 sqrt(2/pi) (u + 0.044715 u³).
__device__ __forceinline__ float gelu_argument(float u) { return u * (1.f + CUBIC * u * u) * TWICE_ROOT; }

// The row and first column of this thread; false beyond the end.
__device__ __forceinline__ bool place(int rows, int dim, int& row, int& c) {
  row = blockIdx.x;
  c = (blockIdx.y * blockDim.x + threadIdx.x) * 8;
  return row < rows && c < dim;
}

// h = g σ(g) u; the input rows hold g then u.
extern "C" __global__ void __launch_bounds__(THREADS)
    activation_forward_swiglu(const bf16* x, unsigned x_stride, bf16* h, unsigned h_stride, int rows, int dim) {
  int row, c;
  if (!place(rows, dim, row, c)) return;
  const bf16* from = x + (size_t)row * x_stride + c;
  const bool vector = aligned16(x, x_stride);
  float g[8], u[8];
  load8(g, from, dim - c, vector);
  load8(u, from + dim, dim - c, vector && dim % 8 == 0);
#pragma unroll
  for (int i = 0; i < 8; i++) g[i] = g[i] * sigmoids(g[i]).x * u[i];
  store8(h + (size_t)row * h_stride + c, g, dim - c, aligned16(h, h_stride));
}
ENTRY(activation_forward_swiglu)

// du = dh g σ(g), dg = dh u σ(g) (1 + g σ(-g)).
extern "C" __global__ void __launch_bounds__(THREADS)
    activation_backward_swiglu(const bf16* x, unsigned x_stride, const bf16* dh, unsigned dh_stride, bf16* dx,
                               unsigned dx_stride, int rows, int dim) {
  int row, c;
  if (!place(rows, dim, row, c)) return;
  const bf16* from = x + (size_t)row * x_stride + c;
  bf16* to = dx + (size_t)row * dx_stride + c;
  const bool x_vector = aligned16(x, x_stride), dx_vector = aligned16(dx, dx_stride), even = dim % 8 == 0;
  float g[8], u[8], d[8];
  load8(g, from, dim - c, x_vector);
  load8(u, from + dim, dim - c, x_vector && even);
  load8(d, dh + (size_t)row * dh_stride + c, dim - c, aligned16(dh, dh_stride));
#pragma unroll
  for (int i = 0; i < 8; i++) {
    const float2 s = sigmoids(g[i]);
    const float by_sigmoid = d[i] * s.x;
    const float dg = by_sigmoid * u[i] * (1.f + g[i] * s.y);
    u[i] = by_sigmoid * g[i];
    g[i] = dg;
  }
  store8(to, g, dim - c, dx_vector);
#ifndef FAULT_ACTIVATION_HALF
  store8(to + dim, u, dim - c, dx_vector && even);
#endif
}
ENTRY(activation_backward_swiglu)

// h = u σ(2z).
extern "C" __global__ void __launch_bounds__(THREADS)
    activation_forward_gelu(const bf16* x, unsigned x_stride, bf16* h, unsigned h_stride, int rows, int dim) {
  int row, c;
  if (!place(rows, dim, row, c)) return;
  float u[8];
  load8(u, x + (size_t)row * x_stride + c, dim - c, aligned16(x, x_stride));
#pragma unroll
  for (int i = 0; i < 8; i++) u[i] *= sigmoids(gelu_argument(u[i])).x;
  store8(h + (size_t)row * h_stride + c, u, dim - c, aligned16(h, h_stride));
}
ENTRY(activation_forward_gelu)

// dx = dh (σ + u σ(2z) σ(-2z) · 2 sqrt(2/pi) (1 + 3 · 0.044715 u²)).
extern "C" __global__ void __launch_bounds__(THREADS)
    activation_backward_gelu(const bf16* x, unsigned x_stride, const bf16* dh, unsigned dh_stride, bf16* dx,
                             unsigned dx_stride, int rows, int dim) {
  int row, c;
  if (!place(rows, dim, row, c)) return;
  float u[8], d[8];
  load8(u, x + (size_t)row * x_stride + c, dim - c, aligned16(x, x_stride));
  load8(d, dh + (size_t)row * dh_stride + c, dim - c, aligned16(dh, dh_stride));
#pragma unroll
  for (int i = 0; i < 8; i++) {
    const float2 s = sigmoids(gelu_argument(u[i]));
    const float slope = TWICE_ROOT * (1.f + 3.f * CUBIC * u[i] * u[i]);
    d[i] *= s.x + s.x * (u[i] * s.y * slope);
  }
  store8(dx + (size_t)row * dx_stride + c, d, dim - c, aligned16(dx, dx_stride));
}
ENTRY(activation_backward_gelu)
