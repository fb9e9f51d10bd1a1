// Grouped LoRA over adapter-major segments: what its kernels share (contract: kernels/src/lora/mod.rs).
//
// Owns the segment as it lies in memory, the way from a block of the grid to the rows of a segment, the layout of
// S' and dS', and the operand loads. Start at `find_rows`, then lora_shrink.cu, lora_expand.cu, lora_gradient.cu.
//
// Blocks find their rows without a table: counted in tiles of `height` rows that never leave a segment, segment s
// begins at slot row_start / height + s. Slots of different segments cannot meet, because
// ceil(b / h) <= (a + b) / h - a / h + 1; a grid of rows / height + num_segments blocks holds all, some are empty.
//
// Every sum over the rows of a segment runs in chunks counted from its first row, every sum along d or n in the order
// of the columns, whatever the tile height and whoever else is in the pack: a user's bits are its own.
#pragma once
#include "random.cuh"

constexpr int MAX_LORA_RANK = 64;
constexpr int MAX_OUTPUTS = 3;
// Rows of a chunk; the last of a segment takes the rest, so it has up to 2 CHUNK - 1.
constexpr uint32_t CHUNK = 512;

// Mirrors kernels::lora::Segment.
struct Segment {
  uint32_t row_start, rows;
  unsigned long long param_offset, grad_offset;
  uint32_t lora_rank;
  float scale, dropout;
  uint32_t step;
  uint2 key;
};

// The tables of a call, and what the slabs hold.
struct Pack {
  const Segment* segments;
  uint32_t num_segments, rows;
  // An adapter of rank r ends at most `r * reach` elements after its offset.
  uint32_t reach;
  unsigned long long params_len, grads_len;
};
#define PACK_PARAMS                                                                                        \
  const Segment *segments, uint32_t num_segments, uint32_t num_rows, uint32_t reach,                       \
      unsigned long long params_len, unsigned long long grads_len
#define PACK Pack{segments, num_segments, num_rows, reach, params_len, grads_len}

// One number for each of the outputs of a call, which are never indexed in memory.
struct PerOutput {
  uint32_t v0, v1, v2;
  __device__ __forceinline__ uint32_t operator[](int k) const { return k == 0 ? v0 : k == 1 ? v1 : v2; }
};
#define PER_OUTPUT(name) uint32_t name##0, uint32_t name##1, uint32_t name##2
#define OUTPUTS_OF(name) PerOutput{name##0, name##1, name##2}

// Rows `first .. first + rows` of a segment, counted from its first row.
struct Rows {
  Segment s;
  uint32_t first, rows;
  __device__ __forceinline__ size_t row() const { return (size_t)s.row_start + first; }
};

// What is wrong with a segment, or 0. Kernels skip such a segment; the first one of a call notes it.
__device__ __forceinline__ int segment_refusal(const Pack& p, const Segment& s) {
  if (s.lora_rank == 0 || s.lora_rank > MAX_LORA_RANK) return REFUSED_LORA_RANK;
  const unsigned long long size = (unsigned long long)s.lora_rank * p.reach;
  const bool fits = (unsigned long long)s.row_start + s.rows <= p.rows && size <= p.params_len &&
                    s.param_offset <= p.params_len - size && size <= p.grads_len &&
                    s.grad_offset <= p.grads_len - size && s.dropout >= 0.f && s.dropout < 1.f;
  return fits ? 0 : REFUSED_LORA_SEGMENT;
}

// Index of the segment that holds slot `slot` of tiles of `height` rows, or -1; each warp searches by itself, 32
// probes at a time.
__device__ __forceinline__ int find_segment(const Pack& p, uint32_t slot, uint32_t height) {
  const uint32_t lane = threadIdx.x % WARP;
  if (p.num_segments == 0) return -1;
  // row_start / height is between 0 and rows / height.
  const uint32_t tiles = p.rows / height;
  uint32_t low = min(slot > tiles ? slot - tiles : 0, p.num_segments - 1), high = min(slot + 1, p.num_segments);
  while (true) {
    const uint32_t step = (high - low + WARP - 1) / WARP, probe = low + lane * step;
    const bool before = probe < high && p.segments[probe].row_start / height + probe <= slot;
    const int count = __popc(__ballot_sync(ALL_LANES, before));
    if (count == 0) return -1;
    low += (count - 1) * step;
    if (step == 1) return (int)low;
    high = min(high, low + step);
  }
}

// The rows of a slot: tiles of `height` rows from the segment's first row on. False: nothing to do.
__device__ __forceinline__ bool find_rows(const Pack& p, uint32_t slot, uint32_t height, Rows& out) {
  const int index = find_segment(p, slot, height);
  if (index < 0) return false;
  out.s = p.segments[index];
  out.first = (slot - (out.s.row_start / height + index)) * height;
  if (out.first >= out.s.rows || segment_refusal(p, out.s)) return false;
  out.rows = min(height, out.s.rows - out.first);
  return true;
}

// As find_rows, for tiles that cover all rows of the pack: a segment's tiles go on behind its last row, up to where the
// next one begins; slots that find no segment have the rows before the first. By the same sum slots do not meet, in a grid
// of one block more. Returns the rows of the tile; `out.rows` are the segment's among them, maybe none.
__device__ __forceinline__ uint32_t find_all_rows(const Pack& p, uint32_t slot, uint32_t height, Rows& out) {
  const int index = slot == 0 ? -1 : find_segment(p, slot - 1, height);
  out.s = Segment{};
  out.first = slot * height;
  if (index >= 0) {
    out.s = p.segments[index];
    out.first = (slot - 1 - (out.s.row_start / height + index)) * height;
  }
  const bool last = index + 1 == (int)p.num_segments;
  const uint32_t end = last ? p.rows : min(p.rows, p.segments[index + 1].row_start);
  if (out.row() >= end) return 0;
  const uint32_t all = min(height, end - (uint32_t)out.row());
  out.rows = out.first < out.s.rows && !segment_refusal(p, out.s) ? min(all, out.s.rows - out.first) : 0;
  // Nothing is read of an adapter without rows here, or of one that is refused.
  if (out.rows == 0) out.s.lora_rank = 0, out.s.param_offset = 0, out.s.dropout = 0.f;
#ifdef FAULT_LORA_FIRST_GAP
  return out.rows;
#else
  return all;
#endif
}

// As find_rows for chunks, of which a segment has max(1, rows / CHUNK).
__device__ __forceinline__ bool find_chunk(const Pack& p, uint32_t slot, Rows& out) {
  if (!find_rows(p, slot, CHUNK, out)) return false;
  const uint32_t last = max(out.s.rows / CHUNK, 1u) - 1;
  if (out.first / CHUNK > last) return false;
  if (out.first / CHUNK == last) out.rows = out.s.rows - out.first;
  return true;
}

// Columns that an adapter's rank takes in S' and dS': 8, 16, 32 or 64, the rest zero.
__device__ __forceinline__ int rank_class(uint32_t lora_rank) {
  return lora_rank <= 8 ? 8 : lora_rank <= 16 ? 16 : lora_rank <= 32 ? 32 : 64;
}
// S' and dS' of a segment: [rows, outputs, class], from element row_start * outputs * 64 of the workspace on.
__device__ __forceinline__ size_t sums_at(const Rows& r, uint32_t outputs, int rank_class, uint32_t row) {
  return (size_t)r.s.row_start * outputs * MAX_LORA_RANK + (size_t)(r.first + row) * outputs * rank_class;
}

// Dropout masks [outputs, rows, words], bit c % 32 of word c / 32 for column c; only rows of segments that drop.
struct Masks {
  const uint32_t* bits;
  uint32_t rows, words;
  __device__ __forceinline__ uint32_t word(int k, size_t row, uint32_t column) const {
    return bits[((size_t)k * rows + row) * words + column / 32];
  }
};

// `v` where bit `bit` is set, else zero bits, for the two halves of a bf16 pair.
__device__ __forceinline__ uint32_t masked_pair(uint32_t v, bool low, bool high) {
  return v & ((low ? 0x0000ffffu : 0u) | (high ? 0xffff0000u : 0u));
}

// ---- Operands in shared memory: rows of bf16 whose length in 16-byte pieces is odd, so that eight rows of ldmatrix
// fall into different banks.

// A window of rows in device memory.
struct Window {
  const bf16* data;
  uint32_t stride;
};

// to[ROWS, COLUMNS] (rows STRIDE apart) = the window's first `rows` x `columns`, zero beyond them, by THREADS threads:
// asynchronous copies of 16 bytes where the window allows, element by element where not. The caller commits.
template <int ROWS, int COLUMNS, int STRIDE, int THREADS>
__device__ __forceinline__ void load_window(bf16* to, Window from, uint32_t rows, uint32_t columns) {
  static_assert(COLUMNS % 8 == 0 && STRIDE % 8 == 0 && STRIDE / 8 % 2 == 1, "whole pieces, rows in different banks");
  constexpr int PIECES = COLUMNS / 8;
  const bool vector = aligned16(from.data, from.stride);
  for (int i = threadIdx.x; i < ROWS * PIECES; i += THREADS) {
    const uint32_t row = i / PIECES, column = i % PIECES * 8;
    bf16* piece = to + row * STRIDE + column;
    const bf16* source = from.data + (size_t)row * from.stride + column;
    const bool inside = row < rows && column < columns;
    if (!inside) {
      st16(piece, make_uint4(0, 0, 0, 0));
    } else if (vector && column + 8 <= columns) {
      ptx::cp_async16(piece, source);
    } else {
#pragma unroll
      for (uint32_t e = 0; e < 8; e++) piece[e] = column + e < columns ? source[e] : bf16{0};
    }
  }
}

// A operand m16 x k16 stored as [m][k].
template <int STRIDE>
__device__ __forceinline__ void load_mk(uint32_t (&a)[4], const bf16* tile) {
  const int lane = threadIdx.x % WARP;
  ptx::ldmatrix_x4(a, tile + (lane % 16) * STRIDE + lane / 16 * 8);
}
// A operand m16 x k16 stored as [k][m].
template <int STRIDE>
__device__ __forceinline__ void load_km(uint32_t (&a)[4], const bf16* tile) {
  const int lane = threadIdx.x % WARP;
  ptx::ldmatrix_x4_trans(a, tile + (lane % 8 + lane / 16 * 8) * STRIDE + lane / 8 % 2 * 8);
}
// B operand k16 x n8 stored as [k][n].
template <int STRIDE>
__device__ __forceinline__ void load_kn(uint32_t (&b)[2], const bf16* tile) {
  ptx::ldmatrix_x2_trans(b, tile + (threadIdx.x % 16) * STRIDE);
}
// Two B operands k16 x n8, one below the other, stored as [n][k]: columns k and k + 16.
template <int STRIDE>
__device__ __forceinline__ void load_nk2(uint32_t (&b)[4], const bf16* tile) {
  const int lane = threadIdx.x % WARP;
  ptx::ldmatrix_x4(b, tile + (lane % 8) * STRIDE + lane / 8 * 8);
}

// Four neighbouring parameters in f32, `count` of them inside; `vector` promises 16-byte alignment.
__device__ __forceinline__ float4 load4(const float* p, int count, bool vector) {
  if (vector && count >= 4) return *reinterpret_cast<const float4*>(p);
  float4 v = make_float4(0.f, 0.f, 0.f, 0.f);
  if (count > 0) v.x = p[0];
  if (count > 1) v.y = p[1];
  if (count > 2) v.z = p[2];
  if (count > 3) v.w = p[3];
  return v;
}
__device__ __forceinline__ uint2 pack4(float4 v) {
  return make_uint2(ptx::pack_bf16(v.x, v.y), ptx::pack_bf16(v.z, v.w));
}
