// Warp collectives. Every lane of the mask brings its slot to the same operation at the same source line; the last one
// to arrive computes for all. A lane that comes to another operation, line or mask is a finding.
#include <cmath>
#include <cstring>

#include "state.h"

namespace cpu {

constexpr uint32_t ALL = 0xffffffffu;

// The hardware leaves undefined what a tensor core operation of less than 32 threads does.
static void need_whole_warp(const char* op, Site site) {
  if (warps[current->warp].lanes == ALL) return;
  found("divergent warp", std::string(op) + " in a warp of less than 32 threads", site);
  give_up();
}

static std::string hexadecimal(uint32_t mask) {
  char text[16];
  snprintf(text, sizeof text, "%08x", mask);
  return text;
}

template <class Serve> static void meet(uint32_t mask, const char* op, Site site, Slot* slot, Serve serve) {
  Fiber* fiber = current;
  Warp& warp = warps[fiber->warp];
  if (!(mask >> fiber->lane & 1)) {
    found("divergent warp", std::string(op) + ": the calling lane is not in the mask " + hexadecimal(mask), site);
    give_up();
  }
  if (warp.arrived == 0) {
    warp.mask = mask;
    warp.op = op;
    warp.site = site;
  } else if (warp.mask != mask || warp.op != op || warp.site.line != site.line || warp.site.file != site.file) {
    found("divergent warp", std::string(op) + " with mask " + hexadecimal(mask) + " while other lanes are in " + warp.op +
          " at " + warp.site.file + ":" + std::to_string(warp.site.line) + " with mask " + hexadecimal(warp.mask), site);
    give_up();
  }
  warp.arrived |= 1u << fiber->lane;
  warp.slots[fiber->lane] = slot;
  if (warp.arrived != (mask & warp.lanes)) return wait_in(State::InWarp, op, site);
  serve(warp);
  warp.arrived = 0;
  for (unsigned lane = 0; lane < 32; lane++)
    if (mask >> lane & warp.lanes >> lane & 1) fibers[fiber->warp * 32 + lane].state = State::Ready;
}

void sync_warp(uint32_t mask, Site site) {
  Slot slot;
  meet(mask, "__syncwarp", site, &slot, [](Warp&) {});
  // Only a whole warp's barrier orders memory for the checker; partial masks would need an order of every pair.
  if ((~mask & warps[current->warp].lanes) == 0) current->warp_epoch++;
}

uint32_t shuffle(uint32_t mask, uint32_t value, uint32_t source, const char* op, Site site) {
  Slot slot;
  slot.value = value;
  slot.source = source & 31;
  if (!(mask >> slot.source & warps[current->warp].lanes >> slot.source & 1)) {
    found("divergent warp", std::string(op) + ": source lane " + std::to_string(slot.source) + " is not in the mask " +
          hexadecimal(mask) + " or not in the block", site);
    give_up();
  }
  meet(mask, op, site, &slot, [](Warp& warp) {
    for (unsigned lane = 0; lane < 32; lane++)
      if (warp.arrived >> lane & 1) warp.slots[lane]->result = warp.slots[warp.slots[lane]->source]->value;
  });
  return slot.result;
}

uint32_t ballot(uint32_t mask, bool predicate, const char* op, Site site) {
  Slot slot;
  slot.value = predicate;
  meet(mask, op, site, &slot, [](Warp& warp) {
    uint32_t bits = 0;
    for (unsigned lane = 0; lane < 32; lane++)
      if ((warp.arrived >> lane & 1) && warp.slots[lane]->value) bits |= 1u << lane;
    for (unsigned lane = 0; lane < 32; lane++)
      if (warp.arrived >> lane & 1) warp.slots[lane]->result = bits;
  });
  return slot.result;
}

void ldmatrix(uint32_t* r, unsigned count, bool transposed, const void* row, Site site) {
  static const char* const OPS[2][5] = {{"", "ldmatrix.x1", "ldmatrix.x2", "", "ldmatrix.x4"},
                                        {"", "ldmatrix.x1.trans", "ldmatrix.x2.trans", "", "ldmatrix.x4.trans"}};
  const char* op = OPS[transposed][count];
  need_whole_warp(op, site);
  Slot slot;
  if (current->lane < 8 * count) {
    if (!in_dynamic(row) && !in_static(row)) {
      found("out of bounds", std::string(op) + ": the row is not in shared memory", site);
      give_up();
    }
    if (reinterpret_cast<uintptr_t>(row) % 16 != 0) {
      found("misaligned", std::string(op) + ": the row is not aligned to 16 bytes", site);
      give_up();
    }
    access(row, 16, Access::Read, __builtin_return_address(0));
    memcpy(slot.elements, row, 16);
  }
  const auto serve = [count, transposed](Warp& warp) {
    for (unsigned lane = 0; lane < 32; lane++)
      for (unsigned tile = 0; tile < count; tile++) {
        const unsigned line = lane / 4, pair = lane % 4 * 2;
        Slot** rows = warp.slots + 8 * tile;
        const uint16_t low = transposed ? rows[pair]->elements[line] : rows[line]->elements[pair];
        const uint16_t high = transposed ? rows[pair + 1]->elements[line] : rows[line]->elements[pair + 1];
        warp.slots[lane]->a[tile] = low | static_cast<uint32_t>(high) << 16;
      }
  };
  meet(ALL, op, site, &slot, serve);
  memcpy(r, slot.a, 4 * count);
}

static float bf16(uint32_t bits) {
  bits <<= 16;
  float x;
  memcpy(&x, &bits, 4);
  return x;
}
static float tf32(uint32_t bits) {
  bits &= 0xffffe000u;
  float x;
  memcpy(&x, &bits, 4);
  return x;
}

// d += a b for one warp's tiles, k ascending. Products of bf16 or tf32 are exact in f32; the hardware's order and
// rounding of the sum are its own, so only bounds, never bits, can be compared with it.
template <unsigned K> static void product(const float (&a)[16][K], const float (&b)[K][8], float (&d)[16][8]) {
  for (unsigned i = 0; i < 16; i++)
    for (unsigned k = 0; k < K; k++)
      for (unsigned j = 0; j < 8; j++) d[i][j] += a[i][k] * b[k][j];
}

static void gather(Warp& warp, float (&d)[16][8]) {
  for (unsigned lane = 0; lane < 32; lane++)
    for (unsigned e = 0; e < 4; e++) d[lane / 4 + e / 2 * 8][lane % 4 * 2 + e % 2] = warp.slots[lane]->d[e];
}
static void scatter(Warp& warp, const float (&d)[16][8]) {
  for (unsigned lane = 0; lane < 32; lane++)
    for (unsigned e = 0; e < 4; e++) warp.slots[lane]->d[e] = d[lane / 4 + e / 2 * 8][lane % 4 * 2 + e % 2];
}

static void serve_bf16(Warp& warp) {
  float a[16][16], b[16][8], d[16][8];
  for (unsigned lane = 0; lane < 32; lane++) {
    const Slot& slot = *warp.slots[lane];
    const unsigned g = lane / 4, t = lane % 4 * 2;
    for (unsigned half = 0; half < 2; half++) {
      a[g][t + half] = bf16(slot.a[0] >> 16 * half);
      a[g + 8][t + half] = bf16(slot.a[1] >> 16 * half);
      a[g][t + 8 + half] = bf16(slot.a[2] >> 16 * half);
      a[g + 8][t + 8 + half] = bf16(slot.a[3] >> 16 * half);
      b[t + half][g] = bf16(slot.b[0] >> 16 * half);
      b[t + 8 + half][g] = bf16(slot.b[1] >> 16 * half);
    }
  }
  gather(warp, d);
  product<16>(a, b, d);
  scatter(warp, d);
}

static void serve_tf32(Warp& warp) {
  float a[16][8], b[8][8], d[16][8];
  for (unsigned lane = 0; lane < 32; lane++) {
    const Slot& slot = *warp.slots[lane];
    const unsigned g = lane / 4, t = lane % 4;
    a[g][t] = tf32(slot.a[0]);
    a[g + 8][t] = tf32(slot.a[1]);
    a[g][t + 4] = tf32(slot.a[2]);
    a[g + 8][t + 4] = tf32(slot.a[3]);
    b[t][g] = tf32(slot.b[0]);
    b[t + 4][g] = tf32(slot.b[1]);
  }
  gather(warp, d);
  product<8>(a, b, d);
  scatter(warp, d);
}

static void mma(const char* op, void (*serve)(Warp&), float* d, const uint32_t* a, const uint32_t (&b)[2], Site site) {
  need_whole_warp(op, site);
  Slot slot;
  memcpy(slot.a, a, sizeof slot.a);
  memcpy(slot.b, b, sizeof slot.b);
  memcpy(slot.d, d, sizeof slot.d);
  meet(ALL, op, site, &slot, serve);
  memcpy(d, slot.d, sizeof slot.d);
}
void mma_bf16(float* d, const uint32_t* a, uint32_t b0, uint32_t b1, Site site) {
  mma("mma.m16n8k16.bf16", serve_bf16, d, a, {b0, b1}, site);
}
void mma_tf32(float* d, const uint32_t* a, uint32_t b0, uint32_t b1, Site site) {
  mma("mma.m16n8k8.tf32", serve_tf32, d, a, {b0, b1}, site);
}

}  // namespace cpu
