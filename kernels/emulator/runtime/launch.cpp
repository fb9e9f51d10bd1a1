// The C interface of the runtime's library and the loop over blocks. One lock: launches and allocations of all host
// threads run one after another.
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <random>

#include "state.h"

namespace cpu {

size_t dynamic_bytes = 0;
unsigned char *static_begin = nullptr, *static_end = nullptr;
uint32_t first_serial = 1;

void* allocate(size_t bytes);
bool release(void* data);

static std::mutex lock;

static size_t offset_in(const Allocation& allocation, const void* p) {
  return static_cast<size_t>(static_cast<const unsigned char*>(p) - allocation.data);
}

// The allocation that holds the whole range.
static const Allocation* inside(const void* p, size_t bytes) {
  const Allocation* allocation = allocation_of(p);
  if (!allocation || p < allocation->data) return nullptr;
  const size_t offset = offset_in(*allocation, p);
  return offset <= allocation->bytes && bytes <= allocation->bytes - offset ? allocation : nullptr;
}

// Blocks in row-major order; shuffled unless the seed is 0.
static std::vector<uint3> draw_blocks(std::mt19937& random, uint32_t seed) {
  std::vector<uint3> blocks;
  blocks.reserve(static_cast<size_t>(here.grid_dim.x) * here.grid_dim.y * here.grid_dim.z);
  for (unsigned z = 0; z < here.grid_dim.z; z++)
    for (unsigned y = 0; y < here.grid_dim.y; y++)
      for (unsigned x = 0; x < here.grid_dim.x; x++) blocks.push_back({x, y, z});
  if (seed != 0) std::shuffle(blocks.begin(), blocks.end(), random);
  return blocks;
}

static void run_grid(const Entry& entry, void** arguments, uint32_t seed) {
  const unsigned threads = here.block_dim.x * here.block_dim.y * here.block_dim.z;
  make_fibers(threads);
  std::mt19937 random(seed);
  const size_t statics = static_cast<size_t>(static_end - static_begin);
  first_serial = ++block.serial;
  for (const uint3& index : draw_blocks(random, seed)) {
    here.block_index = index;
    block.serial++;
    block.epoch++;
    memset(here.dynamic_shared, 0xff, dynamic_bytes);
    memset(static_begin, 0xff, statics);
    start_shadow_block();
    if (!run_block(entry, arguments, threads, seed == 0 ? 0 : static_cast<uint32_t>(random()) | 1u)) break;
  }
}

}  // namespace cpu

extern "C" {

// As the host describes a launch; `statics` is the module's static shared memory, `arguments` one pointer per argument.
struct EmulatorLaunch {
  const cpu::Entry* entry;
  unsigned char *statics, *statics_end;
  unsigned grid[3], block[3];
  size_t shared;
  void** arguments;
  uint32_t seed;
};

// Runs the launch; returns the number of findings and writes their text (findings.cpp), cut to `capacity` with a zero.
size_t emulator_launch(const EmulatorLaunch* launch, char* text, size_t capacity) {
  const std::lock_guard<std::mutex> guard(cpu::lock);
  const size_t bytes = std::max<size_t>(1024, (launch->shared + 1023) / 1024 * 1024);
  cpu::here.dynamic_shared = static_cast<unsigned char*>(aligned_alloc(1024, bytes));
  if (!cpu::here.dynamic_shared) abort();  // at most 227 KiB, which the host checked
  cpu::dynamic_bytes = launch->shared;
  cpu::static_begin = launch->statics;
  cpu::static_end = launch->statics_end;
  cpu::here.grid_dim = dim3(launch->grid[0], launch->grid[1], launch->grid[2]);
  cpu::here.block_dim = dim3(launch->block[0], launch->block[1], launch->block[2]);
  cpu::clear_findings();
  cpu::run_grid(*launch->entry, launch->arguments, launch->seed);
  free(cpu::here.dynamic_shared);
  cpu::here.dynamic_shared = nullptr;
  cpu::dynamic_bytes = 0;
  const std::string found = cpu::findings_text();
  const size_t length = capacity == 0 ? 0 : std::min(found.size(), capacity - 1);
  memcpy(text, found.data(), length);
  if (capacity != 0) text[length] = 0;
  return cpu::findings_count();
}

// Null when there is no memory. The bytes are poisoned and count as never written.
void* emulator_allocate(size_t bytes) {
  const std::lock_guard<std::mutex> guard(cpu::lock);
  return cpu::allocate(bytes);
}

// 1 if `data` is an allocation, which it then no longer is.
int emulator_release(void* data) {
  const std::lock_guard<std::mutex> guard(cpu::lock);
  return cpu::release(data) ? 1 : 0;
}

// 0, or 1 if the range does not lie in one allocation: then nothing is touched. Copies from the host or from another
// allocation, a null source means zeros, and marks the bytes as written.
int emulator_write(void* destination, const void* source, size_t bytes) {
  const std::lock_guard<std::mutex> guard(cpu::lock);
  const cpu::Allocation* allocation = cpu::inside(destination, bytes);
  if (!allocation) return 1;
  if (source)
    memmove(destination, source, bytes);
  else
    memset(destination, 0, bytes);
  cpu::mark_written(*allocation, cpu::offset_in(*allocation, destination), bytes, true);
  return 0;
}

// As a read of the host, or of the device (`strict`), to which 2 says that a byte was never written.
int emulator_read(void* host, const void* source, size_t bytes, int strict) {
  const std::lock_guard<std::mutex> guard(cpu::lock);
  const cpu::Allocation* allocation = cpu::inside(source, bytes);
  if (!allocation) return 1;
  if (strict && !cpu::all_written(*allocation, cpu::offset_in(*allocation, source), bytes)) return 2;
  memcpy(host, source, bytes);
  return 0;
}

// Back to the state of a fresh allocation.
void emulator_poison(void* destination, size_t bytes) {
  const std::lock_guard<std::mutex> guard(cpu::lock);
  const cpu::Allocation* allocation = cpu::inside(destination, bytes);
  if (!allocation) return;
  memset(destination, 0xff, bytes);
  cpu::mark_written(*allocation, cpu::offset_in(*allocation, destination), bytes, false);
}

}  // extern "C"
