#include "parallel/layers/row_linear.h"

#include "kernels/elementwise.h"
#include "kernels/gemm.h"

namespace transmamba {

void RowLinear::forward(const Context& context, ConstView x, ConstView residual, View output) const {
  if (tp_->size() == 1)  // nothing to sum: the product adds the residual by itself
    return gemm(
        {.a = x, .b = weight_.value(), .transpose_b = true, .addend = residual, .c = output, .beta = 1},
        context.stream);
  ScatterTokens y(context, *tp_, x.dim(0), output.dim(1));
  gemm({.a = x, .b = weight_.value(), .transpose_b = true, .c = y.partial()}, context.stream);
  y.start("row linear: sums");
  if (output.raw() != residual.raw()) copy({.x = residual, .y = output}, context.stream);
  add({.x = y.finish(), .y = output}, context.stream);
}

void RowLinear::backward(const Context& context, const Tensor& doutput, ConstView x, View dx) const {
  const Tensor dy = gather_tokens(context, *tp_, "row linear: token gradients", doutput, x.dim(0));
  gemm({.a = dy, .b = weight_.value(), .c = dx}, context.stream);
  gemm({.a = dy, .transpose_a = true, .b = x, .c = weight_.grad(), .beta = 1}, context.stream);
}

}  // namespace transmamba
