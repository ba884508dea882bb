// transmamba plan: what a run on N ranks will look like, without running it.
#include <fmt/core.h>

#include <charconv>

#include "parallel/plan/plan.h"
#include "tools/commands.h"

namespace transmamba {
namespace {

constexpr auto kUsage =
    "usage: transmamba plan CONFIG --ranks N [--machine FILE] [--section.key value ...]\n\n"
    "Prints how N ranks share a model: the mesh, pipeline stages, the segments of context parallel ranks "
    "with the\n"
    "balance of all four layouts, memory, seconds of a step, and a drawing of the pipeline. Needs no data "
    "and no\n"
    "other ranks.\n\n"
    "  --ranks N       as many as `mpirun -n N` would start\n"
    "  --machine FILE  what `transmamba bench --quick` measured; the same as --parallel.machine\n\n"
    "`transmamba train --help` lists the keys.\n";

int parse_ranks(const std::string& word) {
  int ranks = 0;
  const char* end = word.data() + word.size();
  const auto [stop, error] = std::from_chars(word.data(), end, ranks);
  check(error == std::errc() && stop == end && ranks >= 1, "plan",
        "--ranks: expected a number of at least 1, got \"{}\"", word);
  return ranks;
}

}  // namespace

int plan(Process& process, std::vector<std::string> arguments) {
  if (arguments.empty() || is_help(arguments[0]) || arguments[0].starts_with("--"))
    return print_usage(process, kUsage, arguments);
  int ranks = 0;
  std::vector<std::string> overrides;
  for (std::size_t i = 1; i < arguments.size(); ++i) {
    const std::string& word = arguments[i];
    const auto value = [&](const std::string& name) -> std::string {
      if (word.starts_with(name + "=")) return word.substr(name.size() + 1);
      check(i + 1 < arguments.size(), "plan", "{} needs a value", name);
      return arguments[++i];
    };
    if (word == "--ranks" || word.starts_with("--ranks="))
      ranks = parse_ranks(value("--ranks"));
    else if (word == "--machine" || word.starts_with("--machine="))
      overrides.insert(overrides.end(), {"--parallel.machine", value("--machine")});
    else
      overrides.push_back(word);
  }
  check(ranks >= 1, "plan", "expected --ranks N, the number of ranks to plan for");
  const Config config = parse_config(arguments[0], overrides);
  fmt::print("{}", print(make_plan(config, ranks, machine_of(config))));
  return 0;
}

}  // namespace transmamba
