// Findings of a launch, and their text for the host: one per line, fields separated by tabs:
//   kind, block x, y, z, thread, place, other thread (or -1), other place, what
// A place is `file:line`, or `library+0xoffset` for a code address, which the host resolves with the debug information.
#include <dlfcn.h>

#include <set>
#include <tuple>

#include "state.h"

namespace cpu {

namespace {
constexpr size_t KEPT = 64;
std::set<std::tuple<std::string, const void*, const void*, int>> seen;
std::string text;
size_t count;
}  // namespace

// `pc` is a return address, so one byte before it lies in the call.
static std::string place(const void* pc) {
  Dl_info info;
  if (!pc || !dladdr(pc, &info) || !info.dli_fname) return "";
  char offset[32];
  snprintf(offset, sizeof offset, "+%#lx",
           static_cast<unsigned long>(static_cast<const char*>(pc) - static_cast<const char*>(info.dli_fbase)) - 1);
  return std::string(info.dli_fname) + offset;
}

static void keep(const char* kind, const std::string& at, int other_thread, const std::string& other,
                 const std::string& what) {
  if (++count > KEPT) return;
  text += std::string(kind) + '\t' + std::to_string(here.block_index.x) + '\t' + std::to_string(here.block_index.y) + '\t' +
          std::to_string(here.block_index.z) + '\t' + std::to_string(current ? static_cast<int>(current->linear) : -1) + '\t' +
          at + '\t' + std::to_string(other_thread) + '\t' + other + '\t' + what + '\n';
}

void found(const char* kind, const std::string& what, Site site) {
  if (!seen.insert({kind, site.file, nullptr, site.line}).second) return;
  keep(kind, site.line ? std::string(site.file) + ":" + std::to_string(site.line) : "", -1, "", what);
}

void found_at(const char* kind, const std::string& what, const void* pc, int other_thread, const void* other) {
  if (!seen.insert({kind, pc, other, 0}).second) return;
  keep(kind, place(pc), other_thread, place(other), what);
}

std::string findings_text() { return text; }
size_t findings_count() { return count; }
void clear_findings() {
  seen.clear();
  text.clear();
  count = 0;
}

}  // namespace cpu
