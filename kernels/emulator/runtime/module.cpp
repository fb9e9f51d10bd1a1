// Linked into every module: where its static shared memory is. `__shared__` is `static`, kernels have no other
// uninitialised static data, so that memory is the .bss, whose ends the linker names.
extern "C" {
extern __attribute__((visibility("hidden"))) unsigned char __bss_start[], _end[];

__attribute__((visibility("default"))) void emulator_statics(unsigned char** begin, unsigned char** end) {
  *begin = __bss_start;
  *end = _end;
}
}
