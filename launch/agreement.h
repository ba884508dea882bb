// Ranks are started apart; that they run the same thing is checked, not assumed.
#pragma once

#include "core/config.h"
#include "core/tokens.h"
#include "parallel/comm/communicator.h"

namespace transmamba {

/// A collective call. Throws Error on all ranks, naming the first key that differs and two ranks' values,
/// unless all have the same configuration and the same machine file (parallel.machine).
void check_same_configuration(Communicator& world, const Config& config);

/// A collective call. Throws Error on all ranks, naming two, unless all have token files of the same sizes:
/// hosts may see different files of one name. `validation` may be null.
void check_same_data(Communicator& world, const TokenDataset& training, const TokenDataset* validation);

}  // namespace transmamba
