// Elman network over all time steps: h_t = f(projected_t + R h_{t-1}), f = tanh, relu, sigmoid or x; see ops/elman.py.

#pragma once
#include "recurrence.h"

namespace lmtrain {

enum Nonlinearity { TANH, RELU, SIGMOID, IDENTITY };

template <Nonlinearity f>
INLINE F activate(F x) {
    if constexpr (f == TANH) return tanh(x);
    if constexpr (f == RELU) return max(F{}, x);  // NaN stays NaN
    if constexpr (f == IDENTITY) return x;
    return sigmoid(x);
}

// f'(x) from y = f(x)
template <Nonlinearity f>
INLINE F slope(F y) {
    if constexpr (f == TANH) return 1.0f - y * y;
    if constexpr (f == RELU) return y > F{} ? broadcast(1.0f) : F{};
    if constexpr (f == IDENTITY) return broadcast(1.0f);
    return y * (1.0f - y);
}

template <class S, Nonlinearity f>
void elman_forward(long T, long B, long H, const S* projected, const S* h0, const S* weight, const float* keep_TB,
                   S* states, long threads) {
    const Recurrent<S> matrix{H, 1, B, threads, false};
    const Operand<S> operand(matrix);
    const Keep keep{keep_TB, T, B};

    auto start = [=](long b, long u, long n) {
        store_operand<S>(operand.at(0, b, u), load(h0 + b * H + u, n) * keep(0, b), n);
    };
    auto cell = [=](long t, long b, long u, long n, const float* sum) __attribute__((always_inline)) {
        const long here = (t * B + b) * H + u;
        const F h = activate<f>(load(projected + here, n) + load(sum));
        store(states + here, h, n);
        store_operand<S>(operand.at(t + 1, b, u), h * keep(t + 1, b), n);
    };
    time_loop(matrix, operand, weight, T, start, cell);
}

template <class S, Nonlinearity f>
void elman_backward(long T, long B, long H, const S* d_states, const S* states, const S* weight, const float* keep_TB,
                    S* d_projected, S* d_h0, long threads) {
    const Recurrent<S> matrix{H, 1, B, threads, true};
    const Operand<S> operand(matrix);
    const Keep keep{keep_TB, T, B};

    auto cell = [=](long s, long b, long u, long n, const float* sum) __attribute__((always_inline)) {
        const long t = T - 1 - s, here = (t * B + b) * H + u;
        const F d_previous = load(sum) * keep(t + 1, b);
        if (t < 0) return store(d_h0 + b * H + u, d_previous, n);
        const F d_sum = (load(d_states + here, n) + d_previous) * slope<f>(load(states + here, n));
        store(d_projected + here, d_sum, n);
        store_operand<S>(operand.at(s + 1, b, u), d_sum, n);
    };
    time_loop(matrix, operand, weight, T + 1, FromZero(), cell);
}

}  // namespace lmtrain
