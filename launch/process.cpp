#include "launch/process.h"

#define OMPI_SKIP_MPICXX 1
#include <mpi.h>
#include <sched.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <new>
#include <thread>
#include <vector>

#include "launch/exit_codes.h"
#include "launch/host.h"
#include "parallel/comm/mpi.h"

namespace transmamba {
namespace {

using Clock = std::chrono::steady_clock;
constexpr int kFailed = 1;  // tag
/// How long a failing rank waits for the others to fail too. All that read one bad configuration do within
/// this.
constexpr std::chrono::milliseconds kTogether{1000};
/// How long one that leaves the message to another waits for its end.
constexpr std::chrono::seconds kEnd{5};

/// Asked before MPI is: without a launcher MPI_Init would start helpers of its own, and may fail.
bool has_launcher() {
  for (const char* name : {"OMPI_COMM_WORLD_SIZE", "PMIX_RANK", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"})
    if (std::getenv(name)) return true;
  return false;
}

/// Tasks that srun started without a way to find each other: each would be a run of its own, all alike.
void check_not_one_of_several() {
  const auto number = [](const char* name) {
    const char* const text = std::getenv(name);
    return text ? std::atoi(text) : 0;
  };
  const int tasks = number("SLURM_STEP_NUM_TASKS");
  if (tasks <= 1) return;
  if (number("SLURM_PROCID") != 0) std::_Exit(kExitFailed);  // the first one says it
  fail("srun",
       "{} tasks on {} and other hosts, if any, that cannot find each other: expected `srun --mpi=pmix`, or "
       "pmi2 where MPI is built for it, of what `srun --mpi=list` has; where it has neither, start ranks by "
       "mpirun; one rank on purpose wants SLURM_STEP_NUM_TASKS unset",
       tasks, host_name());
}

void pause() { std::this_thread::sleep_for(std::chrono::milliseconds(1)); }

void print_error(const std::string& text) {
  std::fflush(stdout);
  std::fputs(fmt::format("transmamba: {}\n", text).c_str(), stderr);  // fmt::print throws on a full disk
  std::fflush(stderr);
}

/// Processes of this host whose cores overlap ours. A launcher that binds gives each its own: then there is
/// nothing to share. Where the whole job is confined (a container, a SLURM step) all have the same few.
int count_sharing(MPI_Comm host, int size) {
  cpu_set_t mine;
  CPU_ZERO(&mine);
  if (sched_getaffinity(0, sizeof mine, &mine) != 0) return size;
  std::vector<cpu_set_t> all(static_cast<std::size_t>(size));
  MPI_Allgather(&mine, sizeof mine, MPI_BYTE, all.data(), sizeof mine, MPI_BYTE, host);
  int sharing = 0;
  for (cpu_set_t& theirs : all) {
    cpu_set_t both;
    CPU_AND(&both, &mine, &theirs);
    sharing += CPU_COUNT(&both) > 0;
  }
  return std::max(sharing, 1);
}

std::vector<std::string> gather_hosts(int size) {
  using Name = std::array<char, 64>;
  Name mine{};
  const std::string name = host_name();
  std::copy_n(name.begin(), std::min(name.size(), mine.size() - 1), mine.begin());
  std::vector<Name> all(static_cast<std::size_t>(size));
  MPI_Allgather(mine.data(), sizeof mine, MPI_CHAR, all.data(), sizeof mine, MPI_CHAR, MPI_COMM_WORLD);
  std::vector<std::string> hosts;
  for (const Name& host : all) hosts.emplace_back(host.data());
  return hosts;
}

}  // namespace

struct Process::Mpi {
  MPI_Comm failures = MPI_COMM_NULL;  // made at the start: once something is wrong nothing can be agreed on
};

Process::Process() {
  if (!has_launcher()) return;
  int provided = 0;
  check(MPI_Init_thread(nullptr, nullptr, MPI_THREAD_FUNNELED, &provided) == MPI_SUCCESS &&
            provided >= MPI_THREAD_FUNNELED,
        "mpi", "MPI_Init_thread: expected MPI_THREAD_FUNNELED, got level {}", provided);
  mpi_ = std::make_unique<Mpi>();
  MPI_Comm_rank(MPI_COMM_WORLD, &rank_), MPI_Comm_size(MPI_COMM_WORLD, &size_);
  MPI_Comm_dup(MPI_COMM_WORLD, &mpi_->failures);
  MPI_Comm host = MPI_COMM_NULL;
  MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, rank_, MPI_INFO_NULL, &host);
  MPI_Comm_rank(host, &local_rank_), MPI_Comm_size(host, &local_size_);
  ranks_on_cores_ = count_sharing(host, local_size_);
  MPI_Comm_free(&host);
  if (local_size_ < size_) hosts_ = gather_hosts(size_);
}

Process::~Process() {
  if (mpi_) MPI_Finalize();
}

std::string Process::name() const {
  return fmt::format("rank {}{}", rank_,
                     hosts_.empty() ? "" : " on " + hosts_[static_cast<std::size_t>(rank_)]);
}

std::unique_ptr<Communicator> Process::world(double timeout_seconds,
                                             std::shared_ptr<Recorder> recorder) const {
  if (mpi_) return mpi_world(std::move(recorder), timeout_seconds, {}, hosts_);
  check_not_one_of_several();
  return self_communicator("world", std::move(recorder));
}

/// Tells all others that this rank fails, and hears who else does.
bool Process::all_fail(bool& lower_failed) {
  const auto others = static_cast<std::size_t>(size_ - 1);
  // Where not all of them are taken the run is aborted, so these may be left to MPI.
  std::vector<MPI_Request> sends;
  static const char nothing = 0;
  for (int peer = 0; peer < size_; ++peer)
    if (peer != rank_) MPI_Isend(&nothing, 0, MPI_BYTE, peer, kFailed, mpi_->failures, &sends.emplace_back());
  std::size_t heard = 0;
  int sent = 0;
  for (const auto start = Clock::now(); Clock::now() - start < kTogether; pause()) {
    for (int there = 1; there;) {
      MPI_Status status;
      MPI_Iprobe(MPI_ANY_SOURCE, kFailed, mpi_->failures, &there, &status);
      if (!there) break;
      MPI_Recv(nullptr, 0, MPI_BYTE, status.MPI_SOURCE, kFailed, mpi_->failures, MPI_STATUS_IGNORE);
      ++heard;
      lower_failed |= status.MPI_SOURCE < rank_;
    }
    MPI_Testall(static_cast<int>(sends.size()), sends.data(), &sent, MPI_STATUSES_IGNORE);
    if (heard == others && sent) return true;
  }
  return false;
}

int Process::end_with(const std::string& message, int code) {
  if (size_ == 1) {
    print_error(message);
    return code;
  }
  bool lower_failed = false;
  if (all_fail(
          lower_failed)) {  // a bad configuration, say: an orderly end without MPI's words about an abort
    if (rank_ == 0) print_error(name_host(message, hosts_));
    return code;
  }
  // The lowest of those that failed speaks, and its abort ends the others.
  if (lower_failed)
    std::this_thread::sleep_for(kEnd);
  else
    print_error(name_host(fmt::format("rank {}: {}", rank_, message), hosts_));
  std::this_thread::sleep_for(std::chrono::milliseconds(50));  // for the launcher to pass the line on
  MPI_Abort(MPI_COMM_WORLD, code);
  std::_Exit(code);
}

int run_command(const std::function<int(Process&)>& command) {
  // Past a file size limit, writes fail with an error instead of killing the process.
  std::signal(SIGXFSZ, SIG_IGN);
  std::unique_ptr<Process> process;
  std::string message;
  int code = kExitFailed;
  try {
    process = std::make_unique<Process>();
    const int result = command(*process);
    const bool written = std::fflush(stdout) == 0 && std::ferror(stdout) == 0;
    check(written, "output", "standard output could not be written");
    return result;
  } catch (const std::bad_alloc&) {
    message = "[memory] out of memory; a smaller train.micro_batch or train.seq_len needs less";
  } catch (const LostRank& error) {
    message = error.what(), code = kExitLost;
  } catch (const Diverged& error) {
    message = error.what(), code = kExitDiverged;
  } catch (const Error& error) {
    message = error.what();
  } catch (const std::exception& error) {  // of the standard library: a file system, say
    message = fmt::format("[system] {}", error.what());
  }
  if (process) return process->end_with(message, code);
  print_error(message);
  return code;
}

}  // namespace transmamba
