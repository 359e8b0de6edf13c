// The C entry points of what follows the recurrences: loss, generation. Conventions as in recurrences.cpp.

#include "draw.h"
#include "sampled.h"
#include "step.h"

using namespace lmtrain;

#pragma GCC visibility push(default)
extern "C" {

// One token of each of `texts`, whose states lie in the slots named: the log-probabilities of the next one, [texts, V].
// `weights`: 0 for float32, 1 for bfloat16, 2 for int8.
void lmtrain_step(int weights, const Stage* stages, long count, long texts, const long* slots, const long* tokens,
                  const float* embedding, float* log_probs, long threads) {
    if (weights == 2) return step<int8>(stages, count, texts, slots, tokens, embedding, log_probs, threads);
    with_type(weights, [&](auto type) {
        step<decltype(type)>(stages, count, texts, slots, tokens, embedding, log_probs, threads);
    });
}

// Whether the weights of a step are packed (`packs` in step.h), as `_packed` in step.py does it.
int lmtrain_step_packs(int weights) { return weights == 1 && packs<bf16>(); }

// A token from each of `rows` distributions [rows, V]; -1 where none can be drawn, or an argument is not what it should be.
void lmtrain_draw_each(const float* log_probs, long rows, long V, const double* uniforms, float temperature, long excluded,
                       long* tokens, long threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (long i = 0; i < rows; i++) {
        const bool fits = V > 0 && uniforms[i] >= 0 && uniforms[i] < 1 && temperature > 0 && excluded >= -1 && excluded < V;
        tokens[i] = fits ? draw(log_probs + i * V, V, uniforms[i], temperature, excluded) : -1;
    }
}

// The weight has the type of the features, or is float32 and rounded to it on the way. Returns the total in nats; -infinity
// where a target is no token, before anything is computed. `row_nats` [N] gets what each token adds to it, unless it is null.
// All gradients are those of the total divided by `items`.
double lmtrain_linear_cross_entropy(int bfloat16, long float32_weight, long N, long V, long D, long max_bytes,
                                    long items, const void* features, const void* weight, const float* bias,
                                    const int64_t* targets, float* d_features, float* d_weight, float* d_bias,
                                    float* row_nats, long threads) {
    for (long n = 0; n < N; n++)
        if (targets[n] < 0 || targets[n] >= V) return -INFINITY;
    double nats = 0;
    with_type(bfloat16, [&](auto type) {
        typedef decltype(type) S;
        auto run = [&](auto* typed_weight) {
            nats = linear_cross_entropy(N, V, D, max_bytes, (const S*)features, typed_weight, bias, targets, d_features,
                                        d_weight, d_bias, row_nats, nullptr, nullptr, 1.0f / items, threads);
        };
        float32_weight ? run((const float*)weight) : run((const S*)weight);
    });
    return nats;
}

// The same of a sampled softmax; -infinity where a target or a sample is no token.
double lmtrain_sampled_cross_entropy(int bfloat16, long N, long V, long D, long K, long items, long max_bytes, const void* features,
                                     const float* weight, const float* bias, const int64_t* targets, const int64_t* samples,
                                     const float* log_expected, float* d_features, float* d_rows, float* d_bias,
                                     long threads) {
    double nats = 0;
    with_type(bfloat16, [&](auto type) {
        typedef decltype(type) S;
        nats = sampled_cross_entropy<S>(N, V, D, K, items, max_bytes, (const S*)features, weight, bias, targets, samples,
                                        log_expected, d_features, d_rows, d_bias, threads);
    });
    return nats;
}
}
#pragma GCC visibility pop
