// GRU over all time steps, the reset gate behind the product as in torch.nn.GRU; equations and the derivation of the backward
// pass are in ops/gru.py.

#pragma once
#include "recurrence.h"

namespace lmtrain {

// `saved` may be null: the gates r, z, n (activated) and q = R_n h + b_hn, which is of type S.
template <class S>
void gru_forward(long T, long B, long H, const S* projected, const S* h0, const S* weight, const float* candidate_bias,
                 const float* keep_TB, S* states, void* saved, long threads) {
    const Recurrent<S> matrix{H, 3, B, threads, false};
    const Operand<S> operand(matrix);
    const Keep keep{keep_TB, T, B};
    const Gates<S> gates{(typename Gates<S>::type*)saved, B, H};
    float* travelling = scratch<float>(3, B * H);  // the state in float32, times the coming keep

    auto start = [=](long b, long u, long n) {
        const F h = load(h0 + b * H + u, n) * keep(0, b);
        store(travelling + b * H + u, h, n);
        store_operand<S>(operand.at(0, b, u), h, n);
    };
    auto cell = [=](long t, long b, long u, long n, const float* sum) __attribute__((always_inline)) {
        const long here = (t * B + b) * H + u;
        const S* in = projected + (t * B + b) * 3 * H + u;
        for (long gate = 0; gate < 3; gate++) fetch(in, (3 * B + gate) * H);
        const F r = sigmoid(load(in, n) + load(sum));
        const F z = sigmoid(load(in + H, n) + load(sum + 16));
        const F q = load(sum + 32) + load(candidate_bias + u, n);
        const F candidate = tanh(load(in + 2 * H, n) + r * q);
        const F h = as_stored<S>(candidate + z * (load(travelling + b * H + u, n) - candidate));
        store(states + here, h, n);
        store(travelling + b * H + u, h * keep(t + 1, b), n);
        store_operand<S>(operand.at(t + 1, b, u), h * keep(t + 1, b), n);
        if (!gates) return;
        auto* gate = gates.at(t, b, u);
        store(gate, r);
        store(gate + 16, z);
        store_signed(gate + 32, candidate);
        store((S*)(gate + 48), q);
    };
    time_loop(matrix, operand, weight, T, start, cell);
}

// d_projected and d_term [T, B, 3H]: gradients of a_r, a_z and a_n, and of a_r, a_z and q.
template <class S>
void gru_backward(long T, long B, long H, const S* d_states, const S* states, void* saved, const S* h0,
                  const S* weight, const float* keep_TB, S* d_projected, S* d_term, S* d_h0, long threads) {
    const Recurrent<S> matrix{H, 3, B, threads, true};
    const Operand<S> operand(matrix);
    const Keep keep{keep_TB, T, B};
    const Gates<S> gates{(typename Gates<S>::type*)saved, B, H};
    float* travelling = scratch<float>(3, B * H);  // the part of the state's gradient that passes by the gate z

    auto cell = [=](long s, long b, long u, long n, const float* sum) __attribute__((always_inline)) {
        const long t = T - 1 - s, here = (t * B + b) * H + u, gate = (t * B + b) * 3 * H + u;
        float* passing = travelling + b * H + u;
        const F d_previous = s ? (load(sum) + load(passing, n)) * keep(t + 1, b) : F{};
        if (t < 0) return store(d_h0 + b * H + u, d_previous, n);
        const auto* saved_gate = gates.at(t, b, u);
        gates.fetch_before(saved_gate), fetch(d_states + here, -B * H), fetch(states + here, -2 * B * H);
        const F r = load(saved_gate), z = load(saved_gate + 16), candidate = load_signed(saved_gate + 32);
        const F q = load((const S*)(saved_gate + 48));
        const F before = load(t ? states + here - B * H : h0 + here, n) * keep(t, b);
        const F d_h = load(d_states + here, n) + d_previous;
        const F d_n = d_h * (1.0f - z) * (1.0f - candidate * candidate);
        const F d_q = d_n * r;
        const F d_z = d_h * (before - candidate) * z * (1.0f - z);
        const F d_r = d_n * q * r * (1.0f - r);
        store(passing, d_h * z, n);
        store(d_projected + gate, d_r, n);
        store(d_projected + gate + H, d_z, n);
        store(d_projected + gate + 2 * H, d_n, n);
        store(d_term + gate, d_r, n);
        store(d_term + gate + H, d_z, n);
        store(d_term + gate + 2 * H, d_q, n);
        store_operand<S>(operand.at(s + 1, b, u), d_r, n);
        store_operand<S>(operand.at(s + 1, b, matrix.padded + u), d_z, n);
        store_operand<S>(operand.at(s + 1, b, 2 * matrix.padded + u), d_q, n);
    };
    time_loop(matrix, operand, weight, T + 1, FromZero(), cell);
}

}  // namespace lmtrain
