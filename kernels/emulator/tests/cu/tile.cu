// d[m, n] = a[m, k] b[n, k]^T for bf16 a and b, 32 x 32 tiles, three stages of cp.async, ldmatrix, mma.m16n8k16.
// n and k are multiples of 8; m, n and k need not be multiples of the tile.
#include "ptx.cuh"

constexpr int TILE = 32, STEP = 32, STAGES = 3;
constexpr int PITCH = STEP + 8;  // 16 bytes of padding: no two rows of an 8x8 tile in one bank

__device__ __forceinline__ void load(uint16_t* tile, const uint16_t* rows, int valid, int k0, int k) {
  const int row = threadIdx.x / 4, column = threadIdx.x % 4 * 8;  // 128 threads, 16 bytes each
  const bool there = row < valid && k0 + column < k;
#ifdef FAULT_PREDICATE
  ptx::cp_async16(tile + row * PITCH + column, rows + static_cast<size_t>(row) * k + k0 + column, true);
#else
  ptx::cp_async16(tile + row * PITCH + column, there ? rows + static_cast<size_t>(row) * k + k0 + column : rows, there);
#endif
}

extern "C" __global__ void __launch_bounds__(128)
    tile_product(const uint16_t* __restrict__ a, const uint16_t* __restrict__ b, float* __restrict__ d, int m, int n, int k) {
  DYNAMIC_SHARED(raw);
  uint16_t* sa = reinterpret_cast<uint16_t*>(raw);
  uint16_t* sb = sa + STAGES * TILE * PITCH;
  const int m0 = blockIdx.y * TILE, n0 = blockIdx.x * TILE, steps = (k + STEP - 1) / STEP;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, wm = warp / 2 * 16, wn = warp % 2 * 16;
  const uint16_t *ga = a + static_cast<size_t>(m0) * k, *gb = b + static_cast<size_t>(n0) * k;
  for (int s = 0; s < STAGES - 1; s++) {
    if (s < steps) {
      load(sa + s * TILE * PITCH, ga, m - m0, s * STEP, k);
      load(sb + s * TILE * PITCH, gb, n - n0, s * STEP, k);
    }
    ptx::cp_async_commit();
  }
  float sums[2][4] = {};
  for (int step = 0; step < steps; step++) {
#ifdef FAULT_WAIT
    ptx::cp_async_wait<STAGES - 1>();
#else
    ptx::cp_async_wait<STAGES - 2>();
#endif
#ifndef FAULT_STAGE_BARRIER
    __syncthreads();
#endif
    const int next = step + STAGES - 1;
    if (next < steps) {
      load(sa + next % STAGES * TILE * PITCH, ga, m - m0, next * STEP, k);
      load(sb + next % STAGES * TILE * PITCH, gb, n - n0, next * STEP, k);
    }
    ptx::cp_async_commit();
    const uint16_t *ta = sa + step % STAGES * TILE * PITCH, *tb = sb + step % STAGES * TILE * PITCH;
    for (int kk = 0; kk < STEP; kk += 16) {
      uint32_t fa[4], fb[4];
#ifdef FAULT_ROW_ALIGNMENT
      ptx::ldmatrix_x4(fa, ta + (wm + lane % 16) * (PITCH - 4) + kk + lane / 16 * 8);
#else
      ptx::ldmatrix_x4(fa, ta + (wm + lane % 16) * PITCH + kk + lane / 16 * 8);
#endif
      ptx::ldmatrix_x4(fb, tb + (wn + lane / 16 * 8 + lane % 8) * PITCH + kk + lane / 8 % 2 * 8);
      ptx::mma_bf16_16816(sums[0], fa, fb[0], fb[1]);
      ptx::mma_bf16_16816(sums[1], fa, fb[2], fb[3]);
    }
  }
  ptx::cp_async_wait<0>();
  for (int j = 0; j < 2; j++)
    for (int e = 0; e < 4; e++) {
      const int row = m0 + wm + lane / 4 + e / 2 * 8, column = n0 + wn + j * 8 + lane % 4 * 2 + e % 2;
      if (row < m && column < n) d[static_cast<size_t>(row) * n + column] = sums[j][e];
    }
}
ENTRY(tile_product)
