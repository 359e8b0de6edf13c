// The C entry points of what is done with gradients (ops/native/gradients.py).

#include "gradients.h"

using namespace lmtrain;

#pragma GCC visibility push(default)
extern "C" {

double lmtrain_clip_gradients(long arrays, float* const* numbers, const long* counts, double max_norm, long threads) {
    return clip_gradients(arrays, numbers, counts, max_norm, threads);
}
}
#pragma GCC visibility pop
