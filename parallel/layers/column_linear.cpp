#include "parallel/layers/column_linear.h"

#include "kernels/gemm.h"

namespace transmamba {

void ColumnLinear::forward(const Context& context, const Tensor& x, View y) const {
  GatherTokens all(context, *tp_, "column linear: tokens", x, y.dim(0));
  all.each([&](const TokenRun& run, const View& rows) {
    gemm({.a = rows,
          .b = weights_.value(),
          .transpose_b = true,
          .c = y.slice(0, run.begin, run.end),
          .spare = run.spare},
         context.stream);
  });
}

Tensor ColumnLinear::backward(const Context& context, ConstView dy, const Tensor& x) const {
  // Each transfer runs beside a product that does not need it.
  const int spare = TokenShard(*tp_, dy.dim(0)).spare;
  GatherTokens all(context, *tp_, "column linear: tokens again", x, dy.dim(0));
  const Tensor dx = context.empty(x.shape());
  ScatterTokens sums(context, *tp_, dy.dim(0), dx);
  sums.each("column linear: token gradients", [&](const TokenRun& run, const View& rows) {
    gemm({.a = dy.slice(0, run.begin, run.end), .b = weights_.value(), .c = rows, .spare = spare},
         context.stream);
  });
  gemm({.a = dy, .transpose_a = true, .b = all.finish(), .c = weights_.grad(), .beta = 1, .spare = spare},
       context.stream);
  sums.finish();
  return dx;
}

}  // namespace transmamba
