// What `transmamba launch` was asked for.
#pragma once

#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "core/config.h"
#include "launch/mpirun.h"
#include "launch/slurm.h"

namespace transmamba {

struct LaunchOptions {
  std::filesystem::path config;  ///< absolute
  int ranks = 0;                 ///< of all hosts; 0: what the configuration asks for
  bool slurm = false;            ///< else mpirun
  bool dry_run = false;

  // SLURM
  int nodes = 0, ranks_per_node = 0, gpus_per_node = 0, cpus_per_rank = 0;
  std::string mpi;                                          ///< of `srun --mpi=`; empty: what fits
  std::filesystem::path script;                             ///< a template of the user's; empty: ours
  std::vector<std::pair<std::string, std::string>> sbatch;  ///< further options

  // mpirun
  std::vector<HostSlots> hosts;  ///< empty: here

  std::vector<std::string> overrides;  ///< of the configuration: --section.key value
};

/// The words after `launch`. Throws Error for what is wrong with them.
LaunchOptions parse_launch_options(const std::vector<std::string>& words);

/// What is to be run: `first`, and `again` where it goes on from what an earlier start saved. Throws Error
/// where the configuration is wrong, wants another number of ranks, or could not go on.
struct LaunchPlan {
  Config config;
  int ranks = 0;
  std::vector<std::string> first, again;  ///< words of a rank's command
};
LaunchPlan plan_launch(const LaunchOptions& options, const std::filesystem::path& program);

/// The script for SLURM, whose log is slurm-JOB.log in the folder of the checkpoints.
std::string job_script(const LaunchOptions& options, const LaunchPlan& plan, const std::string& mpi);

extern const char* const kLaunchUsage;

}  // namespace transmamba
