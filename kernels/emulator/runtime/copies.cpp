// cp.async, as unkind as the rules allow: the destination is poisoned at the issue, and the data is read and written
// only when the issuing thread waits for its group.
#include <cstring>

#include "state.h"

namespace cpu {

void copy_async(void* shared, const void* global, unsigned bytes, bool pred, Site site) {
  if (!in_dynamic(shared) && !in_static(shared)) {
    found("out of bounds", "cp.async: the destination is not in shared memory", site);
    give_up();
  }
  if ((reinterpret_cast<uintptr_t>(shared) | reinterpret_cast<uintptr_t>(global)) % bytes != 0) {
    found("misaligned", "cp.async: an address is not aligned to " + std::to_string(bytes) + " bytes", site);
    give_up();
  }
  const void* pc = __builtin_return_address(0);
  access(shared, bytes, Access::Write, pc);
  if (pred) access(global, bytes, Access::Read, pc);
  memset(shared, 0xff, bytes);
  mark_in_flight(shared, bytes, true);
  Fiber* fiber = current;
  fiber->copies.push_back({static_cast<unsigned char*>(shared), global, bytes, pred, fiber->group});
}

void copy_commit() { current->group++; }

void copy_wait(unsigned keep) {
  Fiber* fiber = current;
  const void* pc = __builtin_return_address(0);
  size_t done = 0;
  // Groups below the open one are closed; the `keep` youngest of them may stay.
  while (done < fiber->copies.size() && fiber->copies[done].group + keep < fiber->group) {
    const Copy& copy = fiber->copies[done++];
    mark_in_flight(copy.shared, copy.bytes, false);
    access(copy.shared, copy.bytes, Access::Write, pc);
    if (copy.pred)
      memcpy(copy.shared, copy.global, copy.bytes);
    else
      memset(copy.shared, 0, copy.bytes);
  }
  fiber->copies.erase(fiber->copies.begin(), fiber->copies.begin() + static_cast<long>(done));
}

}  // namespace cpu
