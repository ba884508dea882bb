// Next-token cross entropy in nats, in pieces that work for a shard of the vocabulary:
//
//   loss = lse - logit[target],  lse = maximum + log sum_v exp(logit_v - maximum)
//
// A rank holds the logits of words [vocab_begin, vocab_begin + V) out of vocab_size; V may be 0. The pieces
// run in the order of this file, and between them ranks all-reduce what they have: a copy of their `maximum`
// (max), then the rescaled `partial` (sum). One shard is the whole vocabulary (vocab_size 0 says so) and
// needs no rescaling.
//
// logits, dlogits (b, t, V): T; targets (b, t) int32 in [0, vocab_size); maximum, loss, lse (b, t): S. A
// target outside [0, vocab_size) is, on every shard, an Error naming it and its place (CPU), or a loss of NaN
// and a dlogits of NaN (CUDA, which reads nothing out of bounds).
#pragma once

#include "kernels/dispatch.h"

namespace transmamba {

/// Of this shard alone, its logits read once: maximum = max_v logits[v]; partial[0] = sum_v exp(logits[v] -
/// maximum); partial[1] = logits[target], or 0 if another shard has it. Where all logits are -inf, or there
/// are none, maximum is -inf and the sum 0. NaN is no maximum, but makes the sum NaN.
/// `partial` (2, b, t), so that one all-reduce carries both. The sum is accumulated in float64, in an order
/// that depends on V and on whether rows are aligned.
struct CrossEntropyPartial {
  ConstView logits;
  ConstView targets;
  View maximum;
  View partial;
  std::int64_t vocab_begin = 0;
  std::int64_t vocab_size = 0;  ///< of all shards together; 0: this shard is all
};
TRANSMAMBA_KERNEL(cross_entropy_partial, CrossEntropyPartial);

/// partial[0] *= exp(own - maximum), which is 0 for a shard without a maximum of its own.
struct CrossEntropyRescale {
  ConstView own;      ///< maximum of this shard
  ConstView maximum;  ///< over all shards
  View partial;
};
TRANSMAMBA_KERNEL(cross_entropy_rescale, CrossEntropyRescale);

/// loss = log partial[0] + (maximum - partial[1]);  lse = maximum + log partial[0], which may alias maximum.
struct CrossEntropyLoss {
  ConstView maximum;
  ConstView partial;  ///< over all shards
  View loss;
  View lse;
};
TRANSMAMBA_KERNEL(cross_entropy_loss, CrossEntropyLoss);

/// dlogits = scale * (softmax(logits) - onehot(target)) of this shard, overwritten; may alias logits.
struct CrossEntropyBackward {
  ConstView logits;
  ConstView targets;
  ConstView lse;
  double scale = 1;  ///< gradient of the total with respect to each token's loss: 1 / tokens for a mean
  View dlogits;
  std::int64_t vocab_begin = 0;
  std::int64_t vocab_size = 0;  ///< of all shards together; 0: this shard is all
};
TRANSMAMBA_KERNEL(cross_entropy_backward, CrossEntropyBackward);

}  // namespace transmamba
