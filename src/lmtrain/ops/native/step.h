// One token of each of some texts through a whole recurrent network, for text generation.
//
//   x = embedding[token];   for each stage  x = cell(W x + b, R h);   log p = x - log sum exp x  of the last stage
//
// With one text every weight is used once, so a step takes as long as the weights take to arrive from memory. float32 and int8
// weights are read as they lie, rows one behind the other (a core reaches 30 GB/s that way, two 59); LANES rows are multiplied
// side by side. bfloat16 ones, half as much to read, are copied for the step anyway: where the processor multiplies them in
// pairs they are copied in blocks of columns, so that no load crosses a cache line and no sums are turned. With more texts a
// weight that has arrived is used for all of them. Sums and states depend neither on the number of threads nor on the other
// texts.
//
// Tried, no gain: fetching rows 2 to 25 kB ahead; 4 or 8 rows side by side. Fetching them past the second-level cache, to leave
// it to Python and the recurrent weights: four times slower.

#pragma once
#include <cmath>

#include "elman.h"

namespace lmtrain {

enum Kind { LINEAR, ELMAN_TANH, ELMAN_RELU, ELMAN_SIGMOID, ELMAN_IDENTITY, GRU, LSTM };

// Weights [gates * units, inputs] and [gates * units, units] are of the storage type, packed where `packs`, and int8 ones times
// the scale of their row; a bias may be null. `h` and `c`
// [slots, units] are the states, replaced at each step. Laid out as `_Stage` in step.py.
struct Stage {
    long kind, inputs, units;
    const void *weight_input, *weight_recurrent;
    const float *scale_input, *scale_recurrent;
    const float *bias, *candidate_bias;
    float *h, *c;
};

constexpr long GROUP = 12;  // texts whose sums lie in the first-level cache together with the weights that made them

// Whether weights are packed: [block of units][pair of inputs][group][unit][input of the pair], filled up with zeros.
template <class S>
constexpr bool packs() {
#ifdef LMTRAIN_PAIRS
    return std::is_same_v<S, bf16>;
#else
    return false;
#endif
}

constexpr long GROUPS = 4;

// What is multiplied together: LANES units from `unit` on with all gates of a cell, or GROUPS * LANES outputs of a matrix.
struct Rows {
    long unit, units, groups;
    bool is_cell;
    Rows(const Stage& stage, long unit) : unit(unit), units(stage.units), is_cell(stage.kind != LINEAR) {
        groups = stage.kind == GRU ? 3 : stage.kind == LSTM || !is_cell ? GROUPS : 1;
    }
    long together() const { return is_cell ? LANES : groups * LANES; }
    long row(long group) const { return unit + group * (is_cell ? units : LANES); }
    long left(long group) const { return units - unit - (is_cell ? 0 : group * LANES); }  // rows that there are
    long packed_before() const { return unit * (is_cell ? groups : 1); }
};

// Products of these rows of a weight with `count` operands: sums[group][text]; lanes beyond the rows are undefined.
template <class S>
INLINE void sums_of(const Rows& rows, const void* weight, const float* scale, long inputs, long count,
                    const typename WordOf<S>::type::Element* x, long stride, F (*sums)[GROUP]) {
    if constexpr (packs<S>()) {
        typedef typename WordOf<S>::type Word;
        const long columns = rows.groups * LANES, words = round_up(inputs, Word::PER_WORD) / Word::PER_WORD;
        float block[GROUP * GROUPS * LANES];
        multiply_panels<Word>(block, columns, count, (const uint32_t*)x, stride / Word::PER_WORD,
                              (const uint32_t*)weight + rows.packed_before() * words, words, columns, columns, false);
        for (long group = 0; group < rows.groups; group++)
            for (long i = 0; i < count; i++) sums[group][i] = load(block + i * columns + group * LANES);
        return;
    }
    for (long group = 0; group < rows.groups && rows.left(group) > 0; group++) {
        const long row = rows.row(group), n = rows.left(group);
        dot_rows_of((const S*)weight + row * inputs, inputs, n, x, stride, count, sums[group]);
        if constexpr (std::is_same_v<S, int8>)
            for (long i = 0; i < count; i++) sums[group][i] = sums[group][i] * load(scale + row, n);
    }
}

// What the next units of a stage from u on give in `count` texts, at most GROUP: outputs[group][text]; their states, in the
// slots named, are replaced. `x` and `h` are the stage's operands of the first text, those of the next lie `stride` elements
// on.
template <class S>
INLINE void stage_outputs(const Stage& stage, long u, long count, const long* slots,
                          const typename WordOf<S>::type::Element* x, const typename WordOf<S>::type::Element* h,
                          long stride, F (*outputs)[GROUP]) {
    const Rows rows(stage, u);
    const long H = stage.units, n = H - u;
    F input[GROUPS][GROUP], recurrent[GROUPS][GROUP];
    F(*sums)[GROUP] = rows.is_cell ? input : outputs;
    sums_of<S>(rows, stage.weight_input, stage.scale_input, stage.inputs, count, x, stride, sums);
    for (long group = 0; stage.bias && group < rows.groups && rows.left(group) > 0; group++)
        for (long i = 0; i < count; i++)
            sums[group][i] = sums[group][i] + load(stage.bias + rows.row(group), rows.left(group));
    if (!rows.is_cell) return;
    sums_of<S>(rows, stage.weight_recurrent, stage.scale_recurrent, H, count, h, stride, recurrent);
    for (long i = 0; i < count; i++) {
        float* state = stage.h + slots[i] * H + u;
        F next;
        if (stage.kind == LSTM) {
            float* cell = stage.c + slots[i] * H + u;
            const F in = sigmoid(input[0][i] + recurrent[0][i]), f = sigmoid(input[1][i] + recurrent[1][i]);
            const F g = tanh(input[2][i] + recurrent[2][i]), o = sigmoid(input[3][i] + recurrent[3][i]);
            const F c = f * load(cell, n) + in * g;
            store(cell, c, n);
            next = o * tanh(c);
        } else if (stage.kind == GRU) {
            const F r = sigmoid(input[0][i] + recurrent[0][i]), z = sigmoid(input[1][i] + recurrent[1][i]);
            const F candidate = tanh(input[2][i] + r * (recurrent[2][i] + load(stage.candidate_bias + u, n)));
            next = candidate + z * (load(state, n) - candidate);
        } else {
            const F sums = input[0][i] + recurrent[0][i];
            next = stage.kind == ELMAN_TANH ? activate<TANH>(sums)
                   : stage.kind == ELMAN_RELU ? activate<RELU>(sums)
                   : stage.kind == ELMAN_SIGMOID ? activate<SIGMOID>(sums)
                                                 : activate<IDENTITY>(sums);
        }
        outputs[0][i] = as_stored<S>(next);
        store(state, outputs[0][i], n);
    }
}

// Reads tokens[i] in the text whose state lies in slots[i], for each of `texts`; log_probs [texts, V]. The last stage is
// LINEAR, its outputs the logits. They are made and summed in blocks, the same for any number of threads.
template <class S>
void step(const Stage* stages, long count, long texts, const long* slots, const long* tokens, const float* embedding,
          float* log_probs, long threads) {
    typedef typename WordOf<S>::type::Element Element;
    constexpr long BLOCK = 256;
    const Stage& head = stages[count - 1];
    const long V = head.units, blocks = (V + BLOCK - 1) / BLOCK, E = stages[0].inputs;
    long operands = 0;  // of one text
    for (long s = 0; s < count; s++) operands += round_up(stages[s].inputs, 32) + round_up(stages[s].units, 32);
    Element* first_operand = scratch<Element>(1, texts * operands);
    memset((void*)first_operand, 0, texts * operands * sizeof(Element));
    float* largest_of = scratch<float>(2, 2 * texts * blocks);
    float* sum_of = largest_of + texts * blocks;
    for (long i = 0; i < texts; i++) {
        Element* h = first_operand + i * operands;
        for (long k = 0; k < E; k += LANES) store_operand<S>(h + k, load(embedding + tokens[i] * E + k, E - k), E - k);
        for (long s = 0; s < count; s++) {
            const long H = stages[s].units;
            h += round_up(stages[s].inputs, 32);
            for (long k = 0; stages[s].h && k < H; k += LANES)
                store_operand<S>(h + k, load(stages[s].h + slots[i] * H + k, H - k), H - k);
            h += round_up(H, 32);
        }
    }
    Barrier barrier;

#pragma omp parallel num_threads(threads)
    {
        const long me = omp_get_thread_num(), team = omp_get_num_threads();
        const FlushDenormals flush;
        const Element* x = first_operand;
        F outputs[GROUPS][GROUP];
        for (long s = 0; s + 1 < count; s++) {
            const Stage stage = stages[s];
            const Element* h = x + round_up(stage.inputs, 32);
            Element* next = (Element*)h + round_up(stage.units, 32);
            const long together = Rows(stage, 0).together();
            const Share mine = share((stage.units + together - 1) / together, me, team);
            for (long u = mine.first * together; u < std::min(mine.last * together, stage.units); u += together)
                for (long i = 0; i < texts; i += GROUP) {
                    const long some = std::min(GROUP, texts - i);
                    stage_outputs<S>(stage, u, some, slots + i, x + i * operands, h + i * operands, operands, outputs);
                    for (long unit = u; unit < std::min(u + together, stage.units); unit += LANES)
                        for (long j = 0; j < some; j++)
                            store_operand<S>(next + (i + j) * operands + unit, outputs[(unit - u) / LANES][j],
                                             stage.units - unit);
                }
            barrier.wait(team);
            x = next;
        }
        const Stage stage = head;
        const Share mine = share(blocks, me, team);
        for (long block = mine.first; block < mine.last; block++) {
            const long from = block * BLOCK, to = std::min(V, from + BLOCK);
            for (long i = 0; i < texts; i += GROUP) {
                const long some = std::min(GROUP, texts - i);
                F most[GROUP];
                for (long j = 0; j < some; j++) most[j] = broadcast(-INFINITY);
                for (long u = from; u < to; u += GROUPS * LANES) {
                    stage_outputs<S>(stage, u, some, slots + i, x + i * operands, nullptr, operands, outputs);
                    for (long v = u; v < std::min(to, u + GROUPS * LANES); v += LANES)
                        for (long j = 0; j < some; j++) {
                            const F logits = outputs[(v - u) / LANES][j];
                            store(log_probs + (i + j) * V + v, logits, to - v);
                            if (to - v >= LANES) most[j] = max(most[j], logits);
                            else for (long k = 0; k < to - v; k++) most[j][k] = std::max(most[j][k], logits[k]);
                        }
                }
                for (long j = 0; j < some; j++) {
                    const float top = largest(most[j]);
                    F sums = {};
                    for (long v = from; v < to; v += LANES) {
                        const F powers = exp(load(log_probs + (i + j) * V + v, to - v) - top);
                        if (to - v >= LANES) sums += powers;
                        else for (long k = 0; k < to - v; k++) sums[k] += powers[k];
                    }
                    largest_of[(i + j) * blocks + block] = top;
                    sum_of[(i + j) * blocks + block] = sum(sums);
                }
            }
        }
        barrier.wait(team);
        const long from = mine.first * BLOCK, to = std::min(V, mine.last * BLOCK);
        for (long i = 0; i < texts; i++) {
            const float *largest_here = largest_of + i * blocks, *sum_here = sum_of + i * blocks;
            const double top = *std::max_element(largest_here, largest_here + blocks);
            double total = 0;
            for (long block = 0; block < blocks; block++) total += sum_here[block] * std::exp(largest_here[block] - top);
            const float normaliser = top + std::log(total);
            float* row = log_probs + i * V;
            for (long v = from; v < to; v += LANES) store(row + v, load(row + v, to - v) - normaliser, to - v);
        }
    }
}

}  // namespace lmtrain
