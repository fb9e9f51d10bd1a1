// Attention forward: `O = softmax(scale · Q Kᵀ + mask) V` and the log-sum-exp, over sequences of any length with
// grouped heads and shared prefixes (the contract: src/attention/mod.rs).
//
// attention_plan     one block: the table of query tiles (attention_tiles.cuh)
// attention_forward  a block takes 64 columns (query row, head of one key/value head) at a time and all keys they
//                    see in tiles of 64, which arrive by cp.async while the tile before is worked on. Four warps
//                    of 16 columns; running softmax in base 2, sums in f32. A lone query's keys are split over up
//                    to 8 blocks, by its own number of keys; each then leaves an unfinished sum.
// attention_combine  adds the parts of the lone queries in order
//
// Never run on a GPU; proved on the emulator (tests/gpu/attention.rs), compiled for sm_80 and sm_90.
#include "attention_tiles.cuh"

namespace attention {

struct Forward {
  const bf16 *q, *k, *v;
  bf16* out;
  float* lse;
  const Sequence* sequences;
  const uint32_t* limits;
  const int4* table;
  float *part_sums, *part_bounds;  // [sequence][split][head]: e sums; maximum and total
  unsigned q_stride, k_stride, v_stride, out_stride;
  int heads, per, width;
  float scale;  // of the scores, times log2(e)
};

// The running softmax of a lane's two rows (lane / 4, and 8 below), shared with three lanes.
struct Softmax {
  float most[2] = {-INFINITY, -INFINITY};  // largest unscaled score
  float total[2] = {0.f, 0.f};             // of this lane's keys

  // Replaces scores by `2^(scale · (score - largest))` and returns by what earlier sums shrink.
  template <int N>
  __device__ __forceinline__ float2 step(float (&scores)[N][4], float scale) {
    float shrink[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
      float now = most[half];
#pragma unroll
      for (int j = 0; j < N; j++) now = fmaxf(now, fmaxf(scores[j][2 * half], scores[j][2 * half + 1]));
      now = fmaxf(now, __shfl_xor_sync(ALL_LANES, now, 1));
      now = fmaxf(now, __shfl_xor_sync(ALL_LANES, now, 2));
      const float from = now == -INFINITY ? 0.f : now * scale;
      shrink[half] = ptx::ex2(most[half] * scale - from);
      most[half] = now;
      float sum = 0.f;
#pragma unroll
      for (int j = 0; j < N; j++)
#pragma unroll
        for (int i = 2 * half; i < 2 * half + 2; i++) {
          scores[j][i] = ptx::ex2(scores[j][i] * scale - from);
          sum += scores[j][i];
        }
      total[half] = total[half] * shrink[half] + sum;
    }
    return make_float2(shrink[0], shrink[1]);
  }

  // The whole rows' totals.
  __device__ __forceinline__ void finish() {
#pragma unroll
    for (int half = 0; half < 2; half++) {
      total[half] += __shfl_xor_sync(ALL_LANES, total[half], 1);
      total[half] += __shfl_xor_sync(ALL_LANES, total[half], 2);
    }
  }
};

// Scores of keys that a row does not see become -inf: key `first + i` is seen where it lies below the row's bound.
template <int N>
__device__ __forceinline__ void hide(float (&scores)[N][4], int first, const int (&bound)[2]) {
  const int at = first + (threadIdx.x % 4) * 2;
#pragma unroll
  for (int j = 0; j < N; j++)
#pragma unroll
    for (int i = 0; i < 4; i++)
#ifdef FAULT_ATTENTION_MASK
      if (at + j * 8 + i % 2 > bound[i / 2]) scores[j][i] = -INFINITY;
#else
      if (at + j * 8 + i % 2 >= bound[i / 2]) scores[j][i] = -INFINITY;
#endif
}

// What a warp holds of a tile of columns.
template <int E>
struct Rows {
  float sums[E / 8][4];
  Softmax softmax;
};

// A row that no sequence covers.
__device__ __forceinline__ void zero_rows(const Forward& a, int first, int rows, int kv_head) {
  const int columns = a.per * a.width;
  for (int i = threadIdx.x; i < rows * columns; i += THREADS)
    a.out[size_t(first + i / columns) * a.out_stride + kv_head * columns + i % columns] = {0};
  for (int i = threadIdx.x; i < rows * a.per; i += THREADS)
    a.lse[size_t(first + i / a.per) * a.heads + kv_head * a.per + i % a.per] = 0.f;
}

// A finished tile: divides, and writes rows and log-sum-exps.
template <int E>
__device__ __forceinline__ void write_rows(const Forward& a, Rows<E>& rows, const Columns& columns, int kv_head,
                                           bf16* tile) {
  const int row = threadIdx.x / WARP * 16 + threadIdx.x % WARP / 4;
  stage_rows<E>(tile, rows.sums, 1.f / rows.softmax.total[0], 1.f / rows.softmax.total[1]);
  const Window out = window(a.out, a.out_stride, kv_head * a.per, a.width);
  store_rows<E>(tile, a.width, out.vector, [&](int column) {
    return column < columns.count ? const_cast<bf16*>(out.p) + columns.at(out, column) : nullptr;
  });
  if (threadIdx.x % 4 != 0) return;
#pragma unroll
  for (int half = 0; half < 2; half++) {
    const int column = row + 8 * half;
    if (column >= columns.count) continue;
    const float from = rows.softmax.most[half] * a.scale * LN_2;
    a.lse[size_t(columns.row_of(column)) * a.heads + kv_head * a.per + columns.head_of(column)] =
        from + logf(rows.softmax.total[half]);
  }
}

// A part of a lone query: its sums as they are, with maximum and total.
template <int E>
__device__ __forceinline__ void write_part(const Forward& a, const Rows<E>& rows, const Columns& columns, int kv_head,
                                           size_t part) {
  const int lane = threadIdx.x % WARP;
#pragma unroll
  for (int half = 0; half < 2; half++) {
    const int column = threadIdx.x / WARP * 16 + lane / 4 + 8 * half;
    if (column >= columns.count) continue;
    const size_t at = part * a.heads + kv_head * a.per + columns.head_of(column);
#pragma unroll
    for (int j = 0; j < E / 8; j++)
#pragma unroll
      for (int i = 0; i < 2; i++) {
        const int c = j * 8 + lane % 4 * 2 + i;
        if (c < a.width) a.part_sums[at * a.width + c] = rows.sums[j][2 * half + i];
      }
    if (lane % 4 == 0) {
      a.part_bounds[2 * at] = rows.softmax.most[half] * a.scale;
      a.part_bounds[2 * at + 1] = rows.softmax.total[half];
    }
  }
}

// One entry of the table. Shared memory: a tile of Q, then two stages of K and of V.
template <int E>
__device__ __forceinline__ void forward_tile(const Forward& a, const int4 entry, int kv_head, bf16* shared) {
  constexpr int SIZE = TILE * E;
  bf16 *const q_tile = shared, *const k_tiles = shared + SIZE, *const v_tiles = shared + 3 * SIZE;
  const Sequence s = a.sequences[entry.x];
  const Columns columns(s, entry.y, TILE, a.per);
  const Window q = window(a.q, a.q_stride, kv_head * a.per, a.width);
  const Window k = window(a.k, a.k_stride, kv_head, a.width), v = window(a.v, a.v_stride, kv_head, a.width);
  const Keys keys(s, int(a.limits[columns.row_of(columns.count - 1)]), TILE);
  const int tiles = keys.tiles(TILE);
  const int begin = tiles * entry.z / entry.w, end = tiles * (entry.z + 1) / entry.w;
  load_columns<TILE, E>(q_tile, q, columns);
  if (begin < end) {
    const Keys::Tile t = keys.tile(begin, TILE);
    load_rows<TILE, E>(k_tiles, k, t.row, t.count);
    load_rows<TILE, E>(v_tiles, v, t.row, t.count);
  }
  ptx::cp_async_commit();

  const int lane = threadIdx.x % WARP, first_row = threadIdx.x / WARP * 16;
  const bool busy = first_row < columns.count;
  int limits[2];  // of the lane's rows; missing columns are as the last
#pragma unroll
  for (int half = 0; half < 2; half++) {
    const int column = first_row + lane / 4 + 8 * half;
    limits[half] = int(a.limits[columns.row_of(column < columns.count ? column : columns.count - 1)]);
  }
  const int least = __shfl_sync(ALL_LANES, limits[0], 0);
  Rows<E> rows;
  clear(rows.sums);
  uint32_t left[E / 16][4];
  for (int i = begin; i < end; i++) {
    const int stage = (i - begin) % 2;
#ifndef FAULT_ATTENTION_WAIT
    ptx::cp_async_wait<0>();
#endif
#ifndef FAULT_ATTENTION_BARRIER
    __syncthreads();
#endif
    if (i + 1 < end) {
      const Keys::Tile next = keys.tile(i + 1, TILE);
      load_rows<TILE, E>(k_tiles + (stage ^ 1) * SIZE, k, next.row, next.count);
      load_rows<TILE, E>(v_tiles + (stage ^ 1) * SIZE, v, next.row, next.count);
    }
    ptx::cp_async_commit();
    if (!busy) continue;
    if (i == begin) {
#pragma unroll
      for (int step = 0; step < E / 16; step++)
        ptx::ldmatrix_x4(left[step], q_tile + Shared<E>::at(first_row + lane % 16, step * 2 + lane / 16));
    }
    float scores[TILE / 8][4];
    clear(scores);
#pragma unroll
    for (int step = 0; step < E / 16; step++)
      product_step<TILE, E>(scores, left[step], k_tiles + stage * SIZE, right_lane<E>(), step);
    const Keys::Tile t = keys.tile(i, TILE);
    if (t.first + TILE > (t.is_own ? least : keys.prefix_len)) {
      const int bound[2] = {t.is_own ? limits[0] : keys.prefix_len, t.is_own ? limits[1] : keys.prefix_len};
      hide(scores, t.first, bound);
    }
    const float2 shrink = rows.softmax.step(scores, a.scale);
#pragma unroll
    for (int j = 0; j < E / 8; j++) {
      rows.sums[j][0] *= shrink.x;
      rows.sums[j][1] *= shrink.x;
      rows.sums[j][2] *= shrink.y;
      rows.sums[j][3] *= shrink.y;
    }
    product_columns<TILE, E>(rows.sums, scores, v_tiles + stage * SIZE);
  }
  ptx::cp_async_wait<0>();
  if (!busy) return;
  rows.softmax.finish();
  if (entry.w == 1) write_rows<E>(a, rows, columns, kv_head, q_tile);
  else write_part<E>(a, rows, columns, kv_head, size_t(entry.x) * MAX_SPLITS + entry.z);
}

template <int E>
__device__ __forceinline__ void forward(const Forward& a, unsigned char* shared) {
  const int tiles = a.table[0].x;
  for (int t = blockIdx.x; t < tiles; t += gridDim.x) {
    const int4 entry = a.table[1 + t];
    if (entry.x < 0) zero_rows(a, entry.y, entry.z, blockIdx.y);
    else forward_tile<E>(a, entry, blockIdx.y, reinterpret_cast<bf16*>(shared));
    __syncthreads();
  }
}

}  // namespace attention

// Grid 1, block 256. `starts` int2 [num_sequences + 2], `table` as attention_tiles.cuh says.
extern "C" __global__ void __launch_bounds__(attention::PLAN_THREADS)
    attention_plan(const attention::Sequence* sequences, const uint32_t* groups, const uint32_t* limits,
                   int num_sequences, int num_groups, int q_rows, int per, int2* starts, int4* table) {
  const attention::Routing r = {sequences, groups, limits, num_sequences, num_groups, q_rows, per, true};
  attention::make_table<attention::QUERIES>(r, starts, table);
}
ENTRY(attention_plan)

// Grid (any number of blocks, key/value heads), block 128, shared 5 · 64 · E · 2 bytes.
#define ATTENTION_FORWARD(E, BLOCKS)                                                                                  \
  extern "C" __global__ void __launch_bounds__(attention::THREADS, BLOCKS) attention_forward_e##E(                    \
      const bf16* q, const bf16* k, const bf16* v, bf16* out, float* lse, const attention::Sequence* sequences,       \
      const uint32_t* limits, const int4* table, float* part_sums, float* part_bounds, unsigned q_stride,             \
      unsigned k_stride, unsigned v_stride, unsigned out_stride, int heads, int per, int width, float scale) {        \
    DYNAMIC_SHARED(shared);                                                                                           \
    const attention::Forward a = {q,         k,           v,        out,      lse,      sequences,  limits, table,    \
                                  part_sums, part_bounds, q_stride, k_stride, v_stride, out_stride, heads,  per,      \
                                  width,     scale * attention::LOG2_E};                                              \
    attention::forward<E>(a, shared);                                                                                 \
  }                                                                                                                   \
  ENTRY(attention_forward_e##E)

ATTENTION_FORWARD(16, 4)
#ifndef ATTENTION_FAULTY
ATTENTION_FORWARD(32, 4)
ATTENTION_FORWARD(64, 3)
ATTENTION_FORWARD(80, 2)
ATTENTION_FORWARD(96, 2)
ATTENTION_FORWARD(128, 2)
#endif
#undef ATTENTION_FORWARD

// Grid (sequences, heads in fours), block 128: a warp finishes one head of one lone query whose keys were split.
extern "C" __global__ void __launch_bounds__(attention::THREADS)
    attention_combine(bf16* out, float* lse, const attention::Sequence* sequences, const uint32_t* limits,
                      const float* part_sums, const float* part_bounds, unsigned out_stride, int heads, int width) {
  using namespace attention;
  const Sequence s = sequences[blockIdx.x];
  const int head = blockIdx.y * (THREADS / WARP) + threadIdx.x / WARP, lane = threadIdx.x % WARP;
  if (s.q_len != 1 || head >= heads) return;
  const int splits = splits_of(lone_tiles(s, limits));
  if (splits == 1) return;
  const size_t first = size_t(blockIdx.x) * MAX_SPLITS * heads + head;
  float most = -INFINITY;
  for (int i = 0; i < splits; i++) most = fmaxf(most, part_bounds[2 * (first + size_t(i) * heads)]);
  float total = 0.f;
  for (int i = 0; i < splits; i++) {
    const float* bounds = part_bounds + 2 * (first + size_t(i) * heads);
    total += ptx::ex2(bounds[0] - most) * bounds[1];
  }
  for (int c = lane; c < width; c += WARP) {
    float sum = 0.f;
    for (int i = 0; i < splits; i++) {
      const size_t part = first + size_t(i) * heads;
#ifdef FAULT_ATTENTION_COMBINE
      sum += part_sums[part * width + c];
#else
      sum += ptx::ex2(part_bounds[2 * part] - most) * part_sums[part * width + c];
#endif
    }
    out[size_t(s.q_start) * out_stride + size_t(head) * width + c] = to_bf16(sum / total);
  }
  if (lane == 0) lse[size_t(s.q_start) * heads + head] = most * LN_2 + logf(total);
}
ENTRY(attention_combine)
