// Products of a matrix, as it lies, with one vector or with a few: row by row, without packing.

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

// The same with M operands, `stride` elements apart: each weight is read once for all, and each sum is the one that
// `dot_rows` gives, bit for bit. Half of the rows at a time, so that their M sums stay in registers.
template <class S, int M>
__attribute__((noinline)) void dot_rows_by(const S* weight, long inputs, long n, const typename WordOf<S>::type::Element* x,
                                           long stride, F* sums) {
    constexpr int HALF = LANES / 2;
    F dots[M][LANES];
    auto over_rows = [&](int first, auto row) __attribute__((always_inline)) {
        F half[M][HALF] = {};
        long k = 0;
#ifdef LMTRAIN_PAIRS
        if constexpr (std::is_same_v<S, bf16>) {
            for (; k < inputs; k += 32) {
                const __mmask32 valid = inputs - k >= 32 ? 0xffffffff : (1u << (inputs - k)) - 1;
                __m512bh some[M];
#pragma GCC unroll 4
                for (int m = 0; m < M; m++) some[m] = (__m512bh)_mm512_loadu_epi16(x + m * stride + k);
#pragma GCC unroll 16
                for (int j = 0; j < HALF; j++) {
                    const __m512bh weights = (__m512bh)_mm512_maskz_loadu_epi16(valid, row(first + j) + k);
#pragma GCC unroll 4
                    for (int m = 0; m < M; m++) half[m][j] = (F)_mm512_dpbf16_ps((__m512)half[m][j], weights, some[m]);
                }
            }
        } else
#endif
        {
            F some[M];
            for (; k + LANES <= inputs; k += LANES) {
#pragma GCC unroll 4
                for (int m = 0; m < M; m++) some[m] = load(x + m * stride + k);
#pragma GCC unroll 16
                for (int j = 0; j < HALF; j++) {
                    const F weights = load(row(first + j) + k);
#pragma GCC unroll 4
                    for (int m = 0; m < M; m++) half[m][j] += weights * some[m];
                }
            }
            if (k < inputs)
                for (int m = 0; m < M; m++)
                    for (int j = 0; j < HALF; j++)
                        half[m][j] += load(row(first + j) + k, inputs - k) * load(x + m * stride + k);
        }
        for (int m = 0; m < M; m++)
            for (int j = 0; j < HALF; j++) dots[m][first + j] = half[m][j];
    };
    for (int first = 0; first < LANES; first += HALF) {
        if (n >= LANES) over_rows(first, [=](long j) { return weight + j * inputs; });
        else over_rows(first, [=](long j) { return weight + std::min(j, n - 1) * inputs; });
    }
    for (int m = 0; m < M; m++) {
        U square[LANES];
        for (int j = 0; j < LANES; j++) square[j] = (U)dots[m][j];
        transpose(square);
        sums[m] = F{};
        for (int j = 0; j < LANES; j++) sums[m] += (F)square[j];
    }
}

// `dot_rows` with each of `count` operands.
template <class S>
void dot_rows_of(const S* weight, long inputs, long n, const typename WordOf<S>::type::Element* x, long stride, long count,
                 F* sums) {
    long m = 0;
    for (; count - m >= 3; m += 3) dot_rows_by<S, 3>(weight, inputs, n, x + m * stride, stride, sums + m);
    if (count - m == 2) dot_rows_by<S, 2>(weight, inputs, n, x + m * stride, stride, sums + m);
    if (count - m == 1) sums[m] = dot_rows(weight, inputs, n, x + m * stride);
}

}  // namespace lmtrain
