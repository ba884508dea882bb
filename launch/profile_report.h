// What a profile says: where the time of a step went, and how fast ranks talked; for people as tables, for
// programs as JSON. Numbers are of a step, means over ranks.
#pragma once

#include <string>
#include <vector>

#include "core/config.h"
#include "core/machine.h"
#include "launch/rank_profile.h"

namespace transmamba {

/// Calls of one axis, purpose and kind.
///
/// `seconds` are those in which a rank had calls under way, which is often waiting for a rank that comes
/// later. Bandwidths are about `transfer`, what is left from the moment when all are there: the least time of
/// the call's ranks, which needs no clock of both. A send of host memory ends before anybody receives it; of
/// such a message it is what passed since the later of its two.
struct ProfiledCalls {
  std::string axis, purpose, kind;
  double calls = 0, bytes = 0;  ///< that a rank sent
  double seconds = 0, transfer = 0, exposed = 0;
  double longest_exposed = 0;      ///< of the rank that waited longest
  double algorithm_bandwidth = 0;  ///< bytes a second, as nccl-tests has them (parallel/comm/timed_call.h)
  double bus_bandwidth = 0;
  double link_bandwidth = 0;  ///< the most that was measured of the link; 0: not known for this kind
};

struct ProfiledRegions {
  std::string family;
  bool on_host = false;  ///< beside a GPU: no part of the sums below
  double calls = 0, seconds = 0;
  double exposed = 0, own = 0;  ///< outside regions in it
};

struct ProfileSummary {
  int ranks = 0;
  std::int64_t first_step = 0, steps = 0;  ///< counted from 1
  /// Of a step: compute + exposed + rest, where the rest is outside of all regions.
  double seconds = 0, compute = 0, exposed = 0, rest = 0;
  std::vector<ProfiledCalls> calls;                ///< those with most exposed time first
  std::vector<ProfiledRegions> regions;            ///< those with most own time first
  std::string machine;                             ///< whose links those are
  std::vector<double> clock_offsets, round_trips;  ///< by rank
};

/// `ranks` by rank.
ProfileSummary summarise(const std::vector<RankProfile>& ranks, std::int64_t first_step,
                         const Machine& machine, const ParallelConfig& degrees);
std::string format_table(const ProfileSummary& summary);
std::string to_json(const ProfileSummary& summary);

}  // namespace transmamba
