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
  GatherTokens all(context, *tp_, "column linear: tokens again", x, dy.dim(0));
  const Tensor dx = context.empty(x.shape());
  ScatterTokens sums(context, *tp_, dy.dim(0), dx);
  start_input_gradient(context, dy, sums);
  add_weight_gradient(context, dy, all);
  sums.finish();
  return dx;
}

Tensor ColumnLinear::input_gradient(const Context& context, ConstView dy, const Shape& x) const {
  const Tensor dx = context.empty(x);
  ScatterTokens sums(context, *tp_, dy.dim(0), dx);
  start_input_gradient(context, dy, sums);
  sums.finish();
  return dx;
}

void ColumnLinear::add_weight_gradient(const Context& context, ConstView dy, const Tensor& x) const {
  GatherTokens all(context, *tp_, "column linear: tokens again", x, dy.dim(0));
  add_weight_gradient(context, dy, all);
}

void ColumnLinear::start_input_gradient(const Context& context, ConstView dy, ScatterTokens& sums) const {
  sums.each("column linear: token gradients", [&](const TokenRun& run, const View& rows) {
    gemm({.a = dy.slice(0, run.begin, run.end),
          .b = weights_.value(),
          .c = rows,
          .spare = TokenShard(*tp_, dy.dim(0)).spare},
         context.stream);
  });
}

void ColumnLinear::add_weight_gradient(const Context& context, ConstView dy, GatherTokens& x) const {
  gemm({.a = dy,
        .transpose_a = true,
        .b = x.finish(),
        .c = weights_.grad(),
        .beta = 1,
        .spare = TokenShard(*tp_, dy.dim(0)).spare},
       context.stream);
}

}  // namespace transmamba
