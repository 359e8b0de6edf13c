// The C entry points of what is done with gradients (ops/native/gradients.py).

#include "gradients.h"

using namespace lmtrain;

#pragma GCC visibility push(default)
extern "C" {

double lmtrain_clip_gradients(long arrays, float* const* numbers, const long* counts, double max_norm, long threads) {
    return clip_gradients(arrays, numbers, counts, max_norm, threads);
}

long lmtrain_sum_rows(int bfloat16, long N, long V, long Z, const int64_t* ids, const void* d, void* sums, long threads) {
    long problem = 0;
    with_type(bfloat16, [&](auto type) {
        typedef decltype(type) S;
        problem = sum_rows(N, V, Z, ids, (const S*)d, (S*)sums, threads);
    });
    return problem;
}
}
#pragma GCC visibility pop
