// The subcommands of `transmamba`, one source file each. `arguments` are the words after the subcommand's
// name. They return the process's exit status, print help for --help, and throw Error for anything wrong.
#pragma once

#include <string>
#include <vector>

namespace transmamba {

/// Text files to a token file.
int prepare(std::vector<std::string> arguments);

}  // namespace transmamba
