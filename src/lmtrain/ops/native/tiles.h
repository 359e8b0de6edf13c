// AMX: the product of product.h by the processor's matrix tiles (16 rows of 64 bytes), for bfloat16 pairs.
//
// A tile of A holds up to 16 rows x 16 words of K, a tile of W 16 words of K x 16 columns, and tdpbf16ps adds their product
// to a 16 x 16 tile of C: 16 cycles for 8,192 multiply-adds. Tiles 0-3 are C, 4-5 A, 6-7 W.
//
// Tried, no gain: fetching W 16 to 128 words ahead; cutting K into slices of 48 to 128 words for the first-level cache.

#pragma once
#include "simd.h"

#if defined(__AMX_BF16__) && defined(LMTRAIN_AVX512) && defined(__linux__)
#define LMTRAIN_AMX 1
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace lmtrain {

// Rows in equal tiles: 20 rows are 10 + 10. Buffers of A and C have round_rows(rows) rows, so that a tile may overhang.
inline long tile_rows(long rows) {
    const long tiles = (rows + 15) / 16;
    return (rows + tiles - 1) / tiles;
}
inline long round_rows(long rows) { return (rows + 15) / 16 * tile_rows(rows); }

#ifdef LMTRAIN_AMX
// Linux hands out the tile registers (8 kB of state per thread) only to processes that ask.
inline bool tiles_granted() {
    const long request_permission = 0x1023, tile_data = 18;
    static const bool granted = syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
    return granted;
}

// The shapes of this thread's tiles while the object lives.
class Tiles {
  public:
    explicit Tiles(long rows) {
        if (!tiles_granted()) return;
        struct alignas(64) {
            uint8_t palette = 1, start_row = 0, reserved[14] = {};
            uint16_t bytes_per_row[16] = {};
            uint8_t rows[16] = {};
        } shape;
        for (int tile = 0; tile < 8; tile++) {
            shape.bytes_per_row[tile] = 64;
            shape.rows[tile] = tile < 6 ? tile_rows(rows) : 16;
        }
        _tile_loadconfig(&shape);
    }
    ~Tiles() {
        if (tiles_granted()) {
            _tile_release();
        }
    }
    Tiles(const Tiles&) = delete;
};

// 16 words of K x 16 columns: 1 kB in one piece.
constexpr long TILE = 256;

// R x V tiles of C, R and V 1 or 2, `steps` tiles of K. `a` has rows a_bytes apart and `height` rows in a tile; `c` columns
// in a row. No branch within, so that the loads of one step run beside the products of the last.
template <int R, int V>
void multiply_block(const uint32_t* a, long a_stride, long height, const uint32_t* w, long steps, float* c,
                           long columns, bool add) {
    const long a_bytes = a_stride * 4, c_bytes = columns * 4;
    const uint32_t* a1 = a + height * a_stride;
    const uint32_t* w1 = w + steps * TILE;
    float* c1 = c + height * columns;
    if (add) {
        _tile_loadd(0, c, c_bytes);
        if (V == 2) _tile_loadd(1, c + 16, c_bytes);
        if (R == 2) _tile_loadd(2, c1, c_bytes);
        if (R == 2 && V == 2) _tile_loadd(3, c1 + 16, c_bytes);
    } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    }
    for (long k = 0; k < steps; k++) {
        _tile_loadd(4, a + k * 16, a_bytes);
        _tile_loadd(6, w + k * TILE, 64);
        _tile_dpbf16ps(0, 4, 6);
        if (V == 2) _tile_loadd(7, w1 + k * TILE, 64);
        if (V == 2) _tile_dpbf16ps(1, 4, 7);
        if (R == 2) _tile_loadd(5, a1 + k * 16, a_bytes);
        if (R == 2) _tile_dpbf16ps(2, 5, 6);
        if (R == 2 && V == 2) _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, c, c_bytes);
    if (V == 2) _tile_stored(1, c + 16, c_bytes);
    if (R == 2) _tile_stored(2, c1, c_bytes);
    if (R == 2 && V == 2) _tile_stored(3, c1 + 16, c_bytes);
}

// packed: [tile of columns][word][16]; words a multiple of 16; columns 16, 32, 48 or 64. C is written, or added to.
inline void multiply_tiles(long rows, const uint32_t* a, long a_stride, const uint32_t* packed, long words, long columns,
                           float* c, bool add) {
    const long height = tile_rows(rows), padded = round_rows(rows), steps = words / 16;
    for (long row = 0; row < padded; row += 2 * height)
        for (long column = 0; column < columns; column += 32) {
            const bool two_rows = row + height < padded, two_columns = column + 16 < columns;
            auto run = two_rows ? two_columns ? multiply_block<2, 2> : multiply_block<2, 1>
                                : two_columns ? multiply_block<1, 2> : multiply_block<1, 1>;
            run(a + row * a_stride, a_stride, height, packed + column * words, steps, c + row * columns + column, columns, add);
        }
}
#else
struct Tiles {
    explicit Tiles(long) {}
};
#endif

}  // namespace lmtrain
