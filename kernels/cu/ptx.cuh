// What differs between the compilers, and every inline-PTX instruction: `#ifdef CUDA_CPU` and `asm` stand here alone.
#pragma once
#ifdef CUDA_CPU
#include "cuda_cpu.h"
#else
#ifdef __CUDACC_RTC__  // NVRTC has no host headers
using int32_t = int;
using uint16_t = unsigned short;
using uint32_t = unsigned;
using uint64_t = unsigned long long;
using size_t = unsigned long;
#else
#include <stdint.h>
#endif
// Dynamic shared memory of a kernel, once in each.
#define DYN_SMEM(name) extern __shared__ __align__(1024) unsigned char name[]
// Makes an entry known to the emulator.
#define ENTRY(name)
#endif
