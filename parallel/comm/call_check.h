// A call's arguments, before an implementation sees them.
#pragma once

#include <cstdint>
#include <string>

#include "parallel/comm/communicator.h"

namespace transmamba {

/// Throws Error that begins with the group's name where an argument is not as communicator.h asks.
void check_call(const Call& call, const std::string& axis, int rank, int size, bool takes_bf16);

/// What this rank sends to others in the best algorithm, as recorder.h defines it.
std::int64_t bytes_sent(const Call& call, int rank, std::int64_t size);

}  // namespace transmamba
