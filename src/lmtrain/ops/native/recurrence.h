// What the three cells share: the recurrent matrix, packed, and the shape of the time loop.
//
// Every thread owns blocks of hidden units. At each step it multiplies the previous state (all of it) by its blocks'
// columns and, while the sums are still in the first-level cache, turns them into its units of the next state; then all
// threads meet. Packing, the loop and the meeting happen in one parallel region per call.
//
// The left operand of the products (`Operand`: the state going forward, the gates' gradients going backward) is kept apart
// from the results: padded with zeros to whole words, in the type of the product, two of them used in turn.

#pragma once
#include <cstdlib>
#include <type_traits>

#include "product.h"
#include "threads.h"

namespace lmtrain {

// Memory that a calling thread keeps for its next call. Slots are numbered; growing loses the content.
template <class T>
T* scratch(int slot, long count) {
    struct Slot {
        void* memory = nullptr;
        size_t bytes = 0;
        ~Slot() { free(memory); }
    };
    static thread_local Slot slots[8];
    Slot& mine = slots[slot];
    size_t bytes = round_up(count * sizeof(T) + 64, 4096);
    if (bytes > mine.bytes) {
        free(mine.memory);
        mine.memory = aligned_alloc(4096, bytes);
        mine.bytes = mine.memory ? bytes : 0;
    }
    return static_cast<T*>(mine.memory);
}

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

// Writes `words` words x LANES columns; column j holds source[k * k_stride + j * column_stride], zero from k_count and
// column_count on.
template <class Word, class S>
void pack(uint32_t* to, long to_stride, long words, const S* from, long k_stride, long column_stride, long k_count,
          long column_count) {
    typedef typename Word::Element Element;
    constexpr int PER_WORD = Word::PER_WORD;
    const int columns = std::min<long>(column_count, LANES);
    for (long word = 0; word < words; word++) {
        Element row[LANES * PER_WORD] = {};
        for (int p = 0; p < PER_WORD; p++) {
            const long k = word * PER_WORD + p;
            if (k >= k_count) break;
            const S* source = from + k * k_stride;
            for (int j = 0; j < columns; j++) {
                if constexpr (std::is_same_v<Element, S>) row[j * PER_WORD + p] = source[j * column_stride];
                else row[j * PER_WORD + p] = widen(source[j * column_stride]);
            }
        }
        memcpy(to + word * to_stride, row, sizeof row);
    }
}

// The packed matrix of one product: `gates` groups of `hidden` rows of weight_ZH, each of `hidden` columns.
//
//   Forward   sums[gate, unit] = sum over k of weight[gate * H + unit, k] * state[k]
//   Backward  sums[unit] = sum over (gate, j) of weight[gate * H + j, unit] * d_gate[gate, j]
template <class S>
struct Recurrent {
    typedef typename WordOf<S>::type Word;
    typedef typename Word::Element Element;

    long hidden, gates, rows, allowed_threads;
    bool backward;
    long threads = rows * gates * hidden * hidden < 32768 ? 1 : allowed_threads;  // small steps are not worth a meeting
    long padded = round_up(hidden, 32);                    // one group of K
    long inputs = backward ? gates * padded : padded;      // all of K, in elements
    long words = inputs / Word::PER_WORD;
    long outputs = backward ? 1 : gates;                   // groups of columns
    long block_units = outputs > 1 ? 16 : even_width(hidden, threads);
    long columns = outputs * block_units;
    long blocks = (hidden + block_units - 1) / block_units;
    uint32_t* packed = scratch<uint32_t>(0, blocks * columns * words);

    // 64 or 48 units to a block: whichever leaves the busiest thread less to do.
    static long even_width(long hidden, long threads) {
        auto busiest = [&](long width) {
            long blocks = (hidden + width - 1) / width;
            return (blocks + threads - 1) / threads * width;
        };
        return busiest(48) < busiest(64) ? 48 : 64;
    }

    void pack_block(long block, const S* weight) const {
        const long width = LANES == 16 ? columns : PANEL_VECTORS * LANES;
        for (long column = 0; column < columns; column += LANES) {
            const long group = column / block_units;
            const long unit = block * block_units + column % block_units;
            uint32_t* to = packed + block * columns * words + column / width * width * words + column % width;
            const long left = std::max(0l, hidden - unit);
            if (!backward) {
                pack<Word>(to, width, words, weight + (group * hidden + unit) * hidden, 1, hidden, hidden, left);
            } else {
                const long group_words = padded / Word::PER_WORD;
                for (long gate = 0; gate < gates; gate++)
                    pack<Word>(to + gate * group_words * width, width, group_words,
                               weight + gate * hidden * hidden + unit, hidden, 1, hidden, left);
            }
        }
    }

    // sums[row, column] of one block for all rows of the operand
    void multiply_block(long block, const Element* operand, float* sums) const {
        multiply<Word>(rows, (const uint32_t*)operand, words, packed + block * columns * words, words, columns, sums);
    }
};

// Two left operands, used in turn by the steps, zero where nothing is written.
template <class S>
struct Operand {
    typedef typename Recurrent<S>::Element Element;
    explicit Operand(const Recurrent<S>& matrix) : rows(round_rows(matrix.rows)), stride(matrix.inputs) {}
    long rows, stride;
    Element* memory = scratch<Element>(1, 2 * rows * stride);

    Element* at(long step, long row = 0, long column = 0) const {
        return memory + ((step & 1) * rows + row) * stride + column;
    }
    void clear() const { memset((void*)memory, 0, 2 * rows * stride * sizeof(Element)); }
};

// A value goes into the operand as the storage type has it, so that all builds multiply the same numbers.
template <class S>
INLINE void store_operand(float* to, F value, long n) {
    store(to, as_stored<S>(value), n);
}
template <class S>
INLINE void store_operand(bf16* to, F value, long n) {
    store(to, value, n);
}

// The time loop: `steps` times the product of operand.at(step) with the packed matrix, and for each row and group of LANES
// units `cell(step, row, unit, n, sum)`, which reads its sums at sum[group * block_units], stores its n valid lanes and
// writes operand.at(step + 1). `start(row, unit, n)` writes operand.at(0); a loop that starts from zero passes no start.
struct FromZero {};

template <class S, class Start, class Cell>
void time_loop(const Recurrent<S>& matrix, const Operand<S>& operand, const S* weight, long steps, Start start,
               Cell cell) {
    constexpr bool from_zero = std::is_same_v<Start, FromZero>;
    const long rows = matrix.rows, block_sums = operand.rows * matrix.columns;
    float* all_sums = scratch<float>(2, matrix.threads * block_sums);
    operand.clear();
    Barrier barrier;

#pragma omp parallel num_threads(matrix.threads)
    {
        const long me = omp_get_thread_num(), team = omp_get_num_threads();
        const Share mine = share(matrix.blocks, me, team);
        const FlushDenormals flush;
        const Tiles tiles(rows);
        float* sums = all_sums + me * block_sums;

        auto each_unit = [&](long block, auto work) __attribute__((always_inline)) {
            const long first = block * matrix.block_units, end = std::min(matrix.hidden, first + matrix.block_units);
            for (long row = 0; row < rows; row++)
                for (long unit = first; unit < end; unit += LANES)
                    work(row, unit, end - unit, sums + row * matrix.columns + (unit - first));
        };
        for (long block = mine.first; block < mine.last; block++) {
            matrix.pack_block(block, weight);
            if constexpr (!from_zero) each_unit(block, [&](long row, long unit, long n, float*) { start(row, unit, n); });
        }
        barrier.wait(team);
        for (long step = 0; step < steps; step++) {
            for (long block = mine.first; block < mine.last; block++) {
                if (from_zero && step == 0) memset(sums, 0, block_sums * sizeof(float));
                else matrix.multiply_block(block, operand.at(step), sums);
                each_unit(block, [&](long row, long unit, long n, const float* sum) __attribute__((always_inline)) {
                    cell(step, row, unit, n, sum);
                });
            }
            barrier.wait(team);
        }
    }
}

// keep_TB[t, b], or 1 without resets and outside the chunk.
struct Keep {
    const float* keep;
    long T, B;
    float operator()(long t, long b) const { return keep && t >= 0 && t < T ? keep[t * B + b] : 1.0f; }
};

}  // namespace lmtrain
