#include "parallel/layers/column_linear.h"

#include "kernels/gemm.h"

namespace transmamba {

void ColumnLinear::forward(const Context& context, const Tensor& x, View y) const {
  const Tensor all = gather_tokens(context, *tp_, "column linear: tokens", x, y.dim(0));
  gemm({.a = all, .b = weights_.value(), .transpose_b = true, .c = y}, context.stream);
}

Tensor ColumnLinear::backward(const Context& context, ConstView dy, const Tensor& x) const {
  // Each transfer runs beside a product that does not need it.
  GatherTokens all(context, *tp_, "column linear: tokens again", x, dy.dim(0));
  ScatterTokens dx(context, *tp_, dy.dim(0), x.dim(1));
  gemm({.a = dy, .b = weights_.value(), .c = dx.partial()}, context.stream);
  const Tensor tokens = all.finish();
  dx.start("column linear: token gradients");
  gemm({.a = dy, .transpose_a = true, .b = tokens, .c = weights_.grad(), .beta = 1}, context.stream);
  return dx.finish();
}

}  // namespace transmamba
