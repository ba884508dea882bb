// Ranks as processes under MPI.
//
// Every call is made of messages between two ranks, and sums are formed here in the order of ranks: so
// results have the same bits on every rank, in every run, and over threads (MPI's own reductions promise none
// of this). Each rank tells each other one which call it is in; where these differ every rank of the group
// throws.
#pragma once

#include <climits>
#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "parallel/comm/communicator.h"

namespace transmamba {

/// What MPI allows, and what tests make small.
struct MpiLimits {
  std::size_t largest_message = std::size_t{1}
                                << 30;  ///< bytes; a longer one is cut, for MPI counts in 32 bits
  int largest_tag = INT_MAX;  ///< the library's own MPI_TAG_UB where that is less, and then of messages too
  double patience = 2;        ///< seconds after which a wait is told to the other ranks
};

/// All processes, over duplicates of MPI_COMM_WORLD; MPI must be initialised, and one thread makes all
/// calls.
///
/// Once all ranks wait, each for what another that waits has not begun, all throw one Error that names the
/// call of each, within seconds: also across groups. A run that is only slow is never taken for such a one. A
/// wait longer than `timeout_seconds` throws an Error that names the call and the ranks that did not come. It
/// names their hosts too, where `hosts`, by rank, are several.
std::unique_ptr<Communicator> mpi_world(std::shared_ptr<Recorder> recorder, double timeout_seconds,
                                        const MpiLimits& limits = {}, std::vector<std::string> hosts = {});

}  // namespace transmamba
