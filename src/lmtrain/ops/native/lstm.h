// LSTM over all time steps; equations and the backward derivation are in ops/lstm.py.

#pragma once
#include "recurrence.h"

namespace lmtrain {

// c_t = f c_{t-1} + i g and h_t = o tanh(c_t), both previous states times keep_t. `cells` is float32 whatever S is.
// `gates` (activated i, f, g, o) may be null.
template <class S>
void lstm_forward(long T, long B, long H, const S* projected, const S* h0, const float* c0, const S* weight,
                  const float* keep, S* states, float* cells, S* gates, long threads) {
    threads = useful_threads(threads, 4.0 * B * H * H);
    const Recurrent<S> matrix{H, 4, threads, false};
    const Operand<S> operand{B, matrix.inputs};
    const long block_sums = B * matrix.columns;
    float* all_sums = scratch<float>(2, threads * block_sums);
    operand.clear();
    Barrier barrier;

#pragma omp parallel num_threads(threads)
    {
        const long me = omp_get_thread_num(), team = omp_get_num_threads();
        const Share mine = share(matrix.blocks, me, team);
        const FlushDenormals flush;
        float* sums = all_sums + me * block_sums;
        for (long block = mine.first; block < mine.last; block++) {
            matrix.pack_block(block, weight);
            const long unit = block * 16, end = std::min(H, unit + 16);
            for (long b = 0; b < B; b++)
                for (long u = unit; u < end; u += LANES)
                    store_operand<S>(operand.at(0) + b * matrix.inputs + u,
                                     load(h0 + b * H + u, end - u) * (keep ? keep[b] : 1.0f), end - u);
        }
        barrier.wait(team);
        for (long t = 0; t < T; t++) {
            for (long block = mine.first; block < mine.last; block++) {
                matrix.multiply_block(block, B, operand.at(t), sums);
                const long unit = block * 16, end = std::min(H, unit + 16);
                for (long b = 0; b < B; b++) {
                    const float keep_now = keep ? keep[t * B + b] : 1.0f;
                    const float keep_next = keep && t + 1 < T ? keep[(t + 1) * B + b] : 1.0f;
                    for (long u = unit; u < end; u += LANES) {
                        const long n = end - u, here = (t * B + b) * H + u;
                        const S* in = projected + (t * B + b) * 4 * H + u;
                        const float* sum = sums + b * 64 + (u - unit);
                        const F c_before = load(t ? cells + here - B * H : c0 + here, n) * keep_now;
                        const F i = sigmoid(load(in, n) + load(sum));
                        const F f = sigmoid(load(in + H, n) + load(sum + 16));
                        const F g = tanh(load(in + 2 * H, n) + load(sum + 32));
                        const F o = sigmoid(load(in + 3 * H, n) + load(sum + 48));
                        const F c = f * c_before + i * g;
                        const F h = o * tanh(c);
                        store(cells + here, c, n);
                        store(states + here, h, n);
                        store_operand<S>(operand.at(t + 1) + b * matrix.inputs + u, h * keep_next, n);
                        if (gates) {
                            S* out = gates + (t * B + b) * 4 * H + u;
                            store(out, i, n);
                            store(out + H, f, n);
                            store(out + 2 * H, g, n);
                            store(out + 3 * H, o, n);
                        }
                    }
                }
            }
            barrier.wait(team);
        }
    }
}

// d_projected is the gradient before the activations; d_weight is left to one matrix product by the caller.
// d_states holds the gradient of the last state too; d_c that of the last cell.
template <class S>
void lstm_backward(long T, long B, long H, const S* d_states, const float* d_c, const float* cells, const S* gates,
                   const float* c0, const S* weight, const float* keep, S* d_projected, S* d_h0, float* d_c0,
                   long threads) {
    threads = useful_threads(threads, 4.0 * B * H * H);
    const Recurrent<S> matrix{H, 4, threads, true};
    const Operand<S> operand{B, matrix.inputs};
    const long block_sums = B * matrix.columns;
    float* all_sums = scratch<float>(2, threads * block_sums);
    operand.clear();
    Barrier barrier;

#pragma omp parallel num_threads(threads)
    {
        const long me = omp_get_thread_num(), team = omp_get_num_threads();
        const Share mine = share(matrix.blocks, me, team);
        const FlushDenormals flush;
        float* sums = all_sums + me * block_sums;
        for (long block = mine.first; block < mine.last; block++) matrix.pack_block(block, weight);
        for (long t = T - 1; t >= -1; t--) {
            for (long block = mine.first; block < mine.last; block++) {
                // d_h from the step after: the gates' gradients there, through the recurrent matrix
                matrix.multiply_block(block, B, operand.at(t + 1), sums);
                const long unit = block * matrix.block_units, end = std::min(H, unit + matrix.block_units);
                for (long b = 0; b < B; b++) {
                    const float keep_after = keep && t + 1 < T ? keep[(t + 1) * B + b] : 1.0f;
                    const float keep_now = keep && t >= 0 ? keep[t * B + b] : 1.0f;
                    for (long u = unit; u < end; u += LANES) {
                        const long n = end - u, here = (t * B + b) * H + u;
                        const F d_recurrent = load(sums + b * matrix.columns + (u - unit)) * keep_after;
                        float* carried = d_c0 + b * H + u;  // d_c0 holds the cell's gradient as it travels back
                        if (t < 0) {
                            store(d_h0 + b * H + u, d_recurrent, n);
                            continue;
                        }
                        const S* gate = gates + (t * B + b) * 4 * H + u;
                        const F i = load(gate, n), f = load(gate + H, n), g = load(gate + 2 * H, n);
                        const F o = load(gate + 3 * H, n);
                        const F c_before = load(t ? cells + here - B * H : c0 + here, n) * keep_now;
                        const F squashed = tanh(load(cells + here, n));
                        const F d_h = load(d_states + here, n) + d_recurrent;
                        const F d_c_after = load(t + 1 < T ? (const float*)carried : d_c + b * H + u, n);
                        const F d_cell = d_c_after + d_h * o * (1.0f - squashed * squashed);
                        const F d_i = d_cell * g * i * (1.0f - i);
                        const F d_f = d_cell * c_before * f * (1.0f - f);
                        const F d_g = d_cell * i * (1.0f - g * g);
                        const F d_o = d_h * squashed * o * (1.0f - o);
                        store(carried, d_cell * f * keep_now, n);
                        S* out = d_projected + (t * B + b) * 4 * H + u;
                        auto* left = operand.at(t) + b * matrix.inputs + u;
                        store(out, d_i, n), store_operand<S>(left, d_i, n);
                        store(out + H, d_f, n), store_operand<S>(left + matrix.padded, d_f, n);
                        store(out + 2 * H, d_g, n), store_operand<S>(left + 2 * matrix.padded, d_g, n);
                        store(out + 3 * H, d_o, n), store_operand<S>(left + 3 * matrix.padded, d_o, n);
                    }
                }
            }
            barrier.wait(team);
        }
    }
}

}  // namespace lmtrain
