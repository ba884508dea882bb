// How a command of transmamba ends, for those who start it: scripts, SLURM, `transmamba launch`.
#pragma once

namespace transmamba {

enum ExitCode : int {
  kExitDone = 0,
  kExitFailed = 1,    ///< an error, which one line on stderr names; the same start would meet it again
  kExitUsage = 2,     ///< words on the command line that say nothing; nothing was begun
  kExitLost = 76,     ///< a rank is gone, hangs or came too late: the same start may well succeed
  kExitStopped = 75,  ///< a signal asked a training run to stop: it has saved, and goes on when started again
};
// A rank that a signal ends at once, as a second one does, has 128 and the signal's number, as in shells:
// that is also what mpirun and srun give when a rank is killed.
inline constexpr int kExitSignal = 128;

}  // namespace transmamba
