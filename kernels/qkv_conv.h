// The mixer's activation of what both readings share: short convolution over time, SiLU, and RoPE where
// attention will read, in one pass (DESIGN: "activation of Q/C, K/B, V/x").
#pragma once

#include "kernels/dispatch.h"

namespace transmamba {

/// u_t = SiLU(bias + sum_j weight_j x_{t-w+1+j}), j = 0 .. w-1, each channel alone (Mamba-2's depthwise
/// causal convolution); y = u, but q and k of the first `rotated` tokens are turned by RoPE (Su et al.,
/// 2021): dimension k of a head is paired with k + n/2 and turned by the angle (position + i) theta^(-2k/n).
/// x, y (b, t, c): T, channels c = h (2n + p): q (h, n), then k (h, n), then v (h, p). y must not alias x.
/// weight (c, w), bias (c): S; halo (b, w - 1, c): T, the inputs before x, absent for zeros. Token i is at
/// absolute position `position + i`. With `k_rotated` (b, rotated, h, n), T, the turned keys go there, and y
/// keeps them unturned, as the SSM's state wants them.
struct QkvConv {
  ConstView x;
  ConstView halo = {};  ///< optional
  ConstView weight, bias;
  View y;
  View k_rotated = {};                   ///< optional
  std::int64_t heads = 1, qk_width = 0;  ///< h, n
  std::int64_t rotated = 0, position = 0;
  double theta = 10000;
};
TRANSMAMBA_KERNEL(qkv_conv, QkvConv);

/// Gradients of QkvConv; the pre-activation is recomputed. dy (b, t, c) is of y and dk_rotated (given exactly
/// when forward had k_rotated) of that. dx and dhalo (T) are overwritten, dweight and dbias (S) are added to.
/// dx must not alias dy. Deterministic.
struct QkvConvBackward {
  ConstView dy;
  ConstView dk_rotated = {};
  ConstView x;
  ConstView halo = {};
  ConstView weight, bias;
  View dx;
  View dhalo = {};  ///< optional, (b, w - 1, c)
  View dweight, dbias;
  std::int64_t heads = 1, qk_width = 0;
  std::int64_t rotated = 0, position = 0;
  double theta = 10000;
};
TRANSMAMBA_KERNEL(qkv_conv_backward, QkvConvBackward);

}  // namespace transmamba
