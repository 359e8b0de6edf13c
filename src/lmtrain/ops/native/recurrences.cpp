// The C entry points of the recurrences, called by ops/native/__init__.py through ctypes. Pointers are to contiguous memory of
// the shapes in the Python signatures; `bfloat16` says the type of everything except cells and gradients of cells, which are
// float32.

#include "elman.h"
#include "gru.h"
#include "lstm.h"

using namespace lmtrain;

#pragma GCC visibility push(default)
extern "C" {

void lmtrain_lstm_forward(int bfloat16, long T, long B, long H, const void* projected, const void* h0, const float* c0,
                          const void* weight, const float* keep, void* states, float* last_cell, float* cells,
                          void* gates, long threads) {
    with_type(bfloat16, [&](auto type) {
        typedef decltype(type) S;
        lstm_forward<S>(T, B, H, (const S*)projected, (const S*)h0, c0, (const S*)weight, keep, (S*)states, last_cell,
                        cells, gates, threads);
    });
}

void lmtrain_lstm_backward(int bfloat16, long T, long B, long H, const void* d_states, const float* d_c,
                           const float* cells, void* gates, const float* c0, const void* weight,
                           const float* keep, void* d_projected, void* d_h0, float* d_c0, long threads) {
    with_type(bfloat16, [&](auto type) {
        typedef decltype(type) S;
        lstm_backward<S>(T, B, H, (const S*)d_states, d_c, cells, gates, c0, (const S*)weight, keep,
                         (S*)d_projected, (S*)d_h0, d_c0, threads);
    });
}

void lmtrain_gru_forward(int bfloat16, long T, long B, long H, const void* projected, const void* h0, const void* weight,
                         const float* candidate_bias, const float* keep, void* states, void* gates, long threads) {
    with_type(bfloat16, [&](auto type) {
        typedef decltype(type) S;
        gru_forward<S>(T, B, H, (const S*)projected, (const S*)h0, (const S*)weight, candidate_bias, keep,
                       (S*)states, gates, threads);
    });
}

void lmtrain_gru_backward(int bfloat16, long T, long B, long H, const void* d_states, const void* states,
                          void* gates, const void* h0, const void* weight, const float* keep, void* d_projected,
                          void* d_term, void* d_h0, long threads) {
    with_type(bfloat16, [&](auto type) {
        typedef decltype(type) S;
        gru_backward<S>(T, B, H, (const S*)d_states, (const S*)states, gates, (const S*)h0,
                        (const S*)weight, keep, (S*)d_projected, (S*)d_term, (S*)d_h0, threads);
    });
}

void lmtrain_elman_forward(int bfloat16, long nonlinearity, long T, long B, long H, const void* projected,
                           const void* h0, const void* weight, const float* keep, void* states, long threads) {
    with_type(bfloat16, [&](auto type) {
        typedef decltype(type) S;
        auto run = nonlinearity == TANH ? elman_forward<S, TANH>
                   : nonlinearity == RELU ? elman_forward<S, RELU>
                   : nonlinearity == SIGMOID ? elman_forward<S, SIGMOID>
                                             : elman_forward<S, IDENTITY>;
        run(T, B, H, (const S*)projected, (const S*)h0, (const S*)weight, keep, (S*)states, threads);
    });
}

void lmtrain_elman_backward(int bfloat16, long nonlinearity, long T, long B, long H, const void* d_states,
                            const void* states, const void* weight, const float* keep, void* d_projected, void* d_h0,
                            long threads) {
    with_type(bfloat16, [&](auto type) {
        typedef decltype(type) S;
        auto run = nonlinearity == TANH ? elman_backward<S, TANH>
                   : nonlinearity == RELU ? elman_backward<S, RELU>
                   : nonlinearity == SIGMOID ? elman_backward<S, SIGMOID>
                                             : elman_backward<S, IDENTITY>;
        run(T, B, H, (const S*)d_states, (const S*)states, (const S*)weight, keep, (S*)d_projected, (S*)d_h0, threads);
    });
}
}
#pragma GCC visibility pop
