// Look-ups in the sorted n-grams of a back-off table (models/backoff.py), and probabilities of a text in it.
//
// An n-gram of order k is a key: where order k-1 lists its context, times V, plus its last word. Keys ascend, so the n-grams
// behind a context lie side by side, and `begins` says where: a look-up searches among those alone, a few keys, where a search
// through the whole order would miss the caches some twenty times. Whatever keys and places are, nothing outside the arrays is
// read: `begins` never exceed the number of keys.
//
//     legend   T steps · B streams · N = order - 1 tokens of a context · P = N + T · V vocabulary

#pragma once
#include <cstdint>

#include "threads.h"

namespace lmtrain {

constexpr int MAX_ORDER = 32;
constexpr long SEGMENT = 128;     // steps of one stream that a thread computes at a time
constexpr long SIDE_BY_SIDE = 8;  // segments that it takes through the stages of a step together

struct NgramOrder {
    const int64_t* keys;       // [size], of order 2 and more
    const uint32_t* begins;    // [size of the order below + 1]: where the n-grams behind each context begin
    const double* log_probs;   // [size]
    const double* log_rests;   // [size], below the highest order
    long size;
};

enum Policy { CARRY, LINE, DOCUMENT };  // when a model forgets

// Where the n-grams behind each of `below` contexts begin; what is behind no such context is in no range.
inline void index_ngrams(const int64_t* keys, long size, long below, long V, uint32_t* begins) {
    long next = 0;
    for (long i = 0; i < size; i++)
        for (long context = keys[i] / V; next <= context && next <= below; next++) begins[next] = (uint32_t)i;
    for (; next <= below; next++) begins[next] = (uint32_t)size;
}

// Which of `count` keys from `place` on is this one; -1 where none is.
inline long search_keys(const int64_t* keys, long place, long count, int64_t key) {
    if (count <= 0) return -1;
    while (count > 1) {  // the last one that is not above the key
        const long half = count / 2;
        place = keys[place + half] <= key ? place + half : place;
        count -= half;
    }
    return keys[place] == key ? place : -1;
}

// Where `order` lists `word` behind `context`; -1 where it does not, or where nothing is listed behind a context of -1.
inline long find_ngram(const NgramOrder& order, long context, long word, long V) {
    if (context < 0) return -1;
    const long begin = order.begins[context];
    return search_keys(order.keys, begin, (long)order.begins[context + 1] - begin, context * V + word);
}

// One stretch of a stream, step by step: what is remembered, and where the contexts of length 1 to N behind the newest token
// are listed. A step is cut into stages that each begin with what the stage before asked the memory for, so that a thread that
// takes several stretches through each stage waits for all of them at once.
struct NgramReader {
    long b, first, last;  // the stream, and the steps whose targets are scored
    long p;               // the row of the newest token
    long history = 0, previous = -1;  // tokens remembered, the newest included, at most N; the newest
    long guess = -1;                  // a token, and where the n-grams that end in it are listed if it comes next
    long contexts[MAX_ORDER], places[MAX_ORDER], counts[MAX_ORDER];
};

struct NgramText {
    const NgramOrder* orders;
    long N, V, eos;
    Policy policy;
    bool whole;  // only the whole history counts as a context, not one that is cut short
    long T, B;
    const int64_t *tokens, *targets;  // [P, B], [T, B]
    double* log_probs;                // [T, B]
    int64_t* next;                    // [B, N]

    // As if the stretch of stream b from `first` to `last` followed nothing but the N tokens before it, all it can remember.
    NgramReader start(long b, long first, long last) const {
        NgramReader reader = {};
        reader.b = b, reader.first = first, reader.last = last;
        reader.p = first + (N > 0) - 1;
        for (long k = 0; k <= N; k++) reader.contexts[k] = -1;
        reader.previous = reader.guess = -1;
        return reader;
    }

    // The next token becomes the newest.
    void read(NgramReader& r) const {
        const long token = tokens[++r.p * B + r.b];
        const bool forgets = policy == LINE ? token == eos : policy == DOCUMENT && token == eos && r.previous == eos;
        r.history = token < 0 ? 0 : forgets ? 1 : r.history < N ? r.history + 1 : N;
        for (long k = N; k >= 2; k--)
            r.contexts[k] = r.history < k ? -1
                            : token == r.guess ? r.places[k] : find_ngram(orders[k - 1], r.contexts[k - 1], token, V);
        if (N) r.contexts[1] = r.history < 1 ? -1 : token;
        r.previous = token;
        r.guess = r.p >= N + r.first ? targets[(r.p - N) * B + r.b] : tokens[(r.p + 1) * B + r.b];
        for (long k = 1; k <= N; k++)
            if (r.contexts[k] >= 0) __builtin_prefetch(orders[k].begins + r.contexts[k]);
    }

    // Which n-grams are behind each context.
    void narrow(NgramReader& r) const {
        for (long k = 1; k <= N; k++) {
            r.counts[k] = 0;
            if (r.contexts[k] < 0) continue;
            const uint32_t* begin = orders[k].begins + r.contexts[k];
            r.places[k + 1] = begin[0];
            r.counts[k] = (long)begin[1] - begin[0];
            __builtin_prefetch(orders[k].keys + begin[0] + r.counts[k] / 2);
            __builtin_prefetch(orders[k - 1].log_rests + r.contexts[k]);
        }
    }

    // Where those with the guess are listed.
    void search(NgramReader& r) const {
        for (long k = 1; k <= N; k++) {
            r.places[k + 1] = search_keys(orders[k].keys, r.places[k + 1], r.counts[k], r.contexts[k] * V + r.guess);
            if (r.places[k + 1] >= 0) __builtin_prefetch(orders[k].log_probs + r.places[k + 1]);
        }
    }

    // The log-probability of the guess: that of the longest n-gram listed, with the rests of the longer contexts.
    void score(const NgramReader& r) const {
        if (r.p < N + r.first) return;
        long listed = N;
        while (listed && (r.places[listed + 1] < 0 || (whole && listed != r.history))) listed--;
        double sum = orders[listed].log_probs[listed ? r.places[listed + 1] : r.guess];
        for (long k = listed + 1; k <= N; k++)
            if (r.contexts[k] >= 0 && (!whole || k == r.history)) sum += orders[k - 1].log_rests[r.contexts[k]];
        log_probs[(r.p - N) * B + r.b] = sum;
    }

    // Scores several stretches side by side.
    void run(NgramReader* readers, long count) const {
        while (count) {
            for (long i = 0; i < count; i++) read(readers[i]);
            for (long i = 0; i < count; i++) narrow(readers[i]);
            for (long i = 0; i < count; i++) search(readers[i]);
            for (long i = 0; i < count; i++) score(readers[i]);
            for (long i = count - 1; i >= 0; i--)
                if (readers[i].p == N + readers[i].last - 1) {
                    if (readers[i].last == T) remember(readers[i]);
                    readers[i] = readers[--count];
                }
        }
    }

    void remember(const NgramReader& r) const {
        for (long n = 0; n < N; n++) next[r.b * N + n] = n >= N - r.history ? tokens[(T + n) * B + r.b] : -1;
    }
};

// The log-probability of every target [T, B] and what is remembered afterwards [B, N]. `tokens` [P, B]: the N before the
// text (-1 for nothing), then those that the targets follow. Returns whether all tokens and targets are words.
inline bool ngram_log_probs(const NgramText& text, long threads) {
    const long N = text.N, T = text.T, B = text.B, V = text.V;
    for (long i = 0; i < (N + T) * B; i++)
        if (text.tokens[i] >= V || (text.tokens[i] < 0 && i >= N * B)) return false;
    for (long i = 0; i < T * B; i++)
        if (text.targets[i] < 0 || text.targets[i] >= V) return false;
    const long per_stream = (T + SEGMENT - 1) / SEGMENT, stretches = per_stream * B;
#pragma omp parallel for num_threads(threads) schedule(dynamic) if (threads > 1)
    for (long group = 0; group < stretches; group += SIDE_BY_SIDE) {
        NgramReader readers[SIDE_BY_SIDE];
        long count = 0;
        for (long i = group; i < group + SIDE_BY_SIDE && i < stretches; i++, count++) {
            const long b = i % B, first = i / B * SEGMENT, last = first + SEGMENT < T ? first + SEGMENT : T;
            readers[count] = text.start(b, first, last);
        }
        text.run(readers, count);
    }
    return true;
}

}  // namespace lmtrain
