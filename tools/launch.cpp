// transmamba launch: training on all ranks, here, on other hosts, or as a job of SLURM.
#include <fmt/core.h>

#include <cerrno>
#include <cstring>
#include <fstream>

#include "launch/child_process.h"
#include "launch/host.h"
#include "tools/commands.h"
#include "tools/launch/options.h"

namespace transmamba {
namespace {

std::vector<std::string> joined(std::vector<std::string> words, const std::vector<std::string>& more) {
  words.insert(words.end(), more.begin(), more.end());
  return words;
}

int launch_job(const LaunchOptions& options, const LaunchPlan& plan) {
  const std::string mpi = options.mpi.empty() ? choose_pmi_here() : options.mpi;
  const std::string text = job_script(options, plan, mpi);
  const std::filesystem::path folder = std::filesystem::absolute(plan.config.checkpoint.path);
  const std::filesystem::path script = folder / "launch.sbatch";
  if (options.dry_run) {
    fmt::print("would write {} and run: sbatch {}\n\n{}", script.string(), shell_words({script.string()}),
               text);
    return 0;
  }
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  std::ofstream out(script, std::ios::trunc);
  out << text << std::flush;
  check(out.good(), "launch", "{}: cannot write on {}: {}", script.string(), host_name(),
        std::strerror(errno));
  const std::string job = submit(script);
  fmt::print("launch: job {} of {} nodes with {} ranks each, by srun --mpi={}: {}\n", job, options.nodes,
             options.ranks_per_node, mpi, script.string());
  fmt::print("launch: its log follows; Ctrl-C leaves the log, `scancel {}` ends the job\n", job);
  return follow(job);
}

int launch_mpirun(const LaunchOptions& options, const LaunchPlan& plan) {
  const std::vector<std::string> start = mpirun_words(plan.ranks, options.hosts);
  const std::vector<std::string> first = joined(start, plan.first);
  if (options.dry_run) {
    fmt::print("{}\n", shell_words(first));
    return 0;
  }
  check(!find_program("mpirun").empty(), "launch",
        "there is no mpirun on {}, which starts ranks: install Open MPI (Debian: openmpi-bin), or submit to "
        "SLURM by "
        "--nodes N",
        host_name());
  return run_with_restarts(first, joined(start, plan.again), plan.config.train.max_restarts);
}

}  // namespace

int launch(Process& process, std::vector<std::string> arguments) {
  if (arguments.empty() || is_help(arguments[0]) || arguments[0].starts_with("-"))
    return print_usage(process, kLaunchUsage, arguments);
  check(!process.was_launched(), "launch",
        "expected to be started without mpirun or srun, which this command starts itself");
  const LaunchOptions options = parse_launch_options(arguments);
  const LaunchPlan plan = plan_launch(options, this_program());
  return options.slurm ? launch_job(options, plan) : launch_mpirun(options, plan);
}

}  // namespace transmamba
