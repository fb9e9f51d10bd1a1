// What the kernels of the intention attention head share (src/intent/mod.rs): the head as the device sees it, loads of
// its f32 parameters, and the order in which tensor cores take a sum's terms.
//
// With M_t = W_v + W_p (.) h_t [k, d] (outer product: M_t[u, i] = W_v[u, i] + Σ_j W_p[u, i, j] h_tj, made before) a row
// is Z = V M_tᵀ + (W_h h_t + b1), a = w2 · PReLU(Z) + b2 + c; backward dV_t = dZ M_t and R_t = dZᵀ V = dM_t.
//
// Products run as tf32: bf16 activations are exact in it, parameters are rounded to 11 bits of mantissa, sums are f32.
// Letters: N intents, k hidden units (`units`), d width (`dim`), `pitch` k in whole sixteens: a row of dZ, whose
// padding is zero; g = lane / 4 and t = lane % 4.
#pragma once
#include "common.cuh"

constexpr int WARPS = 4;     // of a block
constexpr int ROWS = 4;      // rows of the pack that share a pass over the weights
constexpr int UNITS = 16;    // hidden units of a warp: the rows of an mma
constexpr int INTENTS = 24;  // intents of a pass: three mmas wide
constexpr int TILES = INTENTS / 8;
constexpr unsigned long long NONE = ~0ull;

// The rows of one user, as crate::intent::Segment.
struct Segment {
  unsigned row_start, rows;
  unsigned long long delta, gradient;
};

// The head; `bias` may be null. `places`: for each row the first element of its delta, or NONE.
struct Head {
  const float *table, *w1, *b1, *slope, *w2, *b2, *bias, *deltas;
  const unsigned long long* places;
  int intents, dim, units, columns;
};

#define HEAD_PARAMETERS                                                                                            \
  const float *table, const float *w1, const float *b1, const float *slope, const float *w2, const float *b2,      \
      const float *bias, const float *deltas, const unsigned long long *places, int intents, int dim, int units,   \
      int columns
#define HEAD_OF_PARAMETERS \
  Head { table, w1, b1, slope, w2, b2, bias, deltas, places, intents, dim, units, columns }

// First element of the four that lane t brings to the two mmas of a step of sixteen. A sum's terms may come in any
// order as long as both operands agree; this one makes them neighbours in memory: element 4t + c is term t (c = 0) or
// t + 4 (c = 1) of the first mma, and so for c = 2, 3 of the second.
__device__ __forceinline__ int quad() { return threadIdx.x % 4 * 4; }

// d += A B over a step of sixteen terms: `low` and `high` are row g and g + 8 of A, `b` column g of B.
__device__ __forceinline__ void mma_step(float (&d)[4], const uint32_t (&low)[4], const uint32_t (&high)[4],
                                         const uint32_t (&b)[4]) {
#pragma unroll
  for (int s = 0; s < 4; s += 2) {
    const uint32_t a[4] = {low[s], high[s], low[s + 1], high[s + 1]};
    ptx::mma_tf32_1688(d, a, b[s], b[s + 1]);
  }
}

__device__ __forceinline__ void to_tf32(uint32_t (&to)[4], const float (&v)[4]) {
#pragma unroll
  for (int i = 0; i < 4; i++) to[i] = ptx::cvt_tf32(v[i]);
}

// Element (n, i) of V + ΔV of the delta at `place`; zero outside of the table.
__device__ __forceinline__ float embedding(const Head& head, unsigned long long place, int n, int i) {
  if (n >= head.intents || i >= head.dim) return 0.f;
  const size_t at = (size_t)n * head.dim + i;
  const float v = head.table[at];
#ifdef FAULT_INTENT_DELTA
  return v;
#endif
  return place == NONE ? v : v + head.deltas[place + at];
}

// Four neighbours of it from element i on.
__device__ __forceinline__ void embedding4(float (&v)[4], const Head& head, unsigned long long place, int n, int i) {
  const int left = n < head.intents ? head.dim - i : 0;
  const size_t at = (size_t)n * head.dim + i;
  load4(v, head.table + at, left, aligned16(head.table, head.dim));
#ifdef FAULT_INTENT_DELTA
  return;
#endif
  if (place == NONE) return;
  float own[4];
  load4(own, head.deltas + place + at, left, aligned16(head.deltas + place, head.dim));
#pragma unroll
  for (int c = 0; c < 4; c++) v[c] += own[c];
}

// Rows begin..end of a group of `count` rows from `row` on that share a delta; false when no more follow `end`.
__device__ __forceinline__ bool next_run(const unsigned long long* places, int row, int count, int& begin, int& end) {
  begin = end;
  if (begin >= count) return false;
  for (end = begin + 1; end < count && places[row + end] == places[row + begin]; end++) {
  }
  return true;
}
