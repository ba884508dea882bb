// What all ranks did, for people to look at: Chrome's Trace Event format, which Perfetto reads too.
#pragma once

#include <string>
#include <vector>

#include "launch/rank_profile.h"

namespace transmamba {

/// A process a rank. In it a thread for computing, one for what the host does beside a GPU, and one for the
/// calls of each axis, or several where those overlap. Microseconds since the profile began.
std::string chrome_trace(const std::vector<RankProfile>& ranks);

}  // namespace transmamba
