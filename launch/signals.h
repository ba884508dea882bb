// Signals that ask a run to stop.
#pragma once

namespace transmamba {

/// While it lives SIGTERM, SIGINT and SIGUSR1 are remembered instead of ending the process: SLURM sends one
/// before a time limit, mpirun passes SIGUSR1 on to all ranks. A second one, half a second after the first or
/// later, ends the process at once with kExitSignal + its number (launch/exit_codes.h), or is counted. Not
/// earlier, for what a launcher and a process group pass on may come twice. At most one at a time in a
/// process.
class StopSignals {
 public:
  enum class Second { ends, counts };
  /// Where a second one ends the process, a system call that a signal interrupts goes on by itself; where it
  /// counts, the call fails with EINTR, so that whoever passes signals on hears of one at once.
  explicit StopSignals(Second second = Second::ends);
  ~StopSignals();  ///< what was there before is back, unless ignore() was called
  StopSignals(const StopSignals&) = delete;
  StopSignals& operator=(const StopSignals&) = delete;

  bool requested() const { return number() != 0; }
  int number() const;  ///< of the first signal; 0: none yet
  int count() const;   ///< those within half a second of one that counts are one with it
  /// From now on none does anything: all is saved, and an exit code under way.
  void ignore();

 private:
  bool ignored_ = false;
};

}  // namespace transmamba
