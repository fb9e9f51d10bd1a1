// The tile tables of attention: which block computes what, made on the device from the sequences, by one block.
//
// Tiles count from the first row of their sequence, so a sequence is cut the same way in any company. Rows that no
// sequence covers form gaps, which have tiles of their own: a kernel that walks the table writes every row once.
//
// A table is `int4 [1 + tiles]`. Entry 0 is (number of tiles, 0, 0, 0). The others, for queries:
//   (sequence, first column, split, splits)   columns of one sequence; its keys' part `split` of `splits`
//   (-1, first row, rows, 0)                  rows of a gap, which become zero
// and for keys: (first row, rows, first sequence, end of sequences), the rows being own keys of the first sequence or
// a gap, and the sequences those that can see them (by their own keys or a prefix).
#pragma once
#include "attention.cuh"

namespace attention {

constexpr int PLAN_THREADS = 256;

// What a table is made from.
struct Routing {
  const Sequence* sequences;
  const uint32_t* groups;
  const uint32_t* limits;
  int num_sequences, num_groups;
  int rows;    // query rows or key rows
  int per;     // heads of a key/value head
  bool split;  // whether lone queries are split
};

enum Kind { QUERIES, KEYS };

template <Kind KIND>
__device__ __forceinline__ int2 rows_of(const Sequence& s) {
  return KIND == QUERIES ? make_int2(int(s.q_start), int(s.q_len)) : make_int2(int(s.k_start), int(s.k_len));
}

// Key tiles of the only query of a sequence.
__device__ __forceinline__ int lone_tiles(const Sequence& s, const uint32_t* limits) {
  return tiles_of(int(s.p_len)) + tiles_of(int(limits[s.q_start]));
}

// Tiles of a sequence's rows and into how many parts each is split: (tiles, splits).
template <Kind KIND>
__device__ __forceinline__ int2 cut(const Routing& r, const Sequence& s) {
  if (KIND == KEYS) return make_int2(tiles_of(int(s.k_len)), 1);
  const int splits = r.split && s.q_len == 1 ? splits_of(lone_tiles(s, r.limits)) : 1;
  return make_int2(tiles_of(int(s.q_len) * r.per), splits);
}

// The gap before sequence `i` (`num_sequences`: behind all) whose last neighbour with rows is `before`: (row, rows).
template <Kind KIND>
__device__ __forceinline__ int2 gap_before(const Routing& r, int i, int before) {
  const int2 last = before < 0 ? make_int2(0, 0) : rows_of<KIND>(r.sequences[before]);
  const int begin = last.x + last.y;
  int end = r.rows;
  if (i < r.num_sequences) {
    const int2 own = rows_of<KIND>(r.sequences[i]);
    end = own.y > 0 ? own.x : begin;
  }
  return make_int2(begin, end > begin ? end - begin : 0);
}

// The end of the group of sequence `i`.
__device__ __forceinline__ int group_end(const Routing& r, int i) {
  int low = 0, high = r.num_groups;  // groups[low] <= i < groups[high]
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    if (int(r.groups[middle]) <= i) low = middle;
    else high = middle;
  }
  return int(r.groups[high]);
}

// Inclusive scans over the block: `sum` by addition, `last` by maximum.
__device__ __forceinline__ void scan(int& sum, int& last) {
  __shared__ int sums[PLAN_THREADS / WARP], lasts[PLAN_THREADS / WARP];
  const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
#pragma unroll
  for (int step = 1; step < WARP; step *= 2) {
    const int before = __shfl_up_sync(ALL_LANES, sum, step), earlier = __shfl_up_sync(ALL_LANES, last, step);
    if (lane >= step) {
      sum += before;
      last = earlier > last ? earlier : last;
    }
  }
  if (lane == WARP - 1) {
    sums[warp] = sum;
    lasts[warp] = last;
  }
  __syncthreads();
  for (int i = 0; i < warp; i++) {
    sum += sums[i];
    last = lasts[i] > last ? lasts[i] : last;
  }
  __syncthreads();
}

// The entries of one sequence and the gap before it begin at `starts[i].x`; `starts[i].y` is its last neighbour
// before it that has rows, or -1. One more pair stands for the gap behind all, and one for the end.
template <Kind KIND>
__device__ __forceinline__ void count_tiles(const Routing& r, int2* starts) {
  __shared__ int2 carried;
  int entries_before = 0, last_before = -1;
  for (int base = 0; base <= r.num_sequences; base += PLAN_THREADS) {
    const int i = base + threadIdx.x;
    Sequence s = {};
    if (i < r.num_sequences) s = r.sequences[i];
    const bool has_rows = rows_of<KIND>(s).y > 0;
    // Two scans: who has rows, then, knowing the gaps, how many entries.
    int unused = 0, last = has_rows ? i : -1;
    scan(unused, last);
    int before = __shfl_up_sync(ALL_LANES, last, 1);
    __shared__ int warp_last[PLAN_THREADS / WARP];
    if (threadIdx.x % WARP == WARP - 1) warp_last[threadIdx.x / WARP] = last;
    __syncthreads();
    if (threadIdx.x % WARP == 0) before = threadIdx.x == 0 ? -1 : warp_last[threadIdx.x / WARP - 1];
    before = before > last_before ? before : last_before;
    int entries = 0;
    if (i <= r.num_sequences) {
      const int2 tiles = has_rows ? cut<KIND>(r, s) : make_int2(0, 1);
      entries = tiles_of(gap_before<KIND>(r, i, before).y) + tiles.x * tiles.y;
    }
    int sum = entries;
    scan(sum, unused);
    if (i <= r.num_sequences) starts[i] = make_int2(entries_before + sum - entries, before);
    if (threadIdx.x == PLAN_THREADS - 1) carried = make_int2(entries_before + sum, last > last_before ? last : last_before);
    __syncthreads();
    entries_before = carried.x;
    last_before = carried.y;
    __syncthreads();
  }
  if (threadIdx.x == 0) starts[r.num_sequences + 1] = make_int2(entries_before, 0);
  __syncthreads();
}

// Entry number `local` of sequence `i`.
template <Kind KIND>
__device__ __forceinline__ int4 entry(const Routing& r, int i, int before, int local) {
  const int2 gap = gap_before<KIND>(r, i, before);
  const int gap_tiles = tiles_of(gap.y), in_gap = local * TILE;
  if (local < gap_tiles) {
    const int row = gap.x + in_gap, rows = gap.y - in_gap < TILE ? gap.y - in_gap : TILE;
    if (KIND == QUERIES) return make_int4(-1, row, rows, 0);
    return make_int4(row, rows, before + 1, i < r.num_sequences ? group_end(r, i) : r.num_sequences);
  }
  const Sequence s = r.sequences[i];
  const int2 tiles = cut<KIND>(r, s);
  local -= gap_tiles;
  if (KIND == QUERIES) {
    // Last columns first: they see most keys, and long work should not begin last.
    return make_int4(i, (tiles.x - 1 - local / tiles.y) * TILE, local % tiles.y, tiles.y);
  }
  const int first = local * TILE, left = int(s.k_len) - first;
  return make_int4(int(s.k_start) + first, left < TILE ? left : TILE, i, group_end(r, i));
}

// Writes a table; `starts` is scratch for `num_sequences + 2` pairs. One block of PLAN_THREADS.
template <Kind KIND>
__device__ __forceinline__ void make_table(const Routing& r, int2* starts, int4* table) {
  count_tiles<KIND>(r, starts);
  const int total = starts[r.num_sequences + 1].x;
  if (threadIdx.x == 0) table[0] = make_int4(total, 0, 0, 0);
  for (int t = threadIdx.x; t < total; t += PLAN_THREADS) {
    int low = 0, high = r.num_sequences + 1;  // starts[low] <= t < starts[high]
    while (high - low > 1) {
      const int middle = (low + high) / 2;
      if (starts[middle].x <= t) low = middle;
      else high = middle;
    }
    table[1 + t] = entry<KIND>(r, low, starts[low].y, t - starts[low].x);
  }
}

}  // namespace attention
