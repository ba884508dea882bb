// How SSM states pass between ranks. For any run of tokens S_out = exp(log_decay) S_in + S_local, so each
// rank summarises its segments, sends the summaries (h (n p + 1) numbers a sequence and segment, whatever its
// length) to the ranks with later segments, and combines those before its own (kernels/ssd.h). Once a layer:
// nobody waits for another's scan, but for that of a rank that waits for nobody. Backwards the same, from
// later to earlier segments, with the gradients of the states that entered them.
#pragma once

#include "parallel/context/sequence.h"

namespace transmamba {

/// A summary, or the gradient of an entering state, for each of a rank's segments, in S; one block of memory,
/// ready to be gathered.
struct Summaries {
  Summaries() = default;
  /// Undefined. `count` segments of b sequences, h heads, states (n, p).
  Summaries(const Context& context, std::int64_t count, std::int64_t b, std::int64_t h, std::int64_t n,
            std::int64_t p);
  Tensor flat;                                                          ///< (count, what a segment takes)
  View state;                                                           ///< (count, b, h, n, p)
  View log_decay;                                                       ///< (count, b, h)
  View state_of(std::size_t i) const { return one(state, i); }          ///< (b, h, n, p)
  View log_decay_of(std::size_t i) const { return one(log_decay, i); }  ///< (b, h)

 private:
  friend class StateHandoff;
  Summaries(const Tensor& flat, const Shape& state);
  static View one(const View& all, std::size_t i) {
    const auto at = static_cast<std::int64_t>(i);
    return all.slice(0, at, at + 1).merge(0);
  }
};

/// The states that enter this rank's segments, and what their gradients need.
struct Entering {
  Tensor states;     ///< (this rank's segments, b, h, n, p)
  Tensor log_decay;  ///< (sequence.max_parts(), b, h): of this rank's segments
  explicit operator bool() const { return static_cast<bool>(states); }
  Tensor of(std::size_t i) const {  ///< (b, h, n, p) of segment i of this rank
    const auto at = static_cast<std::int64_t>(i);
    return states.slice(0, at, at + 1).merge(0);
  }
};

class StateHandoff {
 public:
  enum class Direction : std::uint8_t { later, earlier };  ///< of summaries, and of gradients
  /// Of states (b, h, n, p). From here on those of other ranks may come: before this one makes its own, where
  /// the group has a window. `purpose`: a literal.
  StateHandoff(const Context& context, const Sequence& sequence, const Shape& state, Direction direction,
               std::string_view purpose);
  /// `mine` holds sequence.max_parts() summaries, of which this rank fills those of its segments. That of the
  /// sequence's last segment nobody reads, and backwards that of the first. Once, before combine().
  void start(const Context& context, Summaries mine);

  /// After Direction::later: states[k + 1] = exp(log_decay[k]) states[k] + local[k] from states[0] = 0.
  /// Absent where that is all: on the rank whose tokens come before all others'.
  Entering combine(const Context& context);
  /// After Direction::earlier, where `mine` held the gradients of the entering states by their segments' own
  /// outputs, and the decays again: the gradients of the states that this rank's segments end with, (this
  /// rank's segments, b, h, n, p). Absent on the rank whose tokens come after all others'.
  Tensor combine_backward(const Context& context);

 private:
  Summaries all(const Context& context);
  Tensor wanted(const Context& context) const;
  Tensor of_rank(int rank) const;
  std::vector<Incoming> incoming() const;  ///< of other ranks
  const Sequence* sequence_;
  Direction direction_;
  std::string_view purpose_;
  Summaries mine_;
  bool receives_ = false;
  Tensor all_;  // (cp sequence.max_parts(), what a segment takes)
  Pending pending_;
};

/// What a handoff has in the group's window (Communicator::open_window), bytes: b sequences, h heads, states
/// (n, p) of `statistics`.
std::int64_t handoff_window_bytes(const Sequence& sequence, std::int64_t b, std::int64_t h, std::int64_t n,
                                  std::int64_t p, DType statistics);

}  // namespace transmamba
