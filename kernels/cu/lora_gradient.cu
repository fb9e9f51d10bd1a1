// dS' and dB from one read of dY, dA from one read of X. Start at `output_chunk` and `input_chunk`.
//
// A block owns a chunk of a segment's rows and a strip of columns and walks the rows, ROWS at a time (cp.async, a few
// stages deep); the gradient of its strip stays in registers until the last row:
//
//   dY [ROWS, 256]  --- x B strip [256, class] (shared, rounded once) --->  dS partial [ROWS, class] of the strip
//        |                                                                  (f32, to the workspace)
//        `-- transposed by ldmatrix x S' [ROWS, class] ------------------>  dB strip [256, class] += in registers
//   X [ROWS, 128]   -- transposed x dS' [ROWS, outputs * class] --------->  dA strip, all outputs, in registers
//
// Second pass, in a fixed order: `lora_ds` adds the strips' partials and rounds dS', `lora_chunks` adds the chunks of
// segments of 2 CHUNK rows and more. Shorter segments write their gradients at once. The workspace of a call is
// bounded by going through the pack in panels of rows; a chunk belongs to the panel that holds its first row.
#include "lora.cuh"

constexpr int THREADS = 256;
constexpr int ROWS = 32;
constexpr int OUT_STRIP = 256, IN_STRIP = 128;

// The rows whose chunks begin in `from .. from + rows`, a multiple of CHUNK.
struct Panel {
  uint32_t from, rows;
  __device__ __forceinline__ bool has(size_t row) const { return row >= from && row - from < rows; }
};

// The gradients of chunks of long segments, [panel rows / CHUNK, width]: the chunk that begins in slot row / CHUNK of
// the panel. Chunks have CHUNK rows at least, so no two share a slot.
struct Partials {
  float* data;
  unsigned long long width;
  __device__ __forceinline__ float* at(const Panel& panel, size_t row, size_t column) const {
    return data + (row - panel.from) / CHUNK * width + column;
  }
};

// Where the gradient of one chunk goes: `+=` in the slab, `=` in the workspace.
struct Target {
  float* to;
  bool add;
  __device__ __forceinline__ void put(size_t i, float v) const { to[i] = add ? to[i] + v : v; }
};
__device__ __forceinline__ Target target(const Rows& chunk, float* grads, size_t grad, const Partials& partials,
                                         const Panel& panel, size_t column) {
  const bool whole = chunk.s.rows < 2 * CHUNK;
  return whole ? Target{grads + chunk.s.grad_offset + grad, true} : Target{partials.at(panel, chunk.row(), column), false};
}

// Elements from one row of a shared tile to the next, see load_window.
template <int COLUMNS> constexpr int SHARED_STRIDE = COLUMNS / 8 % 2 ? COLUMNS : COLUMNS + 8;

// ---- dS and dB.

struct Output {
  Window dy;         // of this output
  uint32_t columns;  // outputs taken
  uint32_t b_unit;   // B begins r * b_unit after the adapter's first element
  int k;
  size_t partial;    // column of dB among the partials
};
struct OutputPass {
  const bf16* sums;
  uint32_t outputs;
  const float* params;
  float* grads;
  float* ds;  // [strips, panel rows + 2 CHUNK, 64]
  Partials partials;
  Panel panel;
};

template <int CLASS> struct OutputTile {
  static constexpr int DY = SHARED_STRIDE<OUT_STRIP>, S = SHARED_STRIDE<CLASS>;
  static constexpr int STAGES = CLASS == 64 ? 2 : 3;  // two blocks of 80 KB fit a multiprocessor of 164 KB
  static constexpr int STAGE = ROWS * (DY + S);
  static constexpr int GROUPS = CLASS / 8, DS_GROUPS = (GROUPS + 3) / 4;
};

// The strip of B, [256, class], rows beyond the outputs and columns beyond the rank zero.
template <int CLASS>
__device__ __forceinline__ void load_b(bf16* to, const float* b, uint32_t rows, uint32_t r) {
  const bool vector = aligned16(b, r);
  for (int i = threadIdx.x; i < OUT_STRIP * CLASS / 4; i += THREADS) {
    const uint32_t row = i / (CLASS / 4), column = i % (CLASS / 4) * 4;
    const float4 v = load4(b + (size_t)row * r + column, row < rows ? (int)r - (int)column : 0, vector);
    *reinterpret_cast<uint2*>(to + row * OutputTile<CLASS>::S + column) = pack4(v);
  }
}

// dS of 16 of the block's rows: two chains over even and odd steps along the strip, then their sum.
template <int CLASS>
__device__ __forceinline__ void strip_ds(const bf16* dy, const bf16* b, float* to, uint32_t rows) {
  using T = OutputTile<CLASS>;
  const int warp = threadIdx.x / WARP, m = warp % 2 * 16, first = warp / 2;
  if (first >= T::GROUPS) return;
  float acc[2][T::DS_GROUPS][4] = {};
#pragma unroll 2
  for (int at = 0; at < OUT_STRIP; at += 32)
#pragma unroll
    for (int odd = 0; odd < 2; odd++) {
      uint32_t a[4];
      load_mk<T::DY>(a, dy + m * T::DY + at + 16 * odd);
#pragma unroll
      for (int i = 0; i < T::DS_GROUPS; i++) {
        uint32_t bs[2];
        load_kn<T::S>(bs, b + (at + 16 * odd) * T::S + (first + 4 * i) * 8);
        ptx::mma_bf16_16816(acc[odd][i], a, bs[0], bs[1]);
      }
    }
  const uint32_t g = threadIdx.x % WARP / 4, t = threadIdx.x % 4;
#pragma unroll
  for (int i = 0; i < T::DS_GROUPS; i++)
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const uint32_t row = m + g + 8 * half;
      if (row >= rows) continue;
      const float* even = acc[0][i] + 2 * half;
      const float* odd = acc[1][i] + 2 * half;
      *reinterpret_cast<float2*>(to + row * CLASS + (first + 4 * i) * 8 + 2 * t) =
          make_float2(even[0] + odd[0], even[1] + odd[1]);
    }
}

template <int CLASS>
__device__ __forceinline__ void output_chunk(const OutputPass& c, const Output& out, const Rows& chunk, uint32_t strip,
                                             uint32_t ds_strip, bf16* shared) {
  using T = OutputTile<CLASS>;
  const uint32_t column = strip * OUT_STRIP, columns = min((uint32_t)OUT_STRIP, out.columns - column);
  const uint32_t r = chunk.s.lora_rank, steps = (chunk.rows + ROWS - 1) / ROWS;
  bf16* b = shared + T::STAGES * T::STAGE;
  const Window dy{out.dy.data + chunk.row() * out.dy.stride + column, out.dy.stride};
  const Window s{c.sums + sums_at(chunk, c.outputs, CLASS, 0) + out.k * CLASS, c.outputs * CLASS};
  const auto load = [&](uint32_t step) {
    if (step < steps) {
      const uint32_t at = step * ROWS;
#ifdef FAULT_LORA_RAGGED_CHUNK
      const uint32_t rows = ROWS;
#else
      const uint32_t rows = chunk.rows - at;
#endif
      bf16* stage = shared + step % T::STAGES * T::STAGE;
      load_window<ROWS, OUT_STRIP, T::DY, THREADS>(stage, Window{dy.data + (size_t)at * dy.stride, dy.stride}, rows, columns);
      load_window<ROWS, CLASS, T::S, THREADS>(stage + ROWS * T::DY, Window{s.data + (size_t)at * s.stride, s.stride}, rows, CLASS);
    }
    ptx::cp_async_commit();
  };
  for (int step = 0; step < T::STAGES - 1; step++) load(step);
  load_b<CLASS>(b, c.params + chunk.s.param_offset + (size_t)r * (out.b_unit + column), columns, r);
  // dB of the warp's 32 outputs.
  const uint32_t mine = threadIdx.x / WARP * 32;
  float db[2][T::GROUPS][4] = {};
  float* ds = c.ds + ((size_t)ds_strip * (c.panel.rows + 2 * CHUNK) + (chunk.row() - c.panel.from)) * MAX_LORA_RANK;
  for (uint32_t step = 0; step < steps; step++) {
    ptx::cp_async_wait<T::STAGES - 2>();
    __syncthreads();
    const bf16* stage = shared + step % T::STAGES * T::STAGE;
    load(step + T::STAGES - 1);
    strip_ds<CLASS>(stage, b, ds + (size_t)step * ROWS * CLASS, chunk.rows - step * ROWS);
#pragma unroll
    for (int at = 0; at < ROWS; at += 16) {
      uint32_t a[2][4];
      load_km<T::DY>(a[0], stage + at * T::DY + mine);
      load_km<T::DY>(a[1], stage + at * T::DY + mine + 16);
#pragma unroll
      for (int i = 0; i < T::GROUPS; i++) {
        uint32_t bs[2];
        load_kn<T::S>(bs, stage + ROWS * T::DY + at * T::S + i * 8);
        ptx::mma_bf16_16816(db[0][i], a[0], bs[0], bs[1]);
        ptx::mma_bf16_16816(db[1][i], a[1], bs[0], bs[1]);
      }
    }
  }
  ptx::cp_async_wait<0>();
  const Target to = target(chunk, c.grads, (size_t)r * (out.b_unit + column), c.partials, c.panel,
                           out.partial + (size_t)column * r);
  const uint32_t g = threadIdx.x % WARP / 4, t = threadIdx.x % 4;
#pragma unroll
  for (int m = 0; m < 2; m++)
#pragma unroll
    for (int i = 0; i < T::GROUPS; i++)
#pragma unroll
      for (int e = 0; e < 4; e++) {
        const uint32_t o = mine + 16 * m + g + e / 2 * 8, j = i * 8 + 2 * t + e % 2;
        if (o < columns && j < r) to.put((size_t)o * r + j, db[m][i][e]);
      }
}

// Blocks: chunk slots (x), strips of all outputs one after the other (y).
extern "C" __global__ void __launch_bounds__(THREADS, 2)
    lora_output(PACK_PARAMS, const bf16* sums, uint32_t outputs, const float* params, PER_OUTPUT(b_unit),
                PER_OUTPUT(out_len), PER_OUTPUT(y_start), const bf16* dy, uint32_t dy_stride, float* grads, float* ds,
                float* partials, unsigned long long partial_width, uint32_t panel_from, uint32_t panel_rows) {
  DYNAMIC_SHARED(shared);
  const Pack pack = PACK;
  Rows chunk;
  if (!find_chunk(pack, blockIdx.x, chunk)) return;
  const OutputPass c{sums, outputs, params, grads, ds, {partials, partial_width}, {panel_from, panel_rows}};
  if (!c.panel.has(chunk.row())) return;
  const PerOutput len = OUTPUTS_OF(out_len);
  uint32_t strip = blockIdx.y, before = 0;
  int k = 0;
  while (strip >= (len[k] + OUT_STRIP - 1) / OUT_STRIP) {
    strip -= (len[k] + OUT_STRIP - 1) / OUT_STRIP;
    before += len[k++];
  }
  const Output out{Window{dy + OUTPUTS_OF(y_start)[k], dy_stride}, len[k], OUTPUTS_OF(b_unit)[k], k,
                   (size_t)before * MAX_LORA_RANK};
  bf16* at = reinterpret_cast<bf16*>(shared);
  const int columns = rank_class(chunk.s.lora_rank);
  if (columns == 8) return output_chunk<8>(c, out, chunk, strip, blockIdx.y, at);
  if (columns == 16) return output_chunk<16>(c, out, chunk, strip, blockIdx.y, at);
  if (columns == 32) return output_chunk<32>(c, out, chunk, strip, blockIdx.y, at);
  output_chunk<64>(c, out, chunk, strip, blockIdx.y, at);
}
ENTRY(lora_output)

// dS' = scale / (1 - p) * the sum of the strips' partials, in the order of the outputs, rounded to bf16.
// Blocks: chunk slots (x), outputs (y).
extern "C" __global__ void __launch_bounds__(THREADS)
    lora_ds(PACK_PARAMS, PER_OUTPUT(out_len), uint32_t outputs, const float* ds, uint32_t panel_from, uint32_t panel_rows,
            bf16* sums) {
  const Pack pack = PACK;
  const Panel panel{panel_from, panel_rows};
  Rows chunk;
  if (!find_chunk(pack, blockIdx.x, chunk) || !panel.has(chunk.row())) return;
  const PerOutput len = OUTPUTS_OF(out_len);
  uint32_t first = 0;
  for (uint32_t k = 0; k < blockIdx.y; k++) first += (len[k] + OUT_STRIP - 1) / OUT_STRIP;
  const uint32_t strips = (len[blockIdx.y] + OUT_STRIP - 1) / OUT_STRIP, columns = rank_class(chunk.s.lora_rank);
  const float scale = chunk.s.scale * keep_scale(chunk.s.dropout);
  const size_t strip_size = (size_t)(panel.rows + 2 * CHUNK) * MAX_LORA_RANK;
  const float* from = ds + first * strip_size + (chunk.row() - panel.from) * MAX_LORA_RANK;
  bf16* to = sums + sums_at(chunk, outputs, columns, 0) + blockIdx.y * columns;
  for (uint32_t i = threadIdx.x * 4; i < chunk.rows * columns; i += THREADS * 4) {
    float4 v = make_float4(0.f, 0.f, 0.f, 0.f);
    for (uint32_t strip = 0; strip < strips; strip++) {
      const float4 p = *reinterpret_cast<const float4*>(from + strip * strip_size + i);
      v.x += p.x, v.y += p.y, v.z += p.z, v.w += p.w;
    }
    const float4 scaled = make_float4(scale * v.x, scale * v.y, scale * v.z, scale * v.w);
    *reinterpret_cast<uint2*>(to + (size_t)(i / columns) * outputs * columns + i % columns) = pack4(scaled);
  }
}
ENTRY(lora_ds)

// ---- dA.

struct InputPass {
  Window x;
  uint32_t d;
  const bf16* sums;  // dS'
  uint32_t outputs;
  PerOutput a_unit;
  Masks masks;
  float* grads;
  Partials partials;
  size_t partial;  // column of dA of the first output among the partials
  Panel panel;
};

// The dA of `COUNT` outputs from `k0` on, whose dS' lie side by side.
template <int CLASS, int COUNT>
__device__ __forceinline__ void input_chunk(const InputPass& c, const Rows& chunk, int k0, bf16* shared) {
  constexpr int STAGES = 4, X = SHARED_STRIDE<IN_STRIP>, S = SHARED_STRIDE<COUNT * CLASS>, STAGE = ROWS * (X + S);
  constexpr int GROUPS = CLASS / 8;
  const uint32_t column = blockIdx.y * IN_STRIP, steps = (chunk.rows + ROWS - 1) / ROWS;
  const uint32_t outputs = min((uint32_t)COUNT, c.outputs - k0);
  const Window x{c.x.data + chunk.row() * c.x.stride + column, c.x.stride};
  const Window s{c.sums + sums_at(chunk, c.outputs, CLASS, 0) + k0 * CLASS, c.outputs * CLASS};
  const auto load = [&](uint32_t step) {
    if (step < steps) {
      const uint32_t at = step * ROWS, rows = chunk.rows - at;
      bf16* stage = shared + step % STAGES * STAGE;
      load_window<ROWS, IN_STRIP, X, THREADS>(stage, Window{x.data + (size_t)at * x.stride, x.stride}, rows, c.d - column);
      load_window<ROWS, COUNT * CLASS, S, THREADS>(stage + ROWS * X, Window{s.data + (size_t)at * s.stride, s.stride}, rows,
                                                   outputs * CLASS);
    }
    ptx::cp_async_commit();
  };
  for (int step = 0; step < STAGES - 1; step++) load(step);
  // The warp's 16 columns.
  const uint32_t mine = threadIdx.x / WARP * 16, g = threadIdx.x % WARP / 4, t = threadIdx.x % 4;
  float da[COUNT][GROUPS][4] = {};
  for (uint32_t step = 0; step < steps; step++) {
    ptx::cp_async_wait<STAGES - 2>();
    __syncthreads();
    const bf16* stage = shared + step % STAGES * STAGE;
    load(step + STAGES - 1);
#pragma unroll
    for (int at = 0; at < ROWS; at += 16) {
      uint32_t xs[4];
      load_km<X>(xs, stage + at * X + mine);
#pragma unroll
      for (uint32_t k = 0; k < COUNT; k++) {
        if (k >= outputs) break;
        uint32_t a[4] = {xs[0], xs[1], xs[2], xs[3]};
        if (chunk.s.dropout > 0.f && column + mine < c.d) {
#pragma unroll
          for (int i = 0; i < 4; i += 2) {
            // Registers i and i + 1 hold columns g and g + 8 of rows 2t and 2t + 1 (+ 8).
            const uint32_t row = step * ROWS + at + 2 * t + 4 * i;
            const uint32_t bit = mine % 32 + g;
            const uint32_t low = row < chunk.rows ? c.masks.word(k0 + k, chunk.row() + row, column + mine) >> bit : 0;
            const uint32_t high = row + 1 < chunk.rows ? c.masks.word(k0 + k, chunk.row() + row + 1, column + mine) >> bit : 0;
            a[i] = masked_pair(a[i], low & 1, high & 1);
            a[i + 1] = masked_pair(a[i + 1], low >> 8 & 1, high >> 8 & 1);
          }
        }
#pragma unroll
        for (int i = 0; i < GROUPS; i++) {
          uint32_t b[2];
          load_kn<S>(b, stage + ROWS * X + at * S + k * CLASS + i * 8);
          ptx::mma_bf16_16816(da[k][i], a, b[0], b[1]);
        }
      }
    }
  }
  ptx::cp_async_wait<0>();
  const uint32_t r = chunk.s.lora_rank;
#pragma unroll
  for (uint32_t k = 0; k < COUNT; k++) {
    if (k >= outputs) break;
    const Target to = target(chunk, c.grads, (size_t)r * c.a_unit[k0 + k], c.partials, c.panel,
                             c.partial + (size_t)(k0 + k) * c.d * MAX_LORA_RANK);
#pragma unroll
    for (int i = 0; i < GROUPS; i++)
#pragma unroll
      for (int e = 0; e < 4; e++) {
        const uint32_t at = column + mine + g + e / 2 * 8, j = i * 8 + 2 * t + e % 2;
        if (at < c.d && j < r) to.put((size_t)j * c.d + at, da[k][i][e]);
      }
  }
}

// Blocks: chunk slots (x), strips of d (y), outputs (z): the first does all of them in one read of X, unless the rank
// is above 32, when the registers hold one.
extern "C" __global__ void __launch_bounds__(THREADS, 2)
    lora_da(PACK_PARAMS, const bf16* x, uint32_t x_stride, uint32_t d, const bf16* sums, uint32_t outputs,
            PER_OUTPUT(a_unit), const uint32_t* masks, uint32_t words, float* grads, float* partials,
            unsigned long long partial_width, unsigned long long partial, uint32_t panel_from, uint32_t panel_rows) {
  DYNAMIC_SHARED(shared);
  const Pack pack = PACK;
  Rows chunk;
  if (!find_chunk(pack, blockIdx.x, chunk)) return;
  const InputPass c{Window{x, x_stride}, d, sums, outputs, OUTPUTS_OF(a_unit), Masks{masks, num_rows, words}, grads,
                    {partials, partial_width}, partial, {panel_from, panel_rows}};
  const int columns = rank_class(chunk.s.lora_rank), k = blockIdx.z;
  if (!c.panel.has(chunk.row()) || (k > 0 && columns < 64)) return;
  bf16* at = reinterpret_cast<bf16*>(shared);
  if (columns == 8) return input_chunk<8, MAX_OUTPUTS>(c, chunk, 0, at);
  if (columns == 16) return input_chunk<16, MAX_OUTPUTS>(c, chunk, 0, at);
  if (columns == 32) return input_chunk<32, MAX_OUTPUTS>(c, chunk, 0, at);
  input_chunk<64, 1>(c, chunk, k, at);
}
ENTRY(lora_da)

// ---- The chunks of long segments, added to the slab one after the other, so that panels change no bit.
// Blocks: chunk slots, of which the panel's first of a segment does it (x), elements of one gradient (y), the dB and
// then the dA of the outputs (z).
extern "C" __global__ void __launch_bounds__(THREADS)
    lora_chunks(PACK_PARAMS, PER_OUTPUT(b_unit), PER_OUTPUT(out_len), PER_OUTPUT(a_unit), uint32_t d, uint32_t outputs,
                float* grads, float* partials, unsigned long long partial_width, uint32_t panel_from,
                uint32_t panel_rows) {
  const Pack pack = PACK;
  const Panel panel{panel_from, panel_rows};
  Rows chunk;
  if (!find_chunk(pack, blockIdx.x, chunk) || chunk.s.rows < 2 * CHUNK || !panel.has(chunk.row())) return;
  if (chunk.first > 0 && panel.has(chunk.row() - CHUNK)) return;
  const PerOutput len = OUTPUTS_OF(out_len);
  const bool is_b = blockIdx.z < outputs;
  const uint32_t k = is_b ? blockIdx.z : blockIdx.z - outputs, r = chunk.s.lora_rank;
  size_t column = 0;
  for (uint32_t i = 0; i < (is_b ? k : outputs); i++) column += (size_t)len[i] * MAX_LORA_RANK;
  if (!is_b) column += (size_t)k * d * MAX_LORA_RANK;
  const uint32_t size = r * (is_b ? len[k] : d);
  float* to = grads + chunk.s.grad_offset + (size_t)r * (is_b ? OUTPUTS_OF(b_unit)[k] : OUTPUTS_OF(a_unit)[k]);
  const float* from = Partials{partials, partial_width}.at(panel, chunk.row(), column);
  const uint32_t last = chunk.s.rows / CHUNK - chunk.first / CHUNK;
  for (uint32_t i = blockIdx.y * THREADS + threadIdx.x; i < size; i += gridDim.y * THREADS) {
    float sum = to[i];
    for (uint32_t n = 0; n < last && panel.has(chunk.row() + (size_t)n * CHUNK); n++) sum += from[n * partial_width + i];
    to[i] = sum;
  }
}
ENTRY(lora_chunks)
