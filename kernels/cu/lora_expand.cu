// Y += S' B^T and dX += undrop(dS' A): products whose inner length is the LoRA rank, so they are bound by the window
// that they read and write. Start at `expand_tile` and `input_tile`.
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

// The rows of a tile in one block of columns of output `k`: Y[rows, columns] += S' B[columns]^T.
template <int HEIGHT, int CLASS>
__device__ __forceinline__ void expand_tile(const Expand& c, const Rows& tile, int k, uint32_t b_unit, uint32_t columns) {
  constexpr int STEPS = (CLASS + 15) / 16;
  const uint32_t lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
  const uint32_t r = tile.s.lora_rank;
  const float* b = c.params + tile.s.param_offset + (size_t)r * b_unit;
  const bool b_vector = aligned16(b, r), y_vector = aligned16(c.to, c.stride);
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
#pragma unroll 1
    for (uint32_t m = 0; m < HEIGHT && m < tile.rows; m += 16) {
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
        if (row >= tile.rows) continue;
#endif
        add8(c.to + (tile.row() + row) * c.stride + column, v, count, y_vector);
      }
    }
  }
}

template <int HEIGHT>
__device__ __forceinline__ void expand(const Pack& pack, const Expand& c, uint32_t b_unit, uint32_t columns) {
  Rows tile;
  if (blockIdx.y * BLOCK_COLUMNS >= columns || !find_rows(pack, blockIdx.x, HEIGHT, tile)) return;
  const int k = blockIdx.z;
  switch (rank_class(tile.s.lora_rank)) {
    case 8: expand_tile<HEIGHT, 8>(c, tile, k, b_unit, columns); break;
    case 16: expand_tile<HEIGHT, 16>(c, tile, k, b_unit, columns); break;
    case 32: expand_tile<HEIGHT, 32>(c, tile, k, b_unit, columns); break;
    default: expand_tile<HEIGHT, 64>(c, tile, k, b_unit, columns);
  }
}

// The rows of a tile in one block of columns: dX[rows, columns] += sum over outputs of undrop(dS' A[:, columns]), in
// the order of the outputs; 1 / (1 - p) is in dS' already.
template <int HEIGHT, int CLASS>
__device__ __forceinline__ void input_tile(const Expand& c, const Rows& tile, const PerOutput& a_unit, const Masks& masks,
                                           uint32_t d) {
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
        if (row < tile.rows)
          add8(c.to + (tile.row() + row) * c.stride + column, total[i][half], (int)d - (int)column, vector);
      }
  }
}

template <int HEIGHT>
__device__ __forceinline__ void input(const Pack& pack, const Expand& c, const PerOutput& a_unit, const Masks& masks,
                                      uint32_t d) {
  Rows tile;
  if (!find_rows(pack, blockIdx.x, HEIGHT, tile)) return;
  switch (rank_class(tile.s.lora_rank)) {
    case 8: input_tile<HEIGHT, 8>(c, tile, a_unit, masks, d); break;
    case 16: input_tile<HEIGHT, 16>(c, tile, a_unit, masks, d); break;
    case 32: input_tile<HEIGHT, 32>(c, tile, a_unit, masks, d); break;
    default: input_tile<HEIGHT, 64>(c, tile, a_unit, masks, d);
  }
}

// Blocks: slots of tiles of `height` rows (x), columns (y), for lora_expand also outputs (z).
#define EXPAND(height)                                                                                              \
  extern "C" __global__ void __launch_bounds__(WARPS* WARP, 4) lora_expand_m##height(                               \
      PACK_PARAMS, const bf16* sums, uint32_t outputs, const float* params, PER_OUTPUT(b_unit), PER_OUTPUT(out_len), \
      PER_OUTPUT(y_start), bf16* y, uint32_t y_stride) {                                                            \
    const int k = blockIdx.z;                                                                                       \
    const Expand c{sums, outputs, params, y + OUTPUTS_OF(y_start)[k], y_stride};                                    \
    expand<height>(PACK, c, OUTPUTS_OF(b_unit)[k], OUTPUTS_OF(out_len)[k]);                                         \
  }                                                                                                                 \
  ENTRY(lora_expand_m##height)
EXPAND(16)
EXPAND(32)
EXPAND(64)

// Two groups of 16 rows are as many as fit the registers beside the parameters.
#define INPUT(height)                                                                                               \
  extern "C" __global__ void __launch_bounds__(WARPS* WARP, 3) lora_input_m##height(                                \
      PACK_PARAMS, const bf16* sums, uint32_t outputs, const float* params, PER_OUTPUT(a_unit),                     \
      const uint32_t* masks, uint32_t words, uint32_t d, bf16* dx, uint32_t dx_stride) {                            \
    const Expand c{sums, outputs, params, dx, dx_stride};                                                           \
    input<height>(PACK, c, OUTPUTS_OF(a_unit), Masks{masks, num_rows, words}, d);                                   \
  }                                                                                                                 \
  ENTRY(lora_input_m##height)
INPUT(16)
INPUT(32)
