// The intention attention head, rows: who a row belongs to, logits, dZ and dH. The gradients of parameters are in
// intent_gradient.cu. Read intent.cuh first.
#include "intent.cuh"

constexpr int THREADS = 256;       // of the kernels without tiles
constexpr int COLS = 64;           // columns that wait in shared memory
constexpr int PITCH = COLS + 16;   // a row of them: rows g and g + 1 lie in different banks

// For each row its delta, and for each segment whether its gradient may be written. A row in no segment, or in one that
// is refused, has the shared table. The segments ascend, so the one that may hold a row is found by halving.
extern "C" __global__ void __launch_bounds__(THREADS)
    intent_places(const Segment* segments, int num_segments, int rows, unsigned long long delta_len,
                  unsigned long long slab, unsigned long long gradient_slab, unsigned wants_gradients,
                  unsigned long long* places, unsigned* writes, unsigned long long* refused) {
  const int at = blockIdx.x * THREADS + threadIdx.x;
  if (at < num_segments) {
    const Segment s = segments[at];
    const Segment last = at == 0 ? Segment{0, 0, 0, 0} : segments[at - 1];
    const unsigned long long before = (unsigned long long)last.row_start + last.rows;
    const unsigned long long end = (unsigned long long)s.row_start + s.rows;
    const bool ordered = s.row_start >= before, inside = end <= (unsigned)rows;
    const bool delta = s.delta == NONE || (s.delta <= slab && delta_len <= slab - s.delta);
    const bool gradient = !wants_gradients || s.gradient == NONE ||
                          (s.gradient <= gradient_slab && delta_len <= gradient_slab - s.gradient);
    if (!ordered) refuse(refused, REFUSED_INTENT_ORDER, at, s.row_start);
    if (!inside) refuse(refused, REFUSED_INTENT_END, at, (unsigned)end);
    if (!delta) refuse(refused, REFUSED_INTENT_DELTA, at, (unsigned)s.delta);
    if (!gradient) refuse(refused, REFUSED_INTENT_GRADIENT, at, (unsigned)s.gradient);
    writes[at] = ordered && inside && gradient && wants_gradients && s.rows > 0 && s.gradient != NONE;
  }
  if (at >= rows) return;
  int first = 0, count = num_segments;  // the first segment that ends after the row
  while (count > 0) {
    const int half = count / 2;
    const Segment s = segments[first + half];
    const bool after = (unsigned long long)s.row_start + s.rows <= (unsigned)at;
    first += after ? half + 1 : 0;
    count = after ? count - half - 1 : half;
  }
  unsigned long long place = NONE;
  if (first < num_segments) {
    const Segment s = segments[first];
    const bool fits = s.delta <= slab && delta_len <= slab - s.delta;
    if (s.row_start <= (unsigned)at && fits) place = s.delta;
  }
  places[at] = place;
}
ENTRY(intent_places)

// Gradients of deltas that overlap in the slab: of two, the later segment's is refused and not written. One warp a
// segment; what it reads of `writes` are the decisions of intent_places, what it decides goes to `apart`.
extern "C" __global__ void __launch_bounds__(THREADS)
    intent_overlaps(const Segment* segments, int num_segments, unsigned long long delta_len, const unsigned* writes,
                    unsigned* apart, unsigned long long* refused) {
  const int at = blockIdx.x * (THREADS / WARP) + threadIdx.x / WARP, lane = threadIdx.x % WARP;
  if (at >= num_segments) return;
  const unsigned wanted = writes[at];
  const unsigned long long own = segments[at].gradient;
  int overlaps = 0;
  for (int i = lane; i < at && wanted; i += WARP) {
    if (!writes[i]) continue;
    const unsigned long long other = segments[i].gradient;
    overlaps |= (own < other ? other - own : own - other) < delta_len;
  }
  overlaps = __any_sync(ALL_LANES, overlaps);
  if (lane != 0) return;
  if (overlaps) refuse(refused, REFUSED_INTENT_OVERLAP, at, (unsigned)own);
  apart[at] = wanted && !overlaps;
}
ENTRY(intent_overlaps)

struct __align__(16) Tiles {
  float v[INTENTS][PITCH];                // V + ΔV of a pass
  float h[ROWS][COLS];
  float logits[WARPS][ROWS][INTENTS];     // each warp's share
};

// Columns c0.. of V + ΔV and of H into shared memory, zero beyond the head's.
__device__ __forceinline__ void fill(Tiles& tiles, const Head& head, unsigned long long place, int n0, int c0,
                                     const bf16* h, unsigned h_stride, int count) {
  __syncthreads();
  for (int q = threadIdx.x; q < INTENTS * COLS / 4; q += WARPS * WARP) {
    const int n = q / (COLS / 4), c = q % (COLS / 4) * 4;
    float v[4];
    embedding4(v, head, place, n0 + n, c0 + c);
    uint32_t u[4];
    to_tf32(u, v);
    st16(&tiles.v[n][c], make_uint4(u[0], u[1], u[2], u[3]));
  }
  const int r = threadIdx.x / (COLS / 8), c = threadIdx.x % (COLS / 8) * 8;
  if (r < ROWS) {
    float v[8];
    load8(v, h + (size_t)r * h_stride + c0 + c, r < count ? head.dim - c0 - c : 0, aligned16(h, h_stride));
#pragma unroll
    for (int i = 0; i < 8; i++) tiles.h[r][c + i] = v[i];
  }
  __syncthreads();
}

// z += V M_rᵀ of rows begin..end for 16 units from `unit` on and the intents of the pass, and q += W_h h of all rows.
template <bool OUTER>
__device__ __forceinline__ void accumulate(float (&z)[ROWS][TILES][4], float (&q)[4], Tiles& tiles, const Head& head,
                                           const float* m, int unit, int n0, const bf16* h, unsigned h_stride,
                                           unsigned long long place, int begin, int end, int count) {
  const int lane = threadIdx.x % WARP, g = lane / 4, d = head.dim;
  const size_t low = (size_t)(unit + g) * head.columns, high = low + 8 * (size_t)head.columns;
  const bool has_low = unit + g < head.units, has_high = unit + g + 8 < head.units;
  const bool vector = aligned16(head.w1, head.columns) && d % 4 == 0;
  const size_t of_h = head.columns - d;
  for (int c0 = 0; c0 < d; c0 += COLS) {
    fill(tiles, head, place, n0, c0, h, h_stride, count);
    if (unit >= head.units) continue;  // the same for the whole warp, and fill's barriers are passed by all
    for (int c = quad(); c < COLS && c0 + c - quad() < d; c += 16) {
      const int i = c0 + c, low_left = has_low ? d - i : 0, high_left = has_high ? d - i : 0;
      float w[4], p[4], w_high[4], p_high[4];
      uint32_t a[4], b[4], v[TILES][4];
      load4(w, head.w1 + low + of_h + i, low_left, vector);
      load4(w_high, head.w1 + high + of_h + i, high_left, vector);
      to_tf32(a, w);
      to_tf32(b, w_high);
#pragma unroll
      for (int e = 0; e < 4; e++) v[0][e] = g < ROWS ? __float_as_uint(tiles.h[g % ROWS][c + e]) : 0u;
      mma_step(q, a, b, v[0]);
#pragma unroll
      for (int j = 0; j < TILES; j++) {
        const uint4 x = ld16(&tiles.v[8 * j + g][c]);
        v[j][0] = x.x, v[j][1] = x.y, v[j][2] = x.z, v[j][3] = x.w;
      }
      if (!OUTER) {
        load4(w, head.w1 + low + i, low_left, vector);
        load4(p, head.w1 + low + d + i, low_left, vector);
        load4(w_high, head.w1 + high + i, high_left, vector);
        load4(p_high, head.w1 + high + d + i, high_left, vector);
      }
#pragma unroll
      for (int r = 0; r < ROWS; r++) {
        if (r < begin || r >= end) continue;
        float mix[4], mix_high[4];
        if (OUTER) {
          const float* of_row = m + (size_t)r * head.units * d + (size_t)(unit + g) * d + i;
          load4(mix, of_row, low_left, d % 4 == 0);
          load4(mix_high, of_row + 8 * (size_t)d, high_left, d % 4 == 0);
        } else {
#pragma unroll
          for (int e = 0; e < 4; e++) {
            mix[e] = fmaf(p[e], tiles.h[r][c + e], w[e]);
            mix_high[e] = fmaf(p_high[e], tiles.h[r][c + e], w_high[e]);
          }
        }
        to_tf32(a, mix);
        to_tf32(b, mix_high);
#pragma unroll
        for (int j = 0; j < TILES; j++) mma_step(z[r][j], a, b, v[j]);
      }
    }
  }
}

// What the two hidden units of a lane have.
struct Unit {
  float b1, slope, w2;
};

__device__ __forceinline__ Unit unit_of(const Head& head, int unit) {
  if (unit >= head.units) return {0.f, 0.f, 0.f};
  return {head.b1[unit], head.slope[unit], head.w2[unit]};
}

// Where the rows' results go; `sums` of a row: [3][pitch] over the intents of dZ, dy min(Z, 0) and da PReLU(Z), with
// dy = da w2, then Σ da.
struct Results {
  float *logits, *dz, *sums;
  const float* dlogits;
  int pitch;
};

// The warp's share of a row's logits: the sum over its units, kept by the lanes g == 0.
__device__ __forceinline__ void logit_shares(float* shares, const float (&z)[TILES][4], float q, float q_high, Unit low,
                                             Unit high, bool first) {
  const int lane = threadIdx.x % WARP;
#pragma unroll
  for (int j = 0; j < TILES; j++) {
#pragma unroll
    for (int e = 0; e < 2; e++) {
      const float x = z[j][e] + (q + low.b1), x_high = z[j][e + 2] + (q_high + high.b1);
      float sum = low.w2 * (x > 0.f ? x : low.slope * x) + high.w2 * (x_high > 0.f ? x_high : high.slope * x_high);
#pragma unroll
      for (int other = 4; other < WARP; other *= 2) sum += __shfl_xor_sync(ALL_LANES, sum, other);
      float* to = &shares[8 * j + 2 * lane + e];
      if (lane < 4) *to = first ? sum : *to + sum;
    }
  }
}

// dZ of a row and its sums over the intents of this pass.
__device__ __forceinline__ void row_gradients(const Results& to, const Head& head, size_t row,
                                              const float (&z)[TILES][4], const float (&q)[2],
                                              const Unit (&units)[2], int unit, int n0) {
  const int lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
  float sums[2][3] = {};
#pragma unroll
  for (int j = 0; j < TILES; j++) {
#pragma unroll
    for (int e = 0; e < 4; e++) {
      const int n = n0 + 8 * j + 2 * t + e % 2, own = unit + g + e / 2 * 8;
      if (n >= head.intents) continue;
      const Unit u = units[e / 2];
      const float da = to.dlogits[row * head.intents + n], x = z[j][e] + (q[e / 2] + u.b1), dy = da * u.w2;
      const bool up = x > 0.f;
      const float dx = up ? dy : dy * u.slope;
      sums[e / 2][0] += dx;
      sums[e / 2][1] += up ? 0.f : dy * x;
      sums[e / 2][2] += da * (up ? x : u.slope * x);
      // Units beyond the head's have weights of zero; the padding is zero even where da is not a number.
      to.dz[(row * head.intents + n) * to.pitch + own] = own < head.units ? dx : 0.f;
    }
  }
#pragma unroll
  for (int half = 0; half < 2; half++) {
#pragma unroll
    for (int s = 0; s < 3; s++) {
      float sum = sums[half][s];
      sum += __shfl_xor_sync(ALL_LANES, sum, 1);
      sum += __shfl_xor_sync(ALL_LANES, sum, 2);
      const int own = unit + g + half * 8;
      float* at = to.sums + row * (3 * to.pitch + 4) + s * to.pitch + own;
#ifdef FAULT_INTENT_PASSES
      if (t == 0) *at = own < head.units ? sum : 0.f;
#else
      if (t == 0) *at = own < head.units ? (n0 == 0 ? sum : *at + sum) : 0.f;
#endif
    }
  }
}

// A block takes ROWS rows of the pack; rows with different deltas one run after another. Intents pass in tiles of
// INTENTS, hidden units in tiles of WARPS * UNITS; a warp has all intents of the pass for its units.
template <bool OUTER, bool BACKWARD>
__device__ __forceinline__ void hidden(const Head& head, const bf16* h, unsigned h_stride, const float* m, Results to,
                                       int rows) {
  __shared__ Tiles tiles;
  const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, row = blockIdx.x * ROWS;
  const int count = min(ROWS, rows - row);
  h += (size_t)row * h_stride;
  if (OUTER) m += (size_t)row * head.units * head.dim;
  for (int begin = 0, end = 0; next_run(head.places, row, count, begin, end);) {
    const unsigned long long place = head.places[row + begin];
    for (int n0 = 0; n0 < head.intents; n0 += INTENTS) {
      for (int first = 0; first < head.units; first += WARPS * UNITS) {
        const int unit = first + warp * UNITS;
        float z[ROWS][TILES][4] = {}, of_history[4] = {};
        accumulate<OUTER>(z, of_history, tiles, head, m, unit, n0, h, h_stride, place, begin, end, count);
        const Unit units[2] = {unit_of(head, unit + lane / 4), unit_of(head, unit + lane / 4 + 8)};
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
          // Column r of W_h Hᵀ lies with lane r / 2 of each four.
          const int from = (lane & ~3) | r / 2;
          const float q[2] = {__shfl_sync(ALL_LANES, of_history[r % 2], from),
                              __shfl_sync(ALL_LANES, of_history[2 + r % 2], from)};
          if (r < begin || r >= end) continue;
          if (!BACKWARD) logit_shares(tiles.logits[warp][r], z[r], q[0], q[1], units[0], units[1], first == 0);
          if (BACKWARD && unit < to.pitch) row_gradients(to, head, row + r, z[r], q, units, unit, n0);
        }
      }
      if (BACKWARD) continue;
      __syncthreads();
      for (int at = threadIdx.x; at < ROWS * INTENTS; at += WARPS * WARP) {
        const int r = at / INTENTS, n = n0 + at % INTENTS;
        if (r < begin || r >= end || n >= head.intents) continue;
        float sum = 0.f;
#pragma unroll
        for (int w = 0; w < WARPS; w++) sum += tiles.logits[w][r][at % INTENTS];
        float bias = head.bias ? head.bias[n] : 0.f;
        if (place != NONE) bias += head.deltas[place + (size_t)head.intents * head.dim + n];
        to.logits[(size_t)(row + r) * head.intents + n] = sum + *head.b2 + bias;
      }
      // The next pass writes shares only after the barriers of `fill`.
    }
  }
  if (BACKWARD && threadIdx.x < count) {
    const float* da = to.dlogits + (size_t)(row + threadIdx.x) * head.intents;
    float sum = 0.f;
    for (int n = 0; n < head.intents; n++) sum += da[n];
    to.sums[(size_t)(row + threadIdx.x) * (3 * to.pitch + 4) + 3 * to.pitch] = sum;
  }
}

#define INTENT_HIDDEN(name, outer, backward)                                                                      \
  extern "C" __global__ void __launch_bounds__(WARPS* WARP)                                                       \
      intent_##name(HEAD_PARAMETERS, const bf16* h, unsigned h_stride, const float* m, float* logits,             \
                    const float* dlogits, float* dz, float* sums, int pitch, int rows) {                          \
    hidden<outer, backward>(HEAD_OF_PARAMETERS, h, h_stride, m, {logits, dz, sums, dlogits, pitch}, rows);        \
  }                                                                                                               \
  ENTRY(intent_##name)

INTENT_HIDDEN(forward_elementwise, false, false)
INTENT_HIDDEN(forward_outer, true, false)
INTENT_HIDDEN(backward_elementwise, false, true)
INTENT_HIDDEN(backward_outer, true, true)
