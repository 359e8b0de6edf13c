// What the three cells share: the recurrent matrix, packed, and the shape of the time loop.
//
// Every thread owns blocks of hidden units. At each step it multiplies the previous state (all of it) by its blocks'
// columns and, while the sums are still in the first-level cache, turns them into its units of the next state; then all
// threads meet. Packing, the loop and the meeting happen in one parallel region per call.
//
// Where one core's cache holds the whole packed matrix, every thread owns rows (streams) instead and all units of them: then
// no number passes from core to core, and threads meet once, behind the packing.
//
// The left operand of the products (`Operand`: the state going forward, the gates' gradients going backward) is kept apart
// from the results: padded with zeros to whole words, in the type of the product, two of them used in turn.
//
// A cell reads a few numbers of every row, which lie far apart, so it fetches those of the next step: without that, waiting for
// the projections was 60 % of a GRU's forward cells (AMD EPYC, Zen 4). Fetching them while the product before them runs is too
// late.
//
// Tried, no gain: blocks of 16 units in pairs, so that a row's cell touches whole cache lines. With tiles and B=20, H=650 a
// step is half product, half cells and memory.

#pragma once
#include "rows.h"

namespace lmtrain {

// The packed matrix of one product: `gates` groups of `hidden` rows of weight_ZH, each of `hidden` columns.
//
//   Forward   sums[gate, unit] = sum over k of weight[gate * H + unit, k] * state[k]
//   Backward  sums[unit] = sum over (gate, j) of weight[gate * H + j, unit] * d_gate[gate, j]
//
// A thread's units come in blocks. With several gates a block is 16 units of each, so that a unit's gates meet in it.
constexpr long BY_ROWS_BYTES = 1l << 20;  // of the packed matrix, at most, for threads to share rows and not units

template <class S>
struct Recurrent {
    typedef typename WordOf<S>::type Word;
    typedef typename Word::Element Element;

    long hidden, gates, rows, allowed_threads;
    bool backward;
    long threads = rows * gates * hidden * hidden < (1l << 18) ? 1 : allowed_threads;  // below, meeting costs more
    bool by_rows = threads > 1 && rows >= 8 * threads && 4 * gates * hidden * hidden / Word::PER_WORD <= BY_ROWS_BYTES;
    long padded = padded_depth<Word>(hidden);              // one group of K
    long depth = backward ? gates * padded : padded;       // all of K, in elements
    long words = depth / Word::PER_WORD;
    long inputs = round_up(depth, 32);                     // elements from one row of the operand to the next
    long outputs = backward ? 1 : gates;                   // groups of columns
    long tiles = (hidden + 15) / 16;
    uint32_t* packed = scratch<uint32_t>(0, tiles * 16 * outputs * words);

    struct Block {
        long first_unit, units, columns;
    };
    long blocks(const Share& mine) const { return outputs > 1 ? mine.last - mine.first : panels(mine).count(); }
    Block block(const Share& mine, long index) const {
        if (outputs > 1) return {(mine.first + index) * 16, 16, 16 * outputs};
        const long width = panels(mine).width(index);
        return {panels(mine).first(index), width, width};
    }

    void pack_block(const Block& block, const S* weight) const {
        for (long column = 0; column < block.columns; column += LANES) {
            const long group = column / block.units, unit = block.first_unit + column % block.units;
            uint32_t* to = at(block) + packed_at<Word>(block.columns, words, 0, column);
            const long width = panel_width<Word>(block.columns), left = hidden - unit;
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

    // The same sums from the weight as it lies, by dot products: for a generator's single step, where packing is most work.
    void dot_block(const Block& block, const S* weight, const Element* operand, long rows, float* sums) const {
        for (long row = 0; row < rows; row++)
            for (long column = 0; column < block.columns; column += LANES) {
                const long unit = block.first_unit + column % block.units;
                const S* from = weight + (column / block.units * hidden + unit) * hidden;
                const F total = unit < hidden ? dot_rows(from, hidden, hidden - unit, operand + row * inputs) : F{};
                store(sums + row * block.columns + column, total);
            }
    }

    // sums[row, column] of one block for `rows` rows of the operand
    void multiply_block(const Block& block, const Element* operand, long rows, float* sums) const {
        multiply<Word>(rows, (const uint32_t*)operand, inputs / Word::PER_WORD, at(block), words, block.columns, sums);
    }

  private:
    Panels panels(const Share& mine) const { return {mine.first, mine.last - mine.first}; }
    uint32_t* at(const Block& block) const { return packed + block.first_unit * outputs * words; }
};

// Two left operands, used in turn by the steps, zero where nothing is written.
template <class S>
struct Operand {
    typedef typename Recurrent<S>::Element Element;
    explicit Operand(const Recurrent<S>& matrix) : rows(round_up(matrix.rows, 16) + 16), stride(matrix.inputs) {}
    long rows, stride;
    Element* memory = scratch<Element>(1, 2 * rows * stride);

    Element* at(long step, long row = 0, long column = 0) const {
        return memory + ((step & 1) * rows + row) * stride + column;
    }
    void clear() const { memset((void*)memory, 0, 2 * rows * stride * sizeof(Element)); }
};

// The time loop: `steps` times the product of operand.at(step) with the packed matrix, and for each row and group of LANES
// units `cell(step, row, unit, n, sum)`, which reads its sums at sum[gate * 16], stores its n valid lanes and
// writes operand.at(step + 1). `start(row, unit, n)` writes operand.at(0); a loop that starts from zero passes no start.
struct FromZero {};

template <class S, class Start, class Cell>
void time_loop(const Recurrent<S>& shared_matrix, const Operand<S>& shared_operand, const S* weight, long steps,
               Start shared_start, Cell shared_cell) {
    constexpr bool from_zero = std::is_same_v<Start, FromZero>;
    const long rows = shared_matrix.rows, block_sums = shared_operand.rows * 64;
    float* all_sums = scratch<float>(2, shared_matrix.threads * block_sums);
    shared_operand.clear();
    const bool direct = !shared_matrix.backward && rows * steps <= 8;
    Barrier barrier;

#pragma omp parallel num_threads(shared_matrix.threads)
    {
        // Copies of its own let the compiler keep sizes and pointers in registers (this halves the time of a cell).
        const auto matrix = shared_matrix;
        const auto operand = shared_operand;
        const auto start = shared_start;
        const auto cell = shared_cell;
        const long me = omp_get_thread_num(), team = omp_get_num_threads();
        const Share mine = matrix.by_rows ? Share{0, matrix.tiles} : share(matrix.tiles, me, team);
        const long blocks = matrix.blocks(mine);
        const Share to_pack = matrix.by_rows ? share(blocks, me, team) : Share{0, blocks};
        const Share my_rows = matrix.by_rows ? share(rows, me, team) : Share{0, rows};
        const long num_rows = my_rows.last - my_rows.first;
        const FlushDenormals flush;
        const Tiles tiles(num_rows);
        float* sums = all_sums + me * block_sums;

        auto each_unit = [&](const auto& block, auto work) __attribute__((always_inline)) {
            const long end = std::min(matrix.hidden, block.first_unit + block.units);
            const float* row_sums = sums;
            for (long row = my_rows.first; row < my_rows.last; row++, row_sums += block.columns)
                for (long unit = block.first_unit; unit < end; unit += LANES)
                    work(row, unit, end - unit, row_sums + (unit - block.first_unit));
        };
        for (long index = to_pack.first; index < to_pack.last; index++)
            if (!direct) matrix.pack_block(matrix.block(mine, index), weight);
        if constexpr (!from_zero)
            for (long index = 0; index < blocks; index++)
                each_unit(matrix.block(mine, index), [&](long row, long unit, long n, const float*) { start(row, unit, n); });
        barrier.wait(team);
        for (long step = 0; step < steps; step++) {
            const auto* left = operand.at(step, my_rows.first);
            for (long index = 0; index < blocks; index++) {
                const auto block = matrix.block(mine, index);
                if (from_zero && step == 0) memset(sums, 0, block_sums * sizeof(float));
                else if (direct) matrix.dot_block(block, weight, left, num_rows, sums);
                else matrix.multiply_block(block, left, num_rows, sums);
                each_unit(block, [&](long row, long unit, long n, const float* sum) __attribute__((always_inline)) {
                    cell(step, row, unit, n, sum);
                });
            }
            if (!matrix.by_rows) barrier.wait(team);
        }
    }
}

// How activated gates are saved for the backward pass, four numbers of a unit: [step][tile of 16 units][row][4][16], so that
// both passes run through them from one end to the other. In 16 bits when the storage type has as many.
template <class S>
struct Gates {
    typedef std::conditional_t<std::is_same_v<S, float>, float, gate16> type;
    type* memory;
    long B, H;
    explicit operator bool() const { return memory; }
    type* at(long t, long b, long unit) const {
        return memory + (((t * ((H + 15) / 16) + unit / 16) * B + b) * 64 + unit % 16);
    }
    // Those of the step before, for which the backward pass comes next.
    void fetch_before(const type* here) const {
        for (long line = 0; line < 64; line += 64 / sizeof(type)) fetch(here, line - (H + 15) / 16 * B * 64);
    }
};

// keep_TB[t, b], or 1 without resets and outside the chunk.
struct Keep {
    const float* keep;
    long T, B;
    float operator()(long t, long b) const { return keep && t >= 0 && t < T ? keep[t * B + b] : 1.0f; }
};

}  // namespace lmtrain
