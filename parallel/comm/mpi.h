// Ranks as processes under MPI.
//
// Every call is made of messages between two ranks, and sums are formed here in the order of ranks: so
// results have the same bits on every rank, in every run, and over threads (MPI's own reductions promise none
// of this). Each rank tells each other one which call it is in; where these differ every rank of the group
// throws.
#pragma once

#include <cstddef>
#include <memory>

#include "parallel/comm/communicator.h"

namespace transmamba {

/// All processes, over a duplicate of MPI_COMM_WORLD; MPI must be initialised, and one thread makes all
/// calls. A wait longer than `timeout_seconds` throws an Error that names the call and the ranks that did not
/// come. A longer message than `largest_message` bytes is cut (MPI counts in 32 bits; tests make it small).
std::unique_ptr<Communicator> mpi_world(std::shared_ptr<Recorder> recorder, double timeout_seconds,
                                        std::size_t largest_message = std::size_t{1} << 30);

}  // namespace transmamba
