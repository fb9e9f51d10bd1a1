// The checker: what it remembers of every two bytes of shared and device memory, and the rules an access must keep.
//
// Two accesses of one block are ordered if one thread made both, if a block barrier lies between them (epoch), or if
// both lie in one warp with a __syncwarp between (warp epoch). Accesses of different blocks of one launch are never
// ordered; launches are. Shuffles and mma order no memory. Of the readers since the last write two are remembered, of
// different warps or blocks where there were such, which is enough to find an unordered one.
#include <cstdlib>
#include <cstring>

#include "state.h"

namespace cpu {

// Who touched a cell; serial 0: nobody.
struct Visit {
  uint32_t serial, epoch;  // of the block
  uint32_t warp_epoch;
  uint16_t thread;
  uint8_t bytes;  // which of the cell's two
  uint8_t atomic;
  const void* pc;
};

struct Cell {
  Visit write, read, other_read;
  uint8_t written;    // mask of bytes that hold a value
  uint8_t in_flight;  // mask of bytes that cp.async is filling
};

namespace {
std::vector<Cell> dynamic_cells, static_cells;
}  // namespace

Cell* make_cells(size_t bytes) { return static_cast<Cell*>(calloc(bytes / 2 + 1, sizeof(Cell))); }
void free_cells(Cell* cells) { free(cells); }

// Shared memory is fresh in every block.
void start_shadow_block() {
  dynamic_cells.assign(dynamic_bytes / 2 + 1, Cell());
  static_cells.assign(static_cast<size_t>(static_end - static_begin) / 2 + 1, Cell());
}

// The bytes of cell `index` that lie in [begin, end).
static uint8_t covered(size_t index, size_t begin, size_t end) {
  return static_cast<uint8_t>((2 * index >= begin ? 1 : 0) | (2 * index + 1 < end ? 2 : 0));
}

void mark_written(const Allocation& allocation, size_t offset, size_t bytes, bool written) {
  if (bytes == 0) return;
  for (size_t i = offset / 2; i <= (offset + bytes - 1) / 2; i++) {
    Cell& cell = allocation.cells[i];
    const uint8_t mask = covered(i, offset, offset + bytes);
    cell.written = static_cast<uint8_t>(written ? cell.written | mask : cell.written & ~mask);
  }
}

bool all_written(const Allocation& allocation, size_t offset, size_t bytes) {
  if (bytes == 0) return true;
  for (size_t i = offset / 2; i <= (offset + bytes - 1) / 2; i++)
    if (covered(i, offset, offset + bytes) & ~allocation.cells[i].written) return false;
  return true;
}

static bool ordered(const Visit& earlier) {
  if (earlier.serial < first_serial) return true;  // nobody, or an earlier launch
  if (earlier.serial != block.serial) return false;
  const Fiber* fiber = current;
  if (earlier.thread == fiber->linear || earlier.epoch < block.epoch) return true;
  return earlier.thread / 32u == fiber->warp && earlier.warp_epoch < fiber->warp_epoch;
}

static void clash(const char* what, const Visit& earlier, const char* memory, const void* pc) {
  std::string text = std::string(what) + " in " + memory + " memory";
  if (earlier.serial != block.serial) text += ", by another block";
  found_at("race", text, pc, earlier.thread, earlier.pc);
}

// Keeps a reader of another warp or block that the new one would push out.
static void remember_read(Cell& cell, const Visit& now) {
  const Visit& last = cell.read;
  const bool live = last.serial >= first_serial && (last.serial != now.serial || last.epoch == now.epoch);
  if (live && last.thread != now.thread) {
    const bool far = last.serial != now.serial || last.thread / 32 != now.thread / 32;
    const bool nothing_kept = cell.other_read.serial < first_serial || ordered(cell.other_read);
    if (far || nothing_kept) cell.other_read = last;
  } else if (live && last.serial != now.serial) {
    cell.other_read = last;
  }
  cell.read = now;
}

static void visit(Cell& cell, uint8_t mask, Access kind, const char* memory, const void* pc) {
  const Fiber* fiber = current;
  const Visit now = {block.serial, block.epoch, fiber->warp_epoch, static_cast<uint16_t>(fiber->linear), mask,
                     kind == Access::Atomic, pc};
  if (cell.in_flight & mask)
    found_at("copy in flight", "the bytes are being filled by cp.async", pc, cell.write.thread, cell.write.pc);
  if (kind != Access::Write && (mask & ~cell.written))
    found_at("uninitialised read", std::string("of ") + memory + " memory", pc, -1, nullptr);
  const bool both_atomic = now.atomic && cell.write.atomic;
  if ((cell.write.bytes & mask) && !both_atomic && !ordered(cell.write))
    clash(kind == Access::Read ? "read after a write" : "write after a write", cell.write, memory, pc);
  if (kind == Access::Read) return remember_read(cell, now);
  if ((cell.read.bytes & mask) && !ordered(cell.read))
    clash("write after a read", cell.read, memory, pc);
  else if ((cell.other_read.bytes & mask) && !ordered(cell.other_read))
    clash("write after a read", cell.other_read, memory, pc);
  cell.write = now;
  cell.written |= mask;
}

static void visit_range(Cell* cells, size_t offset, size_t bytes, Access kind, const char* memory, const void* pc) {
  for (size_t i = offset / 2; i <= (offset + bytes - 1) / 2; i++)
    visit(cells[i], covered(i, offset, offset + bytes), kind, memory, pc);
}

[[noreturn]] static void outside(const char* what, const void* pc) {
  found_at("out of bounds", what, pc, -1, nullptr);
  give_up();
}

// Only code of kernels is instrumented, so what is neither shared, nor on the stack, nor near an allocation is a
// constant table of the module's own, or a wild address. An access that leaves its object ends the launch before it happens.
void access(const void* address, size_t bytes, Access kind, const void* pc) {
  if (!current || bytes == 0) return;
  const auto* p = static_cast<const unsigned char*>(address);
  if (in_dynamic(p)) {
    const size_t offset = static_cast<size_t>(p - here.dynamic_shared);
    if (bytes > dynamic_bytes - offset) outside("past the end of dynamic shared memory", pc);
    return visit_range(dynamic_cells.data(), offset, bytes, kind, "shared", pc);
  }
  if (in_static(p)) {
    if (bytes > static_cast<size_t>(static_end - p)) outside("past the end of static shared memory", pc);
    return visit_range(static_cells.data(), static_cast<size_t>(p - static_begin), bytes, kind, "shared", pc);
  }
  if (p >= reinterpret_cast<unsigned char*>(&here) && p < reinterpret_cast<unsigned char*>(&here + 1)) return;
  const unsigned char* stack = current->stack;
  if (p >= stack && p < stack + STACK_BYTES) return;
  const Allocation* allocation = allocation_of(p);
  if (allocation) {
    if (p < allocation->data) outside("before the start of an allocation", pc);
    const size_t offset = static_cast<size_t>(p - allocation->data);
    if (offset >= allocation->bytes || bytes > allocation->bytes - offset) {
      const std::string what = std::to_string(bytes) + " bytes at " + std::to_string(offset) +
                               " of an allocation of " + std::to_string(allocation->bytes);
      outside(what.c_str(), pc);
    }
    return visit_range(allocation->cells, offset, bytes, kind, "device", pc);
  }
  if (kind != Access::Read || !in_constants(p)) outside("an address of no allocation", pc);
}

void note_atomic(const void* address, unsigned bytes) {
  access(address, bytes, Access::Atomic, __builtin_return_address(0));
}

void mark_in_flight(const void* shared, unsigned bytes, bool on_the_way) {
  const auto* p = static_cast<const unsigned char*>(shared);
  Cell* cells = in_dynamic(p) ? dynamic_cells.data() : static_cells.data();
  const size_t offset = static_cast<size_t>(p - (in_dynamic(p) ? here.dynamic_shared : static_begin));
  for (size_t i = offset / 2; i < (offset + bytes + 1) / 2; i++) cells[i].in_flight = on_the_way ? 3 : 0;
}

}  // namespace cpu
