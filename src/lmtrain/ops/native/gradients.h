// What a training step does with gradients that are made: their norm and its limit, and the sums of rows that a look-up needs.
//
// Sums have one order, whatever the number of threads: that of blocks of a fixed size, or of tokens.

#pragma once
#include <algorithm>
#include <cmath>
#include <vector>

#include "packing.h"

namespace lmtrain {

constexpr long NORM_BLOCK = 1 << 14;  // numbers whose squares are added up before others are

// A part of an array of gradients.
struct GradientBlock {
    float* numbers;
    long count;
};

// In float64, so that neither squares overflow nor small ones are lost among many.
inline double sum_of_squares(const GradientBlock& block) {
    const FlushDenormals flush;
    typedef float Half __attribute__((vector_size(2 * LANES)));
    typedef double Wide __attribute__((vector_size(4 * LANES)));
    constexpr long HALF = LANES / 2, SUMS = 4, AHEAD = 2048;  // a core that fetches this far reads 1.3 times as fast
    Wide sums[SUMS] = {};
    long i = 0;
    for (; i + SUMS * HALF <= block.count; i += SUMS * HALF) {
        for (long k = 0; k < SUMS * HALF; k += 16) __builtin_prefetch(block.numbers + i + AHEAD + k);
        for (long k = 0; k < SUMS; k++) {
            Half x;
            memcpy(&x, block.numbers + i + k * HALF, sizeof x);
            const Wide wide = __builtin_convertvector(x, Wide);
            sums[k] += wide * wide;
        }
    }
    const Wide both = (sums[0] + sums[1]) + (sums[2] + sums[3]);
    double total = 0;
    for (long k = 0; k < HALF; k++) total += both[k];
    for (; i < block.count; i++) total += (double)block.numbers[i] * block.numbers[i];
    return total;
}

// The L2 norm of all arrays together. Where it exceeds `max_norm` (0: never) and is finite, all of them are scaled down to it.
inline double clip_gradients(long arrays, float* const* numbers, const long* counts, double max_norm, long threads) {
    std::vector<GradientBlock> blocks;
    for (long a = 0; a < arrays; a++)
        for (long first = 0; first < counts[a]; first += NORM_BLOCK)
            blocks.push_back({numbers[a] + first, std::min(NORM_BLOCK, counts[a] - first)});
    const long size = blocks.size();
    threads = std::max(1l, std::min(threads, size / 4));  // less is done sooner than a thread is woken
    std::vector<double> sums(size);
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (long i = 0; i < size; i++) sums[i] = sum_of_squares(blocks[i]);
    double total = 0;
    for (const double sum : sums) total += sum;
    const double norm = std::sqrt(total);
    const float scale = max_norm / (norm + 1e-6);
    if (max_norm > 0 && std::isfinite(norm) && scale < 1) {
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
        for (long i = 0; i < size; i++) {
            const FlushDenormals flush;
            const GradientBlock block = blocks[i];
            for (long k = 0; k < block.count; k++) block.numbers[k] *= scale;
        }
    }
    return norm;
}

// sums [V, Z]: row v is the sum of those rows of d [N, Z] whose id is v, in their order, rounded once. Each thread takes some
// columns. -1, before anything is written, where an id is no row.
template <class S>
long sum_rows(long N, long V, long Z, const int64_t* ids, const S* d, S* sums, long threads) {
    for (long n = 0; n < N; n++)
        if (ids[n] < 0 || ids[n] >= V) return -1;
    const long tiles = (Z + LANES - 1) / LANES;
    threads = std::max(1l, std::min({threads, tiles, N * Z >> 14}));
#pragma omp parallel for num_threads(threads) schedule(static, 1) if (threads > 1)
    for (long me = 0; me < threads; me++) {
        const FlushDenormals flush;
        const Share mine = share(tiles, me, threads);
        const long first = mine.first * LANES, width = std::min(Z, mine.last * LANES) - first;
        const long stride = (width + LANES - 1) / LANES * LANES;
        float* rows = scratch<float>(11, V * stride);
        std::fill_n(rows, V * stride, 0.0f);
        for (long n = 0; n < N; n++) {
            const S* from = d + n * Z + first;
            float* to = rows + ids[n] * stride;
            for (long z = 0; z < width; z += LANES) {
                __builtin_prefetch(from + 2 * Z + z);  // the processor does not guess parts of rows
                store(to + z, load(to + z) + load(from + z, width - z));
            }
        }
        for (long v = 0; v < V; v++)
            for (long z = 0; z < width; z += LANES) store(sums + v * Z + first + z, load(rows + v * stride + z), width - z);
    }
    return 0;
}

}  // namespace lmtrain
