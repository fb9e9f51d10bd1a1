// What forward and backward of attention share: rows in shared memory, and products of tiles on tensor cores.
// Start at `Shared` (how a row lies), then `product_rows` and `product_columns` (the only two products).
//
// Letters: `e` head width, `E` the same rounded up to a size that is compiled, `g` key/value heads,
// `per` query heads of a key/value head. A *column* is a (query row, head) pair of one key/value head,
// numbered `row * per + head` from the sequence's first row: a tile of columns shares every key it reads.
#pragma once
#include "common.cuh"

// A build with a seeded fault, for the tests of the tests, has the narrowest width alone: it compiles in a moment.
#if defined(FAULT_ATTENTION_RAGGED) || defined(FAULT_ATTENTION_MASK) || defined(FAULT_ATTENTION_BARRIER) || \
    defined(FAULT_ATTENTION_WAIT) || defined(FAULT_ATTENTION_COMBINE) || defined(FAULT_ATTENTION_SUFFIX)
#define ATTENTION_FAULTY
#endif

namespace attention {

constexpr int THREADS = 128;    // a block: four warps of 16 rows
constexpr int TILE = 64;        // columns of a query tile, keys of a key tile
constexpr int MAX_SPLITS = 8;   // parts of the keys of a lone query
constexpr int SPLIT_TILES = 4;  // key tiles that are worth a part
constexpr float LOG2_E = 1.4426950408889634f;
constexpr float LN_2 = 0.6931471805599453f;

// `Sequence` of src/attention/mod.rs.
struct Sequence {
  uint32_t q_start, q_len, k_start, k_len, p_start, p_len;
};

// One head of rows in global memory: row `i` begins at `p + i * stride`.
struct Window {
  const bf16* p;
  unsigned stride;
  int width;
  bool vector;  // every row allows 16-byte accesses
};

__device__ __forceinline__ Window window(const bf16* p, unsigned stride, int head, int width) {
  return {p + size_t(head) * width, stride, width, aligned16(p, stride) && width % 8 == 0};
}

// The tiles that `length` rows need.
__device__ __forceinline__ int tiles_of(int length) { return (length + TILE - 1) / TILE; }

// Into how many parts `tiles` key tiles of a lone query are cut: a function of the sequence alone.
__device__ __forceinline__ int splits_of(int tiles) {
  const int splits = (tiles + SPLIT_TILES - 1) / SPLIT_TILES;
  return splits < 1 ? 1 : splits > MAX_SPLITS ? MAX_SPLITS : splits;
}

// Columns of one sequence and key/value head, from some column on.
struct Columns {
  int row;      // query row of column 0
  int head;     // its head, counted within the key/value head
  int per;      // heads of a row
  int inverse;  // 2^16 / per, rounded up
  int count;    // columns that exist, at most TILE

  __device__ __forceinline__ Columns(const Sequence& s, int first, int most, int per)
      : row(int(s.q_start) + first / per), head(first % per), per(per), inverse((65536 + per - 1) / per) {
    const int left = int(s.q_len) * per - first;
    count = left < most ? left : most;
  }
  // Rows after `row`; exact because (TILE + per) * per < 2^16, which the host checks.
  __device__ __forceinline__ int rows_on(int column) const { return ((head + column) * inverse) >> 16; }
  __device__ __forceinline__ int row_of(int column) const { return row + rows_on(column); }
  __device__ __forceinline__ int head_of(int column) const { return head + column - rows_on(column) * per; }
  // Element of the window whose head 0 is the first of this key/value head.
  __device__ __forceinline__ size_t at(const Window& w, int column) const {
    return size_t(unsigned(row_of(column))) * w.stride + unsigned(head_of(column) * w.width);
  }
};

// A tile `[rows][E]` in shared memory, in chunks of eight elements. Chunk `c` of row `r` lies where chunk `c ^ x` of
// the row would, `x` from `r`, so that the same chunk of eight neighbouring rows fills all 32 banks once (ldmatrix).
template <int E>
struct Shared {
  static_assert(E % 16 == 0, "a product takes 16 elements at a time");
  static constexpr int CHUNKS = E / 8;
  static constexpr int SPREAD = CHUNKS % 8 == 0 ? 8 : CHUNKS % 4 == 0 ? 4 : 2;

  __device__ static __forceinline__ int at(int row, int chunk) {
    return (row * CHUNKS + (chunk ^ ((row / (8 / SPREAD)) & (SPREAD - 1)))) * 8;
  }
  // `at(row + rows, chunk + chunks)` from `at(row, chunk)`, for `chunk` 0 or 1, even `chunks` and `rows` in eights:
  // one operation with constants, where the products below would compute a whole address for every ldmatrix.
  __device__ static __forceinline__ int moved(int at, int rows, int chunks) {
    return (at ^ ((chunks & (SPREAD - 1)) * 8)) + (chunks & ~(SPREAD - 1)) * 8 + rows * E;
  }
};

// A chunk of up to eight elements (`n <= 0`: none) by elements, filled up with zeros.
__device__ __forceinline__ void load_elements(bf16* to, const bf16* from, int n) {
  uint32_t pairs[4];
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const uint32_t low = 2 * i < n ? from[2 * i].bits : 0u, high = 2 * i + 1 < n ? from[2 * i + 1].bits : 0u;
    pairs[i] = low | high << 16;
  }
  st16(to, make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]));
}

// Begins to copy N rows into a tile: row `i` lies at element `at(i)` of the window, those from `count > 0` on become
// zero. Rows that allow no 16-byte access take the second loop.
template <int N, int E, class At>
__device__ __forceinline__ void load_tile(bf16* tile, const Window& w, int count, At at) {
  constexpr int CHUNKS = Shared<E>::CHUNKS;
#ifdef FAULT_ATTENTION_RAGGED
  count = N;
#endif
  if (w.vector) {
#pragma unroll
    for (int step = 0; step < (N * CHUNKS + THREADS - 1) / THREADS; step++) {
      const int i = step * THREADS + threadIdx.x, row = i / CHUNKS, chunk = i % CHUNKS;
      if (N * CHUNKS % THREADS != 0 && i >= N * CHUNKS) break;
      const bool there = row < count && chunk * 8 < w.width;
      // A copy that reads nothing still names a valid address: that of row 0, which is always there.
      ptx::cp_async16(tile + Shared<E>::at(row, chunk), w.p + at(there ? row : 0) + (there ? chunk * 8 : 0), there);
    }
    return;
  }
#pragma unroll 1
  for (int i = threadIdx.x; i < N * CHUNKS; i += THREADS) {
    const int row = i / CHUNKS, chunk = i % CHUNKS;
    const int n = row < count ? w.width - chunk * 8 : 0;
    load_elements(tile + Shared<E>::at(row, chunk), w.p + at(row) + chunk * 8, n);
  }
}

// The rows from `first` on.
template <int N, int E>
__device__ __forceinline__ void load_rows(bf16* tile, const Window& w, int first, int count) {
  const Window from = {w.p + size_t(first) * w.stride, w.stride, w.width, w.vector};
  load_tile<N, E>(tile, from, count, [&](int row) { return size_t(unsigned(row)) * w.stride; });
}

// Columns.
template <int N, int E>
__device__ __forceinline__ void load_columns(bf16* tile, const Window& w, const Columns& columns) {
  load_tile<N, E>(tile, w, columns.count, [&](int column) { return columns.at(w, column); });
}

// Copies one chunk of a row out.
__device__ __forceinline__ void store_chunk(bf16* to, const bf16* from, int n, bool vector) {
  if (vector && n > 0) {
    st16(to, ld16(from));
    return;
  }
#pragma unroll
  for (int i = 0; i < 8; i++)
    if (i < n) to[i] = from[i];
}

// A warp's sixteen rows of a tile, from `row` on, to global memory: `to(row)` is where, null for nowhere.
template <int E, class To>
__device__ __forceinline__ void store_rows(const bf16* tile, int width, bool vector, To to) {
  constexpr int CHUNKS = Shared<E>::CHUNKS;
  const int begin = threadIdx.x / WARP * 16;
#pragma unroll
  for (int step = 0; step < 16 * CHUNKS / WARP; step++) {
    const int i = step * WARP + threadIdx.x % WARP, row = begin + i / CHUNKS, chunk = i % CHUNKS;
    bf16* p = to(row);
    if (p) store_chunk(p + chunk * 8, tile + Shared<E>::at(row, chunk), width - chunk * 8, vector);
  }
}

// A warp's sixteen rows of results as bf16, times `low` (rows 0-7) and `high` (8-15), into rows of a tile
// that no other warp reads or writes.
template <int E>
__device__ __forceinline__ void stage_rows(bf16* tile, const float (&x)[E / 8][4], float low, float high) {
  const int lane = threadIdx.x % WARP, row = threadIdx.x / WARP * 16 + lane / 4;
  __syncwarp();
#pragma unroll
  for (int j = 0; j < E / 8; j++) {
    const int at = (lane % 4) * 2;
    *reinterpret_cast<uint32_t*>(tile + Shared<E>::at(row, j) + at) = ptx::pack_bf16(x[j][0] * low, x[j][1] * low);
    *reinterpret_cast<uint32_t*>(tile + Shared<E>::at(row + 8, j) + at) =
        ptx::pack_bf16(x[j][2] * high, x[j][3] * high);
  }
  __syncwarp();
}

template <int N>
__device__ __forceinline__ void clear(float (&x)[N][4]) {
#pragma unroll
  for (int i = 0; i < N; i++)
#pragma unroll
    for (int j = 0; j < 4; j++) x[i][j] = 0.f;
}

// sums[16, N] += a[16, 16] · b[N, step's 16 elements]ᵀ; `right_at` is the lane's place in rows 0-15 of `b`.
template <int N, int E>
__device__ __forceinline__ void product_step(float (&sums)[N / 8][4], const uint32_t (&a)[4], const bf16* b,
                                             int right_at, int step) {
#pragma unroll
  for (int j = 0; j < N / 16; j++) {
    uint32_t right[4];
    ptx::ldmatrix_x4(right, b + Shared<E>::moved(right_at, j * 16, step * 2));
    ptx::mma_bf16_16816(sums[2 * j], a, right[0], right[1]);
    ptx::mma_bf16_16816(sums[2 * j + 1], a, right[2], right[3]);
  }
}

template <int E>
__device__ __forceinline__ int right_lane() {
  const int lane = threadIdx.x % WARP;
  return Shared<E>::at(lane % 8 + lane / 16 * 8, lane / 8 % 2);
}

// sums[16, N] = a[rows row..row+16, E] · b[N, E]ᵀ: one warp.
template <int N, int E>
__device__ __forceinline__ void product_rows(float (&sums)[N / 8][4], const bf16* a, int row, const bf16* b) {
  const int lane = threadIdx.x % WARP, left_at = Shared<E>::at(row + lane % 16, lane / 16);
  clear(sums);
#pragma unroll
  for (int step = 0; step < E / 16; step++) {
    uint32_t left[4];
    ptx::ldmatrix_x4(left, a + Shared<E>::moved(left_at, 0, step * 2));
    product_step<N, E>(sums, left, b, right_lane<E>(), step);
  }
}

// sums[16, E] += x[16, N] · b[N, E], `x` rounded to bf16: one warp. The lanes hold of a product's result just what
// they need of a left operand.
template <int N, int E>
__device__ __forceinline__ void product_columns(float (&sums)[E / 8][4], const float (&x)[N / 8][4], const bf16* b) {
  const int lane = threadIdx.x % WARP, right_at = Shared<E>::at(lane % 16, lane / 16);
#pragma unroll
  for (int step = 0; step < N / 16; step++) {
    const uint32_t left[4] = {
        ptx::pack_bf16(x[2 * step][0], x[2 * step][1]), ptx::pack_bf16(x[2 * step][2], x[2 * step][3]),
        ptx::pack_bf16(x[2 * step + 1][0], x[2 * step + 1][1]), ptx::pack_bf16(x[2 * step + 1][2], x[2 * step + 1][3])};
#pragma unroll
    for (int j = 0; j < E / 16; j++) {
      uint32_t right[4];
      ptx::ldmatrix_x4_trans(right, b + Shared<E>::moved(right_at, step * 16, j * 2));
      ptx::mma_bf16_16816(sums[2 * j], left, right[0], right[1]);
      ptx::mma_bf16_16816(sums[2 * j + 1], left, right[2], right[3]);
    }
  }
}

// The keys that a query tile sees, in tiles: those of the prefix, then the own ones up to the last that is seen.
// Tiles count from the first key of prefix and own keys, so nothing depends on where the rows lie.
struct Keys {
  int prefix, prefix_len, prefix_tiles, own, own_len;

  // Some keys at once.
  struct Tile {
    int row;    // first key row
    int first;  // its index within the prefix or the own keys
    int count;  // keys, at most the size asked for
    bool is_own;
  };

  __device__ __forceinline__ Keys(const Sequence& s, int own_len, int size)
      : prefix(int(s.p_start)), prefix_len(int(s.p_len)), prefix_tiles((int(s.p_len) + size - 1) / size),
        own(int(s.k_start)), own_len(own_len) {}
  __device__ __forceinline__ int tiles(int size) const { return prefix_tiles + (own_len + size - 1) / size; }
  __device__ __forceinline__ Tile tile(int i, int size) const {
    const bool is_own = i >= prefix_tiles;
    const int first = (is_own ? i - prefix_tiles : i) * size, left = (is_own ? own_len : prefix_len) - first;
    return {(is_own ? own : prefix) + first, first, left < size ? left : size, is_own};
  }
};

}  // namespace attention
