#pragma once

#include "kernels/gemm.h"

namespace transmamba::cuda {

/// A leading dimension as BLAS wants it; the stride of a single row means nothing.
inline std::int64_t leading(const ConstView& x) {
  return x.dim(0) > 1 ? x.stride(0) : std::max<std::int64_t>(1, x.dim(1));
}

/// m, n, k > 0.
void gemm_bf16(const Gemm&, const Stream&);

}  // namespace transmamba::cuda
