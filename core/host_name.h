// What this host is called, for people.
#pragma once

#include <string>

namespace transmamba {

std::string host_name();

}  // namespace transmamba
