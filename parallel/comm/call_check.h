// A call's arguments, before an implementation sees them.
#pragma once

#include <string>

#include "parallel/comm/communicator.h"

namespace transmamba {

/// Throws Error that begins with the group's name where an argument is not as communicator.h asks.
void check_call(const Call& call, const std::string& axis, int rank, int size, bool takes_bf16);

}  // namespace transmamba
