// LSTM over all time steps; the equations and the derivation of the backward pass are in ops/lstm.py.

#pragma once
#include "recurrence.h"

namespace lmtrain {

// Cells are float32 whatever S is. `cells` (all of them) and `saved` (activated i, f, g, o) may be null; `last_cell` comes out
// and holds the newest cell all along.
template <class S>
void lstm_forward(long T, long B, long H, const S* projected, const S* h0, const float* c0, const S* weight,
                  const float* keep_TB, S* states, float* last_cell, float* cells, void* saved,
                  long threads) {
    const Recurrent<S> matrix{H, 4, B, threads, false};
    const Operand<S> operand(matrix);
    const Keep keep{keep_TB, T, B};
    const Gates<S> gates{(typename Gates<S>::type*)saved, B, H};

    auto start = [=](long b, long u, long n) {
        store_operand<S>(operand.at(0, b, u), load(h0 + b * H + u, n) * keep(0, b), n);
    };
    auto cell = [=](long t, long b, long u, long n, const float* sum) __attribute__((always_inline)) {
        const long here = (t * B + b) * H + u;
        const S* in = projected + (t * B + b) * 4 * H + u;
        for (long gate = 0; gate < 4; gate++) fetch(in, (4 * B + gate) * H);
        const F c_before = load((t ? last_cell : c0) + b * H + u, n) * keep(t, b);
        const F i = sigmoid(load(in, n) + load(sum));
        const F f = sigmoid(load(in + H, n) + load(sum + 16));
        const F g = tanh(load(in + 2 * H, n) + load(sum + 32));
        const F o = sigmoid(load(in + 3 * H, n) + load(sum + 48));
        const F c = f * c_before + i * g;
        const F h = o * tanh(c);
        store(last_cell + b * H + u, c, n);
        store(states + here, h, n);
        store_operand<S>(operand.at(t + 1, b, u), h * keep(t + 1, b), n);
        if (cells) store(cells + here, c, n);
        if (!gates) return;
        auto* gate = gates.at(t, b, u);
        store(gate, i);
        store(gate + 16, f);
        store_signed(gate + 32, g);
        store(gate + 48, o);
    };
    time_loop(matrix, operand, weight, T, start, cell);
}

// d_projected is the gradient before the activations; d_weight is left to one matrix product by the caller.
// d_states holds the gradient of the last state too; d_c that of the last cell.
template <class S>
void lstm_backward(long T, long B, long H, const S* d_states, const float* d_c, const float* cells,
                   void* saved, const float* c0, const S* weight, const float* keep_TB, S* d_projected, S* d_h0, float* d_c0,
                   long threads) {
    const Recurrent<S> matrix{H, 4, B, threads, true};
    const Operand<S> operand(matrix);
    const Keep keep{keep_TB, T, B};
    const Gates<S> gates{(typename Gates<S>::type*)saved, B, H};

    // Step s brings `sum`, the gradient that reaches h_t through the gates of t + 1; step T reaches h_0 and ends there.
    auto cell = [=](long s, long b, long u, long n, const float* sum) __attribute__((always_inline)) {
        const long t = T - 1 - s, here = (t * B + b) * H + u;
        const F d_recurrent = load(sum) * keep(t + 1, b);
        if (t < 0) return store(d_h0 + b * H + u, d_recurrent, n);
        float* travelling = d_c0 + b * H + u;  // the cell's gradient, on its way to c0
        const auto* gate = gates.at(t, b, u);
        gates.fetch_before(gate), fetch(d_states + here, -B * H), fetch(cells + here, -2 * B * H);
        const F i = load(gate), f = load(gate + 16), g = load_signed(gate + 32), o = load(gate + 48);
        const F c_before = load(t ? cells + here - B * H : c0 + here, n) * keep(t, b);
        const F squashed = tanh(load(cells + here, n));
        const F d_h = load(d_states + here, n) + d_recurrent;
        const F d_cell = load(s ? travelling : d_c + b * H + u, n) + d_h * o * (1.0f - squashed * squashed);
        store(travelling, d_cell * f * keep(t, b), n);
        const F d_gates[4] = {d_cell * g * i * (1.0f - i), d_cell * c_before * f * (1.0f - f),
                              d_cell * i * (1.0f - g * g), d_h * squashed * o * (1.0f - o)};
        for (int which = 0; which < 4; which++) {
            store(d_projected + (t * B + b) * 4 * H + which * H + u, d_gates[which], n);
            store_operand<S>(operand.at(s + 1, b, which * matrix.padded + u), d_gates[which], n);
        }
    };
    time_loop(matrix, operand, weight, T + 1, FromZero(), cell);
}

}  // namespace lmtrain
