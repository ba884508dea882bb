// OpenBLAS as the CPU kernels use it: one thread a call, threads are parallel_for's.
#pragma once

#include <cblas.h>

namespace transmamba::cpu {

/// Call before any cblas function; does its work once in a process.
void prepare_blas();

/// C = op(A) op(B) + beta C, row major; op(A) (m, k), op(B) (k, n).
inline void blas_gemm(bool transpose_a, bool transpose_b, int m, int n, int k, const float* a, int lda,
                      const float* b, int ldb, double beta, float* c, int ldc) {
  cblas_sgemm(CblasRowMajor, transpose_a ? CblasTrans : CblasNoTrans, transpose_b ? CblasTrans : CblasNoTrans,
              m, n, k, 1, a, lda, b, ldb, static_cast<float>(beta), c, ldc);
}
inline void blas_gemm(bool transpose_a, bool transpose_b, int m, int n, int k, const double* a, int lda,
                      const double* b, int ldb, double beta, double* c, int ldc) {
  cblas_dgemm(CblasRowMajor, transpose_a ? CblasTrans : CblasNoTrans, transpose_b ? CblasTrans : CblasNoTrans,
              m, n, k, 1, a, lda, b, ldb, beta, c, ldc);
}

}  // namespace transmamba::cpu
