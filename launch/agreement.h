// Ranks are started apart; that they run the same thing is checked, not assumed.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "core/config.h"
#include "core/tokens.h"
#include "parallel/comm/communicator.h"

namespace transmamba {

/// What is a host's own.
struct HostFacts {
  std::string host, program;  ///< its name; a digest of this program's file
  bool operator==(const HostFacts&) const = default;
};
HostFacts host_facts();
double wall_clock();  ///< seconds since 1970

/// A collective call. Throws Error on all ranks, naming two and their hosts, unless all run the same program.
/// Returns what is only worth a warning: hosts whose clock, `now`, is seconds off rank 0's.
std::vector<std::string> check_same_program(Communicator& world, const HostFacts& mine = host_facts(),
                                            const std::function<double()>& now = wall_clock);

/// A collective call. Throws Error on all ranks, naming the first key that differs and two ranks' values,
/// unless all have the same configuration and the same machine file (parallel.machine).
void check_same_configuration(Communicator& world, const Config& config);

/// A collective call. Throws Error on all ranks, naming two, unless all have token files of the same sizes:
/// hosts may see different files of one name. `validation` may be null.
void check_same_data(Communicator& world, const TokenDataset& training, const TokenDataset* validation);

}  // namespace transmamba
