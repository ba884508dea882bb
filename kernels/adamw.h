// AdamW with decoupled weight decay (Loshchilov & Hutter, 2019).
#pragma once

#include "kernels/dispatch.h"

namespace transmamba {

/// g = grad_scale * grad;  m = beta1 m + (1 - beta1) g;  v = beta2 v + (1 - beta2) g^2;
/// weight -= lr * (m / (1 - beta1^step) / (sqrt(v / (1 - beta2^step)) + eps) + weight_decay * weight).
/// All 1-D, contiguous, of one length and type S. `step` counts from 1.
/// With `squared_norm` (1) float64, known to the stream only, grad_scale is further multiplied by
/// min(1, clip_grad / (sqrt(squared_norm) + 1e-6)), and where it is not finite, or `loss` (1) float64 is not,
/// nothing changes.
/// With `rounded` (bfloat16, CUDA only) that gets the new weight too: the copy that matrix products read.
/// Moments below 1e8 times the smallest normal number (1e-30 in float32, far below what eps lets through)
/// become 0.
struct AdamW {
  View weight;
  ConstView grad;
  View m, v;
  View rounded = {};            ///< optional
  ConstView squared_norm = {};  ///< optional
  ConstView loss = {};          ///< optional
  double clip_grad = 1;
  double grad_scale = 1;
  double lr = 0, beta1 = 0.9, beta2 = 0.95, eps = 1e-8, weight_decay = 0;
  std::int64_t step = 1;
};
TRANSMAMBA_KERNEL(adamw, AdamW);

}  // namespace transmamba
