// Next-token cross entropy in nats.
#pragma once

#include "kernels/dispatch.h"

namespace transmamba {

/// loss = lse - logits[target],  lse = log sum_v exp(logits[v]).
/// logits (b, t, V); targets (b, t) int32 in [0, V), otherwise an Error naming it (CPU) or a loss of NaN and
/// a dlogits of NaN (CUDA, which reads nothing out of bounds); loss, lse (b, t).
struct CrossEntropy {
  ConstView logits;
  ConstView targets;
  View loss;
  View lse;
};
TRANSMAMBA_KERNEL(cross_entropy, CrossEntropy);

/// dlogits = scale * (softmax(logits) - onehot(target)), overwritten; may alias logits.
struct CrossEntropyBackward {
  ConstView logits;
  ConstView targets;
  ConstView lse;
  double scale = 1;  ///< gradient of the total with respect to each token's loss: 1 / tokens for a mean
  View dlogits;
};
TRANSMAMBA_KERNEL(cross_entropy_backward, CrossEntropyBackward);

}  // namespace transmamba
