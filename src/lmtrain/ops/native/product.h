// C[rows, columns] = A[rows, K] x W[K, columns], where W is packed once and used at every time step.
//
// Everything is counted in 32-bit *words* along K: a word is one float32, or a pair of bfloat16 that are neighbours in K
// (the operand of vdpbf16ps and of the AMX tiles). So one kernel serves both; only `fma` differs.
//
//   packed W of a block of columns:  [panel][word of K][width]     width = the columns that one kernel call covers
//   A:                               [row][word of K]              rows `stride` words apart
//
// The kernel keeps R rows x V vectors of C in registers. K is cut so that one panel's slice of W stays in the first-level
// cache while all rows pass over it: W is read from farther away once per step, however many rows there are. Meanwhile the
// next slice is fetched (650 x 2600 in float32, which no second-level cache holds: 165 instead of 135 GFLOP/s a core).
//
//   Single   float32 words. Also bfloat16 storage on processors without bfloat16 products: A and W widened, exactly.
//   Pair     bfloat16 pairs by AVX512_BF16, or by AMX tiles where the processor has them and Linux grants them.

#pragma once
#include <algorithm>

#include "simd.h"
#include "tiles.h"

namespace lmtrain {

inline long round_up(long n, long multiple) { return (n + multiple - 1) / multiple * multiple; }

#ifdef LMTRAIN_AVX512
constexpr int PANEL_VECTORS = 4;  // 6 rows x 4 vectors = 24 of 32 registers hold C
#elif defined(__aarch64__)
constexpr int PANEL_VECTORS = 4;
#else
constexpr int PANEL_VECTORS = 2;  // 6 x 2 = 12 of 16
#endif
constexpr int MAX_ROWS = 8;
constexpr int rows_in_registers(int vectors) { return LANES == 16 && vectors < 4 ? 8 : 6; }

struct Single {
    typedef float Element;
    static constexpr int PER_WORD = 1;
    INLINE F fma(F c, const uint32_t* a, F w) {
        float x;
        memcpy(&x, a, 4);
        return c + broadcast(x) * w;
    }
};

#if defined(LMTRAIN_AVX512) && defined(__AVX512BF16__)
#define LMTRAIN_PAIRS 1
struct Pair {
    typedef bf16 Element;
    static constexpr int PER_WORD = 2;
    INLINE F fma(F c, const uint32_t* a, F w) {
        return (F)_mm512_dpbf16_ps((__m512)c, (__m512bh)_mm512_set1_epi32(*a), (__m512bh)(__m512)w);
    }
};
#endif

// Tiles take K in groups of 32 elements and A in groups of 16 rows; elsewhere padding would be multiplied for nothing (an
// eighth of all work with 200 units).
template <class Word>
INLINE bool by_tiles() {
#ifdef LMTRAIN_AMX
    return Word::PER_WORD == 2 && tiles_granted();
#else
    return false;
#endif
}
template <class Word>
INLINE long padded_depth(long elements) { return round_up(elements, by_tiles<Word>() ? 32 : Word::PER_WORD); }
template <class Word>
INLINE long padded_rows(long rows) { return round_up(rows, by_tiles<Word>() ? 16 : 1); }

// R rows x V vectors of C, from `words` words of K. At each word a cache line is fetched, `fetch_step` bytes on from the last.
template <class Word, int R, int V>
void kernel(const uint32_t* a, long a_stride, const uint32_t* w, long words, float* c, long c_stride, bool first,
            const char* fetch, long fetch_step) {
    F sums[R][V];
    for (int r = 0; r < R; r++)
        for (int v = 0; v < V; v++) sums[r][v] = first ? F{} : load(c + r * c_stride + v * LANES);
    for (long k = 0; k < words; k++) {
        __builtin_prefetch(fetch + k * fetch_step, 0, 2);
        F row[V];
        for (int v = 0; v < V; v++) row[v] = load((const float*)w + (k * V + v) * LANES);
#pragma GCC unroll 8
        for (int r = 0; r < R; r++)
#pragma GCC unroll 4
            for (int v = 0; v < V; v++) sums[r][v] = Word::fma(sums[r][v], a + r * a_stride + k, row[v]);
    }
    for (int r = 0; r < R; r++)
        for (int v = 0; v < V; v++) store(c + r * c_stride + v * LANES, sums[r][v]);
}

template <class Word, int V>
void panel(long rows, const uint32_t* a, long a_stride, const uint32_t* w, long words, float* c, long c_stride,
           bool first) {
    constexpr int R = rows_in_registers(V);
    typedef void (*Kernel)(const uint32_t*, long, const uint32_t*, long, float*, long, bool, const char*, long);
    static constexpr Kernel kernels[MAX_ROWS + 1] = {
        nullptr,
        kernel<Word, 1, V>,
        kernel<Word, 2, V>,
        kernel<Word, 3, V>,
        kernel<Word, 4, V>,
        kernel<Word, 5, V>,
        kernel<Word, 6, V>,
        kernel<Word, std::min(R, 7), V>,
        kernel<Word, std::min(R, 8), V>,
    };
    const long groups = (rows + R - 1) / R;  // of nearly equal height: 20 rows are 4 x 5, not 6 + 6 + 6 + 2
    const char* next = (const char*)(w + words * V * LANES);
    const long fetch_step = V * LANES * 4 / groups;
    for (long g = 0; g < groups; g++) {
        long from = rows * g / groups, to = rows * (g + 1) / groups;
        kernels[to - from](a + from * a_stride, a_stride, w, words, c + from * c_stride, c_stride, first,
                           next + g * words * fetch_step, fetch_step);
    }
}

// The width of the panels of a packed block of this many columns, and where word k of a column lies in it. Panels for tiles
// are as wide as a tile, which so lies in one piece.
template <class Word>
INLINE long panel_width(long columns) { return by_tiles<Word>() ? 16 : LANES == 16 ? columns : PANEL_VECTORS * LANES; }
template <class Word>
INLINE long packed_at(long columns, long words, long k, long column) {
    const long width = panel_width<Word>(columns);
    return column / width * width * words + k * width + column % width;
}

// One block of `columns` columns (16, 32, 48 or 64), packed in panels of `width`. C, rows c_stride apart, is written, or added
// to.
template <class Word>
void multiply_panels(float* c, long c_stride, long rows, const uint32_t* a, long a_stride, const uint32_t* packed, long words,
                     long columns, long width, bool add) {
    const long vectors = width / LANES;
    const long most = 24576 / 4 / width, slices = (words + most - 1) / most, slice = (words + slices - 1) / slices;
    for (long k = 0; k < words; k += slice) {
        const long n = std::min(slice, words - k);
        const bool first = k == 0 && !add;
        for (long column = 0; column < columns; column += width) {
            const uint32_t* w = packed + column * words + k * width;
            auto run = vectors == 1   ? panel<Word, 1>
                       : vectors == 2 ? panel<Word, 2>
                       : vectors == 3 ? panel<Word, 3>
                                      : panel<Word, 4>;
            run(rows, a + k, a_stride, w, n, c + column, c_stride, first);
        }
    }
}

template <class Word>
void multiply_into(float* c, long c_stride, long rows, const uint32_t* a, long a_stride, const uint32_t* packed, long words,
                   long columns, bool add) {
    multiply_panels<Word>(c, c_stride, rows, a, a_stride, packed, words, columns, panel_width<Word>(columns), add);
}

// The same with a C of that stride, and by tiles where there are any.
template <class Word>
void multiply(long rows, const uint32_t* a, long a_stride, const uint32_t* packed, long words, long columns, float* c,
              bool add = false) {
#ifdef LMTRAIN_AMX
    if (by_tiles<Word>()) return multiply_tiles(rows, a, a_stride, packed, words, columns, c, add);
#endif
    multiply_into<Word>(c, columns, rows, a, a_stride, packed, words, columns, add);
}

}  // namespace lmtrain
