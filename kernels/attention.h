// Causal softmax attention that never holds a (t, t) matrix (online softmax, Dao et al., 2022).
#pragma once

#include "kernels/dispatch.h"

namespace transmamba {

/// o_i = sum_{j <= i + offset} softmax_j(q_i . k_j / sqrt(n)) v_j.
/// q (b, tq, h, n); k (b, tk, h, n); v (b, tk, h, p); o (b, tq, h, p): T; lse (b, h, tq): S, log of the
/// softmax's sum. `offset` is the position of q[0] less that of k[0], so that a decoder or a later segment
/// sees the keys before it: offset >= 0. tk may be less than tq + offset (every key is then seen by the last
/// query) or more (the last keys are seen by none). Memory: O(block^2) a thread.
struct Attention {
  ConstView q, k, v;
  View o;
  View lse;
  std::int64_t offset = 0;
};
TRANSMAMBA_KERNEL(attention, Attention);

/// Gradients of Attention; probabilities are recomputed from lse. dq is overwritten. dk and dv are
/// overwritten (keys that no query sees get zero) or, with `accumulate`, added to (such keys keep what they
/// had), so that several runs of queries can share their keys. Deterministic.
/// Workspace on a GPU: kernels/workspace.h, and with `accumulate` dk and dv of the heads that it takes at a
/// time.
struct AttentionBackward {
  ConstView dout;  ///< gradient of o
  ConstView q, k, v, o, lse;
  View dq, dk, dv;
  std::int64_t offset = 0;
  bool accumulate = false;  ///< dk += and dv += instead of =
};
TRANSMAMBA_KERNEL(attention_backward, AttentionBackward);

}  // namespace transmamba
