// Attention backward: `dQ`, `dK`, `dV` from `dO`, with the scores recomputed from the log-sum-exp (the contract:
// src/attention/mod.rs). No atomics: one block owns a tile of queries, another a tile of keys, and each adds in the
// order of sequences and tiles, so the bits of a group do not depend on what else is there.
//
// attention_backward_plan  block 0: the table of query tiles, block 1: of key tiles; the others for each (row, head)
//                          pair the log-sum-exp in base 2 and `D = Σ dO · O`
// attention_dq             64 columns, all keys they see:    S = Q Kᵀ, P = 2^(S - lse), dS = P (dO Vᵀ - D), dQ += dS K
// attention_dkv            64 keys, all columns that see them: Sᵀ = K Qᵀ, ..., dV += Pᵀ dO, dK += dSᵀ Q
//
// The scores are recomputed twice (7 products instead of the 5 of a kernel that adds dQ by atomics).
// Never run on a GPU; proved on the emulator (tests/gpu/attention.rs), compiled for sm_80 and sm_90.
#include "attention_tiles.cuh"

namespace attention {

struct Backward {
  const bf16 *q, *k, *v, *dout;
  const float2* numbers;  // of a (row, head) pair: log-sum-exp in base 2, D
  const Sequence* sequences;
  const uint32_t* limits;
  const int4* table;
  unsigned q_stride, k_stride, v_stride, dout_stride;
  int heads, per, width;
  float scale;
};

// The numbers of all (row, head) pairs, eight lanes each.
__device__ __forceinline__ void write_numbers(const bf16* out, const bf16* dout, const float* lse, float2* numbers,
                                              unsigned out_stride, unsigned dout_stride, int q_rows, int heads,
                                              int width) {
  const bool vector = aligned16(out, out_stride) && aligned16(dout, dout_stride) && width % 8 == 0;
  const int pairs = q_rows * heads, at_once = PLAN_THREADS / 8, lane = threadIdx.x % 8;
  for (int base = (blockIdx.x - 2) * at_once; base < pairs; base += (gridDim.x - 2) * at_once) {
    const int pair = base + threadIdx.x / 8;
    float sum = 0.f;
    if (pair < pairs) {
      const size_t row = pair / heads, column = size_t(pair % heads) * width;
      for (int c = lane * 8; c < width; c += 64) {
        float x[8], y[8];
        load8(x, out + row * out_stride + column + c, width - c, vector);
        load8(y, dout + row * dout_stride + column + c, width - c, vector);
#pragma unroll
        for (int i = 0; i < 8; i++) sum += x[i] * y[i];
      }
    }
#pragma unroll
    for (int step = 4; step > 0; step /= 2) sum += __shfl_xor_sync(ALL_LANES, sum, step);
    if (pair < pairs && lane == 0) numbers[pair] = make_float2(lse[pair] * LOG2_E, sum);
  }
}

// dQ of one tile of columns. Shared memory: tiles of Q and dO, then two stages of K and of V, N keys each.
template <int E, int N>
__device__ __forceinline__ void dq_tile(const Backward& a, bf16* dq, unsigned dq_stride, const int4 entry, int kv_head,
                                        bf16* shared) {
  constexpr int SIZE = N * E;
  bf16 *const q_tile = shared, *const dout_tile = q_tile + TILE * E;
  bf16 *const k_tiles = dout_tile + TILE * E, *const v_tiles = k_tiles + 2 * SIZE;
  const Sequence s = a.sequences[entry.x];
  const Columns columns(s, entry.y, TILE, a.per);
  const int head = kv_head * a.per;
  const Window k = window(a.k, a.k_stride, kv_head, a.width), v = window(a.v, a.v_stride, kv_head, a.width);
  const Keys keys(s, int(a.limits[columns.row_of(columns.count - 1)]), N);
  const int tiles = keys.tiles(N);
  load_columns<TILE, E>(q_tile, window(a.q, a.q_stride, head, a.width), columns);
  load_columns<TILE, E>(dout_tile, window(a.dout, a.dout_stride, head, a.width), columns);
  if (tiles > 0) {
    const Keys::Tile t = keys.tile(0, N);
    load_rows<N, E>(k_tiles, k, t.row, t.count);
    load_rows<N, E>(v_tiles, v, t.row, t.count);
  }
  ptx::cp_async_commit();

  const int lane = threadIdx.x % WARP, first_row = threadIdx.x / WARP * 16;
  const bool busy = first_row < columns.count;
  int limits[2];  // of the lane's rows; missing columns are as the last
  float2 numbers[2];
#pragma unroll
  for (int half = 0; half < 2; half++) {
    const int column = first_row + lane / 4 + 8 * half;
    const int at = column < columns.count ? column : columns.count - 1, row = columns.row_of(at);
    limits[half] = int(a.limits[row]);
    numbers[half] = a.numbers[size_t(row) * a.heads + head + columns.head_of(at)];
  }
  const int least = __shfl_sync(ALL_LANES, limits[0], 0);
  float sums[E / 8][4];
  clear(sums);
  for (int i = 0; i < tiles; i++) {
    const int stage = i % 2;
    ptx::cp_async_wait<0>();
    __syncthreads();
    if (i + 1 < tiles) {
      const Keys::Tile next = keys.tile(i + 1, N);
      load_rows<N, E>(k_tiles + (stage ^ 1) * SIZE, k, next.row, next.count);
      load_rows<N, E>(v_tiles + (stage ^ 1) * SIZE, v, next.row, next.count);
    }
    ptx::cp_async_commit();
    if (!busy) continue;
    float p[N / 8][4], dp[N / 8][4];
    product_rows<N, E>(p, q_tile, first_row, k_tiles + stage * SIZE);
    product_rows<N, E>(dp, dout_tile, first_row, v_tiles + stage * SIZE);
    const Keys::Tile t = keys.tile(i, N);
    const int bound[2] = {t.is_own ? limits[0] : keys.prefix_len, t.is_own ? limits[1] : keys.prefix_len};
#pragma unroll
    for (int j = 0; j < N / 8; j++)
#pragma unroll
      for (int c = 0; c < 4; c++)
        dp[j][c] = ptx::ex2(p[j][c] * (a.scale * LOG2_E) - numbers[c / 2].x) * (dp[j][c] - numbers[c / 2].y);
    if (t.first + N > (t.is_own ? least : keys.prefix_len)) {
      const int at = t.first + lane % 4 * 2;
#pragma unroll
      for (int j = 0; j < N / 8; j++)
#pragma unroll
        for (int c = 0; c < 4; c++)
          if (at + j * 8 + c % 2 >= bound[c / 2]) dp[j][c] = 0.f;
    }
    product_columns<N, E>(sums, dp, k_tiles + stage * SIZE);
  }
  ptx::cp_async_wait<0>();
  if (!busy) return;
  stage_rows<E>(q_tile, sums, a.scale, a.scale);
  const Window to = window(dq, dq_stride, head, a.width);
  store_rows<E>(q_tile, a.width, to.vector, [&](int column) {
    return column < columns.count ? dq + size_t(head) * a.width + columns.at(to, column) : nullptr;
  });
}

template <int E, int N>
__device__ __forceinline__ void query_gradients(const Backward& a, bf16* dq, unsigned dq_stride,
                                                unsigned char* shared) {
  const int tiles = a.table[0].x, kv_head = blockIdx.y, row_width = a.per * a.width;
  for (int t = blockIdx.x; t < tiles; t += gridDim.x) {
    const int4 entry = a.table[1 + t];
    if (entry.x < 0) {  // rows that no sequence covers
      for (int i = threadIdx.x; i < entry.z * row_width; i += THREADS)
        dq[size_t(entry.y + i / row_width) * dq_stride + kv_head * row_width + i % row_width] = {0};
    } else {
      dq_tile<E, N>(a, dq, dq_stride, entry, kv_head, reinterpret_cast<bf16*>(shared));
    }
    __syncthreads();
  }
}

// Walks over the tiles of columns that see some keys, in the order of the sequences. The whole warp calls it, and
// all warps get the same.
struct Viewers {
  const Sequence* sequences;
  const uint32_t* limits;
  int row, keys;  // the keys
  int per, size;  // heads of a key/value head, columns of a tile
  int base, end;  // sequences under examination: 32 from `base` on
  unsigned seeing = 0;

  // The current tile: columns from `first` on of `s`; key `i` has index `offset + i` among `s`'s prefix or own keys.
  Sequence s = {};
  int first = 0, offset = 0;
  bool is_own = false;

  __device__ __forceinline__ Viewers(const Backward& a, const int4 entry, int size)
      : sequences(a.sequences), limits(a.limits), row(entry.x), keys(entry.y), per(a.per), size(size),
        base(entry.z - WARP), end(entry.w) {}

  __device__ __forceinline__ bool meets(uint32_t start, uint32_t length) const {
    return int(start) < row + keys && row < int(start + length);
  }

  // The first tile whose last column sees the first of the keys: limits do not decrease.
  __device__ __forceinline__ int first_tile() const {
    const int columns = int(s.q_len) * per, tiles = (columns + size - 1) / size;
    if (!is_own) return 0;
    for (int at = 0; at < tiles; at += WARP) {
      const int tile = at + threadIdx.x % WARP, last = min((tile + 1) * size, columns) - 1;
      const bool blind = tile < tiles && int(limits[s.q_start + last / per]) <= offset;
      const unsigned blinds = __ballot_sync(ALL_LANES, blind);
      if (blinds != ALL_LANES) return at + __popc(blinds);
    }
    return tiles;
  }

  // Moves to the next tile; false at the end.
  __device__ __forceinline__ bool next() {
    first += size;
    while (first >= int(s.q_len) * per) {
      while (seeing == 0) {
        base += WARP;
        if (base >= end) return false;
        const int i = base + threadIdx.x % WARP;
        bool sees = false;
        if (i < end) {
          const Sequence x = sequences[i];
          sees = x.q_len > 0 && (meets(x.k_start, x.k_len) || meets(x.p_start, x.p_len));
        }
        seeing = __ballot_sync(ALL_LANES, sees);
      }
      s = sequences[base + __ffs(int(seeing)) - 1];
#ifdef FAULT_ATTENTION_SUFFIX
      seeing = 0;
#else
      seeing &= seeing - 1;
#endif
      is_own = meets(s.k_start, s.k_len);
      offset = row - int(is_own ? s.k_start : s.p_start);
      first = first_tile() * size;
    }
    return true;
  }
};

// What columns bring besides their rows of Q and dO, in shared memory.
template <int N>
struct Numbers {
  float lse[N], delta[N];  // as Backward::numbers, apart: a lane holds only those that it needs next
  int bound[N];            // keys that the column sees, of the prefix or of the own keys
};

// The numbers of an even column and the next.
__device__ __forceinline__ float2 two(const float* x, int column) {
  return *reinterpret_cast<const float2*>(x + column);
}

// Begins to copy a tile of columns. Missing columns become zero, and with dO and Q so does what they add.
template <int E, int N>
__device__ __forceinline__ void load_viewers(const Backward& a, const Viewers& at, int kv_head, bf16* q_tile,
                                             bf16* dout_tile, Numbers<N>& numbers) {
  const int head = kv_head * a.per, column = threadIdx.x;
  const Columns columns(at.s, at.first, N, a.per);
  load_columns<N, E>(q_tile, window(a.q, a.q_stride, head, a.width), columns);
  load_columns<N, E>(dout_tile, window(a.dout, a.dout_stride, head, a.width), columns);
  if (column >= N) return;
  const bool there = column < columns.count;
  const size_t row = there ? columns.row_of(column) : 0, of_row = there ? head + columns.head_of(column) : 0;
  const float2* pair = a.numbers + row * a.heads + of_row;
  ptx::cp_async4(&numbers.lse[column], &pair->x, there);
  ptx::cp_async4(&numbers.delta[column], &pair->y, there);
  if (at.is_own) ptx::cp_async4(&numbers.bound[column], a.limits + row, there);
  else numbers.bound[column] = int(at.s.p_len);
}

// One warp's sixteen keys against a tile of columns.
template <int E, int N>
__device__ __forceinline__ void add_viewers(const Backward& a, float (&dk)[E / 8][4], float (&dv)[E / 8][4],
                                            const bf16* k_tile, const bf16* v_tile, const bf16* q_tile,
                                            const bf16* dout_tile, const Numbers<N>& numbers, int offset) {
  const int lane = threadIdx.x % WARP, first_key = threadIdx.x / WARP * 16;
  float p[N / 8][4], dp[N / 8][4];
  product_rows<N, E>(p, k_tile, first_key, q_tile);
#pragma unroll
  for (int j = 0; j < N / 8; j++) {
    const float2 lse = two(numbers.lse, j * 8 + lane % 4 * 2);
#pragma unroll
    for (int i = 0; i < 4; i++) p[j][i] = ptx::ex2(p[j][i] * (a.scale * LOG2_E) - (i % 2 ? lse.y : lse.x));
  }
  if (offset < 0 || offset + TILE > numbers.bound[0]) {
    const int first = offset + first_key + lane / 4;
#pragma unroll
    for (int j = 0; j < N / 8; j++) {
      const int2 bounds = *reinterpret_cast<const int2*>(numbers.bound + j * 8 + lane % 4 * 2);
#pragma unroll
      for (int i = 0; i < 4; i++)  // unsigned: a key before the prefix is far beyond it
        if (unsigned(first + i / 2 * 8) >= unsigned(i % 2 ? bounds.y : bounds.x)) p[j][i] = 0.f;
    }
  }
  product_columns<N, E>(dv, p, dout_tile);
  product_rows<N, E>(dp, v_tile, first_key, dout_tile);
#pragma unroll
  for (int j = 0; j < N / 8; j++) {
    const float2 delta = two(numbers.delta, j * 8 + lane % 4 * 2);
#pragma unroll
    for (int i = 0; i < 4; i++) p[j][i] *= dp[j][i] - (i % 2 ? delta.y : delta.x);
  }
  product_columns<N, E>(dk, p, q_tile);
}

// dK and dV of one tile of keys. Shared memory: tiles of K and V, two stages of Q and of dO, N columns each, and
// of the columns' numbers.
template <int E, int N>
__device__ __forceinline__ void dkv_tile(const Backward& a, bf16* dk, bf16* dv, unsigned stride, const int4 entry,
                                         int kv_head, bf16* shared) {
  constexpr int SIZE = N * E;
  bf16 *const k_tile = shared, *const v_tile = k_tile + TILE * E;
  bf16 *const q_tiles = v_tile + TILE * E, *const dout_tiles = q_tiles + 2 * SIZE;
  Numbers<N>* const numbers = reinterpret_cast<Numbers<N>*>(dout_tiles + 2 * SIZE);
  load_rows<TILE, E>(k_tile, window(a.k, a.k_stride, kv_head, a.width), entry.x, entry.y);
  load_rows<TILE, E>(v_tile, window(a.v, a.v_stride, kv_head, a.width), entry.x, entry.y);
  Viewers at(a, entry, N);
  bool more = at.next();
  if (more) load_viewers<E, N>(a, at, kv_head, q_tiles, dout_tiles, numbers[0]);
  ptx::cp_async_commit();

  const bool busy = int(threadIdx.x) / WARP * 16 < entry.y;
  float dk_sums[E / 8][4], dv_sums[E / 8][4];
  clear(dk_sums);
  clear(dv_sums);
  for (int stage = 0; more; stage ^= 1) {
    ptx::cp_async_wait<0>();
    __syncthreads();
    const int offset = at.offset;
    more = at.next();
    if (more) {
      const int to = stage ^ 1;
      load_viewers<E, N>(a, at, kv_head, q_tiles + to * SIZE, dout_tiles + to * SIZE, numbers[to]);
    }
    ptx::cp_async_commit();
    if (busy) {
      add_viewers<E, N>(a, dk_sums, dv_sums, k_tile, v_tile, q_tiles + stage * SIZE, dout_tiles + stage * SIZE,
                        numbers[stage], offset);
    }
  }
  ptx::cp_async_wait<0>();
  __syncthreads();  // without a viewer, other warps' copies of K and V may still arrive
  stage_rows<E>(k_tile, dk_sums, a.scale, a.scale);
  stage_rows<E>(v_tile, dv_sums, 1.f, 1.f);
  const Window k = window(dk, stride, kv_head, a.width), v = window(dv, stride, kv_head, a.width);
  const auto row_of = [&](bf16* of) {
    return [=](int row) {
      return row < entry.y ? of + size_t(entry.x + row) * stride + size_t(kv_head) * a.width : nullptr;
    };
  };
  store_rows<E>(k_tile, a.width, k.vector, row_of(dk));
  store_rows<E>(v_tile, a.width, v.vector, row_of(dv));
}

template <int E, int N>
__device__ __forceinline__ void key_gradients(const Backward& a, bf16* dk, bf16* dv, unsigned stride,
                                              unsigned char* shared) {
  const int tiles = a.table[0].x;
  for (int t = blockIdx.x; t < tiles; t += gridDim.x) {
    dkv_tile<E, N>(a, dk, dv, stride, a.table[1 + t], blockIdx.y, reinterpret_cast<bf16*>(shared));
    __syncthreads();
  }
}

}  // namespace attention

// Grid 2 + any number of blocks, block 256. `q_starts`, `k_starts` int2 [num_sequences + 2]; `numbers` [q_rows, heads].
extern "C" __global__ void __launch_bounds__(attention::PLAN_THREADS)
    attention_backward_plan(const attention::Sequence* sequences, const uint32_t* groups, const uint32_t* limits,
                            int num_sequences, int num_groups, int q_rows, int k_rows, int heads, int per, int width,
                            int2* q_starts, int2* k_starts, int4* q_table, int4* k_table, const bf16* out,
                            const bf16* dout, const float* lse, unsigned out_stride, unsigned dout_stride,
                            float2* numbers) {
  using namespace attention;
  const bool queries = blockIdx.x == 0;
  const Routing r = {sequences, groups, limits, num_sequences, num_groups, queries ? q_rows : k_rows, per, false};
  if (queries) make_table<QUERIES>(r, q_starts, q_table);
  else if (blockIdx.x == 1) make_table<attention::KEYS>(r, k_starts, k_table);
  else write_numbers(out, dout, lse, numbers, out_stride, dout_stride, q_rows, heads, width);
}
ENTRY(attention_backward_plan)

#define BACKWARD_PARAMETERS                                                                                           \
  const bf16 *q, const bf16 *k, const bf16 *v, const bf16 *dout, const float2 *numbers,                               \
      const attention::Sequence *sequences, const uint32_t *limits, const int4 *table, unsigned q_stride,             \
      unsigned k_stride, unsigned v_stride, unsigned dout_stride, int heads, int per, int width, float scale
#define BACKWARD_ARGUMENTS                                                                                            \
  {                                                                                                                   \
    q, k, v, dout, numbers, sequences, limits, table, q_stride, k_stride, v_stride, dout_stride, heads, per,       \
        width, scale                                                                                                  \
  }

// Both: grid (any number of blocks, key/value heads), block 128.
// dQ: shared (2 · 64 + 4 · N) · E · 2 bytes; dK, dV: the same and 2 · N · 12 bytes.
#define ATTENTION_BACKWARD(E, N_DQ, N_DKV, BLOCKS)                                                                    \
  extern "C" __global__ void __launch_bounds__(attention::THREADS, BLOCKS)                                            \
      attention_dq_e##E(BACKWARD_PARAMETERS, bf16* dq, unsigned dq_stride) {                                          \
    DYNAMIC_SHARED(shared);                                                                                           \
    const attention::Backward a = BACKWARD_ARGUMENTS;                                                                 \
    attention::query_gradients<E, N_DQ>(a, dq, dq_stride, shared);                                                    \
  }                                                                                                                   \
  ENTRY(attention_dq_e##E)                                                                                            \
  extern "C" __global__ void __launch_bounds__(attention::THREADS, BLOCKS)                                            \
      attention_dkv_e##E(BACKWARD_PARAMETERS, bf16* dk, bf16* dv, unsigned stride) {                                  \
    DYNAMIC_SHARED(shared);                                                                                           \
    const attention::Backward a = BACKWARD_ARGUMENTS;                                                                 \
    attention::key_gradients<E, N_DKV>(a, dk, dv, stride, shared);                                                    \
  }                                                                                                                   \
  ENTRY(attention_dkv_e##E)

ATTENTION_BACKWARD(16, 64, 64, 4)
#ifndef ATTENTION_FAULTY
ATTENTION_BACKWARD(32, 64, 64, 3)
ATTENTION_BACKWARD(64, 64, 64, 2)
ATTENTION_BACKWARD(80, 64, 32, 2)
ATTENTION_BACKWARD(96, 64, 32, 2)
ATTENTION_BACKWARD(128, 32, 32, 2)
#endif
#undef ATTENTION_BACKWARD
#undef BACKWARD_PARAMETERS
#undef BACKWARD_ARGUMENTS
