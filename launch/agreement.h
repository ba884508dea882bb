// Ranks are started apart; that they run the same thing is checked, not assumed.
#pragma once

#include "core/config.h"
#include "parallel/comm/communicator.h"

namespace transmamba {

/// A collective call. Throws Error on all ranks, naming the first key that differs and two ranks' values,
/// unless all have the same configuration and the same machine file (parallel.machine).
void check_same_configuration(Communicator& world, const Config& config);

}  // namespace transmamba
