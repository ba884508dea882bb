// Causal softmax attention that never holds a (t, t) matrix (online softmax, Dao et al., 2022).
#pragma once

#include "kernels/dispatch.h"

namespace transmamba {

/// o_i = sum_{j <= i + offset} softmax_j(q_i . k_j / sqrt(n)) v_j.
/// q (b, tq, h, n); k (b, tk, h, n); v (b, tk, h, p); o (b, tq, h, p): T; lse (b, h, tq): S, log of the
/// softmax's sum. `offset` is the position of q[0] less that of k[0], so that a decoder or a later segment
/// sees the keys before it: offset >= 0. tk may be less than tq + offset (every key is then seen by the last
/// query) or more (the last keys are seen by none). Memory: O(block^2) a thread.
///
/// Keys may come in several calls, in any order. With `continues` o and lse hold what calls over other keys
/// of these queries made of them, and get what one call over all would give:
///   lse' = log(exp(lse) + exp(lse_here)), o' = exp(lse - lse') o + exp(lse_here - lse') o_here,
/// where o_here and lse_here are this call's own; no exp is of more than 0. In bfloat16 o is rounded after
/// each call. For keys that all of the queries see, as those [0, s) by queries from s on, offset = s - 1.
/// o and lse overlap neither the inputs nor each other. Workspace on a GPU in bfloat16: with `continues`
/// another o and lse, else another lse where that is not contiguous, each of at most tq queries.
struct Attention {
  ConstView q, k, v;
  View o;
  View lse;
  std::int64_t offset = 0;
  bool continues = false;  ///< o and lse are in and out
};
TRANSMAMBA_KERNEL(attention, Attention);

/// Gradients of Attention; probabilities are recomputed from lse. dk and dv are overwritten (keys that no
/// query sees get zero) or, with `accumulate`, added to (such keys keep what they had), so that several runs
/// of queries can share their keys. dq is overwritten or, with `accumulate_dq`, added to, so that a query's
/// keys can come in several calls: o and lse are then those over ALL of them, what the last of forward's
/// calls left, in each call. P_ij = exp(q_i . k_j / sqrt(n) - lse_i) and dout_i . o_i are those of the
/// whole softmax, so that a call gives its keys' whole dk and dv, and an addend of dq. Deterministic.
/// Workspace on a GPU: kernels/workspace.h, and in bfloat16, of the heads that it takes at a time, dk and dv
/// with `accumulate` and dq with `accumulate_dq`, and lse where that is not contiguous.
struct AttentionBackward {
  ConstView dout;  ///< gradient of o
  ConstView q, k, v, o, lse;
  View dq, dk, dv;
  std::int64_t offset = 0;
  bool accumulate = false;     ///< dk += and dv += instead of =
  bool accumulate_dq = false;  ///< dq += instead of =
};
TRANSMAMBA_KERNEL(attention_backward, AttentionBackward);

}  // namespace transmamba
