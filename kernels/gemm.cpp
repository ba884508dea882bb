#include "kernels/gemm.h"

namespace transmamba {

void gemm(const Gemm& a, const Stream& stream) {
  expect_rank(a.a, "(rows, columns)", "gemm", "a");
  expect_rank(a.b, "(rows, columns)", "gemm", "b");
  const std::int64_t m = a.a.dim(a.transpose_a ? 1 : 0), k = a.a.dim(a.transpose_a ? 0 : 1);
  const std::int64_t n = a.b.dim(a.transpose_b ? 0 : 1);
  const DType dtype = a.a.dtype();
  expect(a.a, a.transpose_a ? Shape{k, m} : Shape{m, k}, dtype, "gemm", "a");
  expect(a.b, a.transpose_b ? Shape{n, k} : Shape{k, n}, dtype, "gemm", "b");
  expect(a.c, {m, n}, a.c.dtype() == dtype ? dtype : statistics_of(dtype), "gemm", "c");
  expect_optional(a.addend, {m, n}, a.c.dtype(), "gemm", "addend");
  for (const ConstView& x : {a.a, a.b, ConstView(a.c), a.addend ? a.addend : ConstView(a.c)})
    check(x.dim(0) <= 1 || x.stride(0) >= x.dim(1), "gemm", "rows of {} with strides {} overlap", x.shape(),
          x.strides());
  run_on(stream, cpu::gemm, cuda::gemm, a);
}

}  // namespace transmamba
