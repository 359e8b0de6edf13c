// What a kernel can reach on this machine, measured: the native product alone, without a cell around it, and reading memory.
// machine.py compiles this with the flags of the native backend, whose headers it includes.

#include "packing.h"

using namespace lmtrain;

// `times` products of left [M, K] with right [K, N], which lies as [N, K]: packed once, then used as a time loop uses it. Threads
// own columns and meet after every product, or own rows and meet once. Sums stay where the kernel leaves them.
//
// left has round_up(M, 16) + 16 rows of benchmark_depth elements, in the element type of the product, zero beyond M and K.
template <class S>
static void products(long times, long M, long K, long N, const void* left, const S* right, bool by_rows, float* first,
                     long threads) {
    typedef typename WordOf<S>::type Word;
    const long words = padded_depth<Word>(K) / Word::PER_WORD;
    const Panels all = panels_of(N);
    const long sums_size = (round_up(M, 16) + 16) * 64;
    uint32_t* packed = scratch<uint32_t>(0, all.tiles * 16 * words);
    float* all_sums = scratch<float>(1, threads * sums_size);
    Barrier barrier;
#pragma omp parallel num_threads(threads)
    {
        const long me = omp_get_thread_num(), team = omp_get_num_threads();
        const Share rows = by_rows ? share(M, me, team) : Share{0, M};
        const Share columns = by_rows ? Share{0, all.tiles} : share(all.tiles, me, team);
        const Panels mine{columns.first, columns.last - columns.first};
        const Share to_pack = by_rows ? share(mine.count(), me, team) : Share{0, mine.count()};
        const long count = rows.last - rows.first;
        const Tiles tiles(std::max(count, 1l));
        const FlushDenormals flush;
        const uint32_t* a = (const uint32_t*)left + rows.first * words;
        float* sums = all_sums + me * sums_size;
        for (long panel = to_pack.first; panel < to_pack.last; panel++) {
            const long from = mine.first(panel);
            pack_panel<Word>(packed + from * words, mine.width(panel), words, right + from * K, 1, K, K, N - from);
        }
        barrier.wait(team);
        for (long time = 0; time < times; time++) {
            for (long panel = 0; panel < mine.count() && count; panel++) {
                multiply<Word>(count, a, words, packed + mine.first(panel) * words, words, mine.width(panel), sums);
                if (first && time == 0)
                    for (long row = 0; row < count; row++)
                        for (long column = 0; column < mine.width(panel) && mine.first(panel) + column < N; column++)
                            first[(rows.first + row) * N + mine.first(panel) + column] = sums[row * mine.width(panel) + column];
            }
            if (!by_rows) barrier.wait(team);
        }
    }
}

#pragma GCC visibility push(default)
extern "C" {

// Bytes of an element of the left operand.
long benchmark_element_bytes(int bfloat16) {
    return bfloat16 ? sizeof(WordOf<bf16>::type::Element) : sizeof(float);
}

// Elements of a row of the left operand, of which K count.
long benchmark_depth(int bfloat16, long K) {
    return bfloat16 ? padded_depth<WordOf<bf16>::type>(K) : padded_depth<WordOf<float>::type>(K);
}

// `first` [M, N] gets the first product, unless it is null (which is what is timed).
void benchmark_products(int bfloat16, long times, long M, long K, long N, const void* left, const void* right, int by_rows,
                        float* first, long threads) {
    if (bfloat16) products(times, M, K, N, left, (const bf16*)right, by_rows, first, threads);
    else products(times, M, K, N, left, (const float*)right, by_rows, first, threads);
}

// Reads `count` floats `times` times; with `update` it also writes each back. Every thread has a share of its own and runs through
// eight stretches of it side by side, because a core that follows one stream cannot fetch from memory as fast as it could.
double benchmark_passes(float* memory, long count, long times, int update, long threads) {
    double total = 0;
#pragma omp parallel num_threads(threads) reduction(+ : total)
    {
        const Share mine = share(count / (8 * LANES), omp_get_thread_num(), omp_get_num_threads());
        const long stretch = (mine.last - mine.first) * LANES;
        float* own = memory + mine.first * 8 * LANES;
        F sums[8] = {};
        for (long time = 0; time < times; time++)
            for (long i = 0; i < stretch; i += LANES)
#pragma GCC unroll 8
                for (int j = 0; j < 8; j++) {
                    float* at = own + j * stretch + i;
                    F value = load(at);
                    if (update) store(at, value + broadcast(1.0f));
                    else sums[j] += value;
                }
        for (auto& sum : sums)
            for (int lane = 0; lane < LANES; lane++) total += sum[lane];
    }
    return total;
}
}
#pragma GCC visibility pop
