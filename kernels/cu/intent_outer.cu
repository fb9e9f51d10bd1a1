// Products that only the outer form of the intention attention head has (src/intent/mod.rs), in f32 throughout: M from
// H and W_p before the rows, dH and the chains of W_p after them. R [rows, k, d] and the sums come from the others.
#include "common.cuh"

constexpr int TILE = 64;   // rows and columns of a block
constexpr int DEPTH = 16;  // terms that wait in shared memory
constexpr int SIDE = 4;    // rows and columns of a thread
constexpr int THREADS = (TILE / SIDE) * (TILE / SIDE);

// W1 as [k, columns] with W_p as [k d, d]: row u d + i of it begins at column d + i d of row u.
struct Weights {
  float* w1;
  int dim, units, columns;
  __device__ __forceinline__ float* product(int row) const {
    return w1 + (size_t)(row / dim) * columns + dim + (size_t)(row % dim) * dim;
  }
};

struct Rows {
  const bf16* h;
  unsigned stride;
  __device__ __forceinline__ float operator()(int row, int i) const { return to_f32(h[(size_t)row * stride + i]); }
};

// C [m, n] = start + Σ_l left(i, l) right(l, j), each element a chain in ascending l from `start`. `A_DEPTH`: left's
// neighbours in memory lie along l, `B_DEPTH`: right's.
template <class Op>
__device__ __forceinline__ void dense(const Op& op, int rows, int cols, int depth) {
  __shared__ float a[DEPTH][TILE + 1], b[DEPTH][TILE + 1];
  const int i0 = blockIdx.x * TILE, j0 = blockIdx.y * TILE;
  const int ti = threadIdx.x / (TILE / SIDE), tj = threadIdx.x % (TILE / SIDE);
  float c[SIDE][SIDE] = {};
#pragma unroll
  for (int x = 0; x < SIDE; x++) {
#pragma unroll
    for (int y = 0; y < SIDE; y++) {
      const int i = i0 + ti + x * (TILE / SIDE), j = j0 + tj + y * (TILE / SIDE);
      if (i < rows && j < cols) c[x][y] = op.start(i, j);
    }
  }
  for (int l0 = 0; l0 < depth; l0 += DEPTH) {
    __syncthreads();
    for (int at = threadIdx.x; at < TILE * DEPTH; at += THREADS) {
      const int l = Op::A_DEPTH ? at % DEPTH : at / TILE, i = Op::A_DEPTH ? at / DEPTH : at % TILE;
      a[l][i] = i0 + i < rows && l0 + l < depth ? op.left(i0 + i, l0 + l) : 0.f;
    }
    for (int at = threadIdx.x; at < TILE * DEPTH; at += THREADS) {
      const int l = Op::B_DEPTH ? at % DEPTH : at / TILE, j = Op::B_DEPTH ? at / DEPTH : at % TILE;
      b[l][j] = j0 + j < cols && l0 + l < depth ? op.right(l0 + l, j0 + j) : 0.f;
    }
    __syncthreads();
    const int count = min(DEPTH, depth - l0);
#pragma unroll
    for (int l = 0; l < DEPTH; l++) {
      if (l >= count) break;
      float v[SIDE], w[SIDE];
#pragma unroll
      for (int x = 0; x < SIDE; x++) v[x] = a[l][ti + x * (TILE / SIDE)], w[x] = b[l][tj + x * (TILE / SIDE)];
#pragma unroll
      for (int x = 0; x < SIDE; x++) {
#pragma unroll
        for (int y = 0; y < SIDE; y++) c[x][y] = fmaf(v[x], w[y], c[x][y]);
      }
    }
  }
#pragma unroll
  for (int x = 0; x < SIDE; x++) {
#pragma unroll
    for (int y = 0; y < SIDE; y++) {
      const int i = i0 + ti + x * (TILE / SIDE), j = j0 + tj + y * (TILE / SIDE);
      if (i < rows && j < cols) op.store(i, j, c[x][y]);
    }
  }
}

// M[t, u d + i] = W_v[u, i] + Σ_j W_p[u, i, j] h_tj.
struct Mix {
  static constexpr bool A_DEPTH = true, B_DEPTH = true;
  Weights w;
  Rows h;
  float* m;
  __device__ __forceinline__ float start(int, int j) const { return w.w1[(size_t)(j / w.dim) * w.columns + j % w.dim]; }
  __device__ __forceinline__ float left(int i, int l) const { return h(i, l); }
  __device__ __forceinline__ float right(int l, int j) const { return w.product(j)[l]; }
  __device__ __forceinline__ void store(int i, int j, float v) const { m[(size_t)i * w.units * w.dim + j] = v; }
};

extern "C" __global__ void __launch_bounds__(THREADS)
    intent_mix(const float* w1, int dim, int units, int columns, const bf16* h, unsigned h_stride, float* m, int rows) {
  const Weights w = {const_cast<float*>(w1), dim, units, columns};
  dense(Mix{w, {h, h_stride}, m}, rows, units * dim, dim);
}
ENTRY(intent_mix)

// dH[t, j] = Σ_(u, i) R[t, u, i] W_p[u, i, j] + Σ_u s[t, u] W_h[u, j], as one chain of k d + k terms.
struct History {
  static constexpr bool A_DEPTH = true, B_DEPTH = false;
  Weights w;
  const float *r, *sums;
  size_t sums_pitch;
  bf16* dh;
  unsigned stride;
  __device__ __forceinline__ float start(int, int) const { return 0.f; }
  __device__ __forceinline__ float left(int i, int l) const {
    const int inner = w.units * w.dim;
    return l < inner ? r[(size_t)i * inner + l] : sums[i * sums_pitch + (l - inner)];
  }
  __device__ __forceinline__ float right(int l, int j) const {
    const int inner = w.units * w.dim;
    return l < inner ? w.product(l)[j] : w.w1[(size_t)(l - inner + 1) * w.columns - w.dim + j];
  }
  __device__ __forceinline__ void store(int i, int j, float v) const { dh[(size_t)i * stride + j] = to_bf16(v); }
};

extern "C" __global__ void __launch_bounds__(THREADS)
    intent_outer_history(const float* w1, int dim, int units, int columns, const float* r, const float* sums, int pitch,
                         bf16* dh, unsigned dh_stride, int rows) {
  const Weights w = {const_cast<float*>(w1), dim, units, columns};
  dense(History{w, r, sums, (size_t)(3 * pitch + 4), dh, dh_stride}, rows, dim, units * dim + units);
}
ENTRY(intent_outer_history)

// The chains of W_p: += R[t, u, i] h_tj over the rows t ascending.
struct Product {
  static constexpr bool A_DEPTH = false, B_DEPTH = false;
  Weights gradient;
  const float* r;
  Rows h;
  __device__ __forceinline__ float start(int i, int j) const { return gradient.product(i)[j]; }
  __device__ __forceinline__ float left(int i, int l) const {
    return r[(size_t)l * gradient.units * gradient.dim + i];
  }
  __device__ __forceinline__ float right(int l, int j) const { return h(l, j); }
  __device__ __forceinline__ void store(int i, int j, float v) const { gradient.product(i)[j] = v; }
};

extern "C" __global__ void __launch_bounds__(THREADS)
    intent_outer_product(float* w1_gradient, int dim, int units, int columns, const float* r, const bf16* h,
                         unsigned h_stride, int rows) {
  const Weights w = {w1_gradient, dim, units, columns};
  dense(Product{w, r, {h, h_stride}}, units * dim, dim, rows);
}
ENTRY(intent_outer_product)
