// One process of a run: how it starts, which one it is, and how it ends.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "parallel/comm/communicator.h"

namespace transmamba {

/// Where a launcher (mpirun, srun) started this process MPI is initialised, for calls from one thread;
/// elsewhere it is not touched, and this is rank 0 of 1. At most one a process.
class Process {
 public:
  Process();
  ~Process();  ///< waits for the other processes, as MPI_Finalize does
  Process(const Process&) = delete;
  Process& operator=(const Process&) = delete;

  bool was_launched() const { return mpi_ != nullptr; }  ///< by mpirun or srun, which may be of one process
  int rank() const { return rank_; }
  std::string name() const;  ///< for people: "rank 1", and its host where there are several
  int size() const { return size_; }
  int local_rank() const { return local_rank_; }  ///< among those on this host
  int local_size() const { return local_size_; }
  /// How many processes of this run may use the cores that this one may use, itself included.
  int ranks_on_cores() const { return ranks_on_cores_; }

  /// All processes. A collective call.
  std::unique_ptr<Communicator> world(double timeout_seconds,
                                      std::shared_ptr<Recorder> recorder = nullptr) const;

  /// Ends this process, and all others wherever they are, after one of them has printed its message. Returns
  /// `code` where all fail together; otherwise the run is aborted with it here.
  int end_with(const std::string& message, int code);

 private:
  bool all_fail(bool& lower_failed);
  struct Mpi;
  std::unique_ptr<Mpi> mpi_;        // null without a launcher
  std::vector<std::string> hosts_;  // by rank; empty: all on this one
  int rank_ = 0, size_ = 1, local_rank_ = 0, local_size_ = 1, ranks_on_cores_ = 1;
};

/// Runs a command as a process of a run and gives its exit code. What it throws becomes one line on stderr,
/// of one rank, and exit code 1 of all (76, 77: launch/exit_codes.h), also where its output could not be
/// written.
int run_command(const std::function<int(Process&)>& command);

}  // namespace transmamba
