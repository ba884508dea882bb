#include "parallel/layers/linear.h"

#include "kernels/gemm.h"

namespace transmamba {

void Linear::forward(const Context& context, ConstView x, View y, bool accumulate) const {
  gemm({.a = x.merge(0),
        .b = weights_.value(),
        .transpose_b = true,
        .c = y.merge(0),
        .beta = accumulate ? 1.0 : 0.0},
       context.stream);
}

void Linear::backward(const Context& context, ConstView dy, ConstView x, View dx) const {
  gemm({.a = dy.merge(0), .b = weights_.value(), .c = dx.merge(0)}, context.stream);
  gemm({.a = dy.merge(0), .transpose_a = true, .b = x.merge(0), .c = weights_.grad(), .beta = 1},
       context.stream);
}

}  // namespace transmamba
