// The threads of one process as ranks: every mesh of a few ranks runs in one test, without a launcher.
#pragma once

#include <functional>

#include "parallel/comm/communicator.h"

namespace transmamba {

/// Runs `rank_main` in `ranks` threads at once, each with its own world communicator and Recorder, and
/// returns when all have ended.
///
/// If one throws, if calls do not fit each other, or if all ranks that still run wait for something that
/// cannot come any more, then every rank's current or next call throws, and after the last thread has ended
/// this throws one Error: the first. It never waits for a time to pass to find out.
void run_as_threads(int ranks, const std::function<void(Communicator& world)>& rank_main);

}  // namespace transmamba
