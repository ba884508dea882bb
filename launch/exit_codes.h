// How a command of transmamba ends, for those who start it: scripts, SLURM, `transmamba launch`.
#pragma once

#include "kernels/check.h"

namespace transmamba {

enum ExitCode : int {
  kExitDone = 0,
  kExitFailed = 1,    ///< an error, which one line on stderr names; the same start would meet it again
  kExitUsage = 2,     ///< words on the command line that say nothing; nothing was begun
  kExitLost = 76,     ///< a rank is gone, hangs or came too late: the same start may well succeed
  kExitStopped = 75,  ///< a signal asked a training run to stop: it has saved, and goes on when started again
  /// Too many bad steps in a row: the run has saved what its last fine step left, and is not to be started
  /// again as it is.
  kExitDiverged = 77,
};
// A rank that a signal ends at once, as a second one does, has 128 and the signal's number, as in shells:
// that is also what mpirun and srun give when a rank is killed.
inline constexpr int kExitSignal = 128;

/// The Error that ends a command with kExitDiverged.
class Diverged : public Error {
 public:
  using Error::Error;
};

}  // namespace transmamba
