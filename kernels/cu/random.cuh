// Counter-based random numbers, bit for bit those of kernels/src/random.rs: Philox4x32-10 (Salmon et al., SC 2011) and
// the dropout masks made of it. A number is a pure function of (key, counter).
#pragma once
#include "common.cuh"

// Four random words for a key and a counter.
__device__ __forceinline__ uint4 philox(uint2 key, uint4 counter) {
  uint4 c = counter;
#pragma unroll
  for (int round = 0; round < 10; round++) {
    const uint64_t p0 = (uint64_t)c.x * 0xD2511F53u, p1 = (uint64_t)c.z * 0xCD9E8D57u;
    c = make_uint4((uint32_t)(p1 >> 32) ^ c.y ^ key.x, (uint32_t)p1, (uint32_t)(p0 >> 32) ^ c.w ^ key.y, (uint32_t)p0);
    key.x += 0x9E3779B9u;
    key.y += 0xBB67AE85u;
  }
  return c;
}

// The masks of one site in one step of one user: element (token, column) is kept iff word `column % 4` of
// philox(key, (token, column / 4, site, step)) is at least floor(p 2^32).
struct Dropout {
  uint2 key;
  uint32_t step, site, threshold;

  // p 2^32 is exact in f32 and below 2^32.
  __device__ __forceinline__ Dropout(uint2 key, uint32_t step, uint32_t site, float p)
      : key(key), step(step), site(site), threshold((uint32_t)(p * 4294967296.f)) {}

  // Bit i of the result: whether column 32 group + i is kept.
  __device__ __forceinline__ uint32_t keep32(uint32_t token, uint32_t group) const {
    uint32_t bits = 0;
#pragma unroll 2
    for (uint32_t i = 0; i < 8; i++) {
      const uint4 w = philox(key, make_uint4(token, 8 * group + i, site, step));
      const uint32_t four = (uint32_t)(w.x >= threshold) | (uint32_t)(w.y >= threshold) << 1 |
                            (uint32_t)(w.z >= threshold) << 2 | (uint32_t)(w.w >= threshold) << 3;
      bits |= four << (4 * i);
    }
    return bits;
  }
};

// What is kept is multiplied by this, rounded once as on the CPU.
__device__ __forceinline__ float keep_scale(float p) { return p > 0.f ? 1.f / (1.f - p) : 1.f; }
