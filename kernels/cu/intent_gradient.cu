// The intention attention head, gradients: dH, and of every parameter and delta one chain over rows, ascending, that
// begins at what the buffer holds (src/intent/mod.rs). A chain has one owner; a row's term is whole before it is added.
// Read intent.cuh first; dZ and its sums over intents come from intent.cu.
#include "intent.cuh"

constexpr int THREADS = 128;
constexpr int WIDTH = 16;                 // columns of a warp
constexpr int BATCH = 2;                  // rows of a warp at a time in intent_table
constexpr int TERMS = WARPS * BATCH;      // rows whose terms wait in shared memory
constexpr int TERM_PITCH = WIDTH + 4;

// Units of a step of sixteen of W1 from `column` on as operand A: low and high are columns i0 + g and i0 + g + 8.
__device__ __forceinline__ void load_columns(float (&low)[4], float (&high)[4], const Head& head, int column, int unit,
                                             int i) {
#pragma unroll
  for (int c = 0; c < 4; c++) {
    const bool there = unit + c < head.units;
    const float* w = head.w1 + (size_t)(unit + c) * head.columns + column + i;
    low[c] = there && i < head.dim ? w[0] : 0.f;
    high[c] = there && i + 8 < head.dim ? w[8] : 0.f;
  }
}

// Four units of dZ of an intent; zero beyond the last one.
__device__ __forceinline__ void load_dz(uint32_t (&b)[4], const Head& head, const float* dz, size_t row, int n,
                                        int unit, int pitch) {
  float v[4] = {};
  if (n < head.intents) load4(v, dz + (row * head.intents + n) * pitch + unit, 4, true);
  to_tf32(b, v);
}

// dH = Σ_n V_n (.) (dZ W_p)_n + W_hᵀ Σ_n dZ_n for the element-wise product. A block takes ROWS rows, a warp 16 columns.
extern "C" __global__ void __launch_bounds__(WARPS* WARP)
    intent_history(HEAD_PARAMETERS, const float* dz, const float* sums, int pitch, bf16* dh, unsigned dh_stride,
                   int rows) {
  const Head head = HEAD_OF_PARAMETERS;
  const int lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4, row = blockIdx.x * ROWS;
  const int i0 = (blockIdx.y * WARPS + threadIdx.x / WARP) * WIDTH, count = min(ROWS, rows - row);
  if (i0 >= dim) return;
  const size_t sums_pitch = 3 * pitch + 4;
  float direct[4] = {}, total[ROWS][2] = {}, p[4], p_high[4];
  uint32_t a[4], b[4], x[4];
  for (int unit = quad(); unit < pitch; unit += 16) {
    load_columns(p, p_high, head, columns - dim, unit, i0 + g);
    to_tf32(a, p);
    to_tf32(b, p_high);
    float s[4] = {};
    if (g < count) load4(s, sums + (row + g) * sums_pitch + unit, 4, true);
    to_tf32(x, s);
    mma_step(direct, a, b, x);
  }
  for (int begin = 0, end = 0; next_run(places, row, count, begin, end);) {
    const unsigned long long place = places[row + begin];
    for (int n0 = 0; n0 < intents; n0 += INTENTS) {
      float u[ROWS][TILES][4] = {};
      for (int unit = quad(); unit < pitch; unit += 16) {
        load_columns(p, p_high, head, dim, unit, i0 + g);
        to_tf32(a, p);
        to_tf32(b, p_high);
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
          if (r < begin || r >= end) continue;
#pragma unroll
          for (int j = 0; j < TILES; j++) {
            load_dz(x, head, dz, row + r, n0 + 8 * j + g, unit, pitch);
            mma_step(u[r][j], a, b, x);
          }
        }
      }
#pragma unroll
      for (int j = 0; j < TILES; j++) {
#pragma unroll
        for (int e = 0; e < 4; e++) {
          const float v = embedding(head, place, n0 + 8 * j + 2 * t + e % 2, i0 + g + e / 2 * 8);
#pragma unroll
          for (int r = 0; r < ROWS; r++)
            if (r >= begin && r < end) total[r][e / 2] = fmaf(u[r][j][e], v, total[r][e / 2]);
        }
      }
    }
  }
#pragma unroll
  for (int r = 0; r < ROWS; r++) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
      float sum = total[r][half];
      sum += __shfl_xor_sync(ALL_LANES, sum, 1);
      sum += __shfl_xor_sync(ALL_LANES, sum, 2);
      sum += __shfl_sync(ALL_LANES, direct[half * 2 + r % 2], (lane & ~3) | r / 2);
      const int i = i0 + g + half * 8;
      if (t == r && r < count && i < dim) dh[(size_t)(row + r) * dh_stride + i] = to_bf16(sum);
    }
  }
}
ENTRY(intent_history)

// Calls visit(j, e, unit, column) for each element of W1 that a lane has of its warp's two column tiles: element e of
// tile j is unit + g + e / 2 * 8, column i0 + 8 j + 2 t + e % 2. (Run-time compilation refuses generic lambdas.)
template <class F>
__device__ __forceinline__ void each_element(const Head& head, int unit, int i0, F&& visit) {
  const int lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
#pragma unroll
  for (int j = 0; j < 2; j++) {
#pragma unroll
    for (int e = 0; e < 4; e++) {
      const int own = unit + g + e / 2 * 8, i = i0 + 8 * j + 2 * t + e % 2;
      if (own < head.units && i < head.dim) visit(j, e, own, i);
    }
  }
}

// The chains of W1: a warp owns 16 units and 16 columns of W_v, of W_p for the element-wise product, and of W_h.
// For the outer product R is written as well, [rows, k, d], and `w1_gradient` may be null.
template <bool OUTER>
__device__ __forceinline__ void weights(const Head& head, const bf16* h, unsigned h_stride, const float* dz,
                                        const float* sums, int pitch, float* r_out, float* w1_gradient, int rows) {
  const int lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
  const int i0 = blockIdx.x * WIDTH, unit = (blockIdx.y * WARPS + threadIdx.x / WARP) * UNITS;
  if (unit >= head.units) return;
  const bool h_pair = (((size_t)h | (size_t)h_stride * sizeof(bf16)) & 3) == 0;
  const size_t sums_pitch = 3 * pitch + 4;
  float chain[3][2][4] = {};  // W_v, W_p, W_h; columns 0-7, 8-15
  const size_t parts[3] = {0, (size_t)head.dim, (size_t)head.columns - head.dim};
  if (w1_gradient) {
    each_element(head, unit, i0, [&](int j, int e, int own, int i) {
      for (int p = 0; p < 3; p++)
        if (!OUTER || p != 1) chain[p][j][e] = w1_gradient[(size_t)own * head.columns + parts[p] + i];
    });
  }
  for (int row = 0; row < rows; row += ROWS) {
    const int count = min(ROWS, rows - row);
    for (int begin = 0, end = 0; next_run(head.places, row, count, begin, end);) {
      const unsigned long long place = head.places[row + begin];
      float terms[ROWS][2][4] = {};
      for (int n0 = 0; n0 < head.intents; n0 += 8) {
        uint32_t b[2][2];
#pragma unroll
        for (int j = 0; j < 2; j++) {
#pragma unroll
          for (int s = 0; s < 2; s++) b[j][s] = ptx::cvt_tf32(embedding(head, place, n0 + t + 4 * s, i0 + 8 * j + g));
        }
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
          if (r < begin || r >= end) continue;
          uint32_t a[4];
#pragma unroll
          for (int s = 0; s < 4; s++) {
            const int n = n0 + t + s / 2 * 4;
            const float* from = dz + ((size_t)(row + r) * head.intents + n) * pitch + unit + g + s % 2 * 8;
            a[s] = ptx::cvt_tf32(n < head.intents ? *from : 0.f);
          }
#pragma unroll
          for (int j = 0; j < 2; j++) ptx::mma_tf32_1688(terms[r][j], a, b[j][0], b[j][1]);
        }
      }
#pragma unroll
      for (int r = 0; r < ROWS; r++) {
        if (r < begin || r >= end) continue;
        const bf16* h_row = h + (size_t)(row + r) * h_stride;
        const float* s_row = sums + (row + r) * sums_pitch + unit + g;  // dZ's padding reaches whole sixteens
        const float s[2] = {s_row[0], s_row[8]};
        float of_h[2][2] = {};
#pragma unroll
        for (int j = 0; j < 2; j++) {
          const int i = i0 + 8 * j + 2 * t;
          if (h_pair && i + 1 < head.dim) {
            const uint32_t pair = *reinterpret_cast<const uint32_t*>(h_row + i);
            of_h[j][0] = ptx::low_bf16(pair), of_h[j][1] = ptx::high_bf16(pair);
          } else {
#pragma unroll
            for (int e = 0; e < 2; e++) of_h[j][e] = i + e < head.dim ? to_f32(h_row[i + e]) : 0.f;
          }
        }
        each_element(head, unit, i0, [&](int j, int e, int own, int i) {
          const float term = terms[r][j][e], x = of_h[j][e % 2];
#ifdef FAULT_INTENT_CHAIN
          chain[0][j][e] = term;
#else
          chain[0][j][e] += term;
#endif
          if (!OUTER) chain[1][j][e] = fmaf(term, x, chain[1][j][e]);
          if (OUTER) r_out[((size_t)(row + r) * head.units + own) * head.dim + i] = term;
          chain[2][j][e] = fmaf(s[e / 2], x, chain[2][j][e]);
        });
      }
    }
  }
  if (!w1_gradient) return;
  each_element(head, unit, i0, [&](int j, int e, int own, int i) {
    for (int p = 0; p < 3; p++)
      if (!OUTER || p != 1) w1_gradient[(size_t)own * head.columns + parts[p] + i] = chain[p][j][e];
  });
}

#define INTENT_WEIGHTS(name, outer)                                                                                \
  extern "C" __global__ void __launch_bounds__(WARPS* WARP)                                                        \
      intent_weights_##name(HEAD_PARAMETERS, const bf16* h, unsigned h_stride, const float* dz, const float* sums, \
                            int pitch, float* r_out, float* w1_gradient, int rows) {                               \
    weights<outer>(HEAD_OF_PARAMETERS, h, h_stride, dz, sums, pitch, r_out, w1_gradient, rows);                    \
  }                                                                                                                \
  ENTRY(intent_weights_##name)

INTENT_WEIGHTS(elementwise, false)
INTENT_WEIGHTS(outer, true)

// A group of rows and the gradient it is added to: with `segments` those rows of segment `index` that are among
// first..first + rows of the pack, counted from `first` on, else all of them.
struct Group {
  int begin, end;
  float* to;
};

__device__ __forceinline__ Group group_of(const Segment* segments, const unsigned* writes, int index, float* to,
                                          unsigned first, int rows) {
  if (!segments) return {0, rows, to};
  if (!writes[index]) return {0, 0, to};
  const Segment s = segments[index];
  const long long begin = (long long)s.row_start - first, end = begin + s.rows;
  return {(int)max(begin, 0ll), (int)min(end, (long long)rows), to + s.gradient};
}

// The chains of V or of the segments' ΔV: += dV_t = dZ_t M_t. A block owns INTENTS intents and WIDTH columns of a
// group; its warps make the terms of BATCH rows each, then every thread adds them to its elements' chains in order.
template <bool OUTER>
__device__ __forceinline__ void table_chain(const Head& head, const bf16* h, unsigned h_stride, const float* m,
                                            const float* dz, int pitch, Group group, int n0, int i0) {
  __shared__ float terms[TERMS][INTENTS][TERM_PITCH];
  constexpr int OWN = INTENTS * WIDTH / (WARPS * WARP);
  const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, g = lane / 4, t = lane % 4, d = head.dim;
  float chain[OWN] = {};
#pragma unroll
  for (int own = 0; own < OWN; own++) {
    const int at = threadIdx.x + own * WARPS * WARP, n = n0 + at / WIDTH, i = i0 + at % WIDTH;
    if (n < head.intents && i < d) chain[own] = group.to[(size_t)n * d + i];
  }
  for (int row = group.begin; row < group.end; row += TERMS) {
    const int first = row + warp * BATCH, count = min(BATCH, group.end - first);
    float term[BATCH][TILES][4] = {};
    float x[BATCH][2] = {};
#pragma unroll
    for (int r = 0; r < BATCH; r++) {
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const int i = i0 + g + half * 8;
        if (!OUTER && r < count && i < d) x[r][half] = to_f32(h[(size_t)(first + r) * h_stride + i]);
      }
    }
    for (int unit = quad(); unit < pitch && count > 0; unit += 16) {
      float v[4], v_high[4], p[4], p_high[4];
      if (!OUTER) {
        load_columns(v, v_high, head, 0, unit, i0 + g);
        load_columns(p, p_high, head, d, unit, i0 + g);
      }
#pragma unroll
      for (int r = 0; r < BATCH; r++) {
        if (r >= count) continue;
        float mix[4], mix_high[4];
#pragma unroll
        for (int c = 0; c < 4; c++) {
          if (OUTER) {
            const bool there = unit + c < head.units;
            const float* from = m + ((size_t)(first + r) * head.units + unit + c) * d + i0 + g;
            mix[c] = there && i0 + g < d ? from[0] : 0.f;
            mix_high[c] = there && i0 + g + 8 < d ? from[8] : 0.f;
          } else {
            mix[c] = fmaf(p[c], x[r][0], v[c]);
            mix_high[c] = fmaf(p_high[c], x[r][1], v_high[c]);
          }
        }
        uint32_t a[4], b[4], y[4];
        to_tf32(a, mix);
        to_tf32(b, mix_high);
#pragma unroll
        for (int j = 0; j < TILES; j++) {
          load_dz(y, head, dz, first + r, n0 + 8 * j + g, unit, pitch);
          mma_step(term[r][j], a, b, y);
        }
      }
    }
#pragma unroll
    for (int r = 0; r < BATCH; r++) {
#pragma unroll
      for (int j = 0; j < TILES; j++) {
#pragma unroll
        for (int e = 0; e < 4; e++)
          terms[warp * BATCH + r][8 * j + 2 * t + e % 2][g + e / 2 * 8] = term[r][j][e];
      }
    }
    __syncthreads();
#pragma unroll
    for (int own = 0; own < OWN; own++) {
      const int at = threadIdx.x + own * WARPS * WARP;
#pragma unroll
      for (int r = 0; r < TERMS; r++)
        if (row + r < group.end) chain[own] += terms[r][at / WIDTH][at % WIDTH];
    }
#ifndef FAULT_INTENT_SYNC
    __syncthreads();
#endif
  }
#pragma unroll
  for (int own = 0; own < OWN; own++) {
    const int at = threadIdx.x + own * WARPS * WARP, n = n0 + at / WIDTH, i = i0 + at % WIDTH;
    if (n < head.intents && i < d) group.to[(size_t)n * d + i] = chain[own];
  }
}

#define INTENT_TABLE(name, outer)                                                                                   \
  extern "C" __global__ void __launch_bounds__(WARPS* WARP)                                                         \
      intent_table_##name(HEAD_PARAMETERS, const bf16* h, unsigned h_stride, const float* m, const float* dz,       \
                          int pitch, const Segment* segments, const unsigned* writes, float* to, unsigned first,    \
                          int rows) {                                                                               \
    const Group group = group_of(segments, writes, blockIdx.x, to, first, rows);                                    \
    if (group.begin >= group.end) return;                                                                           \
    const int n0 = blockIdx.z * INTENTS, i0 = blockIdx.y * WIDTH;                                                   \
    table_chain<outer>(HEAD_OF_PARAMETERS, h, h_stride, m, dz, pitch, group, n0, i0);                               \
  }                                                                                                                 \
  ENTRY(intent_table_##name)

INTENT_TABLE(elementwise, false)
INTENT_TABLE(outer, true)

// The chains of b1, slope and w2 (from `sums`), of b2 (Σ da of each row) and of c (da): one thread an element.
extern "C" __global__ void __launch_bounds__(THREADS)
    intent_sums(const float* sums, int pitch, const float* dlogits, float* b1, float* slope, float* w2, float* b2,
                float* bias, int intents, int units, int rows) {
  const int at = blockIdx.x * THREADS + threadIdx.x, sums_pitch = 3 * pitch + 4;
  const float* from = dlogits;
  size_t stride = intents;
  float* to = nullptr;
  if (at < 3 * units) {
    const int part = at / units, unit = at % units;
    to = (part == 0 ? b1 : part == 1 ? slope : w2) + unit;
    from = sums + part * pitch + unit, stride = sums_pitch;
  } else if (at == 3 * units) {
    to = b2, from = sums + 3 * pitch, stride = sums_pitch;
  } else if (bias && at - 3 * units - 1 < intents) {
    to = bias + (at - 3 * units - 1), from += at - 3 * units - 1;
  }
  if (!to) return;
  float chain = *to;
#pragma unroll 8
  for (int row = 0; row < rows; row++) chain += from[row * stride];
  *to = chain;
}
ENTRY(intent_sums)

// The chains of the segments' Δc.
extern "C" __global__ void __launch_bounds__(THREADS)
    intent_delta_bias(const float* dlogits, const Segment* segments, const unsigned* writes, float* to, int intents,
                      int dim, unsigned first, int rows) {
  const Group group = group_of(segments, writes, blockIdx.x, to, first, rows);
  const int n = blockIdx.y * THREADS + threadIdx.x;
  if (n >= intents || group.begin >= group.end) return;
  float* at = group.to + (size_t)intents * dim + n;
  float chain = *at;
#pragma unroll 4
  for (int row = group.begin; row < group.end; row++) chain += dlogits[(size_t)row * intents + n];
  *at = chain;
}
ENTRY(intent_delta_bias)
