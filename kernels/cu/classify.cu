// Losses of rows of class logits and softmax (src/classify/mod.rs): one warp a row, so that a row's bits depend on that
// row alone. A lane takes four neighbouring classes of each 128. Exponentials are computed again where they are needed:
// nothing of a row is kept but three numbers.
#include "common.cuh"

constexpr int WARPS = 4;  // rows of a block
constexpr int STEP = WARP * 4;

enum Kind { HARD, FOCAL, DISTILL, RETAIN, FORGET };

// crate::classify::Row.
struct Row {
  unsigned kind, target, soft;
  float weight, gamma, alpha, temperature, beta, margin;
};

// A row of logits or of its gradient.
template <class T>
struct Classes {
  T* at;
  int count;
  bool vector;  // every row begins at a multiple of 16 bytes

  __device__ __forceinline__ Classes(T* base, size_t row, int count)
      : at(base ? base + row * count : nullptr), count(count), vector(aligned16(base, count)) {}

  // Calls visit(first class, values, number of values) for each four classes of this lane.
  template <class F>
  __device__ __forceinline__ void each(F&& visit) const {
    for (int c = threadIdx.x % WARP * 4; c < count; c += STEP) {
      float v[4];
      load4(v, at + c, count - c, vector);
      visit(c, v, min(4, count - c));
    }
  }
  __device__ __forceinline__ void store(int c, const float (&v)[4]) const { store4(at + c, v, count - c, vector); }
};
using Logits = Classes<const float>;

// Softmax of a row: largest logit and its class, ln Σ exp((z - max) / T), one over the sum.
struct Normal {
  float max, ln_total, inverse, temperature;
  __device__ __forceinline__ float exponential(float z) const { return expf((z - max) / temperature); }
  __device__ __forceinline__ float operator()(float z) const { return exponential(z) * inverse; }
};

// The largest logit's own 1 stays out of the sum that the logarithm is taken of, so that a total close to 1 keeps its
// digits. NaN is never greater: it comes out of the exponentials.
__device__ __forceinline__ Normal normal(const Logits& z, float temperature) {
  constexpr int NOBODY = 0x7fffffff;
  Normal of = {-INFINITY, 0.f, 0.f, temperature};
  int top = NOBODY;
  z.each([&](int c, const float(&v)[4], int n) {
    for (int i = 0; i < n; i++)
      if (v[i] > of.max) of.max = v[i], top = c + i;
  });
#pragma unroll
  for (int lane = WARP / 2; lane > 0; lane >>= 1) {
    const float max = __shfl_xor_sync(ALL_LANES, of.max, lane);
    const int other = __shfl_xor_sync(ALL_LANES, top, lane);
    if (max > of.max || (max == of.max && other < top)) of.max = max, top = other;
  }
  float rest = 0.f;
  z.each([&](int c, const float(&v)[4], int n) {
    for (int i = 0; i < n; i++) {
#ifdef FAULT_CLASSIFY_TIES
      if (v[i] != of.max) rest += of.exponential(v[i]);
#else
      if (c + i != top) rest += of.exponential(v[i]);
#endif
    }
  });
  rest = warp_sum(rest);
  of.ln_total = log1pf(rest);
  of.inverse = 1.f / (rest + 1.f);
  return of;
}

// Value and derivative of a function of the cross-entropy.
struct Slope {
  float loss, slope;
};

// u^gamma ce, u = 1 - exp(-ce); its derivative u^gamma (1 + gamma p ce / u).
__device__ __forceinline__ Slope focal(float ce, float gamma) {
  const float u = -expm1f(-ce), power = powf(u, gamma), ratio = u == 0.f ? 1.f : ce / u;
  return {power * ce, power * fmaf(gamma * expf(-ce), ratio, 1.f)};
}

// beta max(0, margin - ce); -beta ce for an infinite margin; NaN stays.
__device__ __forceinline__ Slope forget(float ce, const Row& row) {
  if (row.margin == INFINITY) return {-row.beta * ce, -row.beta};
#ifndef FAULT_CLASSIFY_MARGIN
  if (ce >= row.margin) return {0.f, 0.f};
#endif
  return {row.beta * (row.margin - ce), -row.beta};
}

__device__ __forceinline__ Slope of_cross_entropy(float ce, const Row& row) {
  if (row.kind == FOCAL) return focal(ce, row.gamma);
  if (row.kind == FORGET) return forget(ce, row);
  return {ce, 1.f};
}

// What is wrong with an entry: a refusal and the value it names, or 0.
__device__ __forceinline__ int wrong(const Row& row, int classes, bool teacher, unsigned& value) {
  const bool may_be_soft = row.kind == RETAIN || row.kind == FORGET, finite_gamma = row.gamma < INFINITY;
  value = row.kind;
  if (row.kind > FORGET) return REFUSED_CLASS_KIND;
  value = row.target;
  if ((!may_be_soft || row.soft == 0) && row.target >= (unsigned)classes) return REFUSED_CLASS_TARGET;
  value = row.soft;
  if (row.soft > 1) return REFUSED_CLASS_SOFT;
  value = row.kind;
  if (!teacher && (row.kind == DISTILL || (may_be_soft && row.soft))) return REFUSED_CLASS_TEACHER;
  value = 0;  // the field of Row
  if (row.kind == FOCAL && !(row.gamma >= 0.f && finite_gamma)) value = 4;
  if (row.kind == DISTILL && !(row.temperature > 0.f && row.temperature < INFINITY)) value = 6;
  if (row.kind == DISTILL && !(row.alpha >= 0.f && row.alpha <= 1.f)) value = 5;
  if (row.kind == FORGET && !(row.margin >= 0.f)) value = 8;
  if (row.kind == FORGET && !(row.beta >= 0.f && row.beta < INFINITY)) value = 7;
  return value ? REFUSED_CLASS_NUMBER : 0;
}

// The label: dz = w slope (p - 1_y), where p_y - 1 = expm1(-ce) without cancellation.
__device__ __forceinline__ float hard(const Row& row, const Logits& z, const Classes<float>& dz) {
  const Normal p = normal(z, 1.f);
  const float ce = p.ln_total + (p.max - z.at[row.target]), scale_of_label = expm1f(-ce);
  const Slope f = of_cross_entropy(ce, row);
  const float scale = row.weight * f.slope;
  if (dz.at) {
    z.each([&](int c, const float(&v)[4], int n) {
      float d[4] = {};
#pragma unroll
      for (int i = 0; i < 4; i++)
        if (i < n && scale != 0.f) d[i] = scale * ((unsigned)(c + i) == row.target ? scale_of_label : p(v[i]));
      dz.store(c, d);
    });
  }
  return f.loss;
}

// The teacher: dz = w slope (p - q). A probability of zero meets no infinity.
__device__ __forceinline__ float soft(const Row& row, const Logits& z, const Logits& teacher,
                                      const Classes<float>& dz) {
  const Normal p = normal(z, 1.f), q = normal(teacher, 1.f);
  float sum = 0.f;
  z.each([&](int c, const float(&v)[4], int n) {
    for (int i = 0; i < n; i++) {
      const float of_teacher = q(teacher.at[c + i]);
      if (of_teacher != 0.f) sum += of_teacher * (p.max - v[i]);
    }
  });
  const Slope f = of_cross_entropy(p.ln_total + warp_sum(sum), row);
  const float scale = row.weight * f.slope;
  if (dz.at) {
    z.each([&](int c, const float(&v)[4], int n) {
      float d[4] = {}, t[4];
      load4(t, teacher.at + c, n, teacher.vector);
#pragma unroll
      for (int i = 0; i < 4; i++)
        if (i < n && scale != 0.f) d[i] = scale * (p(v[i]) - q(t[i]));
      dz.store(c, d);
    });
  }
  return f.loss;
}

// The label, and the teacher at a temperature.
__device__ __forceinline__ float distill(const Row& row, const Logits& z, const Logits& teacher,
                                         const Classes<float>& dz) {
  const float t = row.temperature;
  const Normal p = normal(z, 1.f), warm = normal(z, t), q = normal(teacher, t);
  const float ce = p.ln_total + (p.max - z.at[row.target]);
  float sum = 0.f;
  z.each([&](int c, const float(&v)[4], int n) {
    for (int i = 0; i < n; i++) {
      const float at = teacher.at[c + i], share = q(at);
      // Both logarithms are made alike: for equal rows every difference is exactly zero.
      if (share != 0.f) sum += share * (((at - q.max) / t - q.ln_total) - ((v[i] - warm.max) / t - warm.ln_total));
    }
  });
  sum = warp_sum(sum);
  const float divergence = sum < 0.f ? 0.f : sum;  // not negative but for rounding; NaN stays
  if (dz.at) {
#ifdef FAULT_CLASSIFY_TEMPERATURE
    const float to_label = row.weight * (1.f - row.alpha), to_teacher = row.weight * row.alpha;
#else
    const float to_label = row.weight * (1.f - row.alpha), to_teacher = row.weight * row.alpha * t;
#endif
    z.each([&](int c, const float(&v)[4], int n) {
      float d[4] = {}, of_teacher[4];
      load4(of_teacher, teacher.at + c, n, teacher.vector);
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const float label = (unsigned)(c + i) == row.target ? expm1f(-ce) : p(v[i]);
        if (i < n) d[i] = fmaf(to_label, label, to_teacher * (warm(v[i]) - q(of_teacher[i])));
      }
      dz.store(c, d);
    });
  }
  return fmaf(1.f - row.alpha, ce, row.alpha * t * t * divergence);
}

// Losses without their weight and, where `dlogits` is there, the gradient of the weighted ones.
extern "C" __global__ void __launch_bounds__(WARPS* WARP)
    classify_loss(const float* logits, const float* teacher_logits, const Row* table, float* losses, float* dlogits,
                  int rows, int classes, unsigned long long* refused) {
  const int at = blockIdx.x * WARPS + threadIdx.x / WARP;
  if (at >= rows) return;
  const Row row = table[at];
  unsigned value;
  const int code = wrong(row, classes, teacher_logits != nullptr, value);
  if (code != 0) {
    if (threadIdx.x % WARP == 0) refuse(refused, (Refusal)code, at, value);
    return;
  }
  const Logits z(logits, at, classes), teacher(teacher_logits, at, classes);
  const Classes<float> dz(dlogits, at, classes);
  const bool towards_teacher = row.kind >= RETAIN && row.soft;
  const float loss = row.kind == DISTILL ? distill(row, z, teacher, dz)
                     : towards_teacher   ? soft(row, z, teacher, dz)
                                         : hard(row, z, dz);
  if (threadIdx.x % WARP == 0) losses[at] = loss;
}
ENTRY(classify_loss)

extern "C" __global__ void __launch_bounds__(WARPS* WARP)
    classify_softmax(const float* logits, float* probabilities, int rows, int classes) {
  const int at = blockIdx.x * WARPS + threadIdx.x / WARP;
  if (at >= rows) return;
  const Logits z(logits, at, classes);
  const Classes<float> to(probabilities, at, classes);
  const Normal p = normal(z, 1.f);
  z.each([&](int c, const float(&v)[4], int) {
    float e[4];
#pragma unroll
    for (int i = 0; i < 4; i++) e[i] = p(v[i]);
    to.store(c, e);
  });
}
ENTRY(classify_softmax)
