// Device allocations: aligned to 256 like cudaMalloc's, between guard zones, poisoned with 0xff (NaN in every float
// format), remembered so that the checker can tell whose address it sees.
#include <cstdlib>
#include <cstring>
#include <map>

#include "state.h"

namespace cpu {

namespace {
std::map<const unsigned char*, Allocation> allocations;
const Allocation* last_found;  // kernels touch one buffer many times in a row
}  // namespace

static bool holds(const Allocation& allocation, const unsigned char* p) {
  return p >= allocation.data - GUARD_BYTES && p < allocation.data + allocation.bytes + GUARD_BYTES;
}

const Allocation* allocation_of(const void* address) {
  const auto* p = static_cast<const unsigned char*>(address);
  if (last_found && holds(*last_found, p)) return last_found;
  auto next = allocations.upper_bound(p);
  if (next != allocations.end() && holds(next->second, p)) return last_found = &next->second;
  if (next != allocations.begin() && holds((--next)->second, p)) return last_found = &next->second;
  return nullptr;
}

void* allocate(size_t bytes) {
  const size_t body = (bytes + 255) / 256 * 256;
  auto* region = static_cast<unsigned char*>(aligned_alloc(256, body + 2 * GUARD_BYTES));
  if (!region) return nullptr;
  memset(region, 0xff, body + 2 * GUARD_BYTES);
  unsigned char* data = region + GUARD_BYTES;
  allocations[data] = Allocation{data, bytes, make_cells(bytes)};
  return data;
}

bool release(void* data) {
  const auto entry = allocations.find(static_cast<unsigned char*>(data));
  if (entry == allocations.end()) return false;
  last_found = nullptr;
  free_cells(entry->second.cells);
  free(entry->second.data - GUARD_BYTES);
  allocations.erase(entry);
  return true;
}

}  // namespace cpu
