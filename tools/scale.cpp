// transmamba scale: how fast training is on more and more ranks, beside what the plan predicts.
#include <fmt/core.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <ctime>

#include "launch/child_process.h"
#include "launch/host.h"
#include "tools/commands.h"
#include "tools/scale/driver.h"

namespace transmamba {
namespace {

std::string now() {
  const std::time_t time = std::time(nullptr);
  std::tm utc{};
  gmtime_r(&time, &utc);
  std::array<char, 64> text{};
  return {text.data(), std::strftime(text.data(), text.size(), "%Y-%m-%d %H:%M UTC", &utc)};
}

/// Before anything runs: a folder to write to, and something that starts ranks.
std::filesystem::path prepare_folder(const ScaleOptions& o) {
  if (!o.ranks.empty())
    check(!find_program(o.launcher[0]).empty(), "scale",
          "--launcher: there is no program {} that could start ranks", o.launcher[0]);
  std::error_code error;
  std::filesystem::path folder = std::filesystem::absolute(o.output);
  std::filesystem::create_directories(folder, error);
  check(!error && std::filesystem::is_directory(folder) && access(folder.c_str(), W_OK) == 0, "scale",
        "--output: cannot write to the folder {}: {}", folder.string(),
        error ? error.message() : std::strerror(errno));
  return folder;
}

void print_dry(const ScaleReport& report, const std::filesystem::path& folder) {
  for (const ScaleRun& run : report.sweep.runs) {
    fmt::print("{}\n", run.name);
    if (!run.impossible.empty()) {
      fmt::print("  not possible: {}\n", run.impossible);
      continue;
    }
    const StepTime& t = run.predicted->step;
    fmt::print(
        "  {}\n  predicted: {:.4g} s a step, {:.0f} tokens/s; compute {:.4g}, tp {:.4g}, cp {:.4g}, pp "
        "{:.4g}, dp "
        "{:.4g}, optimizer {:.4g} s; {:.1f} MiB\n",
        shell_words(run_command_of(run, report.launcher, folder)), t.total(), run.tokens() / t.total(),
        t.compute, t.tp, t.cp, t.pp, t.dp, t.optimizer, run.predicted->memory_most / (1 << 20));
  }
}

void print_carried_on(const ScaleReport& report) {
  if (!report.cluster) return;
  fmt::print("predicted for {}:\n", report.cluster->name);
  for (const CarriedOn& c : report.carried_on)
    if (c.impossible.empty())
      fmt::print(
          "  {} {} {:>5} ranks = tp {} x cp {} x dp {} x pp {}: {:.4g} s, {:.0f} tokens/s, efficiency {:.1f} "
          "%\n",
          c.size, c.mode, c.ranks, c.mesh.tp, c.mesh.cp, c.mesh.dp, c.mesh.pp, c.predicted.step.total(),
          c.tokens_per_second(), 100 * c.efficiency);
    else
      fmt::print("  {} {} {:>5} ranks: not possible: {}\n", c.size, c.mode, c.ranks, c.impossible);
}

}  // namespace

int scale(Process& process, std::vector<std::string> arguments) {
  if (arguments.empty() || is_help(arguments[0]) || arguments[0].starts_with("--"))
    return print_usage(process, kScaleUsage, arguments);
  // One that has called MPI_Init must not start mpirun, and would hand down what makes a process a rank.
  check(!process.was_launched(), "scale",
        "expected to be started without mpirun or srun, which this command starts itself (--launcher says "
        "how)");
  const ScaleOptions options = parse_scale_options(arguments);
  std::vector<ScaleSize> sizes = scale_sizes(options);
  ScaleReport report;
  if (!options.cluster.empty()) report.cluster = Cluster::load(options.cluster);
  const std::filesystem::path folder =
      options.dry_run ? std::filesystem::absolute(options.output) : prepare_folder(options);

  ScaleData data(sizes, folder / "random-tokens.h5");
  arguments.insert(arguments.begin(), {this_program().string(), "scale"});
  report.command = shell_words(arguments);
  report.date = now(), report.host = host_name(), report.processor = processor_name();
  report.machine = machine_of(sizes[0].config);
  report.launcher = options.launcher;
  report.data = data.in_words();
  report.sweep = make_sweep(options, sizes, folder / "runs");
  if (report.cluster)
    report.carried_on =
        carry_on(*report.cluster, sizes, options.modes, options.ranks.empty() ? 1 : options.ranks.front());
  if (options.dry_run) {
    print_dry(report, folder);
    print_carried_on(report);
    return 0;
  }
  if (options.resume) take_over_rounds(folder / "scale.json", report);
  std::int64_t longest = 0;
  for (const ScaleRun& run : report.sweep.runs) longest = std::max(longest, run.config.train.seq_len);
  if (longest > 0) data.write(longest);
  const bool good = run_sweep(options, folder, report);
  print_carried_on(report);
  fmt::print("written: {} and {}\n", (folder / "scale.json").string(), (folder / "scale.html").string());
  return good ? 0 : 1;
}

}  // namespace transmamba
