#include <fmt/core.h>

#include <array>

#include "launch/session.h"
#include "tools/commands.h"

namespace transmamba {
namespace {

struct Command {
  std::string_view name;
  int (*run)(std::vector<std::string>);
  std::string_view summary;
};

constexpr std::array<Command, 6> kCommands = {{
    {"prepare", prepare, "turn text into a token file"},
    {"train", train, "train a model from a configuration"},
    {"verify", verify, "check this build against a file of the reference implementation"},
    {"generate", generate, "write text with a trained model"},
    {"plan", plan, "show how N ranks will share a model, and how long a step will take"},
    {"bench", bench, "measure this machine for plans, layouts and stages"},
}};

std::string usage() {
  std::string text = "usage: transmamba COMMAND [ARGUMENT ...]\n\n";
  for (const Command& c : kCommands) text += fmt::format("  {:<10} {}\n", c.name, c.summary);
  return text + "\n`transmamba COMMAND --help` says more.\n";
}

}  // namespace

}  // namespace transmamba

int main(int argc, char** argv) {
  using namespace transmamba;
  std::vector<std::string> arguments(argv + 1, argv + argc);
  for (const Command& command : kCommands)
    if (!arguments.empty() && arguments[0] == command.name)
      return run_command([&] { return command.run({arguments.begin() + 1, arguments.end()}); });
  if (!arguments.empty() && !is_help(arguments[0]))
    fmt::print(stderr, "transmamba: [command] unknown command \"{}\"\n", arguments[0]);
  return print_usage(usage(), arguments);
}
