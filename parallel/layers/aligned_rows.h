// Memory for activations whose widths are not round.
#pragma once

#include "core/tensor.h"

namespace transmamba {

/// (.., width), contents undefined, whose rows begin at multiples of 16 bytes (kernels/types.h): a window on
/// rows that are that much longer. What they have more is never read.
inline Tensor aligned_rows(const Context& context, Shape shape) {
  const int last = shape.rank() - 1;
  const std::int64_t width = shape[last], step = 16 / size_of(context.dtype);
  shape[last] = (width + step - 1) / step * step;
  return context.empty(shape).slice(last, 0, width);
}

}  // namespace transmamba
