// Head and cross-entropy (src/loss/mod.rs) around the device's two products a chunk of the vocabulary:
//   logits = X Wᵀ (f32)  ->  loss_chunk: running maximum, exponentials E (bf16)  ->  sums += E W (f32)  ->  loss_finish
//
// A block owns a row. The target's column is left out of E and of the sum of exponentials `others`, so that
// loss = ln(others + e_y) - (l_y - top) and dx = w (Σ_{v≠y} e_v W_v - others W_y) / (others + e_y) keep their
// relative accuracy where the target's probability is close to one: nothing is subtracted that was rounded to bf16.
// The chunks are fixed, so a row's bits depend on the row and the weight alone.
#include "common.cuh"

constexpr int CHUNK = 4096;     // columns of the vocabulary a launch (src/loss/gpu.rs)
constexpr int CHUNK_WARPS = 8;  // of a block of loss_chunk
constexpr int CHUNK_THREADS = CHUNK_WARPS * WARP;
constexpr int GROUPS = CHUNK / (CHUNK_THREADS * 8);  // of eight columns, of a thread
constexpr int FINISH_THREADS = 128;

// What is kept of a row between chunks: largest logit, Σ exp(l - top) without the target, the target's logit.
struct __align__(16) State {
  float top, others, target, unused;
};

// The largest of a block, in every thread; NaN only if all are.
__device__ __forceinline__ float block_max(float v, float* partial) {
  v = warp_max(v);
  if (threadIdx.x % WARP == 0) partial[threadIdx.x / WARP] = v;
#ifndef FAULT_LOSS_SYNC
  __syncthreads();
#endif
  v = warp_max(partial[threadIdx.x % CHUNK_WARPS]);
  __syncthreads();
  return v;
}

// With nothing but -inf seen, exponentials are taken against zero.
__device__ __forceinline__ float reference(float top) { return top == -INFINITY ? 0.f : top; }

// Columns begin .. begin + columns of the vocabulary: e = exp(logits - top) with a zero at the target; when a larger
// logit turns up, what was summed before shrinks. `e` and `sums` are null where only losses are wanted.
extern "C" __global__ void __launch_bounds__(CHUNK_THREADS)
    loss_chunk(const float* logits, unsigned stride, int begin, int columns, const unsigned* targets, State* states,
               bf16* e, float* sums, unsigned sums_stride, int dim) {
  __shared__ float partial[CHUNK_WARPS];
  const size_t row = blockIdx.x;
  logits += row * stride;
  State state = begin == 0 ? State{-INFINITY, 0.f, 0.f, 0.f} : states[row];
  const unsigned target = targets[row] - (unsigned)begin;  // below `columns` if it is in this chunk

  float v[GROUPS][8], top = state.top;
#pragma unroll
  for (int g = 0; g < GROUPS; g++) {
    const int c = (g * CHUNK_THREADS + threadIdx.x) * 8;
    load8(v[g], logits + c, columns - c, true);
#pragma unroll
    for (int i = 0; i < 8; i++) {
      if (c + i >= columns) v[g][i] = -INFINITY;
      top = fmaxf(top, v[g][i]);
    }
  }
  top = block_max(top, partial);
  const float from = reference(top);
  float sum = 0.f;
#pragma unroll
  for (int g = 0; g < GROUPS; g++) {
    const int c = (g * CHUNK_THREADS + threadIdx.x) * 8;
#pragma unroll
    for (int i = 0; i < 8; i++) {
      v[g][i] = (unsigned)(c + i) == target ? 0.f : expf(v[g][i] - from);
      sum += v[g][i];
    }
    // The row of `e` has a multiple of eight columns.
    if (e != nullptr && c < columns) store8(e + row * stride + c, v[g], 8, true);
  }
  sum = block_sum<CHUNK_WARPS>(sum, partial);

  const float shrink = begin == 0 || top == state.top ? 1.f : expf(state.top - top);
  if (threadIdx.x == 0) {
    state.others = state.others * shrink + sum;
    state.top = top;
    if (target < (unsigned)columns) state.target = logits[target];
    states[row] = state;
  }
#ifndef FAULT_LOSS_SHRINK
  if (e == nullptr || shrink == 1.f) return;
  sums += row * sums_stride;
  for (int c = threadIdx.x * 8; c < dim; c += CHUNK_THREADS * 8) {
    load8(v[0], sums + c, dim - c, true);
#pragma unroll
    for (int i = 0; i < 8; i++) v[0][i] *= shrink;
    store8(sums + c, v[0], dim - c, true);
  }
#endif
}
ENTRY(loss_chunk)

// The losses, and where `dx` is not null the gradients, of rows whose target lies in the vocabulary; others are refused
// and left alone. `first` is the number of row 0 in the call.
extern "C" __global__ void __launch_bounds__(FINISH_THREADS)
    loss_finish(const State* states, const unsigned* targets, const float* weights, const bf16* head, unsigned vocab,
                const float* sums, unsigned sums_stride, float* losses, bf16* dx, unsigned dx_stride, int dim,
                unsigned first, unsigned long long* refused) {
  const size_t row = blockIdx.x;
  const unsigned target = targets[row];
  if (target >= vocab) {
    if (threadIdx.x == 0) refuse(refused, REFUSED_LABEL, first + blockIdx.x, target);
    return;
  }
  const State state = states[row];
  const float total = state.others + expf(state.target - reference(state.top));
  if (threadIdx.x == 0) losses[row] = (state.top - state.target) + logf(total);
  if (dx == nullptr) return;
  const float scale = weights[row] / total, pull = scale * state.others;
  const bool head_vector = aligned16(head, dim), vector = aligned16(dx, dx_stride);
  head += (size_t)target * dim;
  sums += row * sums_stride;
  dx += row * dx_stride;
  for (int c = threadIdx.x * 8; c < dim; c += FINISH_THREADS * 8) {
    float v[8], w[8];
    load8(v, sums + c, dim - c, true);
    load8(w, head + c, dim - c, head_vector);
#pragma unroll
    for (int i = 0; i < 8; i++) v[i] = v[i] * scale - pull * w[i];
    store8(dx + c, v, dim - c, vector);
  }
}
ENTRY(loss_finish)
