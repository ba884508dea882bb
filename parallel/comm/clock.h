// One clock for all ranks: how far each rank's is from rank 0's.
#pragma once

#include <functional>

#include "parallel/comm/communicator.h"

namespace transmamba {

/// rank 0's clock = this rank's + `offset`, as found at `at` by this rank's. `round_trip`: of the message
/// that it was found by, so that it is off by at most half of that.
struct ClockOffset {
  double at = 0, offset = 0, round_trip = 0;
};

/// A collective call. `now` gives seconds, of each rank's own clock. Rank 0 exchanges some messages with each
/// rank in turn and believes the fastest.
ClockOffset measure_clock_offset(Communicator& world, const std::function<double()>& now);

/// On rank 0's clock, what happened at `time` by this rank's: linear between two measurements, for clocks
/// drift; but where one offset fits both measurements that one, so that times keep their lengths.
double on_first_clock(const ClockOffset& early, const ClockOffset& late, double time);

}  // namespace transmamba
