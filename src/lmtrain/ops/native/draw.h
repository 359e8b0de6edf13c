// One draw from log-probabilities: the first token whose cumulated probability exceeds a uniform number; see ops/draw.py.

#pragma once
#include <cmath>

#include "packing.h"

namespace lmtrain {

// exp((log p - largest) / temperature), 0 for the excluded token and beyond the last one; NaN stays NaN.
struct Distribution {
    const float* log_probs;
    long V, excluded;
    float sharpness, largest;

    inline __attribute__((always_inline)) F allowed(long v) const {
        F x = load(log_probs + v, V - v);
        for (long i = V - v; i < LANES; i++) x[i] = -INFINITY;
        if (excluded >= v && excluded < v + LANES) x[excluded - v] = -INFINITY;
        return x;
    }
    inline __attribute__((always_inline)) F probabilities(long v) const {
        const F x = (allowed(v) - largest) * sharpness;
        return x < broadcast(-87.0f) ? F{} : exp(x);
    }
};

// Sums over blocks are float64. -1 where there is no probability at all, or one that is not a number.
inline long draw(const float* log_probs, long V, double uniform, float temperature, long excluded) {
    constexpr long BLOCK = 256;
    const long blocks = (V + BLOCK - 1) / BLOCK;
    Distribution of{log_probs, V, excluded, 1 / temperature, 0};
    F most = broadcast(-INFINITY);
    for (long v = 0; v < V; v += LANES) most = max(most, of.allowed(v));
    of.largest = largest(most);
    double* sums = scratch<double>(3, blocks);
    double total = 0;
    for (long block = 0; block < blocks; block++) {
        F some = {};
        for (long v = block * BLOCK; v < std::min(V, (block + 1) * BLOCK); v += LANES) some += of.probabilities(v);
        total += sums[block] = sum(some);
    }
    if (!(total > 0)) return -1;
    double left = uniform * total;
    long block = 0;
    for (; block < blocks - 1 && left >= sums[block]; block++) left -= sums[block];
    while (!(sums[block] > 0)) block--;  // rounding at the very end
    long last = -1;
    for (long v = block * BLOCK; v < std::min(V, (block + 1) * BLOCK); v += LANES) {
        const F some = of.probabilities(v);
        for (long i = 0; i < LANES; i++) {
            if (!(some[i] > 0)) continue;
            last = v + i;
            if ((left -= some[i]) < 0) return last;
        }
    }
    return last;
}

}  // namespace lmtrain
