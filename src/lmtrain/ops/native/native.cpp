// The C entry points, called by ops/native/__init__.py through ctypes. Pointers are to contiguous memory of the shapes in
// the Python signatures; `bfloat16` says the type of everything except cells and gradients of cells, which are float32.

#include "lstm.h"

using namespace lmtrain;

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
                          const void* weight, const float* keep, void* states, float* cells, void* gates, long threads) {
    auto run = [&](auto type) {
        typedef decltype(type) S;
        lstm_forward<S>(T, B, H, (const S*)projected, (const S*)h0, c0, (const S*)weight, keep, (S*)states, cells,
                        (S*)gates, threads);
    };
    bfloat16 ? run(bf16()) : run(float());
}

void lmtrain_lstm_backward(int bfloat16, long T, long B, long H, const void* d_states, const float* d_c,
                           const float* cells, const void* gates, const float* c0, const void* weight,
                           const float* keep, void* d_projected, void* d_h0, float* d_c0, long threads) {
    auto run = [&](auto type) {
        typedef decltype(type) S;
        lstm_backward<S>(T, B, H, (const S*)d_states, d_c, cells, (const S*)gates, c0, (const S*)weight, keep,
                         (S*)d_projected, (S*)d_h0, d_c0, threads);
    };
    bfloat16 ? run(bf16()) : run(float());
}
}
