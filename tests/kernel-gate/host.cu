// nvcc has the host's headers, NVRTC has none: the gate must say so.
#include <stdlib.h>

extern "C" __global__ void __launch_bounds__(32) sound(size_t* p) { p[threadIdx.x] = sizeof(div_t); }
