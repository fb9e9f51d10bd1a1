// Rotary positions in place, half-split form (src/rope/mod.rs): a thread rotates up to eight pairs of a head.
#include "common.cuh"

constexpr int THREADS = 256;

// `table` holds cos then sin of each position, [positions, 2, half]; `sign` is -1 for the inverse rotation.
extern "C" __global__ void __launch_bounds__(THREADS)
    rope_rotate(bf16* x, unsigned stride, const unsigned* positions, const float* table, unsigned known, int heads,
                int half, float sign, int rows, unsigned long long* refused) {
  const int chunks = (half + 7) / 8, per_row = heads * chunks;
  const int row = blockIdx.x, at = blockIdx.y * blockDim.x + threadIdx.x;
  if (row >= rows || at >= per_row) return;
  const unsigned position = positions[row];
  if (position >= known) {
    if (at == 0) refuse(refused, REFUSED_ROPE_POSITION, row, position);
    return;
  }
  const int c = at % chunks * 8, n = half - c;
  const bool vector = half % 8 == 0, x_vector = vector && aligned16(x, stride);
  bf16* low = x + (size_t)row * stride + (size_t)(at / chunks) * 2 * half + c;
  bf16* high = low + half;
  const float* angles = table + (size_t)position * 2 * half + c;
  float a[8], b[8], cosine[8], sine[8];
  load8(a, low, n, x_vector);
  load8(b, high, n, x_vector);
  load8(cosine, angles, n, vector);
  load8(sine, angles + half, n, vector);
#pragma unroll
  for (int i = 0; i < 8; i++) {
    const float l = a[i], h = b[i], s = sign * sine[i];
    a[i] = l * cosine[i] - h * s;
#ifdef FAULT_ROPE_SIGN
    b[i] = h * cosine[i] - l * s;
#else
    b[i] = h * cosine[i] + l * s;
#endif
  }
  store8(low, a, n, x_vector);
  store8(high, b, n, x_vector);
}
ENTRY(rope_rotate)
