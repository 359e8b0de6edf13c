// Linear layer, softmax and cross entropy with their gradients: what ops/linear_cross_entropy.py describes, in two passes.
//
// Everything is held transposed, a row per word of the vocabulary and a column per token (n), so that the weight is the left
// operand of products as it lies in memory, and maxima and sums over the vocabulary run down vectors of tokens.
//
//   Pass 1, 64 words at a time:   z = W F^T + b while in the first-level cache: a number m_n that no logit so far exceeds by
//                                 more than FAR, the sum s_n of e = exp(z - m), and e itself is stored. The m that it refers
//                                 to is stored once per 64 words.
//   Between:                      loss_n = m_n + log s_n - z[target_n, n].
//   Pass 2, some hundred words:   d_z = e exp(m - loss's log sum) - onehot, written twice into second-level cache, as the left
//                                 operand of d_W = d_z F and as the packed right one of d_F^T += W^T d_z. One exp a logit.
//
// With `own` logits the V words are samples: every token has one more logit, of its target, which is no row of the weight. Then
// targets[n] is the sample that is left out because it is the target itself, or -1.
//
// Threads take contiguous parts of the vocabulary. Each sums its own d_F^T; these are added in the order of the threads. With
// a vocabulary too small for that, each thread takes its part of the tokens instead, and the weight gradients are added.
//
// Tried: e by stores that pass the caches by, two vectors of tokens at once: 3 % of the whole, not worth its code.

#pragma once
#include <cmath>
#include <limits>
#include <vector>

#include "packing.h"

namespace lmtrain {

constexpr long BLOCK = 64;  // words of the vocabulary in one product of pass 1
constexpr float FAR = 16;           // by which logits may exceed what exponentials refer to: e^16 adds up as well as 1
constexpr float LEFT_OUT = -1e30f;  // a logit without a probability; differences of two of them are numbers

// S: type of products and of e.   G: type of the weight as given (rounded to S block by block).
template <class S, class G>
struct CrossEntropy {
    typedef typename WordOf<S>::type Word;
    typedef typename Word::Element Element;
    static constexpr long PER_WORD = Word::PER_WORD;

    const long V, D;
    const S* features;
    const G* weight;
    const float* bias;
    const int64_t* targets;
    float *d_features, *d_weight, *d_bias;  // null where not wanted
    float* nats;                            // of every token, or null
    const float* own = nullptr;             // logits that the tokens have beside these, or null
    float* d_own = nullptr;
    float scale = 1;  // of all gradients

    // ---- one chunk of rows, worked on by a team of threads; `added` chunks were there before
    struct Chunk {
        long first, rows, added, team;
        Panels panels;                 // of tokens
        long columns, words;           // tokens in all panels; their words as K of d_W
        long d_words;                  // words of D as K
        long step;                     // words of the vocabulary in one round of pass 2
        uint32_t *packed_by_token, *packed_by_feature;
        S* e;                          // [panel][word of the vocabulary][token]
        float *reference, *largest, *sums, *log_sums, *target_logits;  // [block][token], [thread][token] twice, [token] twice
        float* d_features;             // [thread][panel][feature][token]
        std::vector<int> order, starts;  // the chunk's rows sorted by block of their target
    };

    bool wants_gradients() const { return d_features || d_weight || d_bias; }
    long padded_features() const { return round_up(D, 16); }

    // Bytes of a chunk per token column, roughly: e, references, d_F^T of every thread, packed features, d_z twice.
    long bytes_per_row(long team) const {
        const long gradients = V * (long)sizeof(S) + team * (padded_features() * 4 + 2 * 256 * (long)sizeof(Element));
        return (wants_gradients() ? gradients : 0) + V / BLOCK * 4 + 2 * D * (long)sizeof(Element) + 64;
    }

    Chunk make_chunk(long first, long rows, long team, bool added) const {
        Chunk c{};
        c.first = first, c.rows = rows, c.team = team, c.added = added;
        c.panels = panels_of(rows);
        c.columns = c.panels.tiles * 16;
        c.words = padded_depth<Word>(c.columns) / PER_WORD;
        c.d_words = padded_depth<Word>(D) / PER_WORD;
        const long blocks = (V + BLOCK - 1) / BLOCK;
        // d_z twice; where d_F^T overflows a second-level cache of 2 MB anyway, it is passed over more rarely.
        const long bytes = by_tiles<Word>() && D > 256 ? 1l << 20 : 512l << 10;
        c.step = std::clamp(bytes / (2 * c.columns * (long)sizeof(Element)) / BLOCK, 1l, 8l) * BLOCK;
        c.packed_by_token = scratch<uint32_t>(0, c.columns * c.d_words);
        c.packed_by_feature = scratch<uint32_t>(1, padded_features() * c.words);
        c.e = wants_gradients() ? scratch<S>(2, V * c.columns) : nullptr;
        c.reference = scratch<float>(3, (blocks + 2 * team + 2) * c.columns);
        c.largest = c.reference + blocks * c.columns;
        c.sums = c.largest + team * c.columns;
        c.log_sums = c.sums + team * c.columns;
        c.target_logits = c.log_sums + c.columns;
        c.d_features = d_features ? scratch<float>(4, team * padded_features() * c.columns) : nullptr;
        c.starts.assign(blocks + 1, 0);
        c.order.resize(rows);
        auto counts = [&](long n) { return !own || targets[first + n] >= 0; };
        for (long n = 0; n < rows; n++)
            if (counts(n)) c.starts[targets[first + n] / BLOCK + 1]++;
        for (long b = 0; b < blocks; b++) c.starts[b + 1] += c.starts[b];
        std::vector<int> next(c.starts);
        for (long n = 0; n < rows; n++)
            if (counts(n)) c.order[next[targets[first + n] / BLOCK]++] = n;
        return c;
    }

    // The panels of features, shared by the team.
    void pack_features(const Chunk& c, long me) const {
        const S* rows = features + c.first * D;
        const Share mine = share(c.panels.count(), me, c.team);
        for (long p = mine.first; p < mine.last; p++) {
            const long first = c.panels.first(p);
            pack_panel<Word>(c.packed_by_token + first * c.d_words, c.panels.width(p), c.d_words, rows + first * D, 1, D,
                             D, c.rows - first);
        }
        if (!d_weight) return;
        const Panels across = panels_of(D);
        const Share part = share(across.count(), me, c.team);
        for (long p = part.first; p < part.last; p++) {
            const long first = across.first(p);
            pack_panel<Word>(c.packed_by_feature + first * c.words, across.width(p), c.words, rows + first, D, 1, c.rows,
                             D - first);
        }
    }

    void pass_one(const Chunk& c, long me) const {
        Element* left = scratch<Element>(5, BLOCK * c.d_words * PER_WORD);
        float* z = scratch<float>(6, BLOCK * 64);
        float *largest = c.largest + me * c.columns, *sums = c.sums + me * c.columns;
        std::fill_n(largest, c.columns, -std::numeric_limits<float>::infinity());
        std::fill_n(sums, c.columns, 0.0f);
        if (own && me == 0) {
            std::copy_n(own + c.first, c.rows, largest);
            std::fill_n(sums, c.rows, 1.0f);
        }
        const Share mine = share((V + BLOCK - 1) / BLOCK, me, c.team);
        for (long block = mine.first; block < mine.last; block++) {
            const long v0 = block * BLOCK, words_of_vocabulary = std::min(BLOCK, V - v0);
            copy_weight_rows(left, c.d_words * PER_WORD, v0, words_of_vocabulary);
            for (long p = 0; p < c.panels.count(); p++) {
                const long first = c.panels.first(p), width = c.panels.width(p);
                multiply<Word>(padded_rows<Word>(words_of_vocabulary), (const uint32_t*)left, c.d_words,
                               c.packed_by_token + first * c.d_words, c.d_words, width, z);
                take_target_logits(c, block, first, width, z);
                S* e = c.e ? c.e + first * V + v0 * width : nullptr;
                for (long n = 0; n < width; n += LANES)
                    exponentials(words_of_vocabulary, width, z + n, bias ? bias + v0 : nullptr, e ? e + n : nullptr,
                                 c.reference + block * c.columns + first + n, largest + first + n, sums + first + n);
            }
        }
    }

    // Rows v0 ... of the weight as the left operand, zero beyond D and in the rows that fill up a tile.
    void copy_weight_rows(Element* left, long stride, long v0, long count) const {
        for (long v = 0; v < padded_rows<Word>(count); v++)
            for (long d = 0; d < stride; d += LANES)
                store_operand<S>(left + v * stride + d,
                                 v < count && d < D ? load(weight + (v0 + v) * D + d, D - d) : F{}, stride - d);
    }

    // Remembers the logits of the block's targets; with `own` ones, it makes those of the samples that are left out vanish.
    void take_target_logits(const Chunk& c, long block, long first, long width, float* z) const {
        for (int i = c.starts[block]; i < c.starts[block + 1]; i++) {
            const long n = c.order[i] - first;
            if (n < 0 || n >= width) continue;
            const long v = targets[c.first + c.order[i]];
            float& logit = z[(v - block * BLOCK) * width + n];
            if (own) logit = LEFT_OUT;
            else c.target_logits[c.order[i]] = logit + (bias ? bias[v] : 0.0f);
        }
    }

    // LANES tokens: the logits of a block, a row of z each, become exponentials, a row of e each, relative to the largest logit
    // of earlier blocks; where this block has one that exceeds it by far, once more relative to that.
    static void exponentials(long count, long stride, const float* z, const float* b, S* e, float* reference,
                             float* largest, float* sums) {
        const F before = load(largest);
        F most = before, sum = {};
        auto relative_to = [&](F origin) __attribute__((always_inline)) {
            sum = F{};
            for (long v = 0; v < count; v++) {
                const F logit = load(z + v * stride) + (b ? b[v] : 0.0f);
                const F power = exp_below_88(logit - origin);
                most = max(most, logit);
                sum += power;
                if (e) store(e + v * stride, power);
            }
        };
        relative_to(before);
        if (!any(most - before > FAR)) {
            store(reference, before);
            return store(sums, load(sums) + sum);
        }
        const F origin = most;
        relative_to(origin);
        store(reference, origin);
        store(largest, origin);
        store(sums, load(sums) * exp(before - origin) + sum);
    }

    // Log of the sum of exponentials of this thread's tokens, from all threads' parts.
    void merge(const Chunk& c, long me) const {
        const Share mine = share(c.panels.tiles, me, c.team);
        for (long n = mine.first * 16; n < mine.last * 16; n++) {
            float most = c.largest[n];
            for (long t = 1; t < c.team; t++) most = std::max(most, c.largest[t * c.columns + n]);
            float sum = 0;
            for (long t = 0; t < c.team; t++)
                sum += c.sums[t * c.columns + n] * std::exp(c.largest[t * c.columns + n] - most);
            c.log_sums[n] = most + std::log(sum);
        }
        if (!own) return;
        for (long n = mine.first * 16; n < std::min(c.rows, mine.last * 16); n++) {
            c.target_logits[n] = own[c.first + n];
            if (d_own) d_own[c.first + n] = (std::exp(c.target_logits[n] - c.log_sums[n]) - 1.0f) * scale;
        }
    }

    double total(const Chunk& c) const {
        double total = 0;
        for (long n = 0; n < c.rows; n++) total += (double)c.log_sums[n] - c.target_logits[n];
        for (long n = 0; nats && n < c.rows; n++) nats[c.first + n] = c.log_sums[n] - c.target_logits[n];
        return total;
    }

    void pass_two(const Chunk& c, long me) const {
        const long D16 = padded_features(), stride = c.words * PER_WORD;
        Element* left = scratch<Element>(7, c.step * stride);                     // d_z, rows along the tokens
        uint32_t* right = scratch<uint32_t>(8, c.columns * c.step / PER_WORD);    // d_z, packed
        uint32_t* turned = scratch<uint32_t>(9, D16 * c.step / PER_WORD);         // W^T
        float* z = scratch<float>(6, BLOCK * 64);
        float* mine_features = c.d_features ? c.d_features + me * D16 * c.columns : nullptr;
        if (mine_features) std::fill_n(mine_features, D16 * c.columns, 0.0f);
        memset((void*)left, 0, c.step * stride * sizeof(Element));
        const Share mine = share((V + BLOCK - 1) / BLOCK, me, c.team);
        for (long v0 = mine.first * BLOCK; v0 < std::min(V, mine.last * BLOCK); v0 += c.step) {
            const long count = std::min(std::min(V, mine.last * BLOCK) - v0, c.step);
            const long step_words = round_up(count, 16 * PER_WORD) / PER_WORD;
            gradient_of_logits(c, v0, count, left, stride, right, step_words);
            if (d_weight) gradient_of_weight(c, v0, count, left, z);
            if (!mine_features) continue;
            turn_weight(turned, step_words, v0, count);
            for (long p = 0; p < c.panels.count(); p++)
                multiply<Word>(padded_rows<Word>(D), turned, step_words, right + c.panels.first(p) * step_words, step_words,
                               c.panels.width(p), mine_features + c.panels.first(p) * D16, true);
        }
    }

    // d_z of `count` words of the vocabulary for all tokens, in both forms, and its sum over the tokens.
    void gradient_of_logits(const Chunk& c, long v0, long count, Element* left, long stride, uint32_t* right,
                            long step_words) const {
        for (long p = 0; p < c.panels.count(); p++) {
            const long first = c.panels.first(p), width = c.panels.width(p), narrow_width = panel_width<Word>(width);
            const S* e = c.e + first * V + v0 * width;
            F scale[64 / LANES];
            for (long v = 0; v < step_words * PER_WORD; v += PER_WORD) {
                if (v % BLOCK == 0 && v < count)
                    for (long n = 0; n < width; n += LANES) scale[n / LANES] = scale_of(c, (v0 + v) / BLOCK, first + n);
                uint32_t* to = right + first * step_words + v / PER_WORD * narrow_width;
                for (long n = 0; n < width; n += LANES) {
                    F pair[PER_WORD] = {};
                    for (long i = 0; i < PER_WORD && v + i < count; i++) {
                        pair[i] = load(e + (v + i) * width + n) * scale[n / LANES];
                        store_operand<S>(left + (v + i) * stride + first + n, pair[i], LANES);
                    }
                    store_words(to + packed_at<Word>(width, step_words, 0, n), pair);
                }
            }
        }
        if (d_bias)
            for (long v = 0; v < count; v++) {
                F sum = {};
                for (long n = 0; n < c.columns; n += LANES) sum += load(left + v * stride + n);
                d_bias[v0 + v] = lmtrain::sum(sum) + (c.added ? d_bias[v0 + v] : 0.0f);
            }
        for (long block = v0 / BLOCK; !own && block * BLOCK < v0 + count; block++)
            for (int i = c.starts[block]; i < c.starts[block + 1]; i++)
                subtract_target(c, c.order[i], v0, left, stride, right, step_words);
    }

    // scale times exp(reference - log sum), 0 for columns that are no tokens
    F scale_of(const Chunk& c, long block, long token) const {
        const F factor = exp(load(c.reference + block * c.columns + token) - load(c.log_sums + token)) * scale;
        float lane[LANES];
        store(lane, factor);
        return load(lane, std::max(0l, std::min<long>(LANES, c.rows - token)));
    }

    static void store_words(uint32_t* to, const F pair[PER_WORD]) {
        if constexpr (PER_WORD == 1) store_operand<S>((float*)to, pair[0], LANES);
        else {
            const U words = lengthen(narrow(pair[0])) | lengthen(narrow(pair[1])) << 16;
            memcpy(to, &words, sizeof words);
        }
    }

    // p becomes p - 1, computed again without the rounding of e.
    void subtract_target(const Chunk& c, long n, long v0, Element* left, long stride, uint32_t* right,
                         long step_words) const {
        const long v = targets[c.first + n] - v0;
        const Element before = left[v * stride + n];
        F d = broadcast((std::exp(c.target_logits[n] - c.log_sums[n]) - 1.0f) * scale);
        if (d_bias) d_bias[v0 + v] += d[0] - widen(before);
        store_operand<S>(left + v * stride + n, d, 1);
        const long panel = panel_of(c, n), first = c.panels.first(panel);
        uint32_t* word = right + first * step_words + packed_at<Word>(c.panels.width(panel), step_words, v / PER_WORD, n - first);
        memcpy((char*)word + v % PER_WORD * sizeof(Element), left + v * stride + n, sizeof(Element));
    }

    static long panel_of(const Chunk& c, long n) {
        long panel = n / 64;
        while (n >= c.panels.first(panel + 1)) panel++;
        return panel;
    }

    void gradient_of_weight(const Chunk& c, long v0, long count, const Element* left, float* z) const {
        const Panels across = panels_of(D);
        for (long v = 0; v < count; v += BLOCK) {
            const long rows = std::min(BLOCK, count - v);
            for (long p = 0; p < across.count(); p++) {
                const long first = across.first(p), width = across.width(p);
                multiply<Word>(padded_rows<Word>(rows), (const uint32_t*)left + v * c.words, c.words,
                               c.packed_by_feature + first * c.words, c.words, width, z);
                for (long row = 0; row < rows; row++) {
                    float* to = d_weight + (v0 + v + row) * D + first;
                    for (long d = 0; d < std::min(width, D - first); d += LANES) {
                        const long n = D - first - d;
                        const F sum = load(z + row * width + d);
                        store(to + d, c.added ? load(to + d, n) + sum : sum, n);
                    }
                }
            }
        }
    }

    // W^T of `count` words of the vocabulary: [feature][word along the vocabulary], zero beyond.
    void turn_weight(uint32_t* turned, long step_words, long v0, long count) const {
        for (long d = 0; d < padded_features(); d += LANES)
            for (long word = 0; word < step_words; word += LANES) {
                U square[LANES];
                for (int i = 0; i < LANES; i++) {
                    const long v = (word + i) * PER_WORD;
                    square[i] = words_across<Word>(weight + (v0 + v) * D + d, D, count - v, D - d);
                    if constexpr (PER_WORD == 1) square[i] = (U)as_stored<S>((F)square[i]);
                }
                transpose(square);
                for (int i = 0; i < LANES; i++)
                    memcpy(turned + (d + i) * step_words + word, &square[i], sizeof square[i]);
            }
    }

    // d_F from the threads' sums of d_F^T
    void gather_features(const Chunk& c, long me) const {
        if (!c.d_features) return;
        const long D16 = padded_features();
        const Share mine = share(c.panels.count(), me, c.team);
        for (long p = mine.first; p < mine.last; p++) {
            const long first = c.panels.first(p), width = c.panels.width(p);
            for (long d = 0; d < D; d += LANES)
                for (long n = 0; n < width; n += LANES) {
                    U square[LANES];
                    for (int i = 0; i < LANES; i++) {
                        F sum = {};
                        for (long t = 0; t < c.team; t++)
                            sum += load(c.d_features + t * D16 * c.columns + first * D16 + (d + i) * width + n);
                        square[i] = (U)sum;
                    }
                    transpose(square);
                    for (long i = 0; i < LANES && first + n + i < c.rows; i++)
                        store(d_features + (c.first + first + n + i) * D + d, (F)square[i], D - d);
                }
        }
    }
};

// All rows, in chunks that keep working memory below max_bytes, by a team of threads.
template <class S, class G>
double in_chunks(const CrossEntropy<S, G>& task, long N, long max_bytes, long team) {
    // With a small weight many small chunks are best, its gradient stays in cache; with a large one few large chunks.
    const long preferred = task.V * task.D < (1l << 18) ? 256 : 2048;
    const long fitting = std::clamp(max_bytes / task.bytes_per_row(team), 1l, preferred);
    const long chunks = (N + fitting - 1) / fitting;
    double nats = 0;
    for (long i = 0; i < chunks; i++) {
        const Share rows = share(N, i, chunks);
        const auto chunk = task.make_chunk(rows.first, rows.last - rows.first, team, i > 0);
        auto each_thread = [&](auto work) {
#pragma omp parallel for num_threads(team) schedule(static, 1) if (team > 1)
            for (long me = 0; me < team; me++) {
                const FlushDenormals flush;
                const Tiles tiles(16);
                work(me);
            }
        };
        each_thread([&](long me) { task.pack_features(chunk, me); });
        each_thread([&](long me) { task.pass_one(chunk, me); });
        each_thread([&](long me) { task.merge(chunk, me); });
        nats += task.total(chunk);
        if (!task.wants_gradients()) continue;
        each_thread([&](long me) { task.pass_two(chunk, me); });
        each_thread([&](long me) { task.gather_features(chunk, me); });
    }
    return nats;
}

// Every thread takes a part of the tokens; the gradients of weight and bias are added in the order of the threads.
template <class S, class G>
double by_tokens(const CrossEntropy<S, G>& task, long N, long max_bytes, long threads) {
    const long size = task.V * task.D + task.V;
    float* partial = scratch<float>(10, threads * size);
    std::vector<double> nats(threads);
#pragma omp parallel for num_threads(threads) schedule(static, 1)
    for (long me = 0; me < threads; me++) {
        const Share rows = share(N, me, threads);
        float *d_weight = partial + me * size, *d_bias = d_weight + task.V * task.D;
        const CrossEntropy<S, G> mine{task.V,
                                      task.D,
                                      task.features + rows.first * task.D,
                                      task.weight,
                                      task.bias,
                                      task.targets + rows.first,
                                      task.d_features ? task.d_features + rows.first * task.D : nullptr,
                                      task.d_weight ? d_weight : nullptr,
                                      task.d_bias ? d_bias : nullptr,
                                      task.nats ? task.nats + rows.first : nullptr,
                                      task.own ? task.own + rows.first : nullptr,
                                      task.d_own ? task.d_own + rows.first : nullptr,
                                      task.scale};
        nats[me] = in_chunks(mine, rows.last - rows.first, max_bytes / threads, 1);
    }
    auto add_up = [&](float* to, long offset, long count) {
        for (long i = 0; to && i < count; i++) {
            to[i] = partial[offset + i];
            for (long t = 1; t < threads; t++) to[i] += partial[t * size + offset + i];
        }
    };
    add_up(task.d_weight, 0, task.V * task.D);
    add_up(task.d_bias, task.V * task.D, task.V);
    double total = 0;
    for (double part : nats) total += part;
    return total;
}

template <class S, class G>
double linear_cross_entropy(long N, long V, long D, long max_bytes, const S* features, const G* weight,
                            const float* bias, const int64_t* targets, float* d_features, float* d_weight,
                            float* d_bias, float* row_nats, const float* own, float* d_own, float scale, long threads) {
    const CrossEntropy<S, G> task{V,        D,      features, weight,   bias, targets, d_features,
                                  d_weight, d_bias, row_nats, own,      d_own, scale};
    threads = double(N) * V * D < 1e6 ? 1 : threads;
    const bool few_words = V < 512 * threads && N >= threads;
    return threads > 1 && few_words ? by_tokens(task, N, max_bytes, threads) : in_chunks(task, N, max_bytes, threads);
}

}  // namespace lmtrain
