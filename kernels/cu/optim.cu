// Grouped AdamW (src/optim/mod.rs): four launches over all due slots, none of which needs to know them on the host.
//   optim_plan (one block)  checks the updates and counts their pieces    optim_squares  Σ g² of each piece
//   optim_norms (a block a slot)  norms and the numbers of the step       optim_update   the step, piece by piece
//
// A piece is PIECE elements of a slot, counted from the slot's first: who adds what does not depend on where the slot
// lies or on other slots. Squares are added in f64: a square of an f32 is exact there, and what the sums lose lies far below
// an f32 norm. One conversion and one f64 operation for four bytes read fit beside the memory (docs/kernels/optim.md).
#include "common.cuh"

constexpr int PLAN_THREADS = 1024;
constexpr int THREADS = 256;
constexpr int WARPS = THREADS / WARP;
constexpr int NORM_THREADS = 128;
constexpr int PIECE = 4096;
constexpr int QUADS = PIECE / (4 * THREADS);  // of neighbouring elements, of a thread

// As src/optim/mod.rs lays it out.
struct Update {
  uint64_t offset;
  uint32_t len, step;
  float learning_rate, beta1, beta2, eps, weight_decay, clip_norm;
};
static_assert(sizeof(Update) == 40, "the host's layout");

struct __align__(16) Factors {
  float clip, decay, one_minus_beta1, beta2, one_minus_beta2, root_correction2, eps, step_size;
};

// begins[i] = pieces of the slots before i, for i in 0..=num; begins[num + 1] = whether the updates are in order and
// inside the slabs. If they are not, nothing is planned and nothing else happens.
extern "C" __global__ void __launch_bounds__(PLAN_THREADS)
    optim_plan(const Update* updates, unsigned num, uint64_t slab, unsigned* begins, unsigned long long* refused) {
  __shared__ unsigned totals[WARP];
  const unsigned lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
  int bad = 0;
  for (unsigned i = threadIdx.x; i < num; i += PLAN_THREADS) {
    const Update u = updates[i];
    const uint64_t before = i == 0 ? 0 : updates[i - 1].offset + updates[i - 1].len;
    if (u.offset < before || u.offset > slab || u.len > slab - u.offset || u.step == 0) {
      bad = 1;
      refuse(refused, REFUSED_UPDATE, i, (unsigned)min(u.offset, (uint64_t)0xffffffffu));
    }
  }
  bad = __syncthreads_or(bad);
  unsigned carry = 0;
  for (unsigned first = 0; first < num; first += PLAN_THREADS) {
    const unsigned i = first + threadIdx.x;
    const unsigned pieces = i < num && !bad ? (updates[i].len + (PIECE - 1ull)) / PIECE : 0;
    unsigned upto = pieces;
#pragma unroll
    for (unsigned step = 1; step < WARP; step <<= 1) {
      const unsigned left = __shfl_up_sync(ALL_LANES, upto, step);
      if (lane >= step) upto += left;
    }
    if (lane == WARP - 1) totals[warp] = upto;
    __syncthreads();
    unsigned before = carry;
    for (unsigned w = 0; w < PLAN_THREADS / WARP; w++) {
      if (w < warp) before += totals[w];
      carry += totals[w];
    }
    if (i < num) begins[i] = before + upto - pieces;
#ifndef FAULT_OPTIM_SYNC
    __syncthreads();
#endif
  }
  if (threadIdx.x == 0) {
    begins[num] = carry;
    begins[num + 1] = !bad;
  }
}
ENTRY(optim_plan)

// The slot of a piece: the last one that does not begin after it. A whole warp asks for the same piece; each round keeps
// one of 32 ranges.
__device__ __forceinline__ unsigned slot_of(const unsigned* begins, unsigned num, unsigned piece) {
  unsigned low = 0;
  while (num > 1) {
    const unsigned width = (num + WARP - 1) / WARP, at = threadIdx.x % WARP * width;
    const unsigned not_after = __ballot_sync(ALL_LANES, at < num && begins[low + at] <= piece);
    const unsigned skip = (__popc(not_after) - 1) * width;
    low += skip;
    num = min(width, num - skip);
  }
  return low;
}

// Where a piece lies.
struct Place {
  unsigned slot;
  int len;
  uint64_t at;
  bool vector;  // the slot allows 16-byte accesses
};

__device__ __forceinline__ Place place_of(const Update* updates, unsigned num, const unsigned* begins, unsigned piece) {
  const unsigned slot = slot_of(begins, num, piece);
  const uint64_t offset = updates[slot].offset, in_slot = (uint64_t)(piece - begins[slot]) * PIECE;
  const uint64_t left = updates[slot].len - in_slot;
  return {slot, left < PIECE ? (int)left : PIECE, offset + in_slot, offset % 4 == 0};
}

// The sum over a block of `WARPS` warps, in thread 0; `partial` may be used again after the next barrier.
template <int WARPS>
__device__ __forceinline__ double block_sum_f64(double v, double* partial) {
#pragma unroll
  for (int lanes = WARP / 2; lanes > 0; lanes >>= 1) v += __shfl_xor_sync(ALL_LANES, v, lanes);
  if (threadIdx.x % WARP == 0) partial[threadIdx.x / WARP] = v;
  __syncthreads();
  double sum = 0;
  if (threadIdx.x == 0)
    for (int w = 0; w < WARPS; w++) sum += partial[w];
  return sum;
}

extern "C" __global__ void __launch_bounds__(THREADS)
    optim_squares(const Update* updates, unsigned num, const unsigned* begins, const float* grads, double* sums) {
  __shared__ double partial[WARPS];
  const unsigned pieces = begins[num];
  for (unsigned piece = blockIdx.x; piece < pieces; piece += gridDim.x) {
    const Place p = place_of(updates, num, begins, piece);
    double sum = 0;
#pragma unroll
    for (int q = 0; q < QUADS; q++) {
      const int i = (q * THREADS + threadIdx.x) * 4;
      float g[4];
#ifdef FAULT_OPTIM_TAIL
      load4(g, grads + p.at + i, i < p.len ? 4 : 0, p.vector);
#else
      load4(g, grads + p.at + i, p.len - i, p.vector);
#endif
#pragma unroll
      for (int k = 0; k < 4; k++) sum += (double)g[k] * g[k];
    }
    sum = block_sum_f64<WARPS>(sum, partial);
    if (threadIdx.x == 0) sums[piece] = sum;
    __syncthreads();
  }
}
ENTRY(optim_squares)

extern "C" __global__ void __launch_bounds__(NORM_THREADS)
    optim_norms(const Update* updates, unsigned num, const unsigned* begins, const double* sums, float* norms,
                Factors* factors) {
  __shared__ double partial[NORM_THREADS / WARP];
  if (begins[num + 1] == 0) return;
  const unsigned slot = blockIdx.x, end = begins[slot + 1];
  double sum = 0;
  for (unsigned piece = begins[slot] + threadIdx.x; piece < end; piece += NORM_THREADS) sum += sums[piece];
  sum = block_sum_f64<NORM_THREADS / WARP>(sum, partial);
  if (threadIdx.x != 0) return;
  const Update u = updates[slot];
  const float norm = (float)sqrt(sum);
  const double beta1 = u.beta1, beta2 = u.beta2, rate = u.learning_rate;
  Factors f;
  f.clip = u.clip_norm > 0.f ? fminf(u.clip_norm / (norm + 1e-6f), 1.f) : 1.f;
  f.decay = (float)(1.0 - rate * u.weight_decay);
  f.one_minus_beta1 = (float)(1.0 - beta1);
  f.beta2 = u.beta2;
  f.one_minus_beta2 = (float)(1.0 - beta2);
  f.root_correction2 = (float)sqrt(1.0 - pow(beta2, (double)u.step));
  f.eps = u.eps;
  f.step_size = (float)(rate / (1.0 - pow(beta1, (double)u.step)));
  norms[slot] = norm;
  factors[slot] = f;
}
ENTRY(optim_norms)

// The operations of one element and their order are those of src/optim/cpu.rs, so that the bits agree where the norms do.
__device__ __forceinline__ void step(const Factors& f, float& p, float grad, float& m, float& v) {
  const float g = __fmul_rn(grad, f.clip);
  m = fmaf(g - m, f.one_minus_beta1, m);
  v = fmaf(__fmul_rn(g, g), f.one_minus_beta2, __fmul_rn(v, f.beta2));
  const float denominator = sqrtf(v) / f.root_correction2 + f.eps;
  p = fmaf(m / denominator, -f.step_size, __fmul_rn(p, f.decay));
}

extern "C" __global__ void __launch_bounds__(THREADS)
    optim_update(const Update* updates, unsigned num, const unsigned* begins, const Factors* factors,
                 const float* norms, float* params, float* grads, float* ms, float* vs) {
  const unsigned pieces = begins[num];
  for (unsigned piece = blockIdx.x; piece < pieces; piece += gridDim.x) {
    const Place place = place_of(updates, num, begins, piece);
    const Factors f = factors[place.slot];
    const bool finite = (__float_as_uint(norms[place.slot]) & 0x7f800000u) != 0x7f800000u;
    const float zero[4] = {};
#pragma unroll 2
    for (int q = 0; q < QUADS; q++) {
      const int i = (q * THREADS + threadIdx.x) * 4, n = place.len - i;
      if (n <= 0) break;
      const uint64_t at = place.at + i;
#ifdef FAULT_OPTIM_FINITE
      if (true) {
#else
      if (finite) {
#endif
        float p[4], g[4], m[4], v[4];
        load4(p, params + at, n, place.vector);
        load4(g, grads + at, n, place.vector);
        load4(m, ms + at, n, place.vector);
        load4(v, vs + at, n, place.vector);
#pragma unroll
        for (int k = 0; k < 4; k++) step(f, p[k], g[k], m[k], v[k]);
        store4(params + at, p, n, place.vector);
        store4(ms + at, m, n, place.vector);
        store4(vs + at, v, n, place.vector);
      }
      store4(grads + at, zero, n, place.vector);
    }
  }
}
ENTRY(optim_update)
