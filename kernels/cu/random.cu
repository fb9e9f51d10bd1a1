// The random numbers of random.cuh alone, so that they can be held against src/random.rs.
#include "random.cuh"

// words[i] = philox(key, (i, counter, site, step)), kept[i] = the mask of columns 32 counter .. of token i and
// scales[i] = keep_scale(p), for i < count.
extern "C" __global__ void __launch_bounds__(128)
    random_words(uint4* words, uint32_t* kept, float* scales, uint32_t key0, uint32_t key1, uint32_t counter,
                 uint32_t site, uint32_t step, float p, int count) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= count) return;
  const uint2 key = make_uint2(key0, key1);
  words[i] = philox(key, make_uint4(i, counter, site, step));
  kept[i] = Dropout(key, step, site, p).keep32(i, counter);
  scales[i] = keep_scale(p);
}
ENTRY(random_words)
