#include "tools/commands.h"

#include <fmt/core.h>

#include "launch/exit_codes.h"

namespace transmamba {

int print_usage(const Process& process, std::string_view usage, const std::vector<std::string>& arguments) {
  const bool asked = !arguments.empty() && is_help(arguments[0]);
  if (process.rank() == 0) fmt::print(asked ? stdout : stderr, "{}", usage);
  return asked ? kExitDone : kExitUsage;
}

}  // namespace transmamba
