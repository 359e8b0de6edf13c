// The C entry points of matrix products (ops/native/products.py).

#include "matrix_product.h"

using namespace lmtrain;

#pragma GCC visibility push(default)
extern "C" {

// 1 where this product is faster than that of PyTorch. Its MKL has AVX-512 for Intel's processors alone: on an AMD EPYC it
// reaches 210 GFLOP/s with two cores, and this one 430. With AVX2 both reach the same.
long lmtrain_product_is_fast() {
#if defined(LMTRAIN_AVX512)
    __builtin_cpu_init();
    return !__builtin_cpu_is("intel");
#else
    return 0;
#endif
}

// C [M, N] = A [M, K] x B [K, N] + bias [N] (or null), float32. Of each matrix the strides of rows and columns, one of them 1.
void lmtrain_product(long M, long N, long K, long a_row, long a_column, long b_row, long b_column, const float* a,
                     const float* b, const float* bias, float* c, long threads) {
    matrix_product(M, N, K, {a, a_row, a_column}, {b, b_row, b_column}, bias, c, threads);
}
}
#pragma GCC visibility pop
