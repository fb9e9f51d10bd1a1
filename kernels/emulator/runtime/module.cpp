// Linked into every module: where its static shared memory is. `__shared__` is `static`, kernels have no other
// uninitialised static data, so that memory is the .bss, whose ends the linker names. Data, not a function: code of a
// module is instrumented, and the host asks while another thread's launch may run.
extern "C" {
extern __attribute__((visibility("hidden"))) unsigned char __bss_start[], _end[];
extern __attribute__((visibility("default"))) unsigned char* const emulator_statics[2];
unsigned char* const emulator_statics[2] = {__bss_start, _end};
}
