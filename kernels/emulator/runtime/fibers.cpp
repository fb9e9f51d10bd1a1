// Fibers: one per CUDA thread, switched by hand; the block barrier; the order in which warps and lanes run.
//
// A warp runs as far as it can before the next one starts, so warps drift as far apart as the kernel's barriers allow,
// which is what shows a missing one. The order of warps, and of lanes inside a warp, is drawn from a seed.
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <numeric>
#include <random>

#include "state.h"

namespace cpu {

Fiber* current = nullptr;
Here here;
std::vector<Fiber> fibers;
std::vector<Warp> warps;
Block block;

namespace {
void* scheduler_stack_pointer;
const Entry* running_entry;
void** running_arguments;
bool given_up;
std::vector<unsigned> run_order;  // of the block's threads; warps stay together
}  // namespace

#ifdef __x86_64__
// Saves what the ABI lets a function keep, stores the stack pointer in *from and goes on at `to`.
extern "C" void emulator_switch(void** from, void* to);
asm(R"(.text
.hidden emulator_switch
.globl emulator_switch
.type emulator_switch,@function
emulator_switch:
  pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15
  movq %rsp,(%rdi)
  movq %rsi,%rsp
  popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp
  ret
.size emulator_switch,.-emulator_switch)");

// A stack whose first switch enters `entry`, aligned as after a call.
static void* fresh_stack(unsigned char* stack, void (*entry)()) {
  void** top = reinterpret_cast<void**>(stack + STACK_BYTES - 16);
  *--top = nullptr;
  *--top = reinterpret_cast<void*>(entry);
  for (int saved = 0; saved < 6; saved++) *--top = nullptr;
  return top;
}
#elif defined(__aarch64__)
extern "C" void emulator_switch(void** from, void* to);
asm(R"(.text
.hidden emulator_switch
.globl emulator_switch
.type emulator_switch,%function
emulator_switch:
  sub sp, sp, #160
  stp x19, x20, [sp, #0]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x2, sp
  str x2, [x0]
  mov sp, x1
  ldp x19, x20, [sp, #0]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
.size emulator_switch,.-emulator_switch)");

static void* fresh_stack(unsigned char* stack, void (*entry)()) {
  void** top = reinterpret_cast<void**>(stack + STACK_BYTES - 160);
  std::fill(top, top + 20, nullptr);
  top[11] = reinterpret_cast<void*>(entry);  // x30, the return address
  return top;
}
#else
#error "the emulator switches fibers on x86-64 and aarch64"
#endif

static void to_scheduler() { emulator_switch(&current->stack_pointer, scheduler_stack_pointer); }

void give_up() {
  given_up = true;
  to_scheduler();
  __builtin_unreachable();  // a fiber that was given up is never resumed
}

void wait_in(State state, const char* op, Site site) {
  Fiber* fiber = current;
  fiber->state = state;
  fiber->waits_in = op;
  fiber->waits_at = site;
  to_scheduler();
}

static void open_barrier() {
  block.result = block.votes;
  block.arrived = block.votes = 0;
  block.epoch++;
  for (unsigned i = 0; i < block.threads; i++)
    if (fibers[i].state == State::AtBarrier) fibers[i].state = State::Ready;
}

unsigned sync_block(bool predicate, const char* op, Site site) {
  if (block.live < block.threads) {
    found("divergent barrier", std::string(op) + ": " + std::to_string(block.threads - block.live) +
          " threads of the block have returned", site);
    give_up();
  }
  if (block.arrived == 0) {
    block.op = op;
    block.site = site;
  } else if (block.op != op || block.site.line != site.line || block.site.file != site.file) {
    found("divergent barrier", std::string(op) + " while other threads wait in " + block.op + " at " +
          block.site.file + ":" + std::to_string(block.site.line), site);
    give_up();
  }
  block.votes += predicate;
  if (++block.arrived == block.threads)
    open_barrier();
  else
    wait_in(State::AtBarrier, op, site);
  return block.result;
}

static void fiber_main() {
  running_entry->run(running_arguments);
  Fiber* fiber = current;
  if (!fiber->copies.empty()) {
    found("copy never waited for", "the thread returns with cp.async copies on the way", {"", 0});
    give_up();
  }
  fiber->state = State::Done;
  block.live--;
  if (block.arrived != 0) {
    found("divergent barrier", "the thread returns while others wait in " + std::string(block.op), block.site);
    give_up();
  }
  to_scheduler();
  __builtin_unreachable();  // a fiber that is done is never resumed
}

void make_fibers(unsigned threads) {
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  while (fibers.size() < threads) {
    void* region = mmap(nullptr, STACK_BYTES + page, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (region == MAP_FAILED) abort();  // 128 MiB of address space
    mprotect(region, page, PROT_NONE);  // a kernel that needs more stack stops here
    fibers.emplace_back();
    fibers.back().stack = static_cast<unsigned char*>(region) + page;
  }
  warps.resize((threads + 31) / 32);
}

// Draws the order; 0 is the plain one.
static void draw_order(unsigned threads, uint32_t seed) {
  run_order.resize(threads);
  std::iota(run_order.begin(), run_order.end(), 0u);
  if (seed == 0) return;
  std::mt19937 random(seed);
  std::vector<unsigned> warp_order(warps.size());
  std::iota(warp_order.begin(), warp_order.end(), 0u);
  std::shuffle(warp_order.begin(), warp_order.end(), random);
  auto next = run_order.begin();
  for (unsigned warp : warp_order) {
    const auto first = next;
    for (unsigned i = warp * 32; i < std::min(threads, warp * 32 + 32); i++) *next++ = i;
    std::shuffle(first, next, random);
  }
}

static void reset_fibers(unsigned threads) {
  for (auto& warp : warps) warp.arrived = warp.lanes = 0;
  for (unsigned i = 0; i < threads; i++) {
    Fiber& fiber = fibers[i];
    fiber.index = {i % here.block_dim.x, i / here.block_dim.x % here.block_dim.y, i / (here.block_dim.x * here.block_dim.y)};
    fiber.linear = i;
    fiber.lane = i % 32;
    fiber.warp = i / 32;
    warps[fiber.warp].lanes |= 1u << fiber.lane;
    fiber.state = State::Ready;
    fiber.copies.clear();
    fiber.group = 0;
    fiber.warp_epoch = 0;
    fiber.stack_pointer = fresh_stack(fiber.stack, fiber_main);
  }
}

static void report_deadlock() {
  std::string what = "no thread can go on";
  unsigned shown = 0;
  Site site{"", 0};
  for (unsigned i = 0; i < block.threads && shown < 4; i++) {
    Fiber& fiber = fibers[i];
    const bool repeats = i > 0 && fiber.state == fibers[i - 1].state && fiber.waits_at.line == fibers[i - 1].waits_at.line;
    if (fiber.state == State::Done || repeats) continue;
    if (shown++ == 0) site = fiber.waits_at, current = &fiber;
    what += "; thread " + std::to_string(i) + " waits in " + fiber.waits_in + " at " + fiber.waits_at.file + ":" +
            std::to_string(fiber.waits_at.line);
  }
  found("deadlock", what, site);
}

bool run_block(const Entry& entry, void** arguments, unsigned threads, uint32_t order) {
  running_entry = &entry;
  running_arguments = arguments;
  given_up = false;
  block.threads = block.live = threads;
  block.arrived = block.votes = block.result = 0;
  reset_fibers(threads);
  draw_order(threads, order);
  while (block.live && !given_up) {
    bool moved = false;
    // `run_order` holds whole warps; a partial one can be anywhere in it, so its end is found by the warp's number.
    for (unsigned first = 0, end; first < threads; first = end) {
      const unsigned warp = fibers[run_order[first]].warp;
      for (end = first; end < threads && fibers[run_order[end]].warp == warp;) end++;
      for (bool again = true; again && !given_up;) {
        again = false;
        for (unsigned k = first; k < end && !given_up; k++) {
          Fiber& fiber = fibers[run_order[k]];
          if (fiber.state != State::Ready) continue;
          current = &fiber;
          here.thread = fiber;
          emulator_switch(&scheduler_stack_pointer, fiber.stack_pointer);
          again = moved = true;
        }
      }
    }
    if (block.live && !moved && !given_up) {
      report_deadlock();
      given_up = true;
    }
  }
  current = nullptr;
  return !given_up;
}

}  // namespace cpu
