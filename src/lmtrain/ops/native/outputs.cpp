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

long lmtrain_draw(const float* log_probs, long V, double uniform, float temperature, long excluded) {
    return draw(log_probs, V, uniform, temperature, excluded);
}

// The weight has the type of the features, or is float32 and rounded to it on the way. Returns the total in nats.
double lmtrain_linear_cross_entropy(int bfloat16, long float32_weight, long N, long V, long D, long max_bytes,
                                    const void* features, const void* weight, const float* bias, const int64_t* targets,
                                    float* d_features, float* d_weight, float* d_bias, long threads) {
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
