// The state-space dual (Mamba-2; Dao & Gu, 2024) and the segment summary everything hangs on.
//
// With A = -exp(a_log) per head, state S (n, p), and the mixer's own q = C, k = B, v = x:
//   S_t = exp(A dt_t) S_{t-1} + dt_t k_t v_t^T,     y_t = S_t^T q_t + d_skip v_t
// For a run of tokens this is affine in the state: S_out = exp(log_decay) S_in + S_local. The pair
// (log_decay, S_local) is the segment summary. The Memory Converter is the summary of the prefix [0, P).
//
// Shapes: q, k (b, t, h, n); v, y (b, t, h, p): T; dt (b, t, h); a_log, d_skip (h); states (b, h, n, p);
// log_decay (b, h): S. Gradients have the type of what they are of. Any t, also 0. Decays are exp of a sum <=
// 0, never a quotient. Workspace on a GPU: kernels/workspace.h. In bfloat16 the order of additions, and so
// the last bits, depend on how many multiprocessors the GPU has; the same GPU gives the same bits.
#pragma once

#include <span>

#include "kernels/dispatch.h"

namespace transmamba {

/// state_out = exp(log_decay) state_in + sum_s exp(A sum_{r>s} dt_r) dt_s k_s v_s^T,  log_decay = A sum dt.
/// state_out may alias state_in.
struct SsdSummary {
  ConstView k, v, dt, a_log;
  ConstView state_in = {};  ///< optional: zero
  View state_out;
  View log_decay = {};  ///< optional
};
TRANSMAMBA_KERNEL(ssd_summary, SsdSummary);

/// Gradients of SsdSummary. ADDS to dk, dv, ddt (the prefix's K and V also feed attention) and to da_log;
/// dstate_in is overwritten and may alias dstate_out.
struct SsdSummaryBackward {
  ConstView dstate_out;
  ConstView dlog_decay = {};  ///< optional: zero
  ConstView k, v, dt, a_log;
  ConstView state_in = {};  ///< as in forward
  View dk, dv, ddt, da_log;
  View dstate_in = {};  ///< optional
};
TRANSMAMBA_KERNEL(ssd_summary_backward, SsdSummaryBackward);

/// The recurrence over t tokens from state_in, done in chunks as matrix products.
struct SsdScan {
  ConstView q, k, v, dt, a_log;
  ConstView d_skip = {};    ///< optional: zero
  ConstView state_in = {};  ///< optional: zero
  View y;
  View state_out = {};  ///< optional
};
TRANSMAMBA_KERNEL(ssd_scan, SsdScan);

/// Gradients of SsdScan; states inside the sequence are recomputed.
/// dq, dk, dv, ddt and dstate_in are overwritten, da_log and dd_skip are added to. Deterministic.
struct SsdScanBackward {
  ConstView dy;
  ConstView dstate_out = {};  ///< optional: zero
  ConstView q, k, v, dt, a_log;
  ConstView d_skip = {}, state_in = {};  ///< as in forward
  View dq, dk, dv, ddt, da_log;
  View dd_skip = {};    ///< with d_skip
  View dstate_in = {};  ///< optional
};
TRANSMAMBA_KERNEL(ssd_scan_backward, SsdScanBackward);

/// The gradient of the state that entered a run, by the run's outputs alone: the summary of the recurrence
/// backwards. dstate_in = exp(log_decay) sum_t exp(A sum_{r<=t} dt_r) q_t dy_t^T: what SsdScanBackward
/// without dstate_out gives, where the state came to the run through earlier tokens that decay it by
/// `log_decay`.
struct SsdEntryGradient {
  ConstView dy, q, dt, a_log;
  ConstView log_decay = {};  ///< optional: zero
  View dstate_in;
};
TRANSMAMBA_KERNEL(ssd_entry_gradient, SsdEntryGradient);

/// Where segment k of a sequence lies in the buffer that ranks gathered their segments in, and which of the
/// wanted results is its own; -1: none.
struct SegmentPlace {
  std::int16_t in = 0, out = -1;
};
inline constexpr std::int64_t kMaxSegments = 2048;

/// The states entering each of s segments in order of time, from the segments' summaries without state_in:
/// states[0] = 0, states[k+1] = exp(log_decay[k]) states[k] + local[k]. What comes after the last one that is
/// wanted has no say. log_decay (places, b, h), local (places, b, h, n, p), states (wanted, b, h, n, p);
/// 1 <= s <= kMaxSegments. The last dim has stride 1, the others any.
struct SsdCombine {
  ConstView log_decay, local;
  std::span<const SegmentPlace> segments;
  View states;
};
TRANSMAMBA_KERNEL(ssd_combine, SsdCombine);

/// Gradients of the states that wanted segments end with, from those of each segment's entering state by its
/// own use: dlocal[s-1] = 0 and dlocal[k-1] = dstates[k] + exp(log_decay[k]) dlocal[k], overwritten. What
/// comes before the first one that is wanted, and log_decay[s-1], have no say. dstates (places, b, h, n, p),
/// dlocal (wanted, b, h, n, p). Deterministic. The backward pass of segment k with state_in = states[k] and
/// dstate_out = dlocal[k] does the rest: it knows that the state passed through the decays.
struct SsdCombineBackward {
  ConstView log_decay, dstates;
  std::span<const SegmentPlace> segments;
  View dlocal;
};
TRANSMAMBA_KERNEL(ssd_combine_backward, SsdCombineBackward);

}  // namespace transmamba
