// The softmax over samples and each token's own target, with its gradients (ops/sampled_cross_entropy.py). The logits of the
// samples are those of a small output layer (cross_entropy.h); what concerns single rows of the weight is computed here.

#pragma once
#include <algorithm>
#include <vector>

#include "cross_entropy.h"

namespace lmtrain {

// `samples` [K] ascend. The rows of d_rows [K + N, D] and d_bias [K + N] are those of the samples, then of the targets.
template <class S>
double sampled_cross_entropy(long N, long V, long D, long K, long items, long max_bytes, const S* features, const float* weight,
                             const float* bias, const int64_t* targets, const int64_t* samples, const float* log_expected,
                             float* d_features, float* d_rows, float* d_bias, long threads) {
    for (long n = 0; n < N; n++)
        if (targets[n] < 0 || targets[n] >= V) return -INFINITY;
    for (long k = 0; k < K; k++)
        if (samples[k] < 0 || samples[k] >= V) return -INFINITY;
    float* sampled = scratch<float>(11, K * D);
    std::vector<float> added(K), own(N);
    std::vector<int64_t> left_out(N);
    const long team = N * D < 1l << 15 ? 1 : threads;
#pragma omp parallel for num_threads(team) schedule(static) if (team > 1)
    for (long k = 0; k < K; k++) {
        std::copy_n(weight + samples[k] * D, D, sampled + k * D);
        added[k] = bias[samples[k]] - log_expected[k];
    }
#pragma omp parallel for num_threads(team) schedule(static) if (team > 1)
    for (long n = 0; n < N; n++) {
        const FlushDenormals flush;
        const float* row = weight + targets[n] * D;
        F dot = {};
        for (long d = 0; d < D; d += LANES) dot += load(features + n * D + d, D - d) * load(row + d, D - d);
        own[n] = sum(dot) + bias[targets[n]];
        const int64_t* place = std::lower_bound(samples, samples + K, targets[n]);
        left_out[n] = place < samples + K && *place == targets[n] ? place - samples : -1;
    }
    float* d_own = d_bias + K;
    const double nats = linear_cross_entropy(N, K, D, max_bytes, features, (const float*)sampled, added.data(), left_out.data(),
                                             d_features, d_rows, d_bias, nullptr, own.data(), d_own, 1.0f / items, threads);
#pragma omp parallel for num_threads(team) schedule(static) if (team > 1)
    for (long n = 0; n < N; n++) {
        const FlushDenormals flush;
        const float* row = weight + targets[n] * D;
        float *to_features = d_features + n * D, *to_row = d_rows + (K + n) * D;
        for (long d = 0; d < D; d += LANES) {
            const long here = D - d;
            store(to_features + d, load(to_features + d, here) + d_own[n] * load(row + d, here), here);
            store(to_row + d, d_own[n] * load(features + n * D + d, here), here);
        }
    }
    return nats;
}

}  // namespace lmtrain
