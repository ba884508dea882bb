// transmamba bench: measures this machine, for plans and for the balance of layouts and stages.
#include <fmt/core.h>

#include <charconv>

#include "launch/host.h"
#include "launch/measure.h"
#include "launch/session.h"
#include "parallel/comm/agree.h"
#include "tools/commands.h"

namespace transmamba {
namespace {

constexpr auto kUsage =
    "usage: transmamba bench --quick [--output FILE] [--config CONFIG] [--seconds N] [--dtype TYPE]\n"
    "                        [--threads N] [--section.key value ...]\n"
    "       transmamba bench kernels [...], which `transmamba bench kernels --help` describes\n"
    "       transmamba bench comm [...], of the messages between ranks; `transmamba bench comm --help`\n"
    "       transmamba bench handoff [...], of SSM states beside activations; `transmamba bench handoff "
    "--help`\n\n"
    "Measures every kernel of a model at a few sizes, in about 20 seconds, and fits what each costs; started "
    "by\n"
    "mpirun or srun, on all ranks at once, and what the ranks' messages cost too. Start as many ranks on a "
    "host\n"
    "as a run will have there. Beside the fit it prints sizes that were not fitted, measured and predicted. "
    "The\n"
    "file is for --parallel.machine and `transmamba plan --machine`.\n\n"
    "  --quick          this measurement\n"
    "  --output FILE    where to write the numbers (default machine.json)\n"
    "  --config CONFIG  the run whose shapes to measure\n"
    "  --seconds N      how long to measure, about (default 20)\n"
    "  --dtype TYPE     float32, float64 or, on a GPU, bfloat16; the same as --train.dtype\n"
    "  --threads N      cores a rank will have; the same as --train.threads\n"
    "  --section.key    the model's shape, e.g. --model.hidden_size 512 --train.seq_len 2048\n";

double parse_seconds(const std::string& word) {
  double seconds = 0;
  const char* end = word.data() + word.size();
  const auto [stop, error] = std::from_chars(word.data(), end, seconds);
  check(error == std::errc() && stop == end && seconds > 0 && seconds <= 86400, "bench",
        "--seconds: expected a number above 0 and at most 86400, got \"{}\"", word);
  return seconds;
}

}  // namespace

int bench(Process& process, std::vector<std::string> arguments) {
  if (arguments.empty() || is_help(arguments[0])) return print_usage(process, kUsage, arguments);
  if (arguments[0] == "comm") return bench_comm(process, {arguments.begin() + 1, arguments.end()});
  if (arguments[0] == "handoff") return bench_handoff(process, {arguments.begin() + 1, arguments.end()});
  if (arguments[0] == "kernels") return bench_kernels(process, {arguments.begin() + 1, arguments.end()});
  bool quick = false;
  std::string output = "machine.json", file;
  double seconds = 20;
  std::vector<std::string> overrides;
  for (std::size_t i = 0; i < arguments.size(); ++i) {
    const std::string& word = arguments[i];
    const auto value = [&] {
      check(i + 1 < arguments.size(), "bench", "{} needs a value", word);
      return arguments[++i];
    };
    if (word == "--quick")
      quick = true;
    else if (word == "--output")
      output = value();
    else if (word == "--config")
      file = value();
    else if (word == "--seconds")
      seconds = parse_seconds(value());
    else if (word == "--dtype")
      overrides.insert(overrides.end(), {"--train.dtype", value()});
    else if (word == "--threads")
      overrides.insert(overrides.end(), {"--train.threads", value()});
    else
      overrides.push_back(word);
  }
  check(quick, "bench", "expected --quick, kernels, comm or handoff, the kinds of measurement there are");
  const Config config = parse_config(file, overrides);
  Session session(config.train, process);
  const Context& context = session.context();
  const auto world = session.world(process, static_cast<double>(config.parallel.timeout));

  // About 130 measurements, of kernels and of links; each has its warm-up and its memory to fill.
  const double each = seconds / 130;
  std::vector<FitCheck> checks;
  Machine machine = measure_machine(context, config, *world, each, checks);
  const std::string links =
      measure_links(context, *world, host_name(), config.parallel.copy_engines, each, machine, checks);
  machine.name = host_name();
  machine.measured_on = fmt::format(
      "{}, {} rank{} of {} thread{}, hidden {}, {} heads of {} and {}, {} tokens; {}",
      session.gpu() ? session.gpu()->name : processor_name(), world->size(), world->size() == 1 ? "" : "s",
      context.stream.threads, context.stream.threads == 1 ? "" : "s", config.model.hidden_size,
      config.model.num_heads, config.model.qk_head_dim, config.model.v_head_dim, config.train.seq_len, links);
  agree(*world, "machine file", [&] {
    if (world->rank() == 0) machine.save(output);
  });
  if (world->rank() != 0) return 0;
  fmt::print("{}", format_checks(checks));
  fmt::print(
      "\nmatrix products: up to {:.1f} GFLOP/s a rank\n{}\nwritten to {}; use it with --parallel.machine "
      "{}\n",
      machine.gemm_flop > 0 ? 1e-9 / machine.gemm_flop : 0, links, output, output);
  return 0;
}

}  // namespace transmamba
