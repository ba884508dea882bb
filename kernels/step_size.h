// The SSM's step sizes (Mamba-2's dt), computed for all tokens: the Memory Converter needs the prefix's too.
#pragma once

#include "kernels/dispatch.h"

namespace transmamba {

/// dt = softplus(raw + bias).  raw (b, t, h): T; dt (b, t, h), bias (h): S. dt may alias raw of the same
/// type.
struct StepSize {
  ConstView raw;
  ConstView bias;
  View dt;
};
TRANSMAMBA_KERNEL(step_size, StepSize);

/// draw (T) = ddt * sigmoid(raw + bias) = ddt * (1 - exp(-dt)), overwritten; dbias (S) is added to. draw may
/// alias ddt (S) of the same type.
struct StepSizeBackward {
  ConstView ddt;
  ConstView dt;  ///< the forward pass's result
  View draw;
  View dbias;
};
TRANSMAMBA_KERNEL(step_size_backward, StepSizeBackward);

}  // namespace transmamba
