// What the dense products of src/linear/mod.rs leave to kernels: Y's start (bias + residual), the bf16 form of a weight
// that trains, and the gradient of such a weight. The products with a weight are the device's own.
//
// Gradient: dW[o, i] += Σ_t dY[t, o] X[t, i] is a product whose sums run over the rows of both factors. A block owns a
// tile of dW and walks the rows in STAGE_ROWS at a time, three stages of asynchronous copies deep; its accumulators
// begin at what dW holds, and each takes the rows sixteen at a time, ascending. So the bits of an element depend on its
// column of dY, its column of X and what it held, neither on the tile nor on other columns, and calls over rows 0..a
// and a..b equal one call over 0..b whenever a is a multiple of sixteen.
#include "common.cuh"

constexpr int THREADS = 128;
constexpr int STAGE_ROWS = 32;
constexpr int STAGES = 3;

// Y = bias + residual, each absent when null; blocks (row, group of columns).
extern "C" __global__ void __launch_bounds__(THREADS)
    linear_start(const float* bias, const bf16* residual, unsigned residual_stride, bf16* y, unsigned y_stride,
                 int width) {
  const int c = (blockIdx.y * THREADS + threadIdx.x) * 8, n = width - c;
  if (n <= 0) return;
  const size_t row = blockIdx.x;
  float v[8] = {}, b[8] = {};
  if (residual != nullptr)
    load8(v, residual + row * residual_stride + c, n, aligned16(residual, residual_stride));
  if (bias != nullptr) load8(b, bias + c, n, true);
#pragma unroll
  for (int i = 0; i < 8; i++) v[i] += b[i];
  store8(y + row * y_stride + c, v, n, aligned16(y, y_stride));
}
ENTRY(linear_start)

// to[i] = from[i], rounded to nearest even. `to` is a whole buffer, `from` begins anywhere.
extern "C" __global__ void __launch_bounds__(THREADS) linear_round(const float* from, bf16* to, uint64_t len) {
  const uint64_t i = ((uint64_t)blockIdx.x * THREADS + threadIdx.x) * 8;
  if (i >= len) return;
  const int n = len - i < 8 ? (int)(len - i) : 8;
  float v[8];
  load8(v, from + i, n, aligned16(from, 0));
  store8(to + i, v, n, true);
}
ENTRY(linear_round)

// y[row, c] = bias[c], zero without a bias; `len` elements in rows of `width`, side by side.
extern "C" __global__ void __launch_bounds__(THREADS)
    linear_wide_start(const float* bias, float* y, int len, int width) {
  const unsigned i = blockIdx.x * THREADS + threadIdx.x;
  if (i >= (unsigned)len) return;
#ifdef FAULT_LINEAR_WIDE_START
  y[i] = bias != nullptr && i < (unsigned)width ? bias[i] : 0.f;
#else
  y[i] = bias != nullptr ? bias[i % width] : 0.f;
#endif
}
ENTRY(linear_wide_start)

// One factor of the gradient: [rows, cols], of which a stage holds STAGE_ROWS x WIDTH from column `first` on.
struct Factor {
  const bf16* p;
  unsigned stride;
  int first, cols;
};

// Place of the eight elements from column 8 `chunk` of a row in a stage. The exclusive or spreads eight rows of a column
// over all banks.
template <int WIDTH>
__device__ __forceinline__ bf16* place(bf16* stage, int row, int chunk) {
  return stage + row * WIDTH + ((chunk ^ (row & 7)) * 8);
}

// Copies rows `first_row`.. into a stage; what lies outside the factor becomes zero.
template <int WIDTH, int BLOCK>
__device__ __forceinline__ void fill(bf16* stage, const Factor& f, int first_row, int rows, bool vector) {
  constexpr int CHUNKS = WIDTH / 8;
  static_assert(STAGE_ROWS * CHUNKS % BLOCK == 0, "every thread copies as much");
#pragma unroll
  for (int k = 0; k < STAGE_ROWS * CHUNKS / BLOCK; k++) {
    const int i = k * BLOCK + threadIdx.x, r = i / CHUNKS, chunk = i % CHUNKS;
    const int row = first_row + r, col = f.first + chunk * 8;
#ifdef FAULT_LINEAR_TAIL
    const int n = f.cols - col;
#else
    const int n = row < rows ? f.cols - col : 0;
#endif
    bf16* to = place<WIDTH>(stage, r, chunk);
    const bf16* from = f.p + (size_t)row * f.stride + col;
    if (vector && (n >= 8 || n <= 0)) {
      ptx::cp_async16(to, n > 0 ? from : f.p, n > 0);
      continue;
    }
    // A window that 16-byte accesses cannot read, or its last columns.
    uint32_t u[4];
#pragma unroll
    for (int j = 0; j < 4; j++) {
      const uint32_t low = 2 * j < n ? from[2 * j].bits : 0, high = 2 * j + 1 < n ? from[2 * j + 1].bits : 0;
      u[j] = low | high << 16;
    }
    st16(to, make_uint4(u[0], u[1], u[2], u[3]));
  }
}

// Two neighbours of a row of dW from column `c` on; `pair` promises that all such pairs are aligned to 8 bytes.
__device__ __forceinline__ void load2(float* v, const float* row, int c, int cols, bool pair) {
  if (pair && c + 1 < cols) {
    const float2 q = *reinterpret_cast<const float2*>(row + c);
    v[0] = q.x, v[1] = q.y;
    return;
  }
  v[0] = c < cols ? row[c] : 0.f;
  v[1] = c + 1 < cols ? row[c + 1] : 0.f;
}

__device__ __forceinline__ void store2(const float* v, float* row, int c, int cols, bool pair) {
  if (pair && c + 1 < cols) {
    *reinterpret_cast<float2*>(row + c) = make_float2(v[0], v[1]);
    return;
  }
  if (c < cols) row[c] = v[0];
  if (c + 1 < cols) row[c + 1] = v[1];
}

// A tile of OUTS outputs by INS inputs, warps in WARPS_M x WARPS_N.
template <int OUTS, int INS, int WARPS_M, int WARPS_N>
struct Gradient {
  static constexpr int BLOCK = WARPS_M * WARPS_N * WARP;
  static constexpr int TILES_M = OUTS / WARPS_M / 16, TILES_N = INS / WARPS_N / 8;  // of a warp, 16 x 8 each
  static constexpr int STAGE = STAGE_ROWS * (OUTS + INS);
  static_assert(TILES_N % 2 == 0 && OUTS >= 64 && INS >= 64, "ldmatrix takes 16 inputs; eight chunks a row");

  // Adds the products of a stage's rows, sixteen at a time.
  static __device__ __forceinline__ void multiply(float (&sum)[TILES_M][TILES_N][4], bf16* dy, bf16* x) {
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const int m = warp / WARPS_N * TILES_M * 16, n = warp % WARPS_N * TILES_N * 8;
#pragma unroll
    for (int k = 0; k < STAGE_ROWS; k += 16) {
      uint32_t a[TILES_M][4], b[TILES_N / 2][4];
      // dY: matrices (rows 0-7, outputs 0-7), (0-7, 8-15), (8-15, 0-7), (8-15, 8-15), transposed on the way.
#pragma unroll
      for (int i = 0; i < TILES_M; i++)
        ptx::ldmatrix_x4_trans(a[i], place<OUTS>(dy, k + lane % 8 + lane / 16 * 8, m / 8 + i * 2 + lane / 8 % 2));
      // X: matrices (rows 0-7, inputs 0-7), (8-15, 0-7), (0-7, 8-15), (8-15, 8-15).
#pragma unroll
      for (int j = 0; j < TILES_N / 2; j++)
        ptx::ldmatrix_x4_trans(b[j], place<INS>(x, k + lane % 16, n / 8 + j * 2 + lane / 16));
#pragma unroll
      for (int i = 0; i < TILES_M; i++)
#pragma unroll
        for (int j = 0; j < TILES_N; j++)
          ptx::mma_bf16_16816(sum[i][j], a[i], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
    }
  }

  // Reads or writes the warp's part of dW.
  template <bool STORE>
  static __device__ __forceinline__ void move(float (&sum)[TILES_M][TILES_N][4], float* weight, int outs, int ins) {
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const int m = blockIdx.y * OUTS + warp / WARPS_N * TILES_M * 16 + lane / 4;
    const int n = blockIdx.x * INS + warp % WARPS_N * TILES_N * 8 + lane % 4 * 2;
    const bool pair = ((size_t)weight & 7) == 0 && ins % 2 == 0;
#pragma unroll
    for (int i = 0; i < TILES_M; i++)
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const int o = m + i * 16 + half * 8;
        float* row = weight + (size_t)o * ins;
#pragma unroll
        for (int j = 0; j < TILES_N; j++) {
          if (STORE && o < outs) store2(&sum[i][j][half * 2], row, n + j * 8, ins, pair);
          if (!STORE) load2(&sum[i][j][half * 2], row, n + j * 8, o < outs ? ins : 0, pair);
        }
      }
  }

  static __device__ __forceinline__ void run(const bf16* dy, unsigned dy_stride, const bf16* x, unsigned x_stride,
                                             float* weight, float* bias, int rows, int outs, int ins) {
    DYNAMIC_SHARED(shared);
    bf16* stages = reinterpret_cast<bf16*>(shared);
    const Factor left{dy, dy_stride, (int)blockIdx.y * OUTS, outs}, right{x, x_stride, (int)blockIdx.x * INS, ins};
    const bool dy_vector = aligned16(dy, dy_stride), x_vector = aligned16(x, x_stride);
    const int count = (rows + STAGE_ROWS - 1) / STAGE_ROWS;
    const auto begin = [&](int stage) {
      if (stage < count) {
        bf16* to = stages + stage % STAGES * STAGE;
        fill<OUTS, BLOCK>(to, left, stage * STAGE_ROWS, rows, dy_vector);
        fill<INS, BLOCK>(to + STAGE_ROWS * OUTS, right, stage * STAGE_ROWS, rows, x_vector);
      }
      ptx::cp_async_commit();
    };
#pragma unroll
    for (int stage = 0; stage < STAGES - 1; stage++) begin(stage);

    float sum[TILES_M][TILES_N][4];
    move<false>(sum, weight, outs, ins);
    // The first column of blocks also owns db: a thread an output, one chain over the rows.
    const int column = threadIdx.x, o = left.first + column;
    const bool adds = bias != nullptr && blockIdx.x == 0 && column < OUTS && o < outs;
    float bias_sum = adds ? bias[o] : 0.f;
    for (int stage = 0; stage < count; stage++) {
#ifdef FAULT_LINEAR_WAIT
      ptx::cp_async_wait<STAGES - 1>();
#else
      ptx::cp_async_wait<STAGES - 2>();
#endif
#ifndef FAULT_LINEAR_SYNC
      __syncthreads();  // the stage is there, and nobody reads the one that is filled next
#endif
      begin(stage + STAGES - 1);
      bf16* now = stages + stage % STAGES * STAGE;
      multiply(sum, now, now + STAGE_ROWS * OUTS);
      if (adds)
        for (int r = 0; r < min(STAGE_ROWS, rows - stage * STAGE_ROWS); r++)
          bias_sum += to_f32(place<OUTS>(now, r, column / 8)[column % 8]);
    }
    move<true>(sum, weight, outs, ins);
    if (adds) bias[o] = bias_sum;
  }
};

#define GRADIENT_ENTRY(name, blocks, ...)                                                                            \
  extern "C" __global__ void __launch_bounds__(Gradient<__VA_ARGS__>::BLOCK, blocks)                                 \
      name(const bf16* dy, unsigned dy_stride, const bf16* x, unsigned x_stride, float* weight, float* bias,         \
           int rows, int outs, int ins) {                                                                            \
    Gradient<__VA_ARGS__>::run(dy, dy_stride, x, x_stride, weight, bias, rows, outs, ins);                           \
  }                                                                                                                  \
  ENTRY(name)

GRADIENT_ENTRY(linear_gradient_128, 2, 128, 128, 2, 4)
GRADIENT_ENTRY(linear_gradient_64, 4, 64, 64, 2, 2)
