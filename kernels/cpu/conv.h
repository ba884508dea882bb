// Depthwise causal convolution over time, then SiLU: the first half of kernels/qkv_conv.h, which checks what
// comes here.
#pragma once

#include "kernels/dispatch.h"

namespace transmamba::cpu {

/// y_t = SiLU(bias + sum_j weight_j x_{t-w+1+j}), j = 0 .. w-1, each channel alone. x, y (b, t, c), weight
/// (c, w), bias (c); `halo` (b, w-1, c) holds the w-1 inputs before x, absent zeros. y must not alias x.
struct Conv {
  ConstView x;
  ConstView halo = {};
  ConstView weight;
  ConstView bias;
  View y;
};
void conv(const Conv& arguments, const Stream& stream);

/// Gradients; the pre-activation is recomputed. dx and dhalo are overwritten, dweight and dbias are added to.
/// dx may alias dy only if w = 1. Deterministic.
struct ConvBackward {
  ConstView dy;
  ConstView x;
  ConstView halo = {};
  ConstView weight;
  ConstView bias;
  View dx;
  View dhalo = {};  ///< optional
  View dweight;
  View dbias;
};
void conv_backward(const ConvBackward& arguments, const Stream& stream);

}  // namespace transmamba::cpu
