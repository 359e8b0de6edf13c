// The C entry points of what is done with gradients (ops/native/gradients.py).

#include "adam.h"
#include "gradients.h"

using namespace lmtrain;

#pragma GCC visibility push(default)
extern "C" {

double lmtrain_clip_gradients(long arrays, float* const* numbers, const long* counts, double max_norm, long threads) {
    return clip_gradients(arrays, numbers, counts, max_norm, threads);
}

// For each weight: itself, its mean, its square, its number of steps, its gradient, the rows of a sparse one (else null); and how
// many rows these are, how wide they are, and how many numbers the weight has. `rule`: rate, beta1, beta2, epsilon, decay.
void lmtrain_adam(long weights, void* const* pointers, const long* sizes, const double* rule, int is_decoupled, long threads) {
    std::vector<AdamWeight> all;
    for (long i = 0; i < weights; i++) {
        auto at = [&](long which) { return (float*)pointers[6 * i + which]; };
        all.push_back({at(0), at(1), at(2), at(3), at(4), (const int64_t*)pointers[6 * i + 5], sizes[3 * i], sizes[3 * i + 1],
                       sizes[3 * i + 2]});
    }
    adam(all, {rule[0], rule[1], rule[2], rule[3], rule[4], is_decoupled != 0}, threads);
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
