// What the ways to run a child share: child_process.cpp, shown_process.cpp.
#pragma once

#include <sys/types.h>

#include "launch/child_process.h"

namespace transmamba {

/// A child with its output and errors in these descriptors and nothing to read, which gets SIGTERM where
/// this process ends. `own_group`: a terminal's signals do not reach it.
pid_t start_child(const std::vector<std::string>& words, int output, int errors, bool own_group);

/// Without waiting; `status` is waitpid's.
bool has_ended(pid_t child, const std::string& program, int& status);

ChildResult result_of(int status);

}  // namespace transmamba
