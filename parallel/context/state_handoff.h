// How SSM states pass between ranks. For any run of tokens S_out = exp(log_decay) S_in + S_local, so each
// rank summarises its segments, all exchange summaries (h (n p + 1) numbers a sequence and segment, whatever
// its length), and each combines those before its own (DESIGN of the segment summary: kernels/ssd.h). Once a
// layer, in one all-gather: nobody waits for another's scan.
#pragma once

#include "parallel/context/sequence.h"

namespace transmamba {

/// A summary, or its gradient, for each of a rank's segments, in S; one block of memory, ready to be
/// gathered.
struct Summaries {
  Summaries() = default;
  /// Zeros. `count` segments of b sequences, h heads, states (n, p).
  Summaries(const Context& context, std::int64_t count, std::int64_t b, std::int64_t h, std::int64_t n,
            std::int64_t p);
  Tensor flat;
  View state;                                                           ///< (count, b, h, n, p)
  View log_decay;                                                       ///< (count, b, h)
  View state_of(std::size_t i) const { return one(state, i); }          ///< (b, h, n, p)
  View log_decay_of(std::size_t i) const { return one(log_decay, i); }  ///< (b, h)

 private:
  static View one(const View& all, std::size_t i) {
    const auto at = static_cast<std::int64_t>(i);
    return all.slice(0, at, at + 1).merge(0);
  }
};

/// The states that enter this rank's segments, and what their gradients need.
struct Entering {
  Tensor states;     ///< (this rank's segments, b, h, n, p)
  Tensor log_decay;  ///< (segments of all ranks in order of time, b, h)
  explicit operator bool() const { return static_cast<bool>(states); }
  Tensor of(std::size_t i) const {  ///< (b, h, n, p) of segment i of this rank
    const auto at = static_cast<std::int64_t>(i);
    return states.slice(0, at, at + 1).merge(0);
  }
};

class StateHandoff {
 public:
  /// `mine` holds sequence.max_parts() summaries, of which this rank fills those of its segments.
  StateHandoff(const Context& context, const Sequence& sequence, Summaries mine, std::string_view purpose);

  /// Forward: states[k + 1] = exp(log_decay[k]) states[k] + local[k] from states[0] = 0.
  Entering combine(const Context& context);
  /// Backward, where `mine` held the gradients of the entering states by their own use (log_decay is not
  /// read): the gradients of the states that this rank's segments end with, (this rank's segments, b, h, n,
  /// p). ssd_summary_backward of a segment, with its entering state, takes them on.
  Tensor combine_backward(const Context& context, const Entering& entering);

 private:
  /// All ranks' summaries in order of time, (segments, ..).
  Summaries in_order(const Context& context);
  /// Out of (segments, ..) those of this rank.
  Tensor mine_of(const Context& context, const View& states) const;
  const Sequence* sequence_;
  Summaries mine_;
  Tensor all_;
  Pending pending_;
};

}  // namespace transmamba
