// One step of Adam (Kingma and Ba 2015) for all weights of a group, dense gradients and sparse ones alike:
//
//   m += (1 - beta1) (g - m)         v = beta2 v + (1 - beta2) g^2
//   w -= rate m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + epsilon)
//
// A sparse gradient has rows of its own, ascending; for all others g = 0, which is not written out anywhere. So each step reads
// and writes three numbers of a weight, at the speed of memory.

#pragma once
#include <algorithm>
#include <cmath>
#include <vector>

#include "threads.h"

namespace lmtrain {

constexpr long ADAM_BLOCK = 1 << 14;  // numbers that one thread goes through before others

// A weight with its memory. Its gradient has all numbers, or where `rows` is not null `num_rows` rows of `width`, or is null: zeros.
struct AdamWeight {
    float *weight, *mean, *square, *step;
    const float* gradient;
    const int64_t* rows;
    long num_rows, width, count;
};

struct AdamRule {
    double rate, beta1, beta2, epsilon, decay;
    bool is_decoupled;  // decay shrinks the weight (Loshchilov and Hutter 2019), else it adds to the gradient
};

// What the rule becomes at one number of steps.
struct AdamStep {
    float mean_share, beta2, square_share, rate, square_scale, epsilon, coupled, kept;
    AdamStep(const AdamRule& rule, double t)
        : mean_share(1 - rule.beta1), beta2(rule.beta2), square_share(1 - rule.beta2),
          rate(rule.rate / (1 - std::pow(rule.beta1, t))), square_scale(1 / std::sqrt(1 - std::pow(rule.beta2, t))),
          epsilon(rule.epsilon), coupled(rule.is_decoupled ? 0 : rule.decay),
          kept(rule.is_decoupled ? 1 - rule.rate * rule.decay : 1) {}

    // `gradient` may be null: zeros. Without decay a weight that is no number leaves its memory alone.
    void take(float* weight, float* mean, float* square, const float* gradient, long count) const {
        auto run = coupled ? gradient ? &AdamStep::all<true, true> : &AdamStep::all<false, true>
                           : gradient ? &AdamStep::all<true, false> : &AdamStep::all<false, false>;
        (this->*run)(weight, mean, square, gradient, count);
    }

  private:
    template <bool has_gradient, bool decays>
    void all(float* __restrict w, float* __restrict m, float* __restrict v, const float* __restrict g, long count) const {
        for (long i = 0; i < count; i++) {
            const float d = (has_gradient ? g[i] : 0.0f) + (decays ? coupled * w[i] : 0.0f);
            m[i] += mean_share * (d - m[i]);
            v[i] = beta2 * v[i] + square_share * d * d;
            w[i] = kept * w[i] - rate * m[i] / (std::sqrt(v[i]) * square_scale + epsilon);
        }
    }
};

// Whole rows of a sparse gradient's weight, or some numbers of another one.
inline void adam_block(const AdamWeight& of, const AdamStep& step, long first, long count) {
    auto take = [&](long from, const float* gradient, long n) {
        step.take(of.weight + from, of.mean + from, of.square + from, gradient, n);
    };
    if (!of.rows) return take(first, of.gradient ? of.gradient + first : nullptr, count);
    const int64_t* end = of.rows + of.num_rows;
    const int64_t* row = std::lower_bound(of.rows, end, first / of.width);
    for (long from = first; from < first + count;) {
        const long next = row < end ? std::min(first + count, (long)*row * of.width) : first + count;
        if (from < next) take(from, nullptr, next - from);
        from = next;
        if (from == first + count) break;
        take(from, of.gradient + (row - of.rows) * of.width, of.width);
        from += of.width, row++;
    }
}

inline void adam(const std::vector<AdamWeight>& weights, const AdamRule& rule, long threads) {
    struct Block {
        long weight, first, count;
    };
    std::vector<AdamStep> steps;
    std::vector<Block> blocks;
    for (const AdamWeight& of : weights) {
        steps.emplace_back(rule, *of.step += 1);
        const long unit = of.rows ? of.width : 1, size = std::max(1l, ADAM_BLOCK / unit) * unit;
        for (long first = 0; first < of.count; first += size)
            blocks.push_back({(long)steps.size() - 1, first, std::min(size, of.count - first)});
    }
    threads = std::max(1l, std::min(threads, (long)blocks.size() / 2));
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (size_t i = 0; i < blocks.size(); i++) {
        const FlushDenormals flush;
        adam_block(weights[blocks[i].weight], steps[blocks[i].weight], blocks[i].first, blocks[i].count);
    }
}

}  // namespace lmtrain
