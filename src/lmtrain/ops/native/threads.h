// What the threads of one parallel region share: the work, a barrier light enough for one per time step, flushed denormals.

#pragma once
#include <omp.h>
#include <sched.h>

#include <atomic>
#include <cstdint>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace lmtrain {

struct Share {
    long first, last;
};

// The part of n items that falls to thread i of `threads`; parts differ by at most one item.
inline Share share(long n, long i, long threads) { return {n * i / threads, n * (i + 1) / threads}; }

// All threads arrive before any leaves. Waiting spins, because a step lasts microseconds, and gives the core away when
// somebody else evidently needs it.
class Barrier {
    alignas(64) std::atomic<long> arrived{0};

  public:
    void wait(long threads) {
        if (threads == 1) return;
        long ticket = arrived.fetch_add(1, std::memory_order_acq_rel);
        long full = (ticket / threads + 1) * threads;
        for (long spins = 0; arrived.load(std::memory_order_acquire) < full; spins++) {
            if (spins < 512) {
#if defined(__x86_64__)
                _mm_pause();
#endif
            } else {
                sched_yield();
            }
        }
    }
};

// Subnormal numbers count as zero in this thread while the object lives: they cost twenty times an ordinary operation.
class FlushDenormals {
#if defined(__x86_64__)
    unsigned saved = _mm_getcsr();

  public:
    FlushDenormals() { _mm_setcsr(saved | 0x8040); }  // flush to zero, denormals are zero
    ~FlushDenormals() { _mm_setcsr(saved); }
#elif defined(__aarch64__)
    uint64_t saved;

  public:
    FlushDenormals() {
        asm volatile("mrs %0, fpcr" : "=r"(saved));
        asm volatile("msr fpcr, %0" ::"r"(saved | (1ull << 24)));
    }
    ~FlushDenormals() { asm volatile("msr fpcr, %0" ::"r"(saved)); }
#else
  public:
    FlushDenormals() {}
#endif
    FlushDenormals(const FlushDenormals&) = delete;
};

}  // namespace lmtrain
