// What every operation uses: bf16 and 16-byte accesses, sums over a warp and a block, refusals.
// bf16 is kept as its bits, so that no header of the toolkit is needed to compile at run time.
#pragma once
#include "ptx.cuh"

// What a kernel refuses after seeing values; mirrored by src/gpu/refusal.rs, which a test holds to it.
enum Refusal {
  REFUSED_EMBED_ID = 1,
  REFUSED_EMBED_POSITION,
  REFUSED_GATHER_ROW,
  REFUSED_SCATTER_ROW,
  REFUSED_LOOKUP_ID,
  REFUSED_ROPE_POSITION,
  REFUSED_POOL_RANGE,
  REFUSED_POOL_OVERLAP,
  REFUSED_LABEL,
  REFUSED_UPDATE,
  REFUSED_LORA_RANK,
  REFUSED_LORA_SEGMENT,
  REFUSED_INTENT_ORDER,
  REFUSED_INTENT_END,
  REFUSED_INTENT_DELTA,
  REFUSED_INTENT_GRADIENT,
  REFUSED_INTENT_OVERLAP,
  REFUSED_CLASS_KIND,
  REFUSED_CLASS_TARGET,
  REFUSED_CLASS_SOFT,
  REFUSED_CLASS_TEACHER,
  REFUSED_CLASS_NUMBER,
};

constexpr int WARP = 32;
constexpr unsigned ALL_LANES = 0xffffffffu;

// The upper half of an f32's bits.
struct bf16 {
  uint16_t bits;
};

__device__ __forceinline__ float to_f32(bf16 v) { return __uint_as_float((uint32_t)v.bits << 16); }

// Nearest, ties to even; a NaN stays one.
__device__ __forceinline__ bf16 to_bf16(float v) {
  const uint32_t u = __float_as_uint(v);
  const uint32_t rounded = (u + 0x7fffu + (u >> 16 & 1u)) >> 16;
  return {(uint16_t)((u & 0x7fffffffu) > 0x7f800000u ? 0x7fffu : rounded)};
}

// 16 bytes at an address that is a multiple of 16.
__device__ __forceinline__ uint4 ld16(const void* p) { return *reinterpret_cast<const uint4*>(p); }
__device__ __forceinline__ void st16(void* p, uint4 v) { *reinterpret_cast<uint4*>(p) = v; }

// Whether rows that begin at `p` and lie `stride` elements of `T` apart all allow 16-byte accesses.
template <class T>
__device__ __forceinline__ bool aligned16(const T* p, unsigned stride) {
  return ((size_t)p & 15) == 0 && stride % (16 / sizeof(T)) == 0;
}

// Eight neighbouring elements in f32; missing ones (`n < 8`) are zero. `vector` promises alignment for n == 8.
__device__ __forceinline__ void load8(float (&v)[8], const bf16* p, int n, bool vector) {
  if (vector && n >= 8) {
    const uint4 q = ld16(p);
    const uint32_t u[4] = {q.x, q.y, q.z, q.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
      v[2 * i] = __uint_as_float(u[i] << 16);
      v[2 * i + 1] = __uint_as_float(u[i] & 0xffff0000u);
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < 8; i++) v[i] = i < n ? to_f32(p[i]) : 0.f;
}

__device__ __forceinline__ void load8(float (&v)[8], const float* p, int n, bool vector) {
  if (vector && n >= 8) {
    const uint4 a = ld16(p), b = ld16(p + 4);
    const uint32_t u[8] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
#pragma unroll
    for (int i = 0; i < 8; i++) v[i] = __uint_as_float(u[i]);
    return;
  }
#pragma unroll
  for (int i = 0; i < 8; i++) v[i] = i < n ? p[i] : 0.f;
}

__device__ __forceinline__ void store8(bf16* p, const float (&v)[8], int n, bool vector) {
  if (vector && n >= 8) {
    uint32_t u[4];
#pragma unroll
    for (int i = 0; i < 4; i++)
      u[i] = (uint32_t)to_bf16(v[2 * i]).bits | (uint32_t)to_bf16(v[2 * i + 1]).bits << 16;
    st16(p, make_uint4(u[0], u[1], u[2], u[3]));
    return;
  }
#pragma unroll
  for (int i = 0; i < 8; i++)
    if (i < n) p[i] = to_bf16(v[i]);
}

__device__ __forceinline__ void store8(float* p, const float (&v)[8], int n, bool vector) {
  if (vector && n >= 8) {
    uint32_t u[8];
#pragma unroll
    for (int i = 0; i < 8; i++) u[i] = __float_as_uint(v[i]);
    st16(p, make_uint4(u[0], u[1], u[2], u[3]));
    st16(p + 4, make_uint4(u[4], u[5], u[6], u[7]));
    return;
  }
#pragma unroll
  for (int i = 0; i < 8; i++)
    if (i < n) p[i] = v[i];
}

// Four neighbouring f32; those from the n-th on are zero. `vector` promises alignment to 16 bytes.
__device__ __forceinline__ void load4(float (&v)[4], const float* p, int n, bool vector) {
  if (vector && n >= 4) {
    const uint4 q = ld16(p);
    v[0] = __uint_as_float(q.x), v[1] = __uint_as_float(q.y), v[2] = __uint_as_float(q.z), v[3] = __uint_as_float(q.w);
    return;
  }
#pragma unroll
  for (int i = 0; i < 4; i++) v[i] = i < n ? p[i] : 0.f;
}

__device__ __forceinline__ void store4(float* p, const float (&v)[4], int n, bool vector) {
  if (vector && n >= 4) {
    st16(p, make_uint4(__float_as_uint(v[0]), __float_as_uint(v[1]), __float_as_uint(v[2]), __float_as_uint(v[3])));
    return;
  }
#pragma unroll
  for (int i = 0; i < 4; i++)
    if (i < n) p[i] = v[i];
}

// The sum over a warp, in every lane; the same tree, so the same bits, whatever the lane.
__device__ __forceinline__ float warp_sum(float v) {
#pragma unroll
  for (int lane = WARP / 2; lane > 0; lane >>= 1) v += __shfl_xor_sync(ALL_LANES, v, lane);
  return v;
}

__device__ __forceinline__ float warp_max(float v) {
#pragma unroll
  for (int lane = WARP / 2; lane > 0; lane >>= 1) v = fmaxf(v, __shfl_xor_sync(ALL_LANES, v, lane));
  return v;
}

// The sum over a block of WARPS warps, in every thread; `partial` has WARPS floats of shared memory and may be
// used again at once.
template <int WARPS>
__device__ __forceinline__ float block_sum(float v, float* partial) {
  static_assert(WARPS <= WARP, "one warp adds the partial sums");
  v = warp_sum(v);
  if (threadIdx.x % WARP == 0) partial[threadIdx.x / WARP] = v;
  __syncthreads();
  v = threadIdx.x % WARP < WARPS ? partial[threadIdx.x % WARP] : 0.f;
  v = warp_sum(v);
  __syncthreads();
  return v;
}

// Notes a refusal; of several the one with the highest code, then the lowest row, is kept.
__device__ __forceinline__ void refuse(unsigned long long* word, Refusal code, unsigned row, unsigned value) {
  const unsigned long long last = 0xffffffull, at = row < last ? row : last;
  atomicMax(word, (unsigned long long)code << 56 | (last - at) << 32 | value);
}
