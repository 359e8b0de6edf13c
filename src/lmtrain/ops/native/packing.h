// How matrices become the packed blocks of product.h, and the memory they live in.

#pragma once
#include <cstdlib>
#include <type_traits>

#include "product.h"
#include "threads.h"

namespace lmtrain {

// The product used for storage type S.
template <class S>
struct WordOf {
    typedef Single type;
};
#ifdef LMTRAIN_PAIRS
template <>
struct WordOf<bf16> {
    typedef Pair type;
};
#endif

// A value goes into an operand as the storage type has it, so that all builds multiply the same numbers.
template <class S>
INLINE void store_operand(float* to, F value, long n) {
    store(to, as_stored<S>(value), n);
}
template <class S>
INLINE void store_operand(bf16* to, F value, long n) {
    store(to, value, n);
}

// Columns in tiles of 16, tiles in panels of at most 4 and nearly equal width: 13 tiles are 4 + 3 + 3 + 3, not 4 + 4 + 4 + 1.
struct Panels {
    long first_tile, tiles;
    long count() const { return (tiles + 3) / 4; }
    long first(long panel) const { return (first_tile + tiles * panel / count()) * 16; }
    long width(long panel) const { return first(panel + 1) - first(panel); }
};
inline Panels panels_of(long columns) { return {0, (columns + 15) / 16}; }

// Memory that a thread keeps for its next call. Slots are numbered; growing loses the content.
template <class T>
T* scratch(int slot, long count) {
    struct Slot {
        void* memory = nullptr;
        size_t bytes = 0;
        ~Slot() { free(memory); }
    };
    static thread_local Slot slots[12];
    Slot& mine = slots[slot];
    const size_t bytes = round_up(count * sizeof(T) + 64, 4096);
    if (bytes > mine.bytes) {
        free(mine.memory);
        mine.memory = aligned_alloc(4096, bytes);
        mine.bytes = mine.memory ? bytes : 0;
        if (!mine.memory) abort();
    }
    return static_cast<T*>(mine.memory);
}

// A square of LANES x LANES words: log2(LANES) rounds of zipping the upper half with the lower one.
INLINE void transpose(U square[LANES]) {
    I low, high;
    for (int i = 0; i < LANES; i++) {
        low[i] = i / 2 + (i % 2) * LANES;
        high[i] = low[i] + LANES / 2;
    }
    for (int round = 1; round < LANES; round *= 2) {
        U zipped[LANES];
        for (int i = 0; i < LANES / 2; i++) {
            zipped[2 * i] = __builtin_shuffle(square[i], square[i + LANES / 2], (U)low);
            zipped[2 * i + 1] = __builtin_shuffle(square[i], square[i + LANES / 2], (U)high);
        }
        for (int i = 0; i < LANES; i++) square[i] = zipped[i];
    }
}

// LANES words of neighbouring columns: one word from each, at `from`; the next element of K lies k_stride on.
template <class Word, class S>
INLINE U words_across(const S* from, long k_stride, long k_left, long columns) {
    if (k_left <= 0 || columns <= 0) return U{};
    if constexpr (Word::PER_WORD == 1) return (U)load(from, columns);
    else {
        U even = lengthen(narrow(load(from, columns)));
        if (k_left < 2) return even;
        return even | lengthen(narrow(load(from + k_stride, columns))) << 16;
    }
}

// LANES words along K from contiguous memory.
template <class Word, class S>
INLINE U words_along(const S* from, long k_left) {
    if (k_left <= 0) return U{};
    if constexpr (Word::PER_WORD == 1) return (U)load(from, k_left);
    else {
        bf16 pairs[2 * LANES];
        store(pairs, load(from, k_left));
        store(pairs + LANES, k_left > LANES ? load(from + LANES, k_left - LANES) : F{});
        U words;
        memcpy(&words, pairs, sizeof words);
        return words;
    }
}

// Writes `words` words x LANES columns, rows of the result to_stride apart. Column j holds
// from[k * k_stride + j * column_stride]; zeros from k_count and column_count on. One of the strides is 1.
template <class Word, class S>
void pack(uint32_t* to, long to_stride, long words, const S* from, long k_stride, long column_stride, long k_count,
          long column_count) {
    constexpr int PER_WORD = Word::PER_WORD;
    if (column_stride == 1) {
        for (long word = 0; word < words; word++) {
            const long k = word * PER_WORD;
            U row = words_across<Word>(from + k * k_stride, k_stride, k_count - k, column_count);
            memcpy(to + word * to_stride, &row, sizeof row);
        }
        return;
    }
    for (long word = 0; word < words; word += LANES) {
        const long k = word * PER_WORD;
        U square[LANES];
        for (int j = 0; j < LANES; j++)
            square[j] = j < column_count ? words_along<Word>(from + j * column_stride + k, k_count - k) : U{};
        transpose(square);
        for (long i = 0; i < std::min<long>(LANES, words - word); i++)
            memcpy(to + (word + i) * to_stride, &square[i], sizeof square[i]);
    }
}

// A whole panel of `width` columns, as product.h wants it.
template <class Word, class S>
void pack_panel(uint32_t* to, long width, long words, const S* from, long k_stride, long column_stride, long k_count,
                long column_count) {
    for (long column = 0; column < width; column += LANES)
        pack<Word>(to + packed_at<Word>(width, words, 0, column), panel_width<Word>(width), words, from + column * column_stride,
                   k_stride, column_stride, k_count, column_count - column);
}

}  // namespace lmtrain
