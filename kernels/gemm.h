// General matrix product: every projection of the model, forward and backward.
#pragma once

#include "kernels/dispatch.h"

namespace transmamba {

/// C = op(A) op(B) + beta C, where op(X) is X or its transpose.
/// op(A) (m, k), op(B) (k, n), C (m, n): 2-D, one floating-point type, unit stride in the last dim.
/// C must not overlap A or B. k = 0 gives C = beta C; beta = 0 never reads C.
/// A linear layer y = x W^T with W (out, in) is
///   forward   {.a = x, .b = W, .transpose_b = true, .c = y}
///   input     {.a = dy, .b = W, .c = dx}
///   weight    {.a = dy, .transpose_a = true, .b = x, .c = dW, .beta = 1}
struct Gemm {
  ConstView a;
  bool transpose_a = false;
  ConstView b;
  bool transpose_b = false;
  View c;
  double beta = 0;
};
TRANSMAMBA_KERNEL(gemm, Gemm);

}  // namespace transmamba
