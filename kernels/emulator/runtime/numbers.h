// Bit casts, integer and float functions under CUDA's names. Approximations are the host's exact-as-possible
// functions: the hardware's own rounding of __expf and its like is not modelled.
#pragma once

template <class To, class From> static inline To cpu_bits(From from) {
  static_assert(sizeof(To) == sizeof(From), "same size");
  To to;
  memcpy(&to, &from, sizeof(To));
  return to;
}
static inline float __uint_as_float(uint32_t x) { return cpu_bits<float>(x); }
static inline uint32_t __float_as_uint(float x) { return cpu_bits<uint32_t>(x); }
static inline float __int_as_float(int x) { return cpu_bits<float>(x); }
static inline int __float_as_int(float x) { return cpu_bits<int>(x); }
static inline double __longlong_as_double(long long x) { return cpu_bits<double>(x); }
static inline long long __double_as_longlong(double x) { return cpu_bits<long long>(x); }

#define CPU_MIN_MAX(T)                                            \
  static inline T min(T a, T b) { return a < b ? a : b; }         \
  static inline T max(T a, T b) { return a > b ? a : b; }
CPU_MIN_MAX(int)
CPU_MIN_MAX(unsigned)
CPU_MIN_MAX(long)
CPU_MIN_MAX(unsigned long)
CPU_MIN_MAX(long long)
CPU_MIN_MAX(unsigned long long)
#undef CPU_MIN_MAX
static inline float min(float a, float b) { return fminf(a, b); }
static inline float max(float a, float b) { return fmaxf(a, b); }

static inline int __popc(unsigned x) { return __builtin_popcount(x); }
static inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
static inline int __ffs(int x) { return __builtin_ffs(x); }
static inline int __clz(int x) { return x ? __builtin_clz(static_cast<unsigned>(x)) : 32; }
static inline unsigned __umulhi(unsigned a, unsigned b) {
  return static_cast<unsigned>((static_cast<uint64_t>(a) * b) >> 32);
}
static inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  return static_cast<unsigned long long>((static_cast<unsigned __int128>(a) * b) >> 64);
}
static inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
  return static_cast<unsigned>((((static_cast<uint64_t>(high) << 32) | low) << (shift & 31)) >> 32);
}
static inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
  return static_cast<unsigned>(((static_cast<uint64_t>(high) << 32) | low) >> (shift & 31));
}
static inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
  const uint64_t bytes = (static_cast<uint64_t>(y) << 32) | x;
  unsigned result = 0;
  for (int i = 0; i < 4; i++) {
    const unsigned pick = selector >> (4 * i), byte = (bytes >> (8 * (pick & 7))) & 0xff;
    result |= ((pick & 8) ? (byte & 0x80 ? 0xffu : 0u) : byte) << (8 * i);
  }
  return result;
}

static inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
static inline float __frsqrt_rn(float x) { return static_cast<float>(1.0 / sqrt(static_cast<double>(x))); }
static inline float __fsqrt_rn(float x) { return sqrtf(x); }
static inline float __frcp_rn(float x) { return 1.0f / x; }
static inline float __fdividef(float a, float b) { return a / b; }
static inline float __fdiv_rn(float a, float b) { return a / b; }
static inline float __fadd_rn(float a, float b) { return a + b; }
static inline float __fsub_rn(float a, float b) { return a - b; }
static inline float __fmul_rn(float a, float b) { return a * b; }
static inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
static inline float __saturatef(float x) { return x > 0.0f ? (x < 1.0f ? x : 1.0f) : 0.0f; }
// glibc declares __expf and its like as its own; macros keep out of their way.
#define __expf(x) expf(x)
#define __exp2f(x) exp2f(x)
#define __exp10f(x) powf(10.0f, x)
#define __logf(x) logf(x)
#define __log2f(x) log2f(x)
#define __log10f(x) log10f(x)
#define __sinf(x) sinf(x)
#define __cosf(x) cosf(x)
#define __tanf(x) tanf(x)
#define __powf(x, y) powf(x, y)
#define __tanhf(x) tanhf(x)
#define __sincosf(x, s, c) sincosf(x, s, c)
#define __float2int_rn(x) static_cast<int>(rintf(x))
#define __float2int_rz(x) static_cast<int>(x)
#define __int2float_rn(x) static_cast<float>(x)
#define __uint2float_rn(x) static_cast<float>(x)

template <class T> static inline T __ldg(const T* address) { return *address; }
template <class T> static inline T __ldcs(const T* address) { return *address; }
template <class T> static inline void __stcs(T* address, T value) { *address = value; }
