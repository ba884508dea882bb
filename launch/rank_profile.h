// What one rank was seen to do in the steps of a profile, as it is sent to rank 0. Times are seconds on rank
// 0's clock since the profile began.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "core/profile.h"
#include "parallel/comm/clock.h"

namespace transmamba {

struct RankProfile {
  struct Region {
    std::string family, name;  ///< "mixer forward", "layer 12 mixer forward"
    bool is_step = false, on_host = false;
    double begin = 0, end = 0;
    double exposed = 0, own = 0;  ///< waited for other ranks, and computed, outside regions in it
  };
  struct Call {
    std::string axis, purpose, kind, group;
    int from = -1, to = -1;  ///< of a message: ranks of the group
    std::int64_t bytes = 0, size = 0;
    double bus_factor = 1;
    double begin = 0, end = 0, exposed = 0;
    bool on_gpu = false;
  };
  double clock_offset = 0, round_trip = 0;  ///< as parallel/comm/clock.h found them; the longer one
  std::vector<Region> regions;
  std::vector<Call> calls;

  std::string to_text() const;
  static RankProfile from_text(const std::string& text);
};

/// `place` gives the time on the profile's clock of one on this host's.
RankProfile rank_profile(const Profile& profile, const std::function<double(double)>& place);

}  // namespace transmamba
