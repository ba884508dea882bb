// General matrix product: every projection of the model, forward and backward.
#pragma once

#include "kernels/dispatch.h"

namespace transmamba {

/// C = op(A) op(B) + beta D, where op(X) is X or its transpose, and D is `addend` or else C itself.
/// op(A) (m, k), op(B) (k, n), C, D (m, n): 2-D, unit stride in the last dim. A, B: T. C, D: T or S.
/// C must not overlap A or B; D is C or does not overlap it. k = 0 gives C = beta D; beta = 0 never reads D.
/// A linear layer y = x W^T with W (out, in) is
///   forward   {.a = x, .b = W, .transpose_b = true, .c = y}
///   input     {.a = dy, .b = W, .c = dx}
///   weight    {.a = dy, .transpose_a = true, .b = x, .c = dW, .beta = 1}
/// and with a residual  {.a = x, .b = W, .transpose_b = true, .addend = r, .c = y, .beta = 1}.
/// Workspace on a GPU: kernels/workspace.h.
struct Gemm {
  ConstView a;
  bool transpose_a = false;
  ConstView b;
  bool transpose_b = false;
  ConstView addend = {};  ///< optional: C
  View c;
  double beta = 0;
  int spare = 0;  ///< a hint: multiprocessors of a GPU to leave to what moves data meanwhile; the sums may
                  ///< have another order with it
};
TRANSMAMBA_KERNEL(gemm, Gemm);

}  // namespace transmamba
