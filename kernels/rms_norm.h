// Root-mean-square norm over groups of channels, optionally gated: the norm before each layer (one group),
// and the mixer's output norm (one group a head, gated by SiLU(z) on SSM tokens).
#pragma once

#include "kernels/dispatch.h"

namespace transmamba {

/// v = x * SiLU(gate) (v = x without a gate);  y = v * rstd * weight,  rstd = 1/sqrt(mean(v^2) + eps).
/// x, gate, y (b, t, g, d): T; weight (g, d): S. The mean is over d. y may alias x.
struct RmsNorm {
  ConstView x;
  ConstView gate = {};  ///< optional
  ConstView weight;
  View y;
  double eps = 1e-5;
};
TRANSMAMBA_KERNEL(rms_norm, RmsNorm);

/// Gradients of RmsNorm. dx and dgate (T) are overwritten, dweight (S) is added to. dx may alias dy or
/// dresidual. `dresidual`, where given, is added into dx: the gradient that reaches x around the layer.
/// Computed in float64 (bfloat16: float32) from x itself, also for float32: dx is what is left after the part
/// along v is taken out, a small difference of large numbers where the output hardly depends on a parameter
/// (D in an ungated mixer, say). Deterministic: partial sums of dweight have a fixed order.
struct RmsNormBackward {
  ConstView dy;
  ConstView x;
  ConstView gate = {};  ///< as in forward
  ConstView weight;
  ConstView dresidual = {};  ///< optional
  View dx;
  View dgate = {};  ///< with a gate
  View dweight;
  double eps = 1e-5;
};
TRANSMAMBA_KERNEL(rms_norm_backward, RmsNormBackward);

}  // namespace transmamba
