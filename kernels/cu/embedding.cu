// Rows by index (src/embedding/mod.rs): a thread moves up to eight columns of a row; an index out of range is refused
// and its row left alone. The gradient of a table is one chain over the rows ascending for each element.
#include "common.cuh"

constexpr int THREADS = 128;
constexpr int COLUMNS = WARP * 8;  // columns of a warp of the table's gradient

__device__ __forceinline__ int first_column() { return (blockIdx.y * blockDim.x + threadIdx.x) * 8; }

// `to[c..] (=|+=) from[c..]`; `n` columns are left.
template <bool ADD, class T>
__device__ __forceinline__ void move8(bf16* to, bool to_vector, const T* from, bool from_vector, int n) {
  float v[8];
  load8(v, from, n, from_vector);
  if (ADD) {
    float sum[8];
    load8(sum, to, n, to_vector);
#pragma unroll
    for (int i = 0; i < 8; i++) v[i] += sum[i];
  }
  store8(to, v, n, to_vector);
}

// x[i] = table[ids[i]] (+ places[positions[i]]); `positions` is null without learned ones.
extern "C" __global__ void __launch_bounds__(THREADS)
    embedding_embed(const bf16* table, unsigned values, const unsigned* ids, const float* places, unsigned known,
                    const unsigned* positions, bf16* x, unsigned x_stride, int dim, unsigned long long* refused) {
  const int row = blockIdx.x, c = first_column(), n = dim - c;
  if (n <= 0) return;
  const unsigned id = ids[row], position = positions != nullptr ? positions[row] : 0;
  const bool vector = dim % 8 == 0;  // whole buffers: rows of a multiple of eight are aligned
  if (id >= values || (positions != nullptr && position >= known)) {
    if (c == 0 && id >= values) refuse(refused, REFUSED_EMBED_ID, row, id);
    if (c == 0 && id < values) refuse(refused, REFUSED_EMBED_POSITION, row, position);
    return;
  }
  float v[8], p[8];
  load8(v, table + (size_t)id * dim + c, n, vector);
  if (positions != nullptr) {
    load8(p, places + (size_t)position * dim + c, n, vector);
#pragma unroll
    for (int i = 0; i < 8; i++) v[i] += p[i];
  }
  store8(x + (size_t)row * x_stride + c, v, n, aligned16(x, x_stride));
}
ENTRY(embedding_embed)

// y[i] = x[index[i]]; x has `known` rows.
extern "C" __global__ void __launch_bounds__(THREADS)
    embedding_gather(const bf16* x, unsigned x_stride, unsigned known, const unsigned* index, bf16* y,
                     unsigned y_stride, int dim, unsigned long long* refused) {
  const int row = blockIdx.x, c = first_column();
  if (c >= dim) return;
  const unsigned from = index[row];
#ifndef FAULT_GATHER_UNCHECKED
  if (from >= known) {
    if (c == 0) refuse(refused, REFUSED_GATHER_ROW, row, from);
    return;
  }
#endif
  move8<false>(y + (size_t)row * y_stride + c, aligned16(y, y_stride), x + (size_t)from * x_stride + c,
               aligned16(x, x_stride), dim - c);
}
ENTRY(embedding_gather)

template <bool ADD>
__device__ __forceinline__ void scatter(const bf16* x, unsigned x_stride, const unsigned* index, bf16* y,
                                        unsigned y_stride, unsigned known, int dim, unsigned long long* refused) {
  const int row = blockIdx.x, c = first_column();
  if (c >= dim) return;
  const unsigned to = index[row];
  if (to >= known) {
    if (c == 0) refuse(refused, REFUSED_SCATTER_ROW, row, to);
    return;
  }
  move8<ADD>(y + (size_t)to * y_stride + c, aligned16(y, y_stride), x + (size_t)row * x_stride + c,
             aligned16(x, x_stride), dim - c);
}

// y[index[i]] = x[i]; the indices are distinct and y has `known` rows.
extern "C" __global__ void __launch_bounds__(THREADS)
    embedding_scatter(const bf16* x, unsigned x_stride, const unsigned* index, bf16* y, unsigned y_stride,
                      unsigned known, int dim, unsigned long long* refused) {
  scatter<false>(x, x_stride, index, y, y_stride, known, dim, refused);
}
ENTRY(embedding_scatter)

// y[index[i]] += x[i].
extern "C" __global__ void __launch_bounds__(THREADS)
    embedding_scatter_add(const bf16* x, unsigned x_stride, const unsigned* index, bf16* y, unsigned y_stride,
                          unsigned known, int dim, unsigned long long* refused) {
  scatter<true>(x, x_stride, index, y, y_stride, known, dim, refused);
}
ENTRY(embedding_scatter_add)

template <bool ADD>
__device__ __forceinline__ void lookup(const float* table, unsigned values, const unsigned* ids, unsigned ids_stride,
                                       bf16* x, unsigned x_stride, int dim, unsigned long long* refused) {
  const int row = blockIdx.x, c = first_column();
  if (c >= dim) return;
  const unsigned id = ids[(size_t)row * ids_stride];
  if (id >= values) {
    if (c == 0) refuse(refused, REFUSED_LOOKUP_ID, row, id);
    return;
  }
  move8<ADD>(x + (size_t)row * x_stride + c, aligned16(x, x_stride), table + (size_t)id * dim + c,
             aligned16(table, dim), dim - c);
}

// x[i] = table[ids[i]].
extern "C" __global__ void __launch_bounds__(THREADS)
    embedding_lookup(const float* table, unsigned values, const unsigned* ids, unsigned ids_stride, bf16* x,
                     unsigned x_stride, int dim, unsigned long long* refused) {
  lookup<false>(table, values, ids, ids_stride, x, x_stride, dim, refused);
}
ENTRY(embedding_lookup)

// x[i] += table[ids[i]].
extern "C" __global__ void __launch_bounds__(THREADS)
    embedding_lookup_add(const float* table, unsigned values, const unsigned* ids, unsigned ids_stride, bf16* x,
                         unsigned x_stride, int dim, unsigned long long* refused) {
  lookup<true>(table, values, ids, ids_stride, x, x_stride, dim, refused);
}
ENTRY(embedding_lookup_add)

// grads[ids[i]] += dx[i]. A block is one warp; the warp of the first row with an id owns that row of the table, a block
// of COLUMNS columns of it, and adds every later row with the same id in order. All others leave.
extern "C" __global__ void __launch_bounds__(WARP)
    embedding_lookup_gradient(const bf16* dx, unsigned dx_stride, const unsigned* ids, unsigned ids_stride,
                              float* grads, unsigned values, int rows, int dim, unsigned long long* refused) {
  const int row = blockIdx.x, lane = threadIdx.x, c = blockIdx.y * COLUMNS + lane * 8;
  const unsigned id = ids[(size_t)row * ids_stride];
  if (id >= values) {
    if (lane == 0 && blockIdx.y == 0) refuse(refused, REFUSED_LOOKUP_ID, row, id);
    return;
  }
#ifndef FAULT_LOOKUP_OWNER
  for (int first = 0; first < row; first += WARP) {
    const int i = first + lane;
    if (__any_sync(ALL_LANES, i < row && ids[(size_t)i * ids_stride] == id)) return;
  }
#endif
  const bool vector = aligned16(dx, dx_stride), to_vector = aligned16(grads, dim);
  float* to = grads + (size_t)id * dim + c;
  float sum[8], v[8];
  load8(sum, to, dim - c, to_vector);
  for (int first = row; first < rows; first += WARP) {
    const int i = first + lane;
    unsigned same = __ballot_sync(ALL_LANES, i < rows && ids[(size_t)i * ids_stride] == id);
    for (; same != 0; same &= same - 1) {
      const size_t from = first + (__ffs(same) - 1);
      load8(v, dx + from * dx_stride + c, dim - c, vector);
#pragma unroll
      for (int k = 0; k < 8; k++) sum[k] += v[k];
    }
  }
  store8(to, sum, dim - c, to_vector);
}
ENTRY(embedding_lookup_gradient)
