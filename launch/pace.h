// Which rank is the slowest.
#pragma once

#include <optional>

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
  explicit Pace(Communicator& world) : world_(world) {}
  /// Before the recorder is reset: a step of so many seconds has ended.
  void add_step(double seconds);
  /// A collective call: of the steps since the last. Nothing of one rank.
  std::optional<Slowest> slowest();

 private:
  Communicator& world_;
  double computing_ = 0;
};

}  // namespace transmamba
