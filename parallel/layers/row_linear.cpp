#include "parallel/layers/row_linear.h"

#include "kernels/gemm.h"

namespace transmamba {

void RowLinear::forward(const Context& context, ConstView x, ConstView residual, View output) const {
  ScatterTokens sums(context, *tp_, x.dim(0), output);
  sums.each("row linear: sums", [&](const TokenRun& run, const View& rows) {
    const ConstView addend = run.is_mine ? residual.slice(0, 0, rows.dim(0)) : ConstView();
    gemm({.a = x.slice(0, run.begin, run.end),
          .b = weight_.value(),
          .transpose_b = true,
          .addend = addend,
          .c = rows,
          .beta = run.is_mine ? 1.0 : 0.0,
          .spare = run.spare},
         context.stream);
  });
  sums.finish();
}

void RowLinear::backward(const Context& context, const Tensor& doutput, ConstView x, View dx) const {
  GatherTokens dy(context, *tp_, "row linear: token gradients", doutput, x.dim(0));
  dy.each([&](const TokenRun& run, const View& rows) {
    gemm({.a = rows, .b = weight_.value(), .c = dx.slice(0, run.begin, run.end), .spare = run.spare},
         context.stream);
  });
  gemm({.a = dy.finish(), .transpose_a = true, .b = x, .c = weight_.grad(), .beta = 1}, context.stream);
}

}  // namespace transmamba
