#include <fmt/core.h>

#include <array>

#include "launch/process.h"
#include "tools/commands.h"

namespace transmamba {
namespace {

struct Command {
  std::string_view name;
  int (*run)(Process&, std::vector<std::string>);
  bool in_one_process;  ///< has nothing to do for more
  std::string_view summary;
};

constexpr std::array<Command, 8> kCommands = {{
    {"prepare", prepare, true, "turn text into a token file"},
    {"train", train, false, "train a model from a configuration"},
    {"launch", launch, true, "start training on all ranks: mpirun here or on hosts, or a job of SLURM"},
    {"verify", verify, false, "check this build against a file of the reference implementation"},
    {"generate", generate, true, "write text with a trained model"},
    {"plan", plan, true, "show how N ranks will share a model, and how long a step will take"},
    {"bench", bench, false, "measure this machine for plans, layouts and stages"},
    {"scale", scale, true, "measure training on more and more ranks, beside what plans predict"},
}};

std::string usage() {
  std::string text = "usage: transmamba COMMAND [ARGUMENT ...]\n\n";
  for (const Command& c : kCommands) text += fmt::format("  {:<10} {}\n", c.name, c.summary);
  return text + "\n`transmamba COMMAND --help` says more.\n";
}

int run(Process& process, const std::vector<std::string>& arguments) {
  for (const Command& command : kCommands) {
    if (arguments.empty() || arguments[0] != command.name) continue;
    check(!command.in_one_process || process.size() == 1, command.name,
          "processes: expected 1, got {}; start `transmamba {}` without mpirun or srun", process.size(),
          command.name);
    return command.run(process, {arguments.begin() + 1, arguments.end()});
  }
  if (!arguments.empty() && !is_help(arguments[0]) && process.rank() == 0)
    fmt::print(stderr, "transmamba: [command] unknown command \"{}\"\n", arguments[0]);
  return print_usage(process, usage(), arguments);
}

}  // namespace

}  // namespace transmamba

int main(int argc, char** argv) {
  using namespace transmamba;
  const std::vector<std::string> arguments(argv + 1, argv + argc);
  return run_command([&](Process& process) { return run(process, arguments); });
}
