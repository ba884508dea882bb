// Ranks that must act as one although each learns something of its own.
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "parallel/comm/communicator.h"

namespace transmamba {

/// A collective call: the texts of all ranks, on all ranks.
std::vector<std::string> gather_text(Communicator& group, std::string_view purpose, const std::string& mine,
                                     Site where = Site::current());

/// A collective call: the texts of all ranks, on rank 0; nothing elsewhere. For long ones.
std::vector<std::string> collect_text(Communicator& group, std::string_view purpose, const std::string& mine,
                                      Site where = Site::current());

/// A collective call: runs `step` on every rank. If it threw on any, all throw the same Error: that of the
/// lowest rank on which it did, with "rank R: " in front unless all ranks failed with the same text. A step
/// may make collective calls itself only where it cannot fail between them on some ranks.
void agree(Communicator& group, std::string_view what, const std::function<void()>& step,
           Site where = Site::current());

}  // namespace transmamba
