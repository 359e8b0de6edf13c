// Vectors of float32 written with the compiler's vector extensions (GCC and Clang), so that one text serves AVX-512, AVX2,
// SSE2 and NEON: the width follows the flags it is compiled with, and intrinsics appear only where the language has no word.
//
//   LANES   floats in one vector        load / store      with a lane count n: lanes beyond n read as 0, are not written
//   bf16    storage type, 16 bits       load / store of bf16 widen and round (to nearest even, NaN stays NaN)
//   int8    a whole number from -127 to 127, of a weight that is that number times its row's scale; only read
//   gate16  a number in [0, 1] in steps of 1/65535; load_signed / store_signed: in [-1, 1]
//
// sigmoid and tanh are accurate to about 2e-7 relative (tanh also near 0) and finite for every finite argument.

#pragma once
#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace lmtrain {

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512DQ__)
#define LMTRAIN_AVX512 1
constexpr int LANES = 16;
#elif defined(__AVX2__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif

#define INLINE static inline __attribute__((always_inline))

typedef float F __attribute__((vector_size(4 * LANES)));
typedef int32_t I __attribute__((vector_size(4 * LANES)));
typedef uint32_t U __attribute__((vector_size(4 * LANES)));
typedef uint16_t U16 __attribute__((vector_size(2 * LANES)));

struct bf16 {
    uint16_t bits;
};

// For activated gates: sigmoid' = s (1 - s) and tanh' = 1 - t^2 need many digits near 1, where bfloat16 has none (a forget
// gate of 0.998 would round to 1 and never learn).
struct gate16 {
    uint16_t bits;
};

struct int8 {
    int8_t value;
};

INLINE F broadcast(float x) { return x - F{}; }

// Of a number and NaN the second one. GCC makes a comparison and a choice of a > b ? a : b.
#ifdef LMTRAIN_AVX512
INLINE F max(F a, F b) { return (F)_mm512_max_ps((__m512)a, (__m512)b); }
INLINE F min(F a, F b) { return (F)_mm512_min_ps((__m512)a, (__m512)b); }
#elif defined(__AVX2__)
INLINE F max(F a, F b) { return (F)_mm256_max_ps((__m256)a, (__m256)b); }
INLINE F min(F a, F b) { return (F)_mm256_min_ps((__m256)a, (__m256)b); }
#else
INLINE F max(F a, F b) { return a > b ? a : b; }
INLINE F min(F a, F b) { return a < b ? a : b; }
#endif

INLINE bool any(I lanes) {
    int found = 0;
    for (int i = 0; i < LANES; i++) found |= lanes[i];
    return found;
}

// ---- float32 <-> bfloat16

// GCC splits these conversions of 512 bits in halves if it is not told the instruction.
INLINE U lengthen(U16 x) {
#ifdef LMTRAIN_AVX512
    return (U)_mm512_cvtepu16_epi32((__m256i)x);
#else
    return __builtin_convertvector(x, U);
#endif
}
INLINE U16 shorten(U x) {
#ifdef LMTRAIN_AVX512
    return (U16)_mm512_cvtepi32_epi16((__m512i)x);
#else
    return __builtin_convertvector(x, U16);
#endif
}

INLINE F widen(U16 x) { return (F)(lengthen(x) << 16); }
INLINE float widen(bf16 x) {
    uint32_t bits = uint32_t(x.bits) << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}
INLINE float widen(float x) { return x; }

INLINE U16 narrow(F x) {
#if defined(LMTRAIN_AVX512) && defined(__AVX512BF16__)
    return (U16)_mm512_cvtneps_pbh((__m512)x);
#else
    U bits = (U)x;
    U rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return shorten(x == x ? rounded : (rounded & 0) + 0x7fc0);
#endif
}

// ---- memory

// Brings the number `on` places from p into the second-level cache, before it is needed; it need not exist.
template <class S>
INLINE void fetch(const S* p, long on) { __builtin_prefetch((const void*)((uintptr_t)p + on * (long)sizeof(S)), 0, 2); }

INLINE F load(const float* p) {
    F v;
    memcpy(&v, p, sizeof v);
    return v;
}
INLINE void store(float* p, F v) { memcpy(p, &v, sizeof v); }

INLINE F load(const bf16* p) {
    U16 v;
    memcpy(&v, p, sizeof v);
    return widen(v);
}
INLINE void store(bf16* p, F v) {
    U16 w = narrow(v);
    memcpy(p, &w, sizeof w);
}

INLINE F load(const int8* p) {
#ifdef LMTRAIN_AVX512
    return (F)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p)));
#elif defined(__AVX2__)
    return (F)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p)));
#else
    typedef int8_t I8 __attribute__((vector_size(LANES)));
    I8 v;
    memcpy(&v, p, sizeof v);
    return __builtin_convertvector(v, F);
#endif
}

#ifdef LMTRAIN_AVX512
INLINE __mmask16 lanes(long n) { return n >= LANES ? 0xffff : (__mmask16)((1u << n) - 1); }
INLINE F load(const float* p, long n) { return (F)_mm512_maskz_loadu_ps(lanes(n), p); }
INLINE void store(float* p, F v, long n) { _mm512_mask_storeu_ps(p, lanes(n), (__m512)v); }
INLINE F load(const bf16* p, long n) { return widen((U16)_mm256_maskz_loadu_epi16(lanes(n), p)); }
INLINE F load(const int8* p, long n) {
    return (F)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(lanes(n), p)));
}
INLINE void store(bf16* p, F v, long n) { _mm256_mask_storeu_epi16(p, lanes(n), (__m256i)narrow(v)); }
#else
template <class S>
INLINE F load(const S* p, long n) {
    if (n >= LANES) return load(p);
    S lane[LANES] = {};
    for (long i = 0; i < n; i++) lane[i] = p[i];
    return load(lane);
}
template <class S>
INLINE void store(S* p, F v, long n) {
    if (n >= LANES) return store(p, v);
    S lane[LANES];
    store(lane, v);
    for (long i = 0; i < n; i++) p[i] = lane[i];
}
#endif

INLINE F load(const gate16* p) {
    U16 bits;
    memcpy(&bits, p, sizeof bits);
    return __builtin_convertvector((I)lengthen(bits), F) * (1 / 65535.0f);
}
INLINE void store(gate16* p, F x) {
    U16 bits = shorten((U)__builtin_convertvector(x * 65535.0f + 0.5f, I));
    memcpy(p, &bits, sizeof bits);
}
INLINE F load_signed(const float* p) { return load(p); }
INLINE F load_signed(const gate16* p) { return load(p) * 2.0f - 1.0f; }
INLINE void store_signed(float* p, F x) { store(p, x); }
INLINE void store_signed(gate16* p, F x) { store(p, x * 0.5f + 0.5f); }

// The value that storage of type S will give back.
template <class S>
INLINE F as_stored(F x);
template <>
inline F as_stored<float>(F x) { return x; }
template <>
inline F as_stored<bf16>(F x) { return widen(narrow(x)); }
template <>
inline F as_stored<int8>(F x) { return x; }  // only weights are rounded

// ---- functions

// 1/x for 1 <= x < 2^127: on AVX-512 an estimate and one Newton step (2^-28) cost a third of a division.
INLINE F reciprocal(F x) {
#ifdef LMTRAIN_AVX512
    F estimate = (F)_mm512_rcp14_ps((__m512)x);
    return estimate * (2.0f - x * estimate);
#else
    return 1.0f / x;
#endif
}

// e^x = 2^n (1 + p), n = round(x / ln 2): n as the factor 2^n, and p = 2^f - 1 with |f| <= 1/2 as the polynomial that begins
// with f ln 2 and whose largest error relative to p is the least for degree 6 (1.2e-8). x must lie in [-87, 88].
struct Exponential {
    F power, rest;
};
INLINE Exponential exponential(F x) {
    const float shifter = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer held in the low bits
    const F shifted = x * 1.44269504088896341f + shifter;
    const F n = shifted - shifter;
#if defined(__FMA__) || defined(__aarch64__)
    const F f = x * 1.9259629911e-8f + (x * 1.44269504088896341f - n);  // first what the constant lacks
#else
    const F f = (x - n * 0.693359375f + n * 2.12194440e-4f) * 1.44269504088896341f;
#endif
    F p = broadcast(1.5398397927e-4f);
    p = p * f + 1.3387766994e-3f;
    p = p * f + 9.6182482698e-3f;
    p = p * f + 5.5503665456e-2f;
    p = p * f + 2.4022649803e-1f;
    p = p * f + 6.9314718056e-1f;
    p = p * f;
    const F power = (F)(((I)shifted << 23) + (127 << 23));  // shifter's own low bits leave by the left
    return {power, p};
}

INLINE F exp_below_88(F x) {
    Exponential e = exponential(max(broadcast(-87.0f), x));
    return e.power * e.rest + e.power;
}
INLINE F exp(F x) { return exp_below_88(min(broadcast(88.0f), x)); }

INLINE F sigmoid(F x) { return reciprocal(1.0f + exp(-x)); }

// tanh x = m / (m + 2) with m = e^{2x} - 1, which keeps its relative accuracy at 0.
INLINE F tanh(F x) {
    Exponential e = exponential(2.0f * max(broadcast(-12.0f), min(broadcast(12.0f), x)));
    F m = e.power * e.rest + (e.power - 1.0f);
    return m * reciprocal(m + 2.0f);
}

INLINE float sum(F x) {
    float total = 0;
    for (int i = 0; i < LANES; i++) total += x[i];
    return total;
}
INLINE float largest(F x) {
    float best = x[0];
    for (int i = 1; i < LANES; i++) best = x[i] > best ? x[i] : best;
    return best;
}

// run(S()) with the storage type S.
template <class Run>
inline void with_type(int bfloat16, Run run) {
    bfloat16 ? run(bf16()) : run(float());
}

}  // namespace lmtrain
