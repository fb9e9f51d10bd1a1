// One warp's fragments in and out as they are, lane by lane.
#include "ptx.cuh"

extern "C" __global__ void product_bf16(const uint32_t* a, const uint32_t* b, float* d) {
  const int lane = threadIdx.x;
  uint32_t fa[4];
  float sums[4];
  for (int i = 0; i < 4; i++) fa[i] = a[4 * lane + i], sums[i] = d[4 * lane + i];
  ptx::mma_bf16_16816(sums, fa, b[2 * lane], b[2 * lane + 1]);
  for (int i = 0; i < 4; i++) d[4 * lane + i] = sums[i];
}
ENTRY(product_bf16)

extern "C" __global__ void product_tf32(const uint32_t* a, const uint32_t* b, float* d) {
  const int lane = threadIdx.x;
  uint32_t fa[4];
  float sums[4];
  for (int i = 0; i < 4; i++) fa[i] = a[4 * lane + i], sums[i] = d[4 * lane + i];
  ptx::mma_tf32_1688(sums, fa, b[2 * lane], b[2 * lane + 1]);
  for (int i = 0; i < 4; i++) d[4 * lane + i] = sums[i];
}
ENTRY(product_tf32)

// Rows of which element e of row l is 8 l + e; out[form][lane][register].
extern "C" __global__ void matrices(uint32_t* out) {
  __shared__ __align__(16) uint16_t rows[32][8];
  const int lane = threadIdx.x;
  for (int e = 0; e < 8; e++) rows[lane][e] = static_cast<uint16_t>(8 * lane + e);
  __syncwarp();
  uint32_t x1[2][1], x2[2][2], x4[2][4];
  ptx::ldmatrix_x1(x1[0], rows[lane]);
  ptx::ldmatrix_x1_trans(x1[1], rows[lane]);
  ptx::ldmatrix_x2(x2[0], rows[lane]);
  ptx::ldmatrix_x2_trans(x2[1], rows[lane]);
  ptx::ldmatrix_x4(x4[0], rows[lane]);
  ptx::ldmatrix_x4_trans(x4[1], rows[lane]);
  for (int t = 0; t < 2; t++) {
    out[128 * t + 4 * lane] = x1[t][0];
    for (int i = 0; i < 2; i++) out[256 + 128 * t + 4 * lane + i] = x2[t][i];
    for (int i = 0; i < 4; i++) out[512 + 128 * t + 4 * lane + i] = x4[t][i];
  }
}
ENTRY(matrices)
