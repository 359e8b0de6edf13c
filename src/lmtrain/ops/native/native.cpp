// The C entry points, called by ops/native/__init__.py through ctypes. Pointers are to contiguous memory of the shapes in
// the Python signatures; `bfloat16` says the type of everything except cells and gradients of cells, which are float32.

#include "cross_entropy.h"
#include "draw.h"
#include "elman.h"
#include "gru.h"
#include "lstm.h"
#include "step.h"

using namespace lmtrain;

template <class Run>
static void with_type(int bfloat16, Run run) {
    bfloat16 ? run(bf16()) : run(float());
}

#pragma GCC visibility push(default)
extern "C" {

// What this build multiplies with, for the log.
const char* lmtrain_describe() {
#if defined(LMTRAIN_PAIRS)
    return "AVX-512, bfloat16 products";
#elif defined(LMTRAIN_AVX512)
    return "AVX-512";
#elif defined(__AVX2__)
    return "AVX2";
#elif defined(__aarch64__)
    return "NEON";
#else
    return "portable";
#endif
}

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
                          void* gates, const void* h0, const void* weight, const float* keep, void* d_gates,
                          void* d_h0, long threads) {
    with_type(bfloat16, [&](auto type) {
        typedef decltype(type) S;
        gru_backward<S>(T, B, H, (const S*)d_states, (const S*)states, gates, (const S*)h0,
                        (const S*)weight, keep, (S*)d_gates, (S*)d_h0, threads);
    });
}

void lmtrain_elman_forward(int bfloat16, long nonlinearity, long T, long B, long H, const void* projected,
                           const void* h0, const void* weight, const float* keep, void* states, long threads) {
    with_type(bfloat16, [&](auto type) {
        typedef decltype(type) S;
        auto run = nonlinearity == TANH ? elman_forward<S, TANH>
                   : nonlinearity == RELU ? elman_forward<S, RELU>
                                          : elman_forward<S, SIGMOID>;
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
                                          : elman_backward<S, SIGMOID>;
        run(T, B, H, (const S*)d_states, (const S*)states, (const S*)weight, keep, (S*)d_projected, (S*)d_h0, threads);
    });
}

// One token: its embedding in, the log-probabilities of the next one out.
void lmtrain_step(int bfloat16, const Stage* stages, long count, const float* embedding, float* log_probs, long threads) {
    with_type(bfloat16, [&](auto type) { step<decltype(type)>(stages, count, embedding, log_probs, threads); });
}

long lmtrain_draw(const float* log_probs, long V, double uniform, float temperature, long excluded) {
    return draw(log_probs, V, uniform, temperature, excluded);
}

// The weight has the type of the features, or is float32 and rounded to it on the way. Returns the total in nats.
double lmtrain_linear_cross_entropy(int bfloat16, long float32_weight, long N, long V, long D, long max_bytes,
                                    const void* features, const void* weight, const float* bias, const int64_t* targets,
                                    float* d_features, float* d_weight, float* d_bias, long threads) {
    double nats = 0;
    with_type(bfloat16, [&](auto type) {
        typedef decltype(type) S;
        auto run = [&](auto* typed_weight) {
            nats = linear_cross_entropy(N, V, D, max_bytes, (const S*)features, typed_weight, bias, targets, d_features,
                                        d_weight, d_bias, threads);
        };
        float32_weight ? run((const float*)weight) : run((const S*)weight);
    });
    return nats;
}
}
#pragma GCC visibility pop
