// Y += S' B^T and dX += undrop(dS' A): products whose inner length is the LoRA rank, so they are bound by the window
// that they read and write. Start at `expand_tile` and `input_tile`.
//
// `FIRST`: before the dense product, which then adds to what is here. Y = bias + residual + S' B^T and dX = undrop(dS' A)
// are written and not read, for every row of the pack: rows outside the segments get bias + residual, or zero.
//
// No shared memory: a warp takes 32 columns, keeps the parameters of one output in registers (read as f32, rounded
// to bf16) and walks the tile's rows, 16 at a time. What mma calls row, column and inner index is ours to choose:
//
//   column c = 2t + h of product j (0-3)  is column 8t + 4h + j of the 32: lane t owns 8 neighbours, one 16-byte access
//   inner  2t, 2t+1, 2t+8, 2t+9           is rank index 4t .. 4t+3: S' comes in 8-byte pieces, B in 16-byte pieces
#include "lora.cuh"

constexpr int WARPS = 4;
// Columns of a block: each warp takes every fourth group of 32.
constexpr uint32_t BLOCK_COLUMNS = 256;

// What both products share: the sums S' or dS', and the window that grows.
struct Expand {
  const bf16* sums;
  uint32_t outputs;
  const float* params;
  bf16* to;
  uint32_t stride;
};

// What Y begins with under the adapters' part. Columns are those of Y's buffer.
struct Start {
  // Whether rows outside the segments are written too; else another launch has begun them.
  bool whole;
  // Null for none; its first column is Y's column `residual_at`.
  const bf16* residual;
  uint32_t residual_stride, residual_at;
  // Biases of up to three neighbouring ranges of columns, from column at[i] on; null for none.
  const float *bias0, *bias1, *bias2;
  PerOutput at;
  __device__ __forceinline__ float bias(uint32_t column) const {
#ifdef FAULT_LORA_FIRST_BIAS
    const int i = column > at.v2 ? 2 : column > at.v1 ? 1 : 0;
#else
    const int i = column >= at.v2 ? 2 : column >= at.v1 ? 1 : 0;
#endif
    const float* of = i == 2 ? bias2 : i == 1 ? bias1 : bias0;
    return of == nullptr ? 0.f : of[column - at[i]];
  }
};

// A operand m16 x k16 of output k, rows from `m` of the tile on, rank indices from 16 `step` on.
template <int CLASS>
__device__ __forceinline__ void load_sums(uint32_t (&a)[4], const Expand& c, const Rows& tile, int k, uint32_t m, int step) {
  const int g = threadIdx.x % WARP / 4, j = 16 * step + threadIdx.x % 4 * 4;
  uint2 v[2] = {make_uint2(0, 0), make_uint2(0, 0)};
#pragma unroll
  for (uint32_t half = 0; half < 2; half++) {
    const uint32_t row = m + g + 8 * half;
    if (row >= tile.rows || j >= CLASS) continue;
    v[half] = *reinterpret_cast<const uint2*>(c.sums + sums_at(tile, c.outputs, CLASS, row) + k * CLASS + j);
  }
  a[0] = v[0].x, a[1] = v[1].x, a[2] = v[0].y, a[3] = v[1].y;
}

// Adds the lane's eight columns of one row, `count` of them inside.
__device__ __forceinline__ void add8(bf16* to, const float (&v)[8], int count, bool vector) {
  float sum[8];
  load8(sum, to, count, vector);
#pragma unroll
  for (int e = 0; e < 8; e++) sum[e] += v[e];
  store8(to, sum, count, vector);
}

// The lane's columns of the four products, row g (half 0) or g + 8.
__device__ __forceinline__ void lane_columns(float (&v)[8], const float (&acc)[4][4], int half) {
#pragma unroll
  for (int e = 0; e < 8; e++) v[e] = acc[e % 4][2 * half + e / 4];
}

__device__ __forceinline__ void clear(float (&acc)[4][4]) {
#pragma unroll
  for (int j = 0; j < 4; j++)
#pragma unroll
    for (int e = 0; e < 4; e++) acc[j][e] = 0.f;
}

// `all` rows in one block of columns of output `k`, the first of them the tile's: Y[rows, columns] += S' B[columns]^T, or
// FIRST bias + residual + S' B[columns]^T. Output `k` begins at Y's column `y_start`.
template <int HEIGHT, int CLASS, bool FIRST>
__device__ __forceinline__ void expand_tile(const Expand& c, const Rows& tile, uint32_t all, int k, uint32_t b_unit,
                                            uint32_t columns, const Start& start, uint32_t y_start) {
  constexpr int STEPS = (CLASS + 15) / 16;
  const uint32_t lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
  const uint32_t r = tile.s.lora_rank;
  const float* b = c.params + tile.s.param_offset + (size_t)r * b_unit;
  const bool b_vector = aligned16(b, r), y_vector = aligned16(c.to, c.stride);
  const bf16* residual = FIRST && start.residual != nullptr ? start.residual + (y_start - start.residual_at) : nullptr;
  const bool residual_vector = FIRST && aligned16(residual, start.residual_stride);
  const uint32_t end = min(columns, (blockIdx.y + 1) * BLOCK_COLUMNS);
  for (uint32_t base = blockIdx.y * BLOCK_COLUMNS + threadIdx.x / WARP * 32; base < end; base += WARPS * 32) {
    uint2 bs[STEPS][4];
#pragma unroll
    for (int step = 0; step < STEPS; step++)
#pragma unroll
      for (int j = 0; j < 4; j++) {
        const uint32_t row = base + 4 * g + j, at = 16 * step + 4 * t;
        bs[step][j] = pack4(load4(b + (size_t)row * r + at, row < columns ? (int)r - (int)at : 0, b_vector));
      }
    const uint32_t column = base + 8 * t;
    const int count = (int)columns - (int)column;
    float bias[8] = {};
    if (FIRST)
#pragma unroll
      for (int e = 0; e < 8; e++)
        if (e < count) bias[e] = start.bias(y_start + column + e);
#pragma unroll 1
    for (uint32_t m = 0; m < HEIGHT && m < all; m += 16) {
      float acc[4][4];
      clear(acc);
#pragma unroll
      for (int step = 0; step < STEPS; step++) {
        uint32_t a[4];
        load_sums<CLASS>(a, c, tile, k, m, step);
#pragma unroll
        for (int j = 0; j < 4; j++) ptx::mma_bf16_16816(acc[j], a, bs[step][j].x, bs[step][j].y);
      }
#pragma unroll
      for (uint32_t half = 0; half < 2; half++) {
        const uint32_t row = m + g + 8 * half;
        float v[8];
        lane_columns(v, acc, half);
#ifndef FAULT_LORA_RAGGED_ROW
        if (row >= all) continue;
#endif
        bf16* to = c.to + (tile.row() + row) * c.stride + column;
        if (FIRST) {
          float sum[8] = {};
          if (residual != nullptr)
            load8(sum, residual + (tile.row() + row) * start.residual_stride + column, count, residual_vector);
#pragma unroll
          for (int e = 0; e < 8; e++) sum[e] = sum[e] + bias[e] + v[e];
          store8(to, sum, count, y_vector);
        } else {
          add8(to, v, count, y_vector);
        }
      }
    }
  }
}

// The rows of a block, from `tile.row()` on; zero where there is nothing to do.
template <int HEIGHT, bool FIRST>
__device__ __forceinline__ uint32_t block_rows(const Pack& pack, bool whole, Rows& tile) {
  if (!FIRST) return find_rows(pack, blockIdx.x, HEIGHT, tile) ? tile.rows : 0;
  const uint32_t all = find_all_rows(pack, blockIdx.x, HEIGHT, tile);
#ifdef FAULT_LORA_FIRST_OTHERS
  return all;
#else
  return whole || all == 0 ? all : tile.rows;
#endif
}

template <int HEIGHT, bool FIRST>
__device__ __forceinline__ void expand(const Pack& pack, const Expand& c, uint32_t b_unit, uint32_t columns,
                                       const Start& start, uint32_t y_start) {
  Rows tile;
  if (blockIdx.y * BLOCK_COLUMNS >= columns) return;
  const uint32_t all = block_rows<HEIGHT, FIRST>(pack, start.whole, tile);
  if (all == 0) return;
  const int k = blockIdx.z;
  switch (rank_class(tile.s.lora_rank)) {
    case 8: expand_tile<HEIGHT, 8, FIRST>(c, tile, all, k, b_unit, columns, start, y_start); break;
    case 16: expand_tile<HEIGHT, 16, FIRST>(c, tile, all, k, b_unit, columns, start, y_start); break;
    case 32: expand_tile<HEIGHT, 32, FIRST>(c, tile, all, k, b_unit, columns, start, y_start); break;
    default: expand_tile<HEIGHT, 64, FIRST>(c, tile, all, k, b_unit, columns, start, y_start);
  }
}

// `all` rows in one block of columns, the first of them the tile's: dX[rows, columns] += (FIRST: =) sum over outputs of
// undrop(dS' A[:, columns]), in the order of the outputs; 1 / (1 - p) is in dS' already.
template <int HEIGHT, int CLASS, bool FIRST>
__device__ __forceinline__ void input_tile(const Expand& c, const Rows& tile, uint32_t all, const PerOutput& a_unit,
                                           const Masks& masks, uint32_t d) {
  constexpr int STEPS = (CLASS + 15) / 16, M_TILES = HEIGHT / 16;
  const uint32_t lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
  const uint32_t r = tile.s.lora_rank, end = min(d, (blockIdx.y + 1) * BLOCK_COLUMNS);
  const bool vector = aligned16(c.to, c.stride);
  for (uint32_t base = blockIdx.y * BLOCK_COLUMNS + threadIdx.x / WARP * 32; base < end; base += WARPS * 32) {
    const uint32_t from = base + 4 * g, column = base + 8 * t;
    float total[M_TILES][2][8] = {};
#pragma unroll 1
    for (uint32_t k = 0; k < c.outputs; k++) {
      const float* a = c.params + tile.s.param_offset + (size_t)r * a_unit[k];
      const bool a_vector = aligned16(a, d);
      uint2 as[STEPS][4];
#pragma unroll
      for (int step = 0; step < STEPS; step++) {
        float4 v[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
          const uint32_t row = 16 * step + 4 * t + i;
          v[i] = load4(a + (size_t)row * d + from, row < r ? (int)d - (int)from : 0, a_vector);
        }
        as[step][0] = pack4(make_float4(v[0].x, v[1].x, v[2].x, v[3].x));
        as[step][1] = pack4(make_float4(v[0].y, v[1].y, v[2].y, v[3].y));
        as[step][2] = pack4(make_float4(v[0].z, v[1].z, v[2].z, v[3].z));
        as[step][3] = pack4(make_float4(v[0].w, v[1].w, v[2].w, v[3].w));
      }
#pragma unroll
      for (uint32_t i = 0; i < M_TILES; i++) {
        if (16 * i >= tile.rows) break;
        float acc[4][4];
        clear(acc);
#pragma unroll
        for (int step = 0; step < STEPS; step++) {
          uint32_t ds[4];
          load_sums<CLASS>(ds, c, tile, k, 16 * i, step);
#pragma unroll
          for (int j = 0; j < 4; j++) ptx::mma_bf16_16816(acc[j], ds, as[step][j].x, as[step][j].y);
        }
#pragma unroll
        for (uint32_t half = 0; half < 2; half++) {
          const uint32_t row = 16 * i + g + 8 * half;
          uint32_t kept = ~0u;
          if (tile.s.dropout > 0.f && row < tile.rows) kept = masks.word(k, tile.row() + row, base) >> (8 * t);
          float v[8];
          lane_columns(v, acc, half);
#pragma unroll
          for (int e = 0; e < 8; e++) total[i][half][e] += kept >> e & 1 ? v[e] : 0.f;
        }
      }
    }
#pragma unroll
    for (uint32_t i = 0; i < M_TILES; i++)
#pragma unroll
      for (uint32_t half = 0; half < 2; half++) {
        const uint32_t row = 16 * i + g + 8 * half;
        if (row >= all) continue;
        bf16* to = c.to + (tile.row() + row) * c.stride + column;
        if (FIRST)
          store8(to, total[i][half], (int)d - (int)column, vector);
        else
          add8(to, total[i][half], (int)d - (int)column, vector);
      }
  }
}

template <int HEIGHT, bool FIRST>
__device__ __forceinline__ void input(const Pack& pack, const Expand& c, const PerOutput& a_unit, const Masks& masks,
                                      uint32_t d, bool whole) {
  Rows tile;
  const uint32_t all = block_rows<HEIGHT, FIRST>(pack, whole, tile);
  if (all == 0) return;
  switch (rank_class(tile.s.lora_rank)) {
    case 8: input_tile<HEIGHT, 8, FIRST>(c, tile, all, a_unit, masks, d); break;
    case 16: input_tile<HEIGHT, 16, FIRST>(c, tile, all, a_unit, masks, d); break;
    case 32: input_tile<HEIGHT, 32, FIRST>(c, tile, all, a_unit, masks, d); break;
    default: input_tile<HEIGHT, 64, FIRST>(c, tile, all, a_unit, masks, d);
  }
}

// Blocks: slots of tiles of `height` rows (x; FIRST: one more), columns (y), for lora_expand also outputs (z).
#define EXPAND(height)                                                                                              \
  extern "C" __global__ void __launch_bounds__(WARPS* WARP, 4) lora_expand_m##height(                               \
      PACK_PARAMS, const bf16* sums, uint32_t outputs, const float* params, PER_OUTPUT(b_unit), PER_OUTPUT(out_len), \
      PER_OUTPUT(y_start), bf16* y, uint32_t y_stride) {                                                            \
    const int k = blockIdx.z;                                                                                       \
    const Expand c{sums, outputs, params, y + OUTPUTS_OF(y_start)[k], y_stride};                                    \
    expand<height, false>(PACK, c, OUTPUTS_OF(b_unit)[k], OUTPUTS_OF(out_len)[k], Start{}, 0);                      \
  }                                                                                                                 \
  ENTRY(lora_expand_m##height)
EXPAND(16)
EXPAND(32)
EXPAND(64)

// Bit k of `whole` for output k.
#define EXPAND_FIRST(height)                                                                                         \
  extern "C" __global__ void __launch_bounds__(WARPS* WARP, 5) lora_expand_first_m##height(                          \
      PACK_PARAMS, const bf16* sums, uint32_t outputs, const float* params, PER_OUTPUT(b_unit), PER_OUTPUT(out_len), \
      PER_OUTPUT(y_start), bf16* y, uint32_t y_stride, uint32_t whole, const bf16* residual,                         \
      uint32_t residual_stride, uint32_t residual_at, const float* bias0, const float* bias1, const float* bias2,    \
      PER_OUTPUT(bias_at)) {                                                                                         \
    const int k = blockIdx.z;                                                                                        \
    const uint32_t first = OUTPUTS_OF(y_start)[k];                                                                   \
    const Expand c{sums, outputs, params, y + first, y_stride};                                                      \
    const Start start{(whole >> k & 1) != 0, residual, residual_stride,  residual_at,                                \
                      bias0,                 bias1,    bias2,            OUTPUTS_OF(bias_at)};                       \
    expand<height, true>(PACK, c, OUTPUTS_OF(b_unit)[k], OUTPUTS_OF(out_len)[k], start, first);                      \
  }                                                                                                                  \
  ENTRY(lora_expand_first_m##height)
EXPAND_FIRST(16)
EXPAND_FIRST(32)
EXPAND_FIRST(64)

// Two groups of 16 rows are as many as fit the registers beside the parameters.
#define INPUT(height)                                                                                               \
  extern "C" __global__ void __launch_bounds__(WARPS* WARP, 3) lora_input_m##height(                                \
      PACK_PARAMS, const bf16* sums, uint32_t outputs, const float* params, PER_OUTPUT(a_unit),                     \
      const uint32_t* masks, uint32_t words, uint32_t d, bf16* dx, uint32_t dx_stride) {                            \
    const Expand c{sums, outputs, params, dx, dx_stride};                                                           \
    input<height, false>(PACK, c, OUTPUTS_OF(a_unit), Masks{masks, num_rows, words}, d, false);                     \
  }                                                                                                                 \
  ENTRY(lora_input_m##height)                                                                                       \
  extern "C" __global__ void __launch_bounds__(WARPS* WARP, 3) lora_input_first_m##height(                          \
      PACK_PARAMS, const bf16* sums, uint32_t outputs, const float* params, PER_OUTPUT(a_unit),                     \
      const uint32_t* masks, uint32_t words, uint32_t d, bf16* dx, uint32_t dx_stride, uint32_t whole) {            \
    const Expand c{sums, outputs, params, dx, dx_stride};                                                           \
    input<height, true>(PACK, c, OUTPUTS_OF(a_unit), Masks{masks, num_rows, words}, d, whole != 0);                 \
  }                                                                                                                 \
  ENTRY(lora_input_first_m##height)
INPUT(16)
INPUT(32)
