// State of the running launch, shared by the runtime's own files; kernels never see it. One launch runs at a time in a
// process (launch.cpp holds the lock), so this is one set of globals. Where things are:
//   fibers.cpp   switching between fibers, the block barrier, the schedule of warps
//   warp.cpp     warp collectives: shuffles, votes, ldmatrix, mma
//   copies.cpp   cp.async
//   memory.cpp   device allocations
//   shadow.cpp   the checker's rules; hooks.cpp brings it the accesses of instrumented code
//   findings.cpp what goes back to the host
//   launch.cpp   the C interface and the loop over blocks
#pragma once
#include <string>
#include <vector>

#include "machine.h"

namespace cpu {

enum class State : uint8_t { Ready, AtBarrier, InWarp, Done };

struct Copy {
  unsigned char* shared;
  const void* global;
  unsigned bytes;
  bool pred;
  unsigned group;
};

struct Fiber : Thread {
  void* stack_pointer;
  unsigned char* stack;  // lowest usable byte
  State state;
  const char* waits_in;  // the operation it waits in, and where
  Site waits_at;
  uint32_t warp_epoch;       // warp barriers passed; orders accesses inside the warp
  std::vector<Copy> copies;  // on the way, in order of issue
  unsigned group;            // number of the open cp.async group
};

// What a thread brings to a warp collective; the last to arrive serves all.
struct Slot {
  uint32_t value, source, result;     // shuffle, ballot
  const void* row;                    // ldmatrix: the address, and the elements there
  uint16_t elements[8];
  uint32_t a[4], b[2];                // mma; ldmatrix's results are in a
  float d[4];
};

struct Warp {
  uint32_t lanes;  // that the block has of it; a mask may name others, which then count as absent
  uint32_t mask, arrived;
  const char* op;
  Site site;
  Slot* slots[32];
};

struct Block {
  unsigned threads, live;  // of the block; not yet returned
  unsigned arrived, votes, result;
  const char* op;
  Site site;
  uint32_t epoch;   // grows with every barrier of every block: "before" inside a block
  uint32_t serial;  // number of the block since the library was loaded
};

constexpr size_t STACK_BYTES = 128 << 10;

extern Fiber* current;  // null between blocks and launches
extern std::vector<Fiber> fibers;
extern std::vector<Warp> warps;
extern Block block;
extern size_t dynamic_bytes;
extern unsigned char *static_begin, *static_end;  // the module's static shared memory
extern uint32_t first_serial;                     // of the running launch's blocks

static inline bool in_dynamic(const void* p) {
  return static_cast<size_t>(static_cast<const unsigned char*>(p) - here.dynamic_shared) < dynamic_bytes;
}
static inline bool in_static(const void* p) { return p >= static_begin && p < static_end; }

// fibers.cpp
void make_fibers(unsigned threads);
// Runs the block's fibers to their end; false if they were given up after a fatal finding.
bool run_block(const Entry& entry, void** arguments, unsigned threads, uint32_t order);
// Ends the block at once: never returns to the running fiber.
[[noreturn]] void give_up();
// Lets others run until another fiber sets this one to Ready.
void wait_in(State state, const char* op, Site site);

// findings.cpp. `pc` and `other` are code addresses, `site` names a source line instead; kinds are those of the Rust
// enum `Kind`. Repeated findings of the same two places are counted, not kept.
void found(const char* kind, const std::string& what, Site site);
void found_at(const char* kind, const std::string& what, const void* pc, int other_thread, const void* other);
std::string findings_text();
size_t findings_count();
void clear_findings();

// memory.cpp
struct Cell;
struct Allocation {
  unsigned char* data;
  size_t bytes;
  Cell* cells;  // one for every two bytes; null in the fast library
};
constexpr size_t GUARD_BYTES = 1 << 14;
// The allocation whose data or guards hold `p`; null if none does.
const Allocation* allocation_of(const void* p);

// hooks.cpp: whether a loaded library holds `p`.
bool in_constants(const void* p);

// shadow.cpp. Accesses by the running thread; the fast library has empty ones (fast.cpp).
enum class Access : uint8_t { Read, Write, Atomic };
void access(const void* p, size_t bytes, Access kind, const void* pc);
void mark_in_flight(const void* shared, unsigned bytes, bool on_the_way);
void start_shadow_block();
Cell* make_cells(size_t bytes);
void free_cells(Cell* cells);
void mark_written(const Allocation& allocation, size_t offset, size_t bytes, bool written);
bool all_written(const Allocation& allocation, size_t offset, size_t bytes);

}  // namespace cpu
