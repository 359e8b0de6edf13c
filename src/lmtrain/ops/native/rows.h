// Products of a matrix, as it lies, with one vector: row by row, without packing, where every weight is used once.

#pragma once
#include "packing.h"

namespace lmtrain {

// The dot products of LANES rows of a row-major matrix of `inputs` columns with x, which is followed by zeros to a multiple
// of 32. Of rows j >= n the last one, n - 1, is taken again. The rows are read side by side. (Inlined everywhere it would
// double the time of compilation, and gain nothing.)
template <class S>
__attribute__((noinline)) F dot_rows(const S* weight, long inputs, long n, const typename WordOf<S>::type::Element* x) {
    F dots[LANES] = {};
    auto over_rows = [&](auto row) __attribute__((always_inline)) {
        long k = 0;
#ifdef LMTRAIN_PAIRS
        if constexpr (std::is_same_v<S, bf16>) {
            for (; k < inputs; k += 32) {
                const __mmask32 valid = inputs - k >= 32 ? 0xffffffff : (1u << (inputs - k)) - 1;
                const __m512bh some = (__m512bh)_mm512_loadu_epi16(x + k);
#pragma GCC unroll 16
                for (int j = 0; j < LANES; j++)
                    dots[j] = (F)_mm512_dpbf16_ps((__m512)dots[j], (__m512bh)_mm512_maskz_loadu_epi16(valid, row(j) + k), some);
            }
            return;
        }
#endif
        for (; k + LANES <= inputs; k += LANES) {
            const F some = load(x + k);
#pragma GCC unroll 16
            for (int j = 0; j < LANES; j++) dots[j] += load(row(j) + k) * some;
        }
        if (k < inputs) {
            const F some = load(x + k);
            for (int j = 0; j < LANES; j++) dots[j] += load(row(j) + k, inputs - k) * some;
        }
    };
    if (n >= LANES) over_rows([=](long j) { return weight + j * inputs; });
    else over_rows([=](long j) { return weight + std::min(j, n - 1) * inputs; });
    U square[LANES];
    for (int j = 0; j < LANES; j++) square[j] = (U)dots[j];
    transpose(square);
    F sums = {};
    for (int j = 0; j < LANES; j++) sums += (F)square[j];
    return sums;
}

}  // namespace lmtrain
