// One token through a whole recurrent network, for text generation: every weight is read once and used once.
//
//   x = embedding[token];   for each stage  x = cell(W x + b, R h);   log p = x - log sum exp x  of the last stage
//
// So a step takes as long as the weights take to arrive from memory, and the least that can be done is to read them as they
// lie, rows one behind the other, without packing (a core reaches 30 GB/s that way, two 59). LANES rows are multiplied side
// by side. In bfloat16 there is half as much to read. Sums and states do not depend on the number of threads.
//
// Tried, no gain: fetching rows 2 to 25 kB ahead; 4 or 8 rows side by side. Fetching them past the second-level cache, to leave
// it to Python and the recurrent weights: four times slower.

#pragma once
#include <cmath>

#include "elman.h"

namespace lmtrain {

enum Kind { LINEAR, ELMAN_TANH, ELMAN_RELU, ELMAN_SIGMOID, ELMAN_IDENTITY, GRU, LSTM };

// Weights [gates * units, inputs] and [gates * units, units] are of the storage type; a bias may be null. `h` and `c` [units]
// are the state, replaced at each step. Laid out as `_Stage` in step.py.
struct Stage {
    long kind, inputs, units;
    const void *weight_input, *weight_recurrent;
    const float *bias, *candidate_bias;
    float *h, *c;
};

// What units u ... u + LANES - 1 of a stage give; their state is replaced. `x` and `h` are the stage's operands.
template <class S>
INLINE F stage_output(const Stage& stage, long u, const typename WordOf<S>::type::Element* x,
                      const typename WordOf<S>::type::Element* h) {
    const long H = stage.units, n = H - u;
    auto input = [&](long gate) __attribute__((always_inline)) {
        const F sums = dot_rows((const S*)stage.weight_input + (gate * H + u) * stage.inputs, stage.inputs, n, x);
        return stage.bias ? sums + load(stage.bias + gate * H + u, n) : sums;
    };
    if (stage.kind == LINEAR) return input(0);
    auto recurrent = [&](long gate) __attribute__((always_inline)) {
        return dot_rows((const S*)stage.weight_recurrent + (gate * H + u) * H, H, n, h);
    };
    F next;
    if (stage.kind == LSTM) {
        const F i = sigmoid(input(0) + recurrent(0)), f = sigmoid(input(1) + recurrent(1));
        const F g = tanh(input(2) + recurrent(2)), o = sigmoid(input(3) + recurrent(3));
        const F c = f * load(stage.c + u, n) + i * g;
        store(stage.c + u, c, n);
        next = o * tanh(c);
    } else if (stage.kind == GRU) {
        const F r = sigmoid(input(0) + recurrent(0)), z = sigmoid(input(1) + recurrent(1));
        const F candidate = tanh(input(2) + r * (recurrent(2) + load(stage.candidate_bias + u, n)));
        next = candidate + z * (load(stage.h + u, n) - candidate);
    } else {
        const F sums = input(0) + recurrent(0);
        next = stage.kind == ELMAN_TANH ? activate<TANH>(sums)
               : stage.kind == ELMAN_RELU ? activate<RELU>(sums)
               : stage.kind == ELMAN_SIGMOID ? activate<SIGMOID>(sums)
                                             : activate<IDENTITY>(sums);
    }
    next = as_stored<S>(next);
    store(stage.h + u, next, n);
    return next;
}

// The last stage is LINEAR, its outputs the logits. They are made and summed in blocks, the same for any number of threads.
template <class S>
void step(const Stage* stages, long count, const float* embedding, float* log_probs, long threads) {
    typedef typename WordOf<S>::type::Element Element;
    constexpr long BLOCK = 256;
    const Stage& head = stages[count - 1];
    const long V = head.units, blocks = (V + BLOCK - 1) / BLOCK;
    long operands = 0;
    for (long s = 0; s < count; s++) operands += round_up(stages[s].inputs, 32) + round_up(stages[s].units, 32);
    Element* first_operand = scratch<Element>(1, operands);
    memset((void*)first_operand, 0, operands * sizeof(Element));
    float* largest_of = scratch<float>(2, 2 * blocks);
    float* sum_of = largest_of + blocks;
    for (long k = 0; k < stages[0].inputs; k += LANES)
        store_operand<S>(first_operand + k, load(embedding + k, stages[0].inputs - k), stages[0].inputs - k);
    Element* h = first_operand;
    for (long s = 0; s < count; s++) {
        h += round_up(stages[s].inputs, 32);
        for (long k = 0; stages[s].h && k < stages[s].units; k += LANES)
            store_operand<S>(h + k, load(stages[s].h + k, stages[s].units - k), stages[s].units - k);
        h += round_up(stages[s].units, 32);
    }
    Barrier barrier;

#pragma omp parallel num_threads(threads)
    {
        const long me = omp_get_thread_num(), team = omp_get_num_threads();
        const FlushDenormals flush;
        const Element* x = first_operand;
        for (long s = 0; s + 1 < count; s++) {
            const Stage stage = stages[s];
            const Element* h = x + round_up(stage.inputs, 32);
            Element* next = (Element*)h + round_up(stage.units, 32);
            const Share mine = share((stage.units + LANES - 1) / LANES, me, team);
            for (long u = mine.first * LANES; u < std::min(mine.last * LANES, stage.units); u += LANES)
                store_operand<S>(next + u, stage_output<S>(stage, u, x, h), stage.units - u);
            barrier.wait(team);
            x = next;
        }
        const Stage stage = head;
        const Share mine = share(blocks, me, team);
        for (long block = mine.first; block < mine.last; block++) {
            const long from = block * BLOCK, to = std::min(V, from + BLOCK);
            F most = broadcast(-INFINITY), sums = {};
            for (long v = from; v < to; v += LANES) {
                const F logits = stage_output<S>(stage, v, x, nullptr);
                store(log_probs + v, logits, to - v);
                if (to - v >= LANES) most = max(most, logits);
                else for (long i = 0; i < to - v; i++) most[i] = std::max(most[i], logits[i]);
            }
            const float top = largest(most);
            for (long v = from; v < to; v += LANES) {
                const F powers = exp(load(log_probs + v, to - v) - top);
                if (to - v >= LANES) sums += powers;
                else for (long i = 0; i < to - v; i++) sums[i] += powers[i];
            }
            largest_of[block] = top;
            sum_of[block] = sum(sums);
        }
        barrier.wait(team);
        const double top = *std::max_element(largest_of, largest_of + blocks);
        double total = 0;
        for (long block = 0; block < blocks; block++) total += sum_of[block] * std::exp(largest_of[block] - top);
        const float normaliser = top + std::log(total);
        const long from = mine.first * BLOCK, to = std::min(V, mine.last * BLOCK);
        for (long v = from; v < to; v += LANES) store(log_probs + v, load(log_probs + v, to - v) - normaliser, to - v);
    }
}

}  // namespace lmtrain
