// Jobs of SLURM: their script, how ranks find each other in them, and how they are followed.
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace transmamba {

extern const char* const kSlurmCpuTemplate;  ///< launch/slurm/cpu.sbatch
extern const char* const kSlurmGpuTemplate;  ///< launch/slurm/gpu.sbatch

/// What of a template is filled in.
struct SlurmJob {
  std::vector<std::pair<std::string, std::string>> options;  ///< sbatch's: {"nodes", "4"}
  std::vector<std::string> run;                              ///< words of a rank's command
  std::string mpi;                                           ///< of `srun --mpi=`
  std::int64_t max_restarts = 0;
};

/// The script: an option's line is replaced, or added after the others; `run=`, `mpi=` and `max_restarts=`
/// get their values. Throws Error where the template has no such lines.
std::string fill_in(const std::string& text, const SlurmJob& job);

/// How ranks will find each other, of `srun --mpi=list` (offered) and `ompi_info --parsable` (ours; empty
/// where it is not known): "pmix" before "pmi2". Throws Error where srun offers nothing that this MPI speaks.
std::string choose_pmi(const std::string& offered, const std::string& ours);

/// What the two programs say here, for choose_pmi. Throws Error where there is no srun, or it says nothing.
std::string choose_pmi_here();

/// Submits a script. Returns the job's number. Throws Error, with what to do about it, where SLURM refuses.
std::string submit(const std::filesystem::path& script);

/// What `scontrol show job -o` says of one.
struct JobState {
  std::string state, reason, log;
  int exit_code = 0;  ///< 128 and the signal's number where one ended it
  int restarts = 0;
  bool is_over() const;
};
JobState parse_job_state(const std::string& text);

/// Shows a job's log, and what becomes of the job, until it is over. Returns its exit code.
int follow(const std::string& job);

/// What stands behind an error of SLURM's programs, and what to do; empty where it is not known.
std::string explain_slurm(const std::string& errors);

}  // namespace transmamba
