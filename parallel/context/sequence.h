// A sequence as the ranks of a cp group see it: who holds which tokens.
#pragma once

#include <algorithm>
#include <vector>

#include "core/tensor.h"
#include "kernels/ssd.h"
#include "parallel/comm/communicator.h"
#include "parallel/context/layout.h"

namespace transmamba {

/// A rank's tokens lie one segment after the other, in ascending order of position.
class Sequence {
 public:
  /// A segment and where it stands in time and among its rank's tokens.
  struct Part {
    Segment segment;
    int rank = 0;
    std::int64_t offset = 0;  ///< of its first token among the rank's
    int index = 0;            ///< among the rank's segments
  };

  Sequence(Communicator& cp, const ContextLayout& layout);

  Communicator& cp() const { return *cp_; }
  std::int64_t length() const { return length_; }            ///< T
  std::int64_t tokens() const { return tokens_; }            ///< of this rank
  const std::vector<Part>& parts() const { return parts_; }  ///< of all ranks, in order of time
  /// This rank's, in order of time, with their place in parts().
  const std::vector<std::size_t>& mine() const { return mine_[static_cast<std::size_t>(cp_->rank())]; }
  const Part& my_part(std::size_t i) const { return parts_[mine()[i]]; }
  /// Whether all of this rank's tokens come before all others'.
  bool is_first() const { return mine().back() == 0; }
  bool is_last() const { return mine().front() + 1 == parts_.size(); }  ///< after all others'
  std::int64_t max_parts() const { return max_parts_; }                 ///< most that any rank has
  /// Of parts(), where each rank gives max_parts() blocks, and which are this rank's.
  std::span<const SegmentPlace> places() const { return places_; }
  /// How many tokens of `rank` stand before `position`. They are its first ones.
  std::int64_t tokens_before(std::int64_t position, int rank) const;
  std::int64_t tokens_before(std::int64_t position) const { return tokens_before(position, cp_->rank()); }
  /// For a rank that sends and receives nothing: the call goes on, with its buffers, until this is destroyed.
  /// Who waited for it would wait for ranks that may be far behind. On the host, which moves its messages
  /// only when it waits, it is waited for.
  void keep(const Stream& stream, Pending pending, std::vector<Tensor> buffers) const;
  /// This rank's tokens out of whole sequences, (b, T) -> (b, tokens()) int32. In host memory both.
  Tensor deal(const Context& context, const Tensor& whole) const;

 private:
  Communicator* cp_;
  std::int64_t length_ = 0, tokens_ = 0, max_parts_ = 0;
  std::vector<Part> parts_;
  std::vector<SegmentPlace> places_;
  std::vector<std::vector<std::size_t>> mine_;
  struct Kept {
    std::vector<Tensor> buffers;
    Pending pending;  // which ends before they do
  };
  mutable std::vector<Kept> kept_;
};

}  // namespace transmamba
