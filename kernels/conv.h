// Depthwise causal convolution over time, then SiLU (Mamba-2's short convolution; DESIGN: "activation of Q/C,
// K/B, V/x").
#pragma once

#include "kernels/dispatch.h"

namespace transmamba {

/// y_t = SiLU(bias + sum_j weight_j x_{t-w+1+j}), j = 0 .. w-1, each channel alone.
/// x, y (b, t, c): T; weight (c, w), bias (c): S. y must not alias x.
/// `halo` (b, w-1, c) holds the w-1 inputs before x; absent means zeros (the start of a sequence).
struct Conv {
  ConstView x;
  ConstView halo = {};  ///< optional
  ConstView weight;
  ConstView bias;
  View y;
};
TRANSMAMBA_KERNEL(conv, Conv);

/// Gradients of Conv; the pre-activation is recomputed. dx and dhalo (T) are overwritten, dweight and dbias
/// (S) are added to. dx may alias dy only if w = 1. Deterministic.
struct ConvBackward {
  ConstView dy;
  ConstView x;
  ConstView halo = {};  ///< as in forward
  ConstView weight;
  ConstView bias;
  View dx;
  View dhalo = {};  ///< optional, (b, w-1, c)
  View dweight;
  View dbias;
};
TRANSMAMBA_KERNEL(conv_backward, ConvBackward);

}  // namespace transmamba
