// The wrappers of ptx.cuh for the CPU: same names, same layouts. What they mean is written there.
#pragma once

namespace ptx {

static __forceinline__ void cp_async16(void* shared, const void* global, bool pred = true, cpu::Site site = CPU_HERE) {
  cpu::copy_async(shared, global, 16, pred, site);
}
static __forceinline__ void cp_async8(void* shared, const void* global, bool pred = true, cpu::Site site = CPU_HERE) {
  cpu::copy_async(shared, global, 8, pred, site);
}
static __forceinline__ void cp_async4(void* shared, const void* global, bool pred = true, cpu::Site site = CPU_HERE) {
  cpu::copy_async(shared, global, 4, pred, site);
}
static __forceinline__ void cp_async_commit() { cpu::copy_commit(); }
template <int KEEP> static __forceinline__ void cp_async_wait() { cpu::copy_wait(KEEP); }

#define CPU_LDMATRIX(NAME, COUNT, TRANSPOSED)                                                                 \
  static __forceinline__ void NAME(uint32_t(&r)[COUNT], const void* shared, cpu::Site site = CPU_HERE) {      \
    cpu::ldmatrix(r, COUNT, TRANSPOSED, shared, site);                                                        \
  }
CPU_LDMATRIX(ldmatrix_x1, 1, false)
CPU_LDMATRIX(ldmatrix_x2, 2, false)
CPU_LDMATRIX(ldmatrix_x4, 4, false)
CPU_LDMATRIX(ldmatrix_x1_trans, 1, true)
CPU_LDMATRIX(ldmatrix_x2_trans, 2, true)
CPU_LDMATRIX(ldmatrix_x4_trans, 4, true)
#undef CPU_LDMATRIX

static __forceinline__ void mma_bf16_16816(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                                           cpu::Site site = CPU_HERE) {
  cpu::mma_bf16(d, a, b0, b1, site);
}
static __forceinline__ void mma_tf32_1688(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                                          cpu::Site site = CPU_HERE) {
  cpu::mma_tf32(d, a, b0, b1, site);
}

// Infinities and NaN pass unrounded.
static inline uint32_t cvt_tf32(float x) {
  uint32_t bits = __float_as_uint(x);
  if ((bits & 0x7f800000u) != 0x7f800000u) bits += 0x1000u;
  return bits & 0xffffe000u;
}
// Every NaN becomes 0x7fff.
static inline uint32_t pack_bf16(float low, float high) {
  const auto rounded = [](float x) -> uint32_t {
    const uint32_t bits = __float_as_uint(x);
    return (bits & 0x7fffffffu) > 0x7f800000u ? 0x7fffu : (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  };
  return rounded(low) | rounded(high) << 16;
}
static inline float ex2(float x) {
  const float y = exp2f(x);
  return y < 1.17549435e-38f ? 0.0f : y;
}

}  // namespace ptx
