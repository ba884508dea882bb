// Which rank is the slowest.
#pragma once

#include <optional>

#include "core/tensor.h"
#include "parallel/comm/communicator.h"

namespace transmamba {

struct Slowest {
  int rank = 0;
  double excess = 0;  ///< how much more time it computes than the others in the mean: 0.5 for half more
};

/// What ranks compute between their waits for each other: in step time all are as slow as the slowest. By the
/// host's clock, so on GPUs it only sees a host that is slow.
class Pace {
 public:
  explicit Pace(Communicator& world);
  /// Before the recorder is reset: a step of so many seconds has ended.
  void add_step(double seconds);
  /// A collective call that does not wait: it sends off what is known of the steps since the last one, and
  /// gives what that one had sent. Nothing of one rank, and the first time.
  std::optional<Slowest> slowest();

 private:
  Communicator& world_;
  double computing_ = 0;
  bool is_under_way_ = false;
  Allocator memory_;
  Tensor mine_, all_;
  Pending call_;
};

}  // namespace transmamba
