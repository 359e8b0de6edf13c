// The C entry points of n-gram models, called by ops/native/ngrams.py, which looks at types and sizes.

#include "ngrams.h"

using namespace lmtrain;

#pragma GCC visibility push(default)
extern "C" {

void lmtrain_ngram_index(const int64_t* keys, long size, long below, long V, uint32_t* begins) {
    index_ngrams(keys, size, below, V, begins);
}

// Where the order lists `words` [n] behind `contexts` [n], places in the order below (of `below` n-grams) or -1; -1 where it
// does not list them, or where a context is out of range.
void lmtrain_ngram_find(const int64_t* keys, const uint32_t* begins, long size, long below, long V, long n,
                        const int64_t* contexts, const int64_t* words, int64_t* places, long threads) {
    const NgramOrder order = {keys, begins, nullptr, nullptr, size};
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (long i = 0; i < n; i++) places[i] = contexts[i] < below ? find_ngram(order, contexts[i], words[i], V) : -1;
}

// 1, or 0 where a token or a target is no word, before anything is computed.
int lmtrain_ngram_log_probs(const NgramOrder* orders, long N, long V, long eos, long policy, long whole, long T, long B,
                            const int64_t* tokens, const int64_t* targets, double* log_probs, int64_t* next, long threads) {
    const NgramText text = {orders, N, V, eos, (Policy)policy, whole != 0, T, B, tokens, targets, log_probs, next};
    return ngram_log_probs(text, threads);
}
}
#pragma GCC visibility pop
