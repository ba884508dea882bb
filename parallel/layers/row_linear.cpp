#include "parallel/layers/row_linear.h"

#include "kernels/elementwise.h"
#include "kernels/gemm.h"

namespace transmamba {

void RowLinear::forward(const Context& context, ConstView x, View residual) const {
  if (tp_->size() == 1)  // nothing to sum: the product adds to the residual by itself
    return gemm({.a = x, .b = weight_.value(), .transpose_b = true, .c = residual, .beta = 1},
                context.stream);
  ScatterTokens y(context, *tp_, x.dim(0), residual.dim(1));
  gemm({.a = x, .b = weight_.value(), .transpose_b = true, .c = y.partial()}, context.stream);
  y.start("row linear: sums");
  add({.x = y.finish(), .y = residual}, context.stream);
}

void RowLinear::backward(const Context& context, const Tensor& dresidual, ConstView x, View dx) const {
  const Tensor dy = gather_tokens(context, *tp_, "row linear: token gradients", dresidual, x.dim(0));
  gemm({.a = dy, .b = weight_.value(), .c = dx}, context.stream);
  gemm({.a = dy, .transpose_a = true, .b = x, .c = weight_.grad(), .beta = 1}, context.stream);
}

}  // namespace transmamba
