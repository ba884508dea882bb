// What this host is, for people.
#pragma once

#include <string>
#include <vector>

#include "core/host_name.h"

namespace transmamba {

std::string processor_name();  ///< of this host's CPU

/// An error's text with the host of the rank that it begins with ("rank 2: .."), and a word about files that
/// are missing, where the ranks, whose hosts by rank these are, run on several.
std::string name_host(const std::string& text, const std::vector<std::string>& hosts);

}  // namespace transmamba
