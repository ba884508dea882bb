// What kernels are timed on.
#pragma once

#include "core/tensor.h"

namespace transmamba {

/// A tensor of f32, f64 or bf16 with random numbers in [-1, 1), which repeat. On numbers that are all the
/// same a GPU's matrix units draw less power than in training and so run at a higher clock: 950 TFLOP/s
/// instead of 700.
Tensor noise(const Context& context, const Shape& shape, DType dtype);

}  // namespace transmamba
