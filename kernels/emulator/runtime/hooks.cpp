// The functions that code compiled with -fsanitize=thread,alignment,bounds,signed-integer-overflow calls, standing in for
// the sanitizers' own libraries, which know nothing of CUDA's barriers. Every load and store of a kernel comes here.
#include <dlfcn.h>

#include <cstring>

#include "state.h"

namespace cpu {

// Constant tables lie in a loaded library. Rare, so a slow look-up will do.
bool in_constants(const void* p) {
  Dl_info info;
  return dladdr(p, &info) != 0;
}

// What every one of the undefined-behaviour handlers is given first.
struct Source {
  const char* file;
  uint32_t line, column;
};

static void undefined(const char* kind, const std::string& what, const void* data) {
  const auto* source = static_cast<const Source*>(data);
  found(kind, what, {source->file, static_cast<int>(source->line)});
  give_up();
}

}  // namespace cpu

using cpu::Access;

#define PC __builtin_return_address(0)
#define ACCESSES(SIZE)                                                                                              \
  void __tsan_read##SIZE(void* p) { cpu::access(p, SIZE, Access::Read, PC); }                                       \
  void __tsan_write##SIZE(void* p) { cpu::access(p, SIZE, Access::Write, PC); }                                     \
  void __tsan_unaligned_read##SIZE(void* p) { cpu::access(p, SIZE, Access::Read, PC); }                             \
  void __tsan_unaligned_write##SIZE(void* p) { cpu::access(p, SIZE, Access::Write, PC); }                           \
  void __tsan_volatile_read##SIZE(void* p) { cpu::access(p, SIZE, Access::Read, PC); }                              \
  void __tsan_volatile_write##SIZE(void* p) { cpu::access(p, SIZE, Access::Write, PC); }                            \
  void __tsan_unaligned_volatile_read##SIZE(void* p) { cpu::access(p, SIZE, Access::Read, PC); }                    \
  void __tsan_unaligned_volatile_write##SIZE(void* p) { cpu::access(p, SIZE, Access::Write, PC); }                  \
  void __tsan_read_write##SIZE(void* p) {                                                                           \
    cpu::access(p, SIZE, Access::Read, PC);                                                                         \
    cpu::access(p, SIZE, Access::Write, PC);                                                                        \
  }                                                                                                                 \
  void __tsan_unaligned_read_write##SIZE(void* p) {                                                                 \
    cpu::access(p, SIZE, Access::Read, PC);                                                                         \
    cpu::access(p, SIZE, Access::Write, PC);                                                                        \
  }

extern "C" {

ACCESSES(1)
ACCESSES(2)
ACCESSES(4)
ACCESSES(8)
ACCESSES(16)
void __tsan_read_range(void* p, size_t bytes) { cpu::access(p, bytes, Access::Read, PC); }
void __tsan_write_range(void* p, size_t bytes) { cpu::access(p, bytes, Access::Write, PC); }
void* __tsan_memcpy(void* to, const void* from, size_t bytes) {
  cpu::access(from, bytes, Access::Read, PC);
  cpu::access(to, bytes, Access::Write, PC);
  return memcpy(to, from, bytes);
}
void* __tsan_memmove(void* to, const void* from, size_t bytes) {
  cpu::access(from, bytes, Access::Read, PC);
  cpu::access(to, bytes, Access::Write, PC);
  return memmove(to, from, bytes);
}
void* __tsan_memset(void* to, int value, size_t bytes) {
  cpu::access(to, bytes, Access::Write, PC);
  return memset(to, value, bytes);
}
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}

// The address is not a multiple of what the type asks for; without the end of the launch the access would fault.
void __ubsan_handle_type_mismatch_v1(void* data, void* address) {
  char text[64];
  snprintf(text, sizeof text, "the address ends in %#lx", reinterpret_cast<uintptr_t>(address) & 0xff);
  cpu::undefined("misaligned", text, data);
}
void __ubsan_handle_out_of_bounds(void* data, void* index) {
  cpu::undefined("out of bounds", "index " + std::to_string(reinterpret_cast<intptr_t>(index)) + " of an array", data);
}
void __ubsan_handle_add_overflow(void* data, void*, void*) { cpu::undefined("integer overflow", "+", data); }
void __ubsan_handle_sub_overflow(void* data, void*, void*) { cpu::undefined("integer overflow", "-", data); }
void __ubsan_handle_mul_overflow(void* data, void*, void*) { cpu::undefined("integer overflow", "*", data); }
void __ubsan_handle_negate_overflow(void* data, void*) { cpu::undefined("integer overflow", "negation", data); }
void __ubsan_handle_divrem_overflow(void* data, void*, void*) { cpu::undefined("integer overflow", "/", data); }

}  // extern "C"
