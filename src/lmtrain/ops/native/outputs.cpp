// The C entry points of what follows the recurrences: loss, generation. Conventions as in recurrences.cpp.

#include "cross_entropy.h"
#include "draw.h"
#include "step.h"

using namespace lmtrain;

#pragma GCC visibility push(default)
extern "C" {

// One token: its embedding in, the log-probabilities of the next one out.
void lmtrain_step(int bfloat16, const Stage* stages, long count, const float* embedding, float* log_probs, long threads) {
    with_type(bfloat16, [&](auto type) { step<decltype(type)>(stages, count, embedding, log_probs, threads); });
}

// -1 where no token can be drawn, or an argument is not what it should be.
long lmtrain_draw(const float* log_probs, long V, double uniform, float temperature, long excluded) {
    const bool fits = V > 0 && uniform >= 0 && uniform < 1 && temperature > 0 && excluded >= -1 && excluded < V;
    return fits ? draw(log_probs, V, uniform, temperature, excluded) : -1;
}

// The weight has the type of the features, or is float32 and rounded to it on the way. Returns the total in nats; -infinity
// where a target is no token, before anything is computed.
double lmtrain_linear_cross_entropy(int bfloat16, long float32_weight, long N, long V, long D, long max_bytes,
                                    const void* features, const void* weight, const float* bias, const int64_t* targets,
                                    float* d_features, float* d_weight, float* d_bias, long threads) {
    for (long n = 0; n < N; n++)
        if (targets[n] < 0 || targets[n] >= V) return -INFINITY;
    double nats = 0;
    with_type(bfloat16, [&](auto type) {
        typedef decltype(type) S;
        auto run = [&](auto* typed_weight) {
            nats = linear_cross_entropy(N, V, D, max_bytes, (const S*)features, typed_weight, bias, targets, d_features,
                                        d_weight, d_bias, threads);
        };
        float32_weight ? run((const float*)weight) : run((const S*)weight);
    });
    return nats;
}
}
#pragma GCC visibility pop
