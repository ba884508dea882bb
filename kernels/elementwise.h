// Small upkeep on tensors: fill, copy, add, sums.
#pragma once

#include "kernels/dispatch.h"

namespace transmamba {

/// y = value, any shape and floating-point type; the last dim has stride 1.
struct Fill {
  double value = 0;
  View y;
};
TRANSMAMBA_KERNEL(fill, Fill);

/// y = x, rounded where y's floating-point type is narrower. Same shape, any strides outside the last dim.
struct Copy {
  ConstView x;
  View y;
};
TRANSMAMBA_KERNEL(copy, Copy);

/// y += x. Same shape and type.
struct Add {
  ConstView x;
  View y;
};
TRANSMAMBA_KERNEL(add, Add);

/// result[0] += sum x (or sum x^2), accumulated in float64 in a fixed order. x contiguous; result (1)
/// float64.
struct Sum {
  ConstView x;
  bool squares = false;
  View result;
};
TRANSMAMBA_KERNEL(sum, Sum);

}  // namespace transmamba
