// Signals that ask a run to stop.
#pragma once

namespace transmamba {

/// While it lives SIGTERM, SIGINT and SIGUSR1 are remembered instead of ending the process: SLURM sends one
/// before a time limit, mpirun passes SIGUSR1 on to all ranks. A second one, half a second after the first or
/// later, ends the process at once with kExitSignal + its number (launch/exit_codes.h). Not earlier, for what
/// a launcher and a process group pass on may come twice. At most one at a time in a process.
class StopSignals {
 public:
  StopSignals();
  ~StopSignals();  ///< what was there before is back, unless ignore() was called
  StopSignals(const StopSignals&) = delete;
  StopSignals& operator=(const StopSignals&) = delete;

  bool requested() const { return number() != 0; }
  int number() const;  ///< of the first signal; 0: none yet
  /// From now on none does anything: all is saved, and an exit code under way.
  void ignore();

 private:
  bool ignored_ = false;
};

}  // namespace transmamba
