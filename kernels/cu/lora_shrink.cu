// S' = scale * drop(X) A^T for all outputs of a call in one read of X, and the dropout masks that it and the backward
// read. Start at `shrink`.
//
//            block of BLOCK columns of d ->           X [height, d]: cp.async, STAGES deep
//   X tile   | 16 rows x 16 |  mma  A tiles of every output [outputs * class, BLOCK]: f32 read one block ahead into
//   (rows)   | per warp     |       registers, rounded to bf16 on the way into two shared buffers
//
// The tile height (16, 32, 64) is the host's choice and changes no bit: an element of S' is one chain along d.
#include "lora.cuh"

constexpr int THREADS = 256;
constexpr int STAGES = 4;

// Masks of one tile of 64 rows (x), one output (y), 2048 columns (z).
extern "C" __global__ void __launch_bounds__(THREADS)
    lora_mask(PACK_PARAMS, const uint32_t* row_token, uint32_t* bits, uint32_t words, PER_OUTPUT(site),
              unsigned long long* refused) {
  const Pack pack = PACK;
  if (blockIdx.y == 0 && blockIdx.z == 0) {
    // The grid has a block for each segment, found by its number: the search trusts their order.
    const uint32_t index = blockIdx.x;
    if (threadIdx.x == 0 && index < num_segments) {
      const Segment s = segments[index], before = segments[index ? index - 1 : 0];
      int refusal = segment_refusal(pack, s);
      if (!refusal && index && s.row_start < before.row_start + before.rows) refusal = REFUSED_LORA_SEGMENT;
      if (refusal) refuse(refused, (Refusal)refusal, index, refusal == REFUSED_LORA_RANK ? s.lora_rank : s.row_start);
    }
  }
  Rows tile;
  if (!find_rows(pack, blockIdx.x, 64, tile) || tile.s.dropout <= 0.f) return;
  const Dropout dropout(tile.s.key, tile.s.step, OUTPUTS_OF(site)[blockIdx.y], tile.s.dropout);
  for (uint32_t i = threadIdx.x; i < 64 * 64; i += THREADS) {
    const uint32_t row = i / 64, word = blockIdx.z * 64 + i % 64;
    if (row >= tile.rows || word >= words) continue;
    const size_t at = tile.row() + row;
    bits[((size_t)blockIdx.y * num_rows + at) * words + word] = dropout.keep32(row_token[at], word);
  }
}
ENTRY(lora_mask)

// What a shrink reads and writes.
struct Shrink {
  Window x;
  uint32_t d, outputs;
  const float* params;
  PerOutput a_unit;  // A of output k begins r * a_unit[k] after the adapter's first element
  Masks masks;
  bf16* sums;
};

// Parameters of A on their way: of each output, every thread has up to QUADS groups of four neighbouring columns.
template <int CLASS, int BLOCK> struct ATile {
  static constexpr uint32_t ROW_QUADS = BLOCK / 4, ROWS = THREADS / ROW_QUADS;
  static constexpr uint32_t QUADS = (CLASS + ROWS - 1) / ROWS;
  static constexpr int STRIDE = BLOCK + 8;
  uint2 quads[MAX_OUTPUTS][QUADS];

  // Columns from `column` on; rows beyond the rank and columns beyond d are zero.
  __device__ __forceinline__ void fetch(const Shrink& c, const Segment& s, uint32_t column) {
    const uint32_t first = threadIdx.x / ROW_QUADS, at = column + threadIdx.x % ROW_QUADS * 4;
#pragma unroll
    for (uint32_t k = 0; k < MAX_OUTPUTS; k++) {
      const float* a = c.params + s.param_offset + (size_t)s.lora_rank * c.a_unit[k];
      const bool whole = aligned16(a, c.d);
      const int count = k < c.outputs && at < c.d ? c.d - at : 0;
#pragma unroll
      for (uint32_t q = 0; q < QUADS; q++) {
        const uint32_t row = first + q * ROWS;
        quads[k][q] = make_uint2(0, 0);
#ifndef FAULT_LORA_RANK
        if (row >= s.lora_rank) continue;
#endif
        if (count == 0) continue;
        // r d < 2^32: the host sees to it.
        const float* from = a + (row * c.d + at);
        quads[k][q] = pack4(load4(from, count, whole));
      }
    }
  }
  __device__ __forceinline__ void store(bf16* tile, uint32_t outputs) const {
    bf16* to = tile + threadIdx.x / ROW_QUADS * STRIDE + threadIdx.x % ROW_QUADS * 4;
#pragma unroll
    for (uint32_t k = 0; k < MAX_OUTPUTS; k++)
#pragma unroll
      for (uint32_t q = 0; q < QUADS; q++)
        if (k < outputs && threadIdx.x / ROW_QUADS + q * ROWS < CLASS)
          *reinterpret_cast<uint2*>(to + (k * CLASS + q * ROWS) * STRIDE) = quads[k][q];
  }
};

// The tile of one warp: 16 rows, every N_WARPS-th group of eight columns of S'.
template <int HEIGHT, int CLASS> struct WarpTile {
  static constexpr uint32_t M_WARPS = HEIGHT / 16, N_WARPS = THREADS / WARP / M_WARPS;
  static constexpr uint32_t GROUPS = CLASS / 8, MINE = (GROUPS + N_WARPS - 1) / N_WARPS;
  uint32_t m, first[MAX_OUTPUTS];
  float sums[MAX_OUTPUTS][MINE][4];

  __device__ __forceinline__ WarpTile() {
    const uint32_t warp = threadIdx.x / WARP;
    m = warp % M_WARPS * 16;
#pragma unroll
    for (uint32_t k = 0; k < MAX_OUTPUTS; k++) {
      // Groups of all outputs are dealt round, so that low ranks keep every warp busy.
      first[k] = (warp / M_WARPS + MAX_OUTPUTS * GROUPS * N_WARPS - k * GROUPS) % N_WARPS;
#pragma unroll
      for (uint32_t i = 0; i < MINE; i++)
#pragma unroll
        for (int e = 0; e < 4; e++) sums[k][i][e] = 0.f;
    }
  }

  // Adds 32 columns of d, beginning at `column` of X and `at` of the shared tiles.
  template <int STRIDE>
  __device__ __forceinline__ void add(const Shrink& c, const Rows& tile, const bf16* x, const bf16* a, uint32_t column) {
    const uint32_t lane = threadIdx.x % WARP, g = lane / 4, bit = lane % 4 * 2;
#pragma unroll
    for (uint32_t k = 0; k < MAX_OUTPUTS; k++) {
      if (k >= c.outputs) break;
      uint32_t xs[2][4];
      load_mk<STRIDE>(xs[0], x + m * STRIDE);
      load_mk<STRIDE>(xs[1], x + m * STRIDE + 16);
      if (tile.s.dropout > 0.f) {
        const uint32_t top = m + g < tile.rows ? c.masks.word(k, tile.row() + m + g, column) : 0;
        const uint32_t bottom = m + g + 8 < tile.rows ? c.masks.word(k, tile.row() + m + g + 8, column) : 0;
#pragma unroll
        for (int step = 0; step < 2; step++)
#pragma unroll
          for (int i = 0; i < 4; i++) {
            const uint32_t word = (i % 2 ? bottom : top) >> (16 * step + i / 2 * 8 + bit);
            xs[step][i] = masked_pair(xs[step][i], word & 1, word & 2);
          }
      }
#pragma unroll
      for (uint32_t i = 0; i < MINE; i++) {
        const uint32_t group = first[k] + i * N_WARPS;
        if (group >= GROUPS) break;
        uint32_t b[4];
        load_nk2<STRIDE>(b, a + (k * CLASS + group * 8) * STRIDE);
        ptx::mma_bf16_16816(sums[k][i], xs[0], b[0], b[1]);
        ptx::mma_bf16_16816(sums[k][i], xs[1], b[2], b[3]);
      }
    }
  }

  __device__ __forceinline__ void store(const Shrink& c, const Rows& tile) const {
    const uint32_t g = threadIdx.x % WARP / 4, t = threadIdx.x % 4;
    const float scale = tile.s.scale * keep_scale(tile.s.dropout);
#pragma unroll
    for (uint32_t k = 0; k < MAX_OUTPUTS; k++)
#pragma unroll
      for (uint32_t i = 0; i < MINE; i++) {
        const uint32_t group = first[k] + i * N_WARPS;
        if (k >= c.outputs || group >= GROUPS) break;
#pragma unroll
        for (uint32_t half = 0; half < 2; half++) {
          const uint32_t row = m + g + 8 * half;
          if (row >= tile.rows) continue;
          bf16* to = c.sums + sums_at(tile, c.outputs, CLASS, row) + k * CLASS + group * 8 + 2 * t;
          const float* v = sums[k][i] + 2 * half;
          *reinterpret_cast<uint32_t*>(to) = ptx::pack_bf16(scale * v[0], scale * v[1]);
        }
      }
  }
};

template <int HEIGHT, int CLASS>
__device__ __forceinline__ void shrink_tile(const Shrink& c, const Rows& tile, bf16* shared) {
  constexpr int BLOCK = CLASS == 64 ? 32 : 64;
  using A = ATile<CLASS, BLOCK>;
  constexpr int STRIDE = A::STRIDE, X_TILE = HEIGHT * STRIDE;
  bf16* a_tiles = shared + STAGES * X_TILE;
  const uint32_t a_tile = c.outputs * CLASS * STRIDE, blocks = (c.d + BLOCK - 1) / BLOCK;
  const bf16* x = c.x.data + tile.row() * c.x.stride;
  const auto load = [&](uint32_t block) {
    if (block < blocks) {
      const uint32_t column = block * BLOCK;
      load_window<HEIGHT, BLOCK, STRIDE, THREADS>(shared + block % STAGES * X_TILE, Window{x + column, c.x.stride},
                                                  tile.rows, c.d - column);
    }
    ptx::cp_async_commit();
  };
  A a;
  WarpTile<HEIGHT, CLASS> warp;
  for (uint32_t block = 0; block < STAGES - 1; block++) load(block);
  a.fetch(c, tile.s, 0);
  a.store(a_tiles, c.outputs);
  for (uint32_t block = 0; block < blocks; block++) {
#ifdef FAULT_LORA_WAIT
    ptx::cp_async_wait<STAGES - 1>();
#else
    ptx::cp_async_wait<STAGES - 2>();
#endif
#ifndef FAULT_LORA_SYNC
    __syncthreads();
#endif
    load(block + STAGES - 1);
    a.fetch(c, tile.s, (block + 1) * BLOCK);
#pragma unroll
    for (int at = 0; at < BLOCK; at += 32) {
      const uint32_t column = block * BLOCK + at;
      if (column >= c.d) break;
      warp.template add<STRIDE>(c, tile, shared + block % STAGES * X_TILE + at, a_tiles + block % 2 * a_tile + at,
                                column);
    }
    a.store(a_tiles + (block + 1) % 2 * a_tile, c.outputs);
  }
  ptx::cp_async_wait<0>();
  warp.store(c, tile);
}

template <int HEIGHT>
__device__ __forceinline__ void shrink(const Pack& pack, const Shrink& c, unsigned char* shared) {
  Rows tile;
  if (!find_rows(pack, blockIdx.x, HEIGHT, tile)) return;
  bf16* at = reinterpret_cast<bf16*>(shared);
  const int columns = rank_class(tile.s.lora_rank);
  if (columns == 8) return shrink_tile<HEIGHT, 8>(c, tile, at);
  if (columns == 16) return shrink_tile<HEIGHT, 16>(c, tile, at);
  if (columns == 32) return shrink_tile<HEIGHT, 32>(c, tile, at);
  shrink_tile<HEIGHT, 64>(c, tile, at);
}

// One block for each slot of tiles of `height` rows.
#define SHRINK(height)                                                                                             \
  extern "C" __global__ void __launch_bounds__(THREADS, 2) lora_shrink_m##height(                                  \
      PACK_PARAMS, const bf16* x, uint32_t x_stride, uint32_t d, uint32_t outputs, const float* params,            \
      PER_OUTPUT(a_unit), const uint32_t* masks, uint32_t words, bf16* sums) {                                     \
    DYNAMIC_SHARED(shared);                                                                                        \
    const Shrink c{Window{x, x_stride}, d, outputs, params, OUTPUTS_OF(a_unit), Masks{masks, num_rows, words}, sums}; \
    shrink<height>(PACK, c, shared);                                                                               \
  }                                                                                                                \
  ENTRY(lora_shrink_m##height)
SHRINK(16)
SHRINK(32)
SHRINK(64)
