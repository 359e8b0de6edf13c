// C[M, N] = A[M, K] x B[K, N] + bias in float32, for large matrices that lie by rows or by columns (ops/linear.py).
//
// K is cut into blocks. Of each the thread packs its columns of B (product.h), then its rows of A, some at a time, so that they
// stay in the second-level cache while all columns of B pass over them. Threads share the longer side of C: each packs the
// whole of the smaller operand for itself, and they never wait for each other. The order of sums depends on K alone.

#pragma once
#include "packing.h"

namespace lmtrain {

// Element (i, j) lies at data[i * row + j * column]; one of the strides is 1.
struct Matrix {
    const float* data;
    long row, column;
    const float* at(long i, long j) const { return data + i * row + j * column; }
};

constexpr long PRODUCT_DEPTH = 384;     // of K at a time: 4 slices of product.h
constexpr long PRODUCT_ROWS = 192;      // of A: 288 kB
constexpr long PRODUCT_COLUMNS = 4096;  // of B: 6 MB

// Rows of A, one behind the other, `depth` words each.
inline void pack_rows(uint32_t* to, const Matrix& a, long first, long rows, long k, long depth) {
    if (a.column == 1) {
        for (long i = 0; i < rows; i++) memcpy(to + i * depth, a.at(first + i, k), depth * sizeof(float));
        return;
    }
    for (long j = 0; j < depth; j += LANES)
        for (long i = 0; i < rows; i += LANES) {
            U square[LANES];
            for (long l = 0; l < LANES; l++)
                square[l] = j + l < depth ? (U)load(a.at(first + i, k + j + l), rows - i) : U{};
            transpose(square);
            for (long l = 0; l < std::min<long>(LANES, rows - i); l++)
                store((float*)to + (i + l) * depth + j, (F)square[l], depth - j);
        }
}

// One thread's rectangle of C: `rows` of A by `columns` of B.
inline void product_part(Share rows, Share columns, long K, const Matrix& a, const Matrix& b, const float* bias, float* c,
                         long c_stride) {
    const FlushDenormals flush;
    for (long first = columns.first; first < columns.last; first += PRODUCT_COLUMNS) {
        const long width = std::min(PRODUCT_COLUMNS, columns.last - first);
        const Panels panels = panels_of(width);
        for (long k = 0; k < K; k += PRODUCT_DEPTH) {
            const long depth = std::min(PRODUCT_DEPTH, K - k);
            const bool begins = k == 0;
            uint32_t* packed_b = scratch<uint32_t>(0, panels.tiles * 16 * depth);
            uint32_t* packed_a = scratch<uint32_t>(1, PRODUCT_ROWS * depth);
            float* edge = scratch<float>(2, PRODUCT_ROWS * 64);  // of the columns that fill the last panel
            for (long p = 0; p < panels.count(); p++)
                pack_panel<Single>(packed_b + panels.first(p) * depth, panels.width(p), depth, b.at(k, first + panels.first(p)),
                                   b.row, b.column, depth, width - panels.first(p));
            for (long row = rows.first; row < rows.last; row += PRODUCT_ROWS) {
                const long height = std::min(PRODUCT_ROWS, rows.last - row);
                pack_rows(packed_a, a, row, height, k, depth);
                for (long p = 0; p < panels.count(); p++) {
                    const long column = first + panels.first(p), panel = panels.width(p);
                    const long n = std::min(panel, columns.last - column);
                    float* to = c + row * c_stride + column;
                    const uint32_t* w = packed_b + panels.first(p) * depth;
                    if (begins && bias)
                        for (long i = 0; i < height; i++) memcpy(to + i * c_stride, bias + column, n * sizeof(float));
                    const bool adds = !begins || bias;
                    if (n == panel) {
                        multiply_into<Single>(to, c_stride, height, packed_a, depth, w, depth, panel, adds);
                        continue;
                    }
                    auto each = [&](auto work) {
                        for (long i = 0; i < height; i++)
                            for (long j = 0; j < n; j += LANES) work(to + i * c_stride + j, edge + i * panel + j, n - j);
                    };
                    if (adds) each([](float* place, float* sum, long left) { store(sum, load(place, left)); });
                    multiply_into<Single>(edge, panel, height, packed_a, depth, w, depth, panel, adds);
                    each([](float* place, float* sum, long left) { store(place, load(sum), left); });
                }
            }
        }
    }
}

inline void matrix_product(long M, long N, long K, const Matrix& a, const Matrix& b, const float* bias, float* c,
                           long threads) {
#pragma omp parallel for num_threads(threads) schedule(static, 1) if (threads > 1)
    for (long me = 0; me < threads; me++) {
        Share rows{0, M}, columns{0, N};
        if (M > N) rows = share(M, me, threads);
        else {
            const Share tiles = share((N + 15) / 16, me, threads);
            columns = {tiles.first * 16, std::min(N, tiles.last * 16)};
        }
        product_part(rows, columns, K, a, b, bias, c, N);
    }
}

}  // namespace lmtrain
