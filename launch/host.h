// What this host is, for people.
#pragma once

#include <string>

namespace transmamba {

std::string host_name();
std::string processor_name();  ///< of its CPU

}  // namespace transmamba
